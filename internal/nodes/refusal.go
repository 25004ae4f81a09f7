package nodes

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Cause is why pods may not run on a node.
type Cause uint8

// The causes.
const (
	CauseBurstable Cause = iota
	CauseUnknown
	CausePlace // outside of the allowed regions or zones
)

// Refusal is one reason why pods may not run on a node. Its text completes the
// sentence "the node is ...".
type Refusal struct {
	Cause Cause
	Text  string
}

// Refused returns why the pods of a guard may not run on the node; nothing when they
// may.
func Refused(g *v1alpha1.NodePools, n *Node) []Refusal {
	var list []Refusal
	switch v := Classify(g, n); {
	case v.Class == Burstable:
		list = append(list, Refusal{CauseBurstable, "burstable (" + v.Why + ")"})
	case v.Class == Unknown && g.Unknown == v1alpha1.UnknownDeny:
		list = append(list, Refusal{CauseUnknown, "of unknown class (" + v.Why + ")"})
	}
	if text := misplaced("region", corev1.LabelTopologyRegion, g.AllowedRegions, n); text != "" {
		list = append(list, Refusal{CausePlace, text})
	} else if text := misplaced("zone", corev1.LabelTopologyZone, g.AllowedZones, n); text != "" {
		list = append(list, Refusal{CausePlace, text})
	}
	return list
}

// NewlyRefused returns why pods may not run on the node as it is, of what did not hold for
// it as it was.
func NewlyRefused(g *v1alpha1.NodePools, was, is *Node) []Refusal {
	before := Refused(g, was)
	return slices.DeleteFunc(Refused(g, is), func(f Refusal) bool {
		return slices.ContainsFunc(before, func(o Refusal) bool { return o.Cause == f.Cause })
	})
}

func misplaced(what, key string, allowed []string, n *Node) string {
	value := n.Label(key)
	switch {
	case len(allowed) == 0 || slices.Contains(allowed, value):
		return ""
	case value == "":
		return fmt.Sprintf("in no known %s (label %s is missing)", what, key)
	}
	return fmt.Sprintf("in %s %q", what, value)
}
