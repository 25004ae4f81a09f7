package policies

import (
	"cmp"
	"maps"
	"slices"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// hole is a way for plaintext into a namespace.
type hole struct {
	namespace string
	// selector are the pod labels that lead into the hole, nil for pods that no
	// workload policy selects.
	selector map[string]string
	// port is 0 for every port that the winning policy does not name.
	port uint32
	mode mesh.Mode
	// decider is the policy whose mode applies, nil for Istio's own default.
	decider *mesh.PeerAuthentication
	// view is how the hole was seen.
	view view
}

// view is one way in which policies are applied to a namespace. A namespace is
// STRICT only if it is in every view.
type view struct {
	controlPlane mesh.ControlPlane
	dataplane    mesh.Dataplane
	// settled leaves out the policies that are being deleted: Istio still applies
	// them, but they go without another word.
	settled bool
}

// views lists the views of a namespace that matter. ambient adds the ambient
// data plane: its pods are served by ztunnel unless they carry a sidecar.
func views(c *facts.Cluster, ns *facts.Namespace, ambient bool) []view {
	terminating := slices.ContainsFunc(ns.PeerAuthentications, isTerminating)
	for _, root := range c.RootNamespaces() {
		if r := c.Namespaces[root]; r != nil {
			terminating = terminating || slices.ContainsFunc(r.PeerAuthentications, isTerminating)
		}
	}
	var list []view
	planes := slices.Clone(c.ControlPlanes)
	slices.SortStableFunc(planes, func(a, b mesh.ControlPlane) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.RootNamespace, b.RootNamespace))
	})
	for _, cp := range planes {
		for _, settled := range []bool{false, true} {
			if settled && !terminating {
				continue
			}
			list = append(list, view{cp, mesh.Sidecar, settled})
			if ambient {
				list = append(list, view{cp, mesh.Ambient, settled})
			}
		}
	}
	return list
}

func isTerminating(p *mesh.PeerAuthentication) bool { return p.Terminating }

func isAmbient(labels map[string]string) bool {
	return labels["istio.io/dataplane-mode"] == "ambient"
}

// read returns the policies that count for workloads of ns in this view: those
// of its own and of the root namespace that the control plane reads.
func (v view) read(c *facts.Cluster, ns *facts.Namespace) []*mesh.PeerAuthentication {
	list := v.readOf(ns)
	if root := c.Namespaces[v.controlPlane.RootNamespace]; root != nil && root.Name != ns.Name {
		list = append(list, v.readOf(root)...)
	}
	return list
}

// readOf returns the policies of one namespace that count in this view.
func (v view) readOf(ns *facts.Namespace) []*mesh.PeerAuthentication {
	var list []*mesh.PeerAuthentication
	for _, p := range ns.PeerAuthentications {
		if v.controlPlane.Reads(p, ns.Labels) && !(v.settled && p.Terminating) {
			list = append(list, p)
		}
	}
	return list
}

// resolve is the effective mode of pods with these labels in this view.
func (v view) resolve(namespace string, labels map[string]string, policies []*mesh.PeerAuthentication) mesh.Effective {
	return v.controlPlane.Resolve(mesh.Workload{Namespace: namespace, Labels: labels, Dataplane: v.dataplane}, policies)
}

// under returns the view of the same control plane on pods which are, or are
// not, served by ztunnel.
func (v view) under(ambient bool) view {
	if !ambient {
		v.dataplane = mesh.Sidecar
	}
	return v
}

// holes returns every way for plaintext into the namespace, now or by a pod that
// may come; none means that the namespace is STRICT.
func holes(c *facts.Cluster, ns *facts.Namespace) []hole {
	var list []hole
	for _, v := range views(c, ns, isAmbient(ns.Labels)) {
		for _, class := range v.controlPlane.Classes(ns.Name, v.dataplane, v.read(c, ns)) {
			list = append(list, holesOf(ns.Name, class.Selector, class.Effective, v)...)
		}
	}
	return distinct(list)
}

// holesOf returns the holes of one effective mode. Where all ports are open, the
// single ones are not listed.
func holesOf(namespace string, selector map[string]string, e mesh.Effective, v view) []hole {
	if e.Mode != mesh.ModeStrict {
		return []hole{{namespace, selector, 0, e.Mode, e.Decider(0), v}}
	}
	var list []hole
	for _, port := range slices.Sorted(maps.Keys(e.Ports)) {
		if mode := e.Ports[port]; mode != mesh.ModeStrict {
			list = append(list, hole{namespace, selector, port, mode, e.Decider(port), v})
		}
	}
	return list
}

// regressions returns the holes of the namespace after a change that were
// smaller before it. A set of pods that different policies win before and after
// is found at the union of both selectors: these are the fewest labels that such
// a pod carries, so nothing older can win there that does not win elsewhere.
func regressions(before, after *facts.Cluster, name string) []hole {
	nsBefore, nsAfter := before.Namespaces[name], after.Namespaces[name]
	var list []hole
	for _, v := range views(after, nsAfter, isAmbient(nsAfter.Labels)) {
		was := v.under(isAmbient(nsBefore.Labels))
		was.controlPlane = planeBefore(before, v.controlPlane)
		policiesBefore, policiesAfter := was.read(before, nsBefore), v.read(after, nsAfter)
		var classesBefore []mesh.Class
		for _, a := range v.controlPlane.Classes(name, v.dataplane, policiesAfter) {
			if a.Effective.Strict() {
				continue
			}
			if classesBefore == nil {
				classesBefore = was.controlPlane.Classes(name, was.dataplane, policiesBefore)
			}
			for _, b := range classesBefore {
				pod, ok := union(a.Selector, b.Selector)
				if !ok {
					continue
				}
				list = append(list, weaker(
					name, pod, v,
					was.resolve(name, pod, policiesBefore),
					v.resolve(name, pod, policiesAfter),
				)...)
			}
		}
	}
	return distinct(list)
}

// planeBefore is the control plane as it was before a change; for one that was not
// there, any that was.
func planeBefore(before *facts.Cluster, after mesh.ControlPlane) mesh.ControlPlane {
	same := func(root bool) int {
		return slices.IndexFunc(before.ControlPlanes, func(cp mesh.ControlPlane) bool {
			return cp.Revision == after.Revision && (!root || cp.RootNamespace == after.RootNamespace)
		})
	}
	if i := max(same(true), same(false)); i >= 0 {
		return before.ControlPlanes[i]
	}
	return slices.MinFunc(before.ControlPlanes, func(a, b mesh.ControlPlane) int { return cmp.Compare(a.Revision, b.Revision) })
}

// weaker returns the ports whose mode is below what it was.
func weaker(namespace string, selector map[string]string, v view, before, after mesh.Effective) []hole {
	if after.Mode < before.Mode {
		return []hole{{namespace, selector, 0, after.Mode, after.Decider(0), v}}
	}
	ports := slices.Collect(maps.Keys(after.Ports))
	ports = slices.AppendSeq(ports, maps.Keys(before.Ports))
	slices.Sort(ports)
	var list []hole
	for _, port := range slices.Compact(ports) {
		if mode := after.Port(port); mode < before.Port(port) {
			list = append(list, hole{namespace, selector, port, mode, after.Decider(port), v})
		}
	}
	return list
}

// union merges two selectors; ok is false when no pod can carry both.
func union(a, b map[string]string) (merged map[string]string, ok bool) {
	merged = maps.Clone(a)
	for k, v := range b {
		if have, taken := a[k]; taken && have != v {
			return nil, false
		}
		if merged == nil {
			merged = make(map[string]string, len(b))
		}
		merged[k] = v
	}
	return merged, true
}

// distinct sorts holes and drops those that differ only in the view, and those
// that a hole of the same decider for fewer labels already covers.
func distinct(list []hole) []hole {
	slices.SortStableFunc(list, func(a, b hole) int {
		return cmp.Or(
			cmp.Compare(a.port, b.port),
			cmp.Compare(len(a.selector), len(b.selector)),
			cmp.Compare(selectorText(a.selector), selectorText(b.selector)),
			cmp.Compare(a.mode, b.mode),
			cmp.Compare(deciderKey(a.decider), deciderKey(b.decider)),
		)
	})
	var kept []hole
	for _, h := range list {
		if !slices.ContainsFunc(kept, func(k hole) bool {
			return k.port == h.port && k.mode == h.mode &&
				deciderKey(k.decider) == deciderKey(h.decider) && subset(k.selector, h.selector)
		}) {
			kept = append(kept, h)
		}
	}
	return kept
}

func subset(small, large map[string]string) bool {
	for k, v := range small {
		if have, ok := large[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func deciderKey(p *mesh.PeerAuthentication) string {
	if p == nil {
		return ""
	}
	return p.Key()
}
