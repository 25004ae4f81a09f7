package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// measurementLasts is how long a measurement counts. The probe writes every half hour
// at least; what is older was left behind by one that is gone.
const measurementLasts = 2 * time.Hour

// NodeClasses writes the class of nodes on them, where schedulers and autoscalers read
// it, and what it comes from, which is the memory of the hysteresis of CPU steal.
type NodeClasses struct {
	Client client.Client // reads from the cache
	Source *cluster.Source
	Log    *slog.Logger
	Now    func() time.Time
}

// addNodeClasses adds the controller of the classes.
func addNodeClasses(m manager.Manager, s *cluster.Source, n *NodeClasses) error {
	c, err := controller.New("node-classes", m, controller.Options{Reconciler: n, MaxConcurrentReconciles: 4})
	if err != nil {
		return fmt.Errorf("create the controller of node classes: %w", err)
	}
	return c.Watch(source.Func(func(_ context.Context, q queue) error {
		every := func() {
			for _, name := range s.NodeNames() {
				q.Add(request(name))
			}
		}
		s.OnNode(func(name string) { q.Add(request(name)) })
		s.OnChange(func(namespace string) {
			if namespace == "" { // guards, among others
				every()
			}
		})
		every()
		return nil
	}))
}

// Reconcile writes the class of the node named by the request.
func (n *NodeClasses) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	state, err := n.Source.Cached("")
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // caches that are not filled yet are waited for
	}
	var node corev1.Node
	if err := n.Client.Get(ctx, r.NamespacedName, &node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	want := classOf(state.Guards, state.Catalogue.NewNode(&node))
	labels, annotations := map[string]any{}, map[string]any{}
	differs(labels, node.Labels, v1alpha1.ClassLabel, want.label)
	differs(annotations, node.Annotations, v1alpha1.ClassSourceAnnotation, want.source)
	again := n.outdated(&node, annotations)
	if len(labels)+len(annotations) == 0 {
		return reconcile.Result{RequeueAfter: again}, nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("encode the patch of node %q: %w", r.Name, err)
	}
	// The subresource takes metadata too, and needs no right to change the spec.
	written := &corev1.Node{}
	written.Name = r.Name
	if err := n.Client.Status().Patch(ctx, written, client.RawPatch(types.MergePatchType, patch), FieldOwner); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(fmt.Errorf("write the class of node %q: %w", r.Name, err))
	}
	n.Log.InfoContext(ctx, "wrote the class of a node", "node", r.Name, "class", want.label, "source", want.source)
	return reconcile.Result{RequeueAfter: again}, nil
}

// differs notes in a patch what must become of a key, if it is another value; a wanted
// value of "" stands for none.
func differs(patch map[string]any, have map[string]string, key, want string) {
	value, ok := have[key]
	switch {
	case want == "" && ok:
		patch[key] = nil
	case want != "" && value != want:
		patch[key] = want
	}
}

// written is what stands on a node; empty where no guard asks about nodes.
type written struct{ label, source string }

// classOf is the worst of the classes that guards come to. If CPU steal has made the
// node burstable for any of them, it is remembered for which thresholds.
func classOf(guards []facts.Guard, n *nodes.Node) written {
	var worst nodes.Verdict
	var stolen []int32
	for i := range guards {
		if guards[i].NodePools == nil {
			continue
		}
		v := nodes.Classify(guards[i].NodePools, n)
		if v.Source == nodes.FromSteal {
			stolen = append(stolen, *guards[i].NodePools.MaxStealPercent)
		}
		if worst.Class == "" || nodes.Worst(worst.Class, v.Class) != worst.Class {
			worst = v
		}
	}
	if worst.Class == "" {
		return written{}
	}
	w := written{nodes.ClassLabelValue(worst.Class), string(worst.Source)}
	if len(stolen) > 0 {
		w.source = nodes.StealSource(stolen)
	}
	return w
}

// outdated lets a patch remove a measurement that has been left behind, and returns
// after what time to look at it again.
func (n *NodeClasses) outdated(node *corev1.Node, annotations map[string]any) time.Duration {
	if _, ok := node.Annotations[v1alpha1.AnnotationSteal]; !ok {
		return 0
	}
	// A time that cannot be read is none.
	at, _ := time.Parse(time.RFC3339, node.Annotations[v1alpha1.AnnotationMeasuredAt])
	if left := measurementLasts - n.Now().Sub(at); left > 0 {
		return left
	}
	for _, key := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.AnnotationResult} {
		annotations[key] = nil
	}
	return 0
}

// EraseNodeClasses takes from all nodes what NodeClasses has written on them.
func EraseNodeClasses(ctx context.Context, c client.Client) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": map[string]any{v1alpha1.ClassLabel: nil}, "annotations": map[string]any{v1alpha1.ClassSourceAnnotation: nil},
	}})
	if err != nil {
		return fmt.Errorf("encode the patch of nodes: %w", err)
	}
	var list corev1.NodeList
	if err := c.List(ctx, &list, client.HasLabels{v1alpha1.ClassLabel}); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for i := range list.Items {
		if err := c.Status().Patch(ctx, &list.Items[i], client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("take the class off node %q: %w", list.Items[i].Name, err)
		}
	}
	return nil
}
