package nodes

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Source is what the class of a node comes from.
type Source string

// The sources.
const (
	FromLabel        Source = "label"
	FromInstanceType Source = "instance-type"
	FromSteal        Source = "steal"
	FromNothing      Source = "nothing"
)

// Verdict is the class of a node under a guard, and what it comes from.
type Verdict struct {
	Class  Class
	Source Source
	// Why says in words what was looked at: "instance type t3.large", "label KEY=VALUE".
	Why string
}

// Classify returns the class of the node under a guard: by the label that the guard
// names, by the types that it lists, by the catalogue. The steal that is measured can
// make a node burstable that only its type, or a label of its provider, says is not, and
// never the other way round: a CPU that is paid for by credits is not stolen from as
// long as there are some.
func Classify(g *v1alpha1.NodePools, n *Node) Verdict {
	if v, ok := byLabel(g.NodeLabel, n); ok {
		return v
	}
	v := byType(g.InstanceTypes, n)
	if v.Class != Burstable && exceeds(g.MaxStealPercent, n) {
		return Verdict{Burstable, FromSteal, fmt.Sprintf("CPU steal of %d %%, until it has fallen to %d %%", n.steal, *g.MaxStealPercent/2)}
	}
	return v
}

func byLabel(l *v1alpha1.NodeLabel, n *Node) (Verdict, bool) {
	if l == nil {
		return Verdict{}, false
	}
	value, ok := n.Object.Labels[l.Key]
	why := fmt.Sprintf("label %s=%s", l.Key, value)
	switch {
	case !ok:
	case slices.Contains(l.Burstable, value):
		return Verdict{Burstable, FromLabel, why}, true
	case slices.Contains(l.Dedicated, value):
		return Verdict{Dedicated, FromLabel, why}, true
	}
	return Verdict{}, false
}

func byType(list []v1alpha1.InstanceTypeClass, n *Node) Verdict {
	if class, ok := listed(list, instanceType(n.Object.Labels)); ok {
		return Verdict{class, FromInstanceType, "instance type " + instanceType(n.Object.Labels)}
	}
	return n.catalogued
}

// TypeClass is the class of an instance type under a guard, Unknown when nothing tells.
func (c *Catalogue) TypeClass(g *v1alpha1.NodePools, instanceType string) Class {
	if class, ok := listed(g.InstanceTypes, instanceType); ok {
		return class
	}
	class, _ := c.Class(instanceType)
	return class
}

func listed(list []v1alpha1.InstanceTypeClass, instanceType string) (Class, bool) {
	if instanceType == "" {
		return Unknown, false
	}
	for i := range list {
		for _, t := range list[i].Types {
			if newPattern(t).matches(strings.ToLower(instanceType)) {
				return Class(list[i].Class), true
			}
		}
	}
	return Unknown, false
}

// exceeds reports whether the steal makes the node burstable: from the threshold on,
// and then for as long as it is above half of it.
func exceeds(threshold *int32, n *Node) bool {
	if threshold == nil || n.steal < 0 {
		return false
	}
	return n.steal >= *threshold || n.stolen(*threshold) && 2*n.steal > *threshold
}

// instanceType is the type of a node by its labels; the older one is still set by some
// providers alone.
func instanceType(labels map[string]string) string {
	if t := labels[corev1.LabelInstanceTypeStable]; t != "" {
		return t
	}
	return labels[corev1.LabelInstanceType]
}

// Worst is the class to be on the safe side with: burstable before unknown before
// dedicated.
func Worst(a, b Class) Class {
	switch {
	case a == Burstable || b == Burstable:
		return Burstable
	case a == Unknown || b == Unknown:
		return Unknown
	}
	return Dedicated
}

// ClassLabelValue is how a class is written on nodes.
func ClassLabelValue(c Class) string { return strings.ToLower(string(c)) }
