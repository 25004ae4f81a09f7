package policies

import (
	"fmt"
	"maps"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgePeerAuthentication judges a change of a PeerAuthentication by what it
// would do: the change is applied to the facts, and what Istio makes of them
// before and after is compared for every namespace the policy can reach.
func judgePeerAuthentication(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	old, pa, err := sides[mesh.PeerAuthentication](r)
	if err != nil {
		return nil, err
	}
	before := &r.Cluster
	if old != nil {
		// The request's own view of the old object wins over the snapshot's.
		before = withPolicy(before, old, old)
	}
	after := withPolicy(before, old, pa)
	names, err := reach(&r.Cluster, r.Namespace, g)
	if err != nil {
		return nil, err
	}
	var lost []hole
	// A policy that is being deleted already is gone by an earlier decision.
	if pa != nil || !old.Terminating {
		for _, name := range names {
			lost = append(lost, regressions(before, after, name)...)
		}
	}
	var found []Finding
	for _, group := range groupHoles(lost) {
		h := group.holes[0]
		why := group.because(after)
		if pa != nil && h.decider == pa {
			why = "" // the field and the mode say it
		}
		found = append(found, Finding{
			Reason:  reasonPolicyWeakensMTLS(),
			Type:    metav1.CauseTypeForbidden,
			Field:   changedField(old, pa, group),
			Message: fmt.Sprintf("%s makes %s%s; must be STRICT", verb(r.Operation), group.makes(), why),
			Remedy:  weakenRemedy(after, old, pa, group),
		})
	}
	if len(lost) > 0 {
		return atMost(found), nil
	}
	found = append(found, stillNotStrict(after, names)...)
	if pa != nil && pa.Mode == mesh.ModeStrict {
		found = append(found, hasNoEffect(after, pa, names)...)
	}
	return found, nil
}

// reach returns the guarded namespaces that a policy in the given namespace can
// count for: all when it lies in a mesh root namespace, else its own. A
// namespace that is being deleted takes its policies along, the root namespace
// too: holding one of them up would hold up the deletion.
func reach(c *facts.Cluster, namespace string, g *facts.Guard) ([]string, error) {
	ns := c.Namespaces[namespace]
	switch {
	case ns == nil:
		return nil, fmt.Errorf("%w: namespace %q of the PeerAuthentication", ErrMissingFact, namespace)
	case ns.Terminating:
		return nil, nil
	case slices.Contains(c.RootNamespaces(), namespace):
		return guardedNamespaces(c, g), nil
	case !c.Selects(g, ns.Name, ns.Labels):
		return nil, nil
	}
	return []string{namespace}, nil
}

// guardedNamespaces returns the living namespaces of the guard, sorted.
func guardedNamespaces(c *facts.Cluster, g *facts.Guard) []string {
	var names []string
	for name, ns := range c.Namespaces {
		if !ns.Terminating && c.Selects(g, name, ns.Labels) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// changedField is the part of the object that opened the holes.
func changedField(old, pa *mesh.PeerAuthentication, g holeGroup) string {
	h := g.holes[0]
	switch {
	case pa == nil:
		return "metadata.name"
	case h.decider == pa && h.byPort() && len(g.ports) == 1:
		return fmt.Sprintf("spec.portLevelMtls[%d].mode", h.port)
	case h.decider == pa && h.byPort():
		return "spec.portLevelMtls"
	case portChanged(old, pa, h):
		return "spec.portLevelMtls"
	case h.decider == pa:
		return "spec.mtls.mode"
	case old == nil:
		return "spec"
	case old.HasRevision != pa.HasRevision || old.Revision != pa.Revision:
		return "metadata.labels[istio.io/rev]"
	case !maps.Equal(old.Selector, pa.Selector):
		return "spec.selector.matchLabels"
	}
	return "spec.mtls.mode"
}

func verb(op admissionv1.Operation) string {
	switch op {
	case admissionv1.Create:
		return "creating the policy"
	case admissionv1.Delete:
		return "deleting the policy"
	default:
		return "changing the policy"
	}
}

// weakenRemedy is the cheapest way to get what a refused change of a policy
// was probably for.
func weakenRemedy(after *facts.Cluster, old, pa *mesh.PeerAuthentication, g holeGroup) string {
	h := g.holes[0]
	switch {
	case h.decider == pa && h.byPort():
		return fmt.Sprintf("set the mode of %s to STRICT, or take the entry out of spec.portLevelMtls", g.portsText())
	case pa != nil && h.decider == pa && portChanged(old, pa, h):
		return fmt.Sprintf("keep %s in spec.portLevelMtls with mode STRICT", g.portsText())
	case pa != nil && h.decider == pa:
		inherits := *pa
		inherits.Mode = mesh.ModeUnset
		if Strict(withPolicy(after, pa, &inherits), h.namespace) {
			return "set spec.mtls.mode to STRICT, or leave it out to inherit STRICT"
		}
		return "set spec.mtls.mode to STRICT"
	case h.decider != nil:
		return "first " + g.remedy(after)
	case pa == nil && old.Namespace == h.view.controlPlane.RootNamespace:
		return fmt.Sprintf("first apply a PeerAuthentication with spec.mtls.mode STRICT and without a selector in each namespace that needs it, or another one in %q", old.Namespace)
	case pa != nil && !maps.Equal(old.Selector, pa.Selector):
		return "leave spec.selector as it was, or first " + g.remedy(after)
	case pa != nil && pa.Mode < mesh.ModeStrict:
		return "leave spec.mtls.mode at STRICT"
	}
	return "first " + g.remedy(after)
}

// portChanged reports whether the change touches the entry for the hole's port.
func portChanged(old, pa *mesh.PeerAuthentication, h hole) bool {
	return old != nil && old.Ports[h.port] != pa.Ports[h.port]
}

// stillNotStrict reports the namespaces that a change leaves open.
func stillNotStrict(c *facts.Cluster, names []string) []Finding {
	var open []hole
	for _, name := range names {
		open = append(open, holes(c, c.Namespaces[name])...)
	}
	var found []Finding
	for _, group := range groupHoles(open) {
		found = append(found, Finding{
			Reason:   reasonStillNotStrict(),
			Severity: Notice,
			Type:     metav1.CauseTypeForbidden,
			Message:  fmt.Sprintf("after this change %s%s; must be STRICT", group.stands(), group.because(c)),
			Remedy:   group.remedy(c),
		})
	}
	return atMost(found)
}

// hasNoEffect reports a STRICT policy that its author will think is applied. One
// that waits behind another STRICT policy is a sound way to replace that.
func hasNoEffect(c *facts.Cluster, pa *mesh.PeerAuthentication, names []string) []Finding {
	var why inertness
	for _, name := range names {
		ns := c.Namespaces[name]
		for _, v := range views(c, ns, isAmbient(ns.Labels)) {
			in, ineffective := inert(c, v, pa)
			if !ineffective || in.by != nil && strictThroughout(in.by) {
				return nil
			}
			if why.reason == "" {
				why = in
			}
		}
	}
	if why.reason == "" {
		return nil
	}
	return []Finding{{
		Reason:   reasonPolicyHasNoEffect(),
		Severity: Notice,
		Type:     metav1.CauseTypeForbidden,
		Field:    "spec.mtls.mode",
		Message:  "STRICT has no effect: " + why.reason,
		Remedy:   why.remedy,
	}}
}

func strictThroughout(p *mesh.PeerAuthentication) bool {
	for _, m := range p.Ports {
		if m != mesh.ModeStrict && m != mesh.ModeUnset {
			return false
		}
	}
	return p.Mode == mesh.ModeStrict
}
