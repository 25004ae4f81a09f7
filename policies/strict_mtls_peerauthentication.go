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
	names, err := reach(after, r.Namespace, g)
	if err != nil {
		return nil, err
	}
	var lost []hole
	for _, name := range names {
		lost = append(lost, regressions(before, after, name)...)
	}
	var found []Finding
	for _, group := range groupHoles(lost) {
		h := group.holes[0]
		found = append(found, Finding{
			Reason:  reasonPolicyWeakensMTLS(),
			Type:    metav1.CauseTypeForbidden,
			Field:   changedField(r.Operation, old, pa, h),
			Message: fmt.Sprintf("%s makes %s%s; must stay STRICT", verb(r.Operation), group.text(), because(after, h)),
			Remedy:  weakenRemedy(after, pa, h),
		})
	}
	if len(lost) > 0 {
		return found, nil
	}
	found = append(found, stillNotStrict(after, names)...)
	if pa != nil && pa.Mode == mesh.ModeStrict {
		found = append(found, hasNoEffect(after, pa, names)...)
	}
	return found, nil
}

// reach returns the guarded namespaces that a policy in the given namespace can
// count for: all when it lies in a mesh root namespace, else its own.
func reach(c *facts.Cluster, namespace string, g *facts.Guard) ([]string, error) {
	if slices.Contains(c.RootNamespaces(), namespace) {
		return guardedNamespaces(c, g), nil
	}
	ns := c.Namespaces[namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the PeerAuthentication", ErrMissingFact, namespace)
	}
	if ns.Terminating || !c.Selects(g, ns.Name, ns.Labels) {
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

// changedField is the part of the object that opened the hole.
func changedField(op admissionv1.Operation, old, pa *mesh.PeerAuthentication, h hole) string {
	switch {
	case op == admissionv1.Delete:
		return "metadata.name"
	case h.decider != nil && h.decider.Key() == pa.Key() && h.port != 0 && pa.Ports[h.port] != mesh.ModeUnset:
		return fmt.Sprintf("spec.portLevelMtls[%d].mode", h.port)
	case h.decider != nil && h.decider.Key() == pa.Key():
		return "spec.mtls.mode"
	case old != nil && (old.HasRevision != pa.HasRevision || old.Revision != pa.Revision):
		return "metadata.labels[istio.io/rev]"
	case old != nil && !maps.Equal(old.Selector, pa.Selector):
		return "spec.selector.matchLabels"
	case h.port != 0 && old != nil && old.Ports[h.port] != pa.Ports[h.port]:
		return "spec.portLevelMtls"
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
func weakenRemedy(c *facts.Cluster, pa *mesh.PeerAuthentication, h hole) string {
	switch {
	case pa == nil || h.decider == nil || h.decider.Key() != pa.Key():
		if h.decider != nil {
			return remedy(c, h)
		}
		return fmt.Sprintf("first apply another PeerAuthentication with mode STRICT that covers the namespace: without a selector in it, or in %s", h.view.controlPlane.RootNamespace)
	case h.port != 0:
		return fmt.Sprintf("set the mode of port %d to STRICT or leave the port out", h.port)
	default:
		return "set spec.mtls.mode to STRICT, or to UNSET where the policies above it are STRICT"
	}
}

// stillNotStrict reports the namespaces that a change leaves open.
func stillNotStrict(c *facts.Cluster, names []string) []Finding {
	var open []hole
	for _, name := range names {
		if ns := c.Namespaces[name]; ns != nil {
			open = append(open, holes(c, ns)...)
		}
	}
	if len(open) == 0 {
		return nil
	}
	return []Finding{{
		Reason:   reasonStillNotStrict(),
		Severity: Notice,
		Type:     metav1.CauseTypeForbidden,
		Message:  fmt.Sprintf("%s, before and after this change%s; must be STRICT", groupHoles(open)[0].textIs(), because(c, open[0])),
		Remedy:   remedy(c, open[0]),
	}}
}

// hasNoEffect reports a STRICT policy that its author will think is applied.
func hasNoEffect(c *facts.Cluster, pa *mesh.PeerAuthentication, names []string) []Finding {
	if len(names) == 0 {
		return nil
	}
	reason, ineffective := inert(c, pa)
	if !ineffective {
		return nil
	}
	return []Finding{{
		Reason:   reasonPolicyHasNoEffect(),
		Severity: Notice,
		Type:     metav1.CauseTypeForbidden,
		Message:  fmt.Sprintf("PeerAuthentication %s has no effect: %s", pa.Key(), reason),
		Remedy:   "see that the policy which wins is STRICT too, or remove one of them",
	}}
}
