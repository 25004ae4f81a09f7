package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// fleet is an API server with many Nodes, which it lists two at a time.
type fleet struct {
	nodes   []*cluster
	patched []string
	fail    map[string]error // of patches, by node
}

func (f *fleet) List(_ context.Context, o metav1.ListOptions) (*corev1.NodeList, error) {
	from, list := 0, &corev1.NodeList{}
	if o.Continue != "" {
		if _, err := fmt.Sscan(o.Continue, &from); err != nil {
			return nil, err
		}
	}
	for _, c := range f.nodes[from:min(from+2, len(f.nodes))] {
		list.Items = append(list.Items, c.node)
	}
	if from+2 < len(f.nodes) {
		list.Continue = fmt.Sprint(from + 2)
	}
	if o.Limit == 0 {
		return nil, errors.New("a list without a limit")
	}
	return list, nil
}

func (f *fleet) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*corev1.Node, error) {
	if err := f.fail[name]; err != nil {
		return nil, err
	}
	f.patched = append(f.patched, name)
	for _, c := range f.nodes {
		if c.node.Name == name {
			return c.Patch(ctx, name, pt, data, opts, subresources...)
		}
	}
	return nil, apierrors.NewNotFound(corev1.Resource("nodes"), name)
}

// All Nodes are cleaned, on whichever page they come, and those that say nothing are not
// touched.
func TestWithdraw(t *testing.T) {
	node := func(name string, annotations map[string]string, conditions ...corev1.NodeConditionType) *cluster {
		c := &cluster{t: t, began: time.Now(), node: corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}}
		for _, condition := range conditions {
			c.node.Status.Conditions = append(c.node.Status.Conditions, corev1.NodeCondition{Type: condition, Status: corev1.ConditionTrue})
		}
		return c
	}
	f := &fleet{nodes: []*cluster{
		node("a", map[string]string{v1alpha1.AnnotationSteal: "1.0", "mine": "x"}, corev1.NodeReady),
		node("b", map[string]string{"mine": "x"}, corev1.NodeReady),
		node("c", map[string]string{v1alpha1.AnnotationMeasuredAt: "x"}),
		node("d", nil, v1alpha1.ConditionCPUContended, corev1.NodeReady),
		node("e", nil),
		node("f", map[string]string{v1alpha1.AnnotationResult: "{}"}),
		node("g", map[string]string{v1alpha1.AnnotationResult: "{}"}),
	}}
	no := errors.New("no")
	f.fail = map[string]error{"f": no}
	if n, err := Withdraw(t.Context(), f); n != 3 || !errors.Is(err, no) || !strings.Contains(err.Error(), "Node f") {
		t.Errorf("%d, %v; must say that f could not be cleaned, after three", n, err)
	}
	// Somebody deletes f meanwhile.
	f.patched, f.fail = nil, map[string]error{"f": apierrors.NewNotFound(corev1.Resource("nodes"), "f")}
	if n, err := Withdraw(t.Context(), f); err != nil || n != 2 || !slices.Equal(f.patched, []string{"g"}) {
		t.Errorf("again: %d, %v, patched %q; must be the two that are left", n, err, f.patched)
	}
	for _, c := range f.nodes {
		n := &c.node
		want := map[string]int{"a": 1, "b": 1, "d": 1}[n.Name]
		if n.Name != "f" && (len(n.Status.Conditions) != want || conditionOf(n) != nil || len(n.Annotations) != map[string]int{"a": 1, "b": 1}[n.Name]) {
			t.Errorf("on %s there is %v, %v", n.Name, n.Annotations, n.Status.Conditions)
		}
	}
}
