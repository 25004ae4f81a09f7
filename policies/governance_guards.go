package policies

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// MeshGuard. To demand less is a change that somebody with the verb unguard on the guard
// makes, and says why in an annotation, which stays with the guard and in the audit log.
// To demand more needs nothing but the right to write guards. Where it cannot be told
// which of the two a change is, it counts as the former.

// weakening is a change by which a guard demands less.
type weakening struct {
	field, message string
}

func judgeGuard(r *facts.Review, old, g *v1alpha1.MeshGuard) ([]Finding, error) {
	if old.DeletionTimestamp != nil {
		return nil, nil
	}
	list, err := weakenings(&r.Cluster, old, g)
	if len(list) == 0 || err != nil {
		return nil, err
	}
	var found []Finding
	if !r.MayUnguard[old.Name] {
		for _, w := range list {
			found = append(found, refuse(reasonGuardWeakened(), w.field, w.message,
				fmt.Sprintf("leave it as it was, or ask someone who has the verb unguard on meshguards.meshvakt.io %q", old.Name)))
		}
	}
	field := "metadata.annotations[" + v1alpha1.ChangeReasonAnnotation + "]"
	before := old.Annotations[v1alpha1.ChangeReasonAnnotation]
	switch {
	case g == nil && before == "":
		found = append(found, refuse(reasonChangeReasonMissing(), field, "absent when the guard is deleted; must say why",
			fmt.Sprintf("kubectl annotate meshguard %s %s='…', then delete it", old.Name, v1alpha1.ChangeReasonAnnotation)))
	case g != nil && g.Annotations[v1alpha1.ChangeReasonAnnotation] == "":
		found = append(found, refuse(reasonChangeReasonMissing(), field,
			fmt.Sprintf("absent when the guard is weakened (%s); must say why", fieldsOf(list)), "set the annotation in the same request, with a ticket or a sentence"))
	case g != nil && g.Annotations[v1alpha1.ChangeReasonAnnotation] == before:
		found = append(found, refuse(reasonChangeReasonMissing(), field,
			fmt.Sprintf("%s is the reason of an earlier change, and the guard is weakened (%s); must say why this time", quote(before), fieldsOf(list)), "set the annotation in the same request, with a ticket or a sentence"))
	}
	return found, nil
}

func fieldsOf(list []weakening) string {
	var names []string
	for _, w := range list {
		if !slices.Contains(names, w.field) {
			names = append(names, w.field)
		}
	}
	return strings.Join(names, ", ")
}

// GuardWeakenings counts by what a guard demands less than before; after is nil when it is deleted.
func GuardWeakenings(c *facts.Cluster, before, after *v1alpha1.MeshGuard) (int, error) {
	list, err := weakenings(c, before, after)
	return len(list), err
}

// weakenings lists by what a guard demands less than before; g is nil when it is deleted.
func weakenings(c *facts.Cluster, old, g *v1alpha1.MeshGuard) ([]weakening, error) {
	before, err := facts.NewGuard(old)
	if err != nil {
		return nil, err
	}
	if g == nil {
		return []weakening{{"metadata.name", fmt.Sprintf("deleting the guard takes %s out of it; must be there", namespacesText(guardedNamespaces(c, &before)))}}, nil
	}
	after, err := facts.NewGuard(g)
	if err != nil {
		return nil, err
	}
	w := &weakeningList{}
	w.selector(c, &before, &after)
	w.block("strictMTLS", old.Spec.StrictMTLS != nil, g.Spec.StrictMTLS != nil, func() {
		w.actions("spec.strictMTLS", old.Spec.StrictMTLS.ValidationActions, g.Spec.StrictMTLS.ValidationActions)
	})
	w.block("meshMembership", old.Spec.MeshMembership != nil, g.Spec.MeshMembership != nil, func() { w.membership(old.Spec.MeshMembership, g.Spec.MeshMembership) })
	w.block("sidecarResources", old.Spec.SidecarResources != nil, g.Spec.SidecarResources != nil, func() { w.resources(old.Spec.SidecarResources, g.Spec.SidecarResources) })
	w.block("nodePools", old.Spec.NodePools != nil, g.Spec.NodePools != nil, func() { w.nodes(old.Spec.NodePools, g.Spec.NodePools) })
	w.exceptions(old.Spec.Exceptions, g.Spec.Exceptions)
	w.word("spec.remediation", string(old.Spec.Remediation), string(g.Spec.Remediation), string(v1alpha1.RemediationRestore))
	return w.list, nil
}

type weakeningList struct{ list []weakening }

func (w *weakeningList) add(field, format string, args ...any) {
	w.list = append(w.list, weakening{field, fmt.Sprintf(format, args...)})
}

// block compares the blocks of a policy.
func (w *weakeningList) block(name string, was, is bool, compare func()) {
	switch {
	case was && !is:
		w.add("spec."+name, "absent, so that the guard no longer demands it; must be there")
	case was:
		compare()
	}
}

// selector: what leaves the guard now, and what could be left out of it later.
func (w *weakeningList) selector(c *facts.Cluster, before, after *facts.Guard) {
	var lost []string
	for _, name := range guardedNamespaces(c, before) {
		if !c.Selects(after, name, c.Namespaces[name].Labels) {
			lost = append(lost, name)
		}
	}
	if len(lost) > 0 {
		w.add("spec.namespaceSelector", "%q takes %s out of the guard; must keep selecting them", after.Selector, namespacesText(lost))
		return
	}
	if !selectsAll(before.Selector, after.Selector) {
		w.add("spec.namespaceSelector", "%q selects less than %q; must select all that it selected", after.Selector, before.Selector)
	}
}

// selectsAll reports whether b selects all that a does, by having no condition that a does
// not have.
func selectsAll(a, b labels.Selector) bool {
	have, _ := a.Requirements()
	want, _ := b.Requirements()
	return !slices.ContainsFunc(want, func(r labels.Requirement) bool {
		return !slices.ContainsFunc(have, func(h labels.Requirement) bool { return h.Equal(r) })
	})
}

// actions: what a breach does has become milder.
func (w *weakeningList) actions(at string, before, after []v1alpha1.ValidationAction) {
	strongest := func(actions []v1alpha1.ValidationAction) (most v1alpha1.ValidationAction) {
		for _, a := range actions {
			if most == "" || hardness(a) > hardness(most) {
				most = a
			}
		}
		return most
	}
	if was, is := strongest(before), strongest(after); hardness(is) < hardness(was) {
		w.add(at+".validationActions", "%q where a breach did %q; must contain %q", is, was, was)
	}
}

// word: a setting has ceased to have its stricter value.
func (w *weakeningList) word(field, before, after, strict string) {
	if before == strict && after != strict {
		w.add(field, "%q; must be %q, as it was", after, strict)
	}
}

// added: a list of what is let pass has become longer.
func added[T comparable](w *weakeningList, field string, before, after []T) {
	for _, v := range after {
		if !slices.Contains(before, v) {
			w.add(field, "\"%v\" is let pass, and was not before; must not be in the list", v)
		}
	}
}

func (w *weakeningList) membership(before, after *v1alpha1.MeshMembership) {
	const at = "spec.meshMembership"
	w.actions(at, before.ValidationActions, after.ValidationActions)
	added(w, at+".dataPlanes", before.DataPlanes, after.DataPlanes)
	added(w, at+".proxyImages", before.ProxyImages, after.ProxyImages)
	added(w, at+".proxyMetadata", before.ProxyMetadata, after.ProxyMetadata)
	added(w, at+".injectionTemplates", before.InjectionTemplates, after.InjectionTemplates)
	added(w, at+".envoyFilters", before.EnvoyFilters, after.EnvoyFilters)
	added(w, at+".outbound.ports", before.Outbound.Ports, after.Outbound.Ports)
	added(w, at+".outbound.cidrs", before.Outbound.CIDRs, after.Outbound.CIDRs)
	w.word(at+".probeRewrite", string(before.ProbeRewrite), string(after.ProbeRewrite), string(v1alpha1.ProbeRewriteDeny))
}

func (w *weakeningList) resources(before, after *v1alpha1.SidecarResources) {
	const at = "spec.sidecarResources"
	w.actions(at, before.ValidationActions, after.ValidationActions)
	w.word(at+".mode", string(before.Mode), string(after.Mode), string(v1alpha1.ModeExact))
	w.word(at+".qos", string(before.QoS), string(after.QoS), string(v1alpha1.QoSPreserve))
	w.bound(at+".minimum", before.Minimum, after.Minimum, -1)
	w.bound(at+".maximum", before.Maximum, after.Maximum, 1)
	if before.Concurrency != nil && (after.Concurrency == nil || *after.Concurrency != *before.Concurrency) {
		w.add(at+".concurrency", "not %d; must be as it was", *before.Concurrency)
	}
}

// bound: a bound is gone, or has moved outwards, which is up for 1 and down for -1.
func (w *weakeningList) bound(at string, before, after *v1alpha1.ProxyBound, outwards int) {
	if before == nil {
		return
	}
	if after == nil {
		after = &v1alpha1.ProxyBound{}
	}
	if before.CPU != nil && (after.CPU == nil || after.CPU.Cmp(*before.CPU) == outwards) {
		w.add(at+".cpu", "%s where it was %s; must not be wider", quantityText(after.CPU), quantityText(before.CPU))
	}
	if before.Memory != nil && (after.Memory == nil || after.Memory.Cmp(*before.Memory) == outwards) {
		w.add(at+".memory", "%s where it was %s; must not be wider", quantityText(after.Memory), quantityText(before.Memory))
	}
}

func (w *weakeningList) nodes(before, after *v1alpha1.NodePools) {
	const at = "spec.nodePools"
	w.actions(at, before.ValidationActions, after.ValidationActions)
	w.word(at+".scope", string(before.Scope), string(after.Scope), string(v1alpha1.PlacementAll))
	w.word(at+".controlPlane", string(before.ControlPlane), string(after.ControlPlane), string(v1alpha1.ControlPlaneGuard))
	w.word(at+".unknown", string(before.Unknown), string(after.Unknown), string(v1alpha1.UnknownDeny))
	w.word(at+".onNoNode", string(before.OnNoNode), string(after.OnNoNode), string(v1alpha1.OnNoNodeReject))
	w.word(at+".steering", string(before.Steering), string(after.Steering), string(v1alpha1.SteeringRequired))
	if !reflect.DeepEqual(before.NodeLabel, after.NodeLabel) && before.NodeLabel != nil {
		w.add(at+".nodeLabel", "another one decides what counts as burstable; must be as it was")
	}
	if before.NodeLabel == nil && after.NodeLabel != nil && len(after.NodeLabel.Dedicated) > 0 {
		w.add(at+".nodeLabel.dedicated", "%s make nodes dedicated, and did not before; must be absent", strings.Join(quotes(after.NodeLabel.Dedicated), ", "))
	}
	if !reflect.DeepEqual(before.InstanceTypes, after.InstanceTypes) {
		w.add(at+".instanceTypes", "another list decides what counts as burstable; must be as it was")
	}
	if before.MaxStealPercent != nil && (after.MaxStealPercent == nil || *after.MaxStealPercent > *before.MaxStealPercent) {
		w.add(at+".maxStealPercent", "more steal is let pass than %d; must not be more", *before.MaxStealPercent)
	}
	w.allowed(at+".allowedRegions", before.AllowedRegions, after.AllowedRegions)
	w.allowed(at+".allowedZones", before.AllowedZones, after.AllowedZones)
}

// allowed: a list outside of which nothing is let pass, but for the empty one.
func (w *weakeningList) allowed(field string, before, after []string) {
	switch {
	case len(before) == 0:
	case len(after) == 0:
		w.add(field, "absent, so that every one is allowed; must be there")
	default:
		added(w, field, before, after)
	}
}

func (w *weakeningList) exceptions(before, after *v1alpha1.Exceptions) {
	const at = "spec.exceptions"
	switch {
	case after == nil:
	case before == nil:
		w.add(at, "set, so that the guard takes exceptions; must be absent")
	default:
		if after.MaxDuration.Duration > before.MaxDuration.Duration {
			w.add(at+".maxDuration", "%q is longer than before; must be at most %q", after.MaxDuration.Duration, before.MaxDuration.Duration)
		}
		w.word(at+".approval", string(before.Approval), string(after.Approval), string(v1alpha1.ApprovalTwoPerson))
	}
}

func quantityText(q *resource.Quantity) string {
	if q == nil {
		return "absent"
	}
	return quoted(*q)
}

// namespacesText counts namespaces and names the first.
func namespacesText(names []string) string {
	if len(names) == 0 {
		return "what it will select"
	}
	const named = 5
	text := strings.Join(quotes(names[:min(len(names), named)]), ", ")
	if more := len(names) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if len(names) == 1 {
		return "namespace " + text
	}
	return fmt.Sprintf("%d namespaces (%s)", len(names), text)
}
