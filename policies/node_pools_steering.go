package policies

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// steers reports whether the guard keeps pods off nodes when they are created. One that
// only warns does not: pods would wait by it.
func steers(g *facts.Guard) bool {
	return g.NodePools != nil && g.NodePools.Steering == v1alpha1.SteeringRequired && slices.Contains(g.NodePools.ValidationActions, v1alpha1.Deny)
}

// steeringChanges adds to a pod that is being created required node affinity to nodes
// on which it may run, so that scheduler and autoscalers choose right. The terms of an
// affinity are ORed, so each of them gets it. Left alone are terms that match no node,
// which would match some if anything were added; pods whose node has been chosen; and
// all pods as long as no node is known. Pods of a DaemonSet get it too: the scheduler
// then leaves those waiting that are for nodes on which they may not run.
func steeringChanges(r *facts.Review, _ []*facts.Guard) ([]facts.Change, error) {
	p, err := placedOf(r, r.Object, r.Cluster.Namespaces[r.Namespace])
	if p == nil || p.spec.NodeName != "" || r.Cluster.Nodes.Empty() {
		return nil, err
	}
	p.final = false // the request does not say whether Istio has been asked already
	add := p.steering()
	if len(add) == 0 {
		return nil, nil
	}
	at := []string{"spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"}
	required := nodes.PlacementOf(p.spec).Required
	if required == nil {
		return []facts.Change{{Path: at, Value: corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: add}}}}}, nil
	}
	var changes []facts.Change
	for i, t := range required.NodeSelectorTerms {
		expressions := append(slices.Clone(at), "nodeSelectorTerms", strconv.Itoa(i), "matchExpressions")
		switch {
		case len(t.MatchExpressions) == 0 && len(t.MatchFields) > 0:
			changes = append(changes, facts.Change{Path: expressions, Value: add})
		case len(t.MatchExpressions) > 0 && steeredAt(t.MatchExpressions, add) < 0:
			for _, q := range add {
				changes = append(changes, facts.Change{Path: append(slices.Clone(expressions), "-"), Value: q})
			}
		}
	}
	return changes, nil
}

// steering is what nodes must be like by all guards that are about the pod and steer, but
// for those under which an exception lets it land elsewhere.
func (p *placed) steering() []corev1.NodeSelectorRequirement {
	var guards []*facts.Guard
	for i := range p.cluster.Guards {
		if g := &p.cluster.Guards[i]; steers(g) && p.meant(g) && p.review.Excepting(g, "node-pools", "") == nil {
			guards = append(guards, g)
		}
	}
	slices.SortFunc(guards, func(a, b *facts.Guard) int { return strings.Compare(a.Name, b.Name) })
	return steering(p.cluster, guards)
}

// steeredAt is where among the expressions of a term those stand that steering has
// added: all of them, in their order. Without, it is -1. What an author asks for is his
// own, even if steering asks for the same.
func steeredAt(term, added []corev1.NodeSelectorRequirement) int {
	for at := range len(term) - len(added) + 1 {
		if slices.EqualFunc(term[at:at+len(added)], added, sameRequirement) {
			return at
		}
	}
	return -1
}

func sameRequirement(a, b corev1.NodeSelectorRequirement) bool {
	return a.Key == b.Key && a.Operator == b.Operator && slices.Equal(a.Values, b.Values)
}

// steering is what nodes must be like by the guards, each demand once. The class that
// the leader writes on nodes says it best, but a node that is about to be made has none:
// autoscalers know it by its instance type, by the label that the guard names, and by
// its region.
func steering(c *facts.Cluster, guards []*facts.Guard) []corev1.NodeSelectorRequirement {
	var list []corev1.NodeSelectorRequirement
	add := func(key string, operator corev1.NodeSelectorOperator, values []string) {
		q := corev1.NodeSelectorRequirement{Key: key, Operator: operator, Values: slices.Sorted(slices.Values(values))}
		if len(values) > 0 && !slices.ContainsFunc(list, func(o corev1.NodeSelectorRequirement) bool { return sameRequirement(o, q) }) {
			list = append(list, q)
		}
	}
	for _, g := range guards {
		if classTells(c, g) {
			add(v1alpha1.ClassLabel, corev1.NodeSelectorOpNotIn, refusedClasses(g.NodePools))
		}
		add(corev1.LabelTopologyRegion, corev1.NodeSelectorOpIn, g.NodePools.AllowedRegions)
		add(corev1.LabelTopologyZone, corev1.NodeSelectorOpIn, g.NodePools.AllowedZones)
		if l := g.NodePools.NodeLabel; l != nil {
			add(l.Key, corev1.NodeSelectorOpNotIn, l.Burstable)
		}
		add(corev1.LabelInstanceTypeStable, corev1.NodeSelectorOpNotIn, refusedTypes(c, g))
	}
	return list
}

// exclusion is what keeps off the nodes that there are, once they have their class:
// where that tells, nothing else about the class is needed.
func exclusion(c *facts.Cluster, g *facts.Guard) []corev1.NodeSelectorRequirement {
	list := steering(c, []*facts.Guard{g})
	if !classTells(c, g) {
		return list
	}
	return slices.DeleteFunc(list, func(q corev1.NodeSelectorRequirement) bool {
		return q.Operator == corev1.NodeSelectorOpNotIn && q.Key != v1alpha1.ClassLabel
	})
}

// refusedClasses are the classes of nodes on which no pod of the guard may run, as they
// are written on nodes.
func refusedClasses(g *v1alpha1.NodePools) []string {
	values := []string{nodes.ClassLabelValue(nodes.Burstable)}
	if g.Unknown == v1alpha1.UnknownDeny {
		values = append(values, nodes.ClassLabelValue(nodes.Unknown))
	}
	return values
}

// refusesClass reports whether no pod of the guard may run on nodes of the class.
func refusesClass(g *v1alpha1.NodePools, c nodes.Class) bool {
	return slices.Contains(refusedClasses(g), nodes.ClassLabelValue(c))
}

// classTells reports whether the class that is written on nodes, which is the worst of
// those that guards come to, tells those that this guard refuses from all others.
func classTells(c *facts.Cluster, g *facts.Guard) bool {
	return !slices.ContainsFunc(c.Nodes.Pools(), func(p nodes.Pool) bool {
		own := nodes.Classify(g.NodePools, p.First()).Class
		written := own
		for i := range c.Guards {
			if o := c.Guards[i].NodePools; o != nil {
				written = nodes.Worst(written, nodes.Classify(o, p.First()).Class)
			}
		}
		return refusesClass(g.NodePools, own) != refusesClass(g.NodePools, written)
	})
}

// typesAtMost is how many instance types a pod is told to keep away from.
const typesAtMost = 32

// refusedTypes are the instance types of nodes that are refused by their types, unless a
// node of the type is one on which pods may run: by its label, which counts before.
// CPU steal is that of a node, and says nothing of the next one of its type.
func refusedTypes(c *facts.Cluster, g *facts.Guard) []string {
	refused := map[string]bool{}
	for _, p := range c.Nodes.Pools() {
		t := p.First().Label(corev1.LabelInstanceTypeStable)
		if t == "" {
			continue
		}
		if _, seen := refused[t]; !seen {
			refused[t] = refusesClass(g.NodePools, c.Catalogue.TypeClass(g.NodePools, t))
		}
		refused[t] = refused[t] && refusesClass(g.NodePools, nodes.Classify(g.NodePools, p.First()).Class)
	}
	types := slices.DeleteFunc(sortedKeys(refused), func(t string) bool { return !refused[t] })
	return types[:min(len(types), typesAtMost)]
}
