package nodes

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Node is what is read of a node. It is immutable.
type Node struct {
	// Object holds the name, the labels, and those taints that are not just how the
	// node fares at the moment; see lasting.
	Object corev1.Node
	// catalogued is the class by the built-in catalogue.
	catalogued Verdict
	// steal is the measured CPU steal in whole percent, -1 when there is none.
	steal int32
	// source is what the class comes from, as it is written on the node.
	source string
}

// Equal reports whether there is nothing by which the two can be told apart. No node is
// equal to nil.
func (n *Node) Equal(o *Node) bool { return o != nil && reflect.DeepEqual(n, o) }

// stolen reports whether steal has reached a threshold, and has not fallen to half of it
// since.
func (n *Node) stolen(threshold int32) bool {
	return slices.Contains(strings.Split(n.stolenText(), ","), strconv.Itoa(int(threshold)))
}

// stolenText are the thresholds that steal has reached, as they are written on the node.
func (n *Node) stolenText() string {
	list, ok := strings.CutPrefix(n.source, string(FromSteal)+":")
	if !ok {
		return ""
	}
	return list
}

// StealSource is how it is written on a node that steal has reached the thresholds of
// guards, in percent. Each of them goes by its own.
func StealSource(thresholds []int32) string {
	var list []string
	for _, t := range slices.Compact(slices.Sorted(slices.Values(thresholds))) {
		list = append(list, strconv.Itoa(int(t)))
	}
	return string(FromSteal) + ":" + strings.Join(list, ",")
}

// Name is the name of the node.
func (n *Node) Name() string { return n.Object.Name }

// Label is the value of a label, "" without it.
func (n *Node) Label(key string) string { return n.Object.Labels[key] }

// NewNode reads a node.
func (c *Catalogue) NewNode(o *corev1.Node) *Node {
	n := &Node{
		Object: corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: o.Name, Labels: o.Labels},
			Spec:       corev1.NodeSpec{Taints: lasting(o.Spec.Taints)},
		},
		steal:  percent(o.Annotations[v1alpha1.AnnotationSteal]),
		source: o.Annotations[v1alpha1.ClassSourceAnnotation],
	}
	n.catalogued = c.classify(o.Labels)
	return n
}

// percent is a percentage in whole numbers, -1 for what is none.
func percent(text string) int32 {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 100 {
		return -1
	}
	return int32(f)
}

// lasting leaves out the taints by which Kubernetes keeps pods off a node for a while:
// not ready, short of something, cordoned, not initialized yet. A pod that waits for
// such a node to come back is not one that can only go elsewhere.
func lasting(taints []corev1.Taint) []corev1.Taint {
	var kept []corev1.Taint
	for _, t := range taints {
		if strings.HasPrefix(t.Key, "node.kubernetes.io/") || strings.HasPrefix(t.Key, "node.cloudprovider.kubernetes.io/") {
			continue
		}
		kept = append(kept, corev1.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect})
	}
	return kept
}
