package nodes

import (
	"cmp"
	"slices"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulinghelpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Placement is what a pod asks of the node it runs on: as the scheduler's plugins
// NodeAffinity and TaintToleration read it (pkg/scheduler/framework/plugins). What
// else decides about a node, such as what room there is, changes by the minute.
type Placement struct {
	NodeSelector map[string]string
	// Required are the terms of the required node affinity; nil asks for nothing,
	// while no terms match no node.
	Required    *corev1.NodeSelector
	Tolerations []corev1.Toleration
}

// PlacementOf is what a pod asks for.
func PlacementOf(s *corev1.PodSpec) Placement {
	p := Placement{NodeSelector: s.NodeSelector, Tolerations: s.Tolerations}
	if s.Affinity != nil && s.Affinity.NodeAffinity != nil {
		p.Required = s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return p
}

// affinity is what the pod asks for, as Kubernetes' own helper takes it.
func (p *Placement) affinity() nodeaffinity.RequiredNodeAffinity {
	var a *corev1.Affinity
	if p.Required != nil {
		a = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: p.Required}}
	}
	return nodeaffinity.NewRequiredNodeAffinity(p.NodeSelector, a)
}

// Reach returns the pools that the pod can land on, each with those of its nodes that
// it can, in the order of the pools.
func (i *Inventory) Reach(p Placement) []Pool {
	if i == nil {
		return nil
	}
	affinity := p.affinity()
	pools, single := i.pools, i.tellsApart(&p)
	if named, ok := i.named(&p); ok {
		pools = named
	}
	var reached []Pool
	for _, pool := range pools {
		if !tolerates(p.Tolerations, pool.First()) {
			continue
		}
		if !single {
			if matches(affinity, pool.First()) {
				reached = append(reached, pool)
			}
			continue
		}
		var nodes []*Node
		for _, n := range pool.Nodes {
			if matches(affinity, n) {
				nodes = append(nodes, n)
			}
		}
		if len(nodes) > 0 {
			reached = append(reached, Pool{Nodes: nodes})
		}
	}
	return reached
}

// named returns the nodes that the terms name, by their pools, if every term names one:
// so do those of the pods of a DaemonSet, of which there are as many as there are nodes.
func (i *Inventory) named(p *Placement) (pools []Pool, ok bool) {
	if p.Required == nil {
		return nil, false
	}
	var places []place
	for _, t := range p.Required.NodeSelectorTerms {
		at := slices.IndexFunc(t.MatchFields, func(r corev1.NodeSelectorRequirement) bool {
			return r.Key == metav1.ObjectNameField && r.Operator == corev1.NodeSelectorOpIn && len(r.Values) == 1
		})
		if at < 0 {
			return nil, false
		}
		if at, ok := i.byName[t.MatchFields[at].Values[0]]; ok {
			places = append(places, at)
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(a.pool, b.pool), cmp.Compare(a.node, b.node)) })
	places = slices.Compact(places)
	for n, at := range places {
		if n == 0 || at.pool != places[n-1].pool {
			pools = append(pools, Pool{})
		}
		last := &pools[len(pools)-1]
		last.Nodes = append(last.Nodes, i.pools[at.pool].Nodes[at.node])
	}
	return pools, true
}

// tellsApart reports whether the pod asks for something of which nodes of one pool
// differ.
func (i *Inventory) tellsApart(p *Placement) bool {
	for key := range p.NodeSelector {
		if i.own[key] {
			return true
		}
	}
	if p.Required == nil {
		return false
	}
	return slices.ContainsFunc(p.Required.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool {
		return len(t.MatchFields) > 0 || slices.ContainsFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool { return i.own[r.Key] })
	})
}

// matches reports whether the affinity lets the pod on the node. A term that cannot be
// parsed matches nothing, as for the scheduler.
func matches(a nodeaffinity.RequiredNodeAffinity, n *Node) bool {
	ok, err := a.Match(&n.Object)
	return ok && err == nil
}

// tolerates reports whether the pod tolerates those taints of the node that keep pods
// from being scheduled. The operators Gt and Lt count: while the feature gate
// TaintTolerationComparisonOperators is off, the API server lets in no pod with them.
func tolerates(tolerations []corev1.Toleration, n *Node) bool {
	_, untolerated := schedulinghelpers.FindMatchingUntoleratedTaint(logr.Discard(), n.Object.Spec.Taints, tolerations, keepsOff, true)
	return !untolerated
}

func keepsOff(t *corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
}
