package mesh

import "slices"

// Class is a set of workloads of a namespace that the policies cannot tell apart.
type Class struct {
	Selector  map[string]string // labels of a typical member; nil: workloads that no workload policy selects
	Effective Effective
}

// Classes returns one class for each outcome that any workload of the namespace could meet, over all label sets
// a pod could carry and not just those that exist. Hence the namespace is STRICT without a hole exactly when
// every class is Strict. The policies are as for Resolve.
//
// The members are the workloads no workload policy selects, always first, and then, oldest first, for each
// workload policy that can win a pod with exactly its labels. That is enough: if P wins for some label set, then
// no older policy's labels are a subset of that set, hence none is a subset of P's own labels, and P wins for
// exactly those as well. A policy that cannot win has no class; Shadowed says why.
//
// For ambient, policies of the same second are not ordered, so that the same workload can have several classes:
// one for each of the tied policies that can win its scope. Of tied policies without ports, which differ by
// nothing but their mode, one for each mode is enough.
func (c ControlPlane) Classes(namespace string, dp Dataplane, policies []*PeerAuthentication) []Class {
	workload := Workload{Namespace: namespace, Dataplane: dp}
	var relevant, selecting []*PeerAuthentication
	for _, p := range policies {
		if p == nil || p.Namespace != namespace && p.Namespace != c.RootNamespace {
			continue
		}
		relevant = append(relevant, p)
		if c.ScopeOf(p) == ScopeWorkload {
			selecting = append(selecting, p)
		}
	}
	slices.SortStableFunc(selecting, (*PeerAuthentication).compare)

	var classes []Class
	for _, e := range c.outcomes(workload, relevant) {
		classes = append(classes, Class{Effective: e})
	}
	for _, p := range selecting {
		workload.Labels = p.Selector
		for _, e := range c.outcomes(workload, relevant) {
			if e.Workload == p {
				classes = append(classes, Class{Selector: p.Selector, Effective: e})
			}
		}
	}
	return classes
}

// outcomes is Resolve without a decision on ties.
func (c ControlPlane) outcomes(w Workload, policies []*PeerAuthentication) []Effective {
	if w.Dataplane == Ambient {
		return c.ambientOutcomes(w, policies)
	}
	return []Effective{c.Resolve(w, policies)}
}

// Shadowed explains why a policy has no effect in its scope.
//
//	by != nil, ok    an older policy of the same scope wins wherever this one could: by
//	by == nil, ok    the policy can win
//	by == nil, !ok   the policy is ineffective whatever its age: root namespace, with a selector
//
// For a workload policy, the older one is of the same namespace and its labels are a subset of this one's. The
// order is that of sidecars, so a tie of the same second is broken by name. Another policy with the same key is
// taken for an earlier state of p itself. A p that is not created and not in policies is younger than all of them.
func (c ControlPlane) Shadowed(p *PeerAuthentication, policies []*PeerAuthentication) (by *PeerAuthentication, ok bool) {
	scope := c.ScopeOf(p)
	if scope == ScopeNone {
		return nil, false
	}
	afterP := false // policies that come later in the slice are younger when neither exists yet
	for _, q := range policies {
		switch {
		case q == nil || q.Namespace != p.Namespace:
		case q.Name == p.Name:
			afterP = true
		case c.ScopeOf(q) == scope && q.selects(p.Selector):
			if order := q.compare(p); order < 0 || order == 0 && !afterP {
				by = elder(by, q)
			}
		}
	}
	return by, true
}
