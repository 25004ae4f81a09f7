package policies

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// steers reports whether the guard keeps pods off nodes when they are created.
func steers(g *facts.Guard) bool {
	return g.NodePools != nil && g.NodePools.Steering == v1alpha1.SteeringRequired
}

// steeringChanges adds to a pod that is being created required node affinity to nodes
// on which it may run, so that scheduler and autoscalers choose right. The terms of an
// affinity are ORed, so each of them gets it. Left alone are terms that match no node,
// which would match some if anything were added; pods whose node has been chosen; and
// all pods as long as no node is known.
func steeringChanges(r *facts.Review, guards []*facts.Guard) ([]facts.Change, error) {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok {
		return nil, errWrongObject(r)
	}
	p := placedOf(r, pod, r.Cluster.Namespaces[r.Namespace])
	if p == nil || pod.Spec.NodeName != "" || p.ofDaemonSet() || r.Cluster.Nodes.Empty() {
		return nil, nil
	}
	add := steering(&r.Cluster, slices.DeleteFunc(slices.Clone(guards), func(g *facts.Guard) bool { return !p.meant(g) }))
	if len(add) == 0 {
		return nil, nil
	}
	at := []string{"spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"}
	required := nodes.PlacementOf(&pod.Spec).Required
	if required == nil {
		return []facts.Change{{Path: at, Value: corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: add}}}}}, nil
	}
	var changes []facts.Change
	for i, t := range required.NodeSelectorTerms {
		expressions := append(slices.Clone(at), "nodeSelectorTerms", strconv.Itoa(i), "matchExpressions")
		switch {
		case len(t.MatchExpressions) > 0:
			for _, q := range add {
				if !contains(t.MatchExpressions, q) {
					changes = append(changes, facts.Change{Path: append(slices.Clone(expressions), "-"), Value: q})
				}
			}
		case len(t.MatchFields) > 0:
			changes = append(changes, facts.Change{Path: expressions, Value: add})
		}
	}
	return changes, nil
}

// steering is what nodes must be like by the guards. The class that the leader writes
// on nodes says it best, but a node that is about to be made has none: autoscalers know
// it by its instance type, by the label that the guard names, and by its region.
func steering(c *facts.Cluster, guards []*facts.Guard) []corev1.NodeSelectorRequirement {
	var list []corev1.NodeSelectorRequirement
	add := func(key string, operator corev1.NodeSelectorOperator, values []string) {
		q := corev1.NodeSelectorRequirement{Key: key, Operator: operator, Values: values}
		if len(values) > 0 && !contains(list, q) {
			list = append(list, q)
		}
	}
	for _, g := range guards {
		for _, q := range exclusion(c, g) {
			add(q.Key, q.Operator, q.Values)
		}
		if l := g.NodePools.NodeLabel; l != nil {
			add(l.Key, corev1.NodeSelectorOpNotIn, sorted(l.Burstable))
		}
		add(corev1.LabelInstanceTypeStable, corev1.NodeSelectorOpNotIn, refusedTypes(c, g))
	}
	return list
}

// exclusion is what keeps off the nodes that there are, once they have their class.
func exclusion(c *facts.Cluster, g *facts.Guard) []corev1.NodeSelectorRequirement {
	var list []corev1.NodeSelectorRequirement
	if classesAgree(c) {
		values := []string{nodes.ClassLabelValue(nodes.Burstable)}
		if g.NodePools.Unknown == v1alpha1.UnknownDeny {
			values = append(values, nodes.ClassLabelValue(nodes.Unknown))
		}
		list = append(list, corev1.NodeSelectorRequirement{Key: v1alpha1.ClassLabel, Operator: corev1.NodeSelectorOpNotIn, Values: values})
	}
	if regions := g.NodePools.AllowedRegions; len(regions) > 0 {
		list = append(list, corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyRegion, Operator: corev1.NodeSelectorOpIn, Values: sorted(regions)})
	}
	if zones := g.NodePools.AllowedZones; len(zones) > 0 {
		list = append(list, corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpIn, Values: sorted(zones)})
	}
	return list
}

// classesAgree reports whether all guards come to the same classes, so that the label
// of nodes, which has the worst of them, is right for each.
func classesAgree(c *facts.Cluster) bool {
	var guards []*v1alpha1.NodePools
	for i := range c.Guards {
		if g := c.Guards[i].NodePools; g != nil {
			guards = append(guards, g)
		}
	}
	if len(guards) < 2 {
		return true
	}
	pools := c.Nodes.Pools()
	return !slices.ContainsFunc(pools, func(p nodes.Pool) bool {
		class := nodes.Classify(guards[0], p.First()).Class
		return slices.ContainsFunc(guards[1:], func(g *v1alpha1.NodePools) bool { return nodes.Classify(g, p.First()).Class != class })
	})
}

// typesAtMost is how many instance types a pod is told to keep away from.
const typesAtMost = 32

// refusedTypes are the instance types of which every node is refused for its class.
func refusedTypes(c *facts.Cluster, g *facts.Guard) []string {
	refused := map[string]bool{}
	for _, p := range c.Nodes.Pools() {
		t := p.First().Label(corev1.LabelInstanceTypeStable)
		if t == "" {
			continue
		}
		class := slices.ContainsFunc(nodes.Refused(g.NodePools, p.First()), func(f nodes.Refusal) bool { return f.Cause != nodes.CausePlace })
		before, seen := refused[t]
		refused[t] = class && (before || !seen)
	}
	types := slices.DeleteFunc(sortedKeys(refused), func(t string) bool { return !refused[t] })
	return types[:min(len(types), typesAtMost)]
}

func sorted(values []string) []string { return slices.Sorted(slices.Values(values)) }

// contains reports whether the requirement is in the list, with its values in any order.
func contains(list []corev1.NodeSelectorRequirement, q corev1.NodeSelectorRequirement) bool {
	return slices.ContainsFunc(list, func(o corev1.NodeSelectorRequirement) bool {
		return o.Key == q.Key && o.Operator == q.Operator && slices.Equal(sorted(o.Values), sorted(q.Values))
	})
}
