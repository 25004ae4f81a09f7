package policies

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// notesAtMost is how many STRICT policies without effect a message explains.
const notesAtMost = 3

// inertNotes tells of STRICT policies that people may think apply to the hole.
func inertNotes(c *facts.Cluster, h hole) []inertness {
	var notes []inertness
	spaces := []string{h.namespace}
	if root := h.view.controlPlane.RootNamespace; root != h.namespace {
		spaces = append(spaces, root)
	}
	for _, name := range spaces {
		ns := c.Namespaces[name]
		if ns == nil {
			continue
		}
		list := slices.Clone(ns.PeerAuthentications)
		slices.SortFunc(list, func(a, b *mesh.PeerAuthentication) int { return cmp.Compare(a.Name, b.Name) })
		for _, p := range list {
			if p.Mode != mesh.ModeStrict || !subset(p.Selector, h.selector) || h.view.settled && p.Terminating {
				continue
			}
			if in, ok := inert(c, h.view, p); ok && len(notes) < notesAtMost {
				notes = append(notes, in)
			}
		}
	}
	return notes
}

// inertness is why Istio does not apply a policy, and what to do about it.
type inertness struct {
	policy         *mesh.PeerAuthentication
	by             *mesh.PeerAuthentication // which wins instead, if any
	reason, remedy string
}

// inert says why Istio does not apply a policy in the state it is in.
func inert(c *facts.Cluster, v view, p *mesh.PeerAuthentication) (in inertness, ok bool) {
	ns, cp := c.Namespaces[p.Namespace], v.controlPlane
	in.policy = p
	switch {
	case !cp.Discovered(ns.Labels):
		in.reason = fmt.Sprintf("namespace %q is outside the discoverySelectors of Istio revision %q", ns.Name, cp.Revision)
		in.remedy = fmt.Sprintf("label namespace %q so that Istio's discoverySelectors match it", ns.Name)
		return in, true
	case !cp.Reads(p, ns.Labels):
		in.reason = fmt.Sprintf("its label istio.io/rev is %q, and Istio revision %q does not read it", p.Revision, cp.Revision)
		in.remedy = "remove the label istio.io/rev from " + named(p)
		return in, true
	case v.dataplane == mesh.Ambient && p.Namespace == cp.RootNamespace && p.SelectorSet && len(p.Selector) == 0:
		in.reason = "in ambient mode Istio passes over a mesh-wide policy with an empty selector"
		in.remedy = "leave spec.selector out of " + named(p)
		return in, true
	}
	by, effective := cp.Shadowed(p, v.readOf(ns))
	switch {
	case by != nil:
		in.by = by
		in.reason = fmt.Sprintf("%s (%s) is older, and of several policies in one scope Istio applies only the oldest", named(by), by.Mode)
		if by.Created.Unix() == p.Created.Unix() {
			in.reason = fmt.Sprintf("%s (%s) was created in the same second and comes first by name", named(by), by.Mode)
		}
		in.remedy = fmt.Sprintf("set spec.mtls.mode of %s to STRICT, or delete it", named(by))
		return in, true
	case !effective:
		in.reason = "Istio ignores policies with a selector in the root namespace"
		in.remedy = "put the policy into the namespace of the pods, or leave spec.selector out of " + named(p)
		return in, true
	}
	return inertness{}, false
}
