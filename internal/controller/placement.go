package controller

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// scanEvery is how often a guard is held against what runs, besides when nodes change.
const scanEvery = time.Minute

// Placement looks for pods that run where they may not, and for volumes that are where
// they must not be: they were there before the guard, or the node has changed under
// them. What it finds is in the condition PlacementCompliant of the guard. Pods that an
// exception lets run there are not amiss.
type Placement struct {
	Client client.Client
	Source *cluster.Source
	Events events.EventRecorder
	Now    func() time.Time
}

// addPlacement adds the controller of the placement.
func addPlacement(m manager.Manager, s *cluster.Source, p *Placement) error {
	c, err := controller.New("placement", m, controller.Options{Reconciler: p})
	if err != nil {
		return fmt.Errorf("create the placement controller: %w", err)
	}
	return c.Watch(source.Func(func(_ context.Context, q queue) error {
		every := func() {
			for _, name := range s.GuardNames() {
				q.AddAfter(request(name), settle)
			}
		}
		s.OnNode(func(string) { every() })
		s.OnChange(func(namespace string) {
			if namespace == "" {
				every()
			}
		})
		every()
		return nil
	}))
}

// Reconcile holds the guard named by the request against what runs.
func (p *Placement) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	var guard v1alpha1.MeshGuard
	if err := p.Client.Get(ctx, r.NamespacedName, &guard); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	state, err := p.Source.Snapshot()
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // caches that are not filled yet are waited for
	}
	before := guard.DeepCopy()
	again := time.Duration(0)
	if g, err := facts.NewGuard(&guard); err != nil || g.NodePools == nil {
		meta.RemoveStatusCondition(&guard.Status.Conditions, v1alpha1.ConditionPlacementCompliant)
	} else {
		condition, err := p.scan(ctx, &state, &g)
		if err != nil {
			return reconcile.Result{}, err
		}
		condition.ObservedGeneration = guard.Generation
		meta.SetStatusCondition(&guard.Status.Conditions, condition)
		again = scanEvery
	}
	if equality.Semantic.DeepEqual(before.Status, guard.Status) {
		return reconcile.Result{RequeueAfter: again}, nil
	}
	// Others write conditions of the guard too.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	switch err := p.Client.Status().Patch(ctx, &guard, patch, FieldOwner); {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: retryAfter}, nil
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("patch status of MeshGuard %q: %w", r.Name, err)
	}
	warnOf(p.Events, &guard, before.Status.Conditions, v1alpha1.ConditionPlacementCompliant)
	return reconcile.Result{RequeueAfter: again}, nil
}

// scan looks at the pods on those nodes on which the guard lets none run, and at the
// volumes.
func (p *Placement) scan(ctx context.Context, state *facts.Cluster, g *facts.Guard) (metav1.Condition, error) {
	var pods, volumes []string
	for _, pool := range state.Nodes.Pools() {
		refusals := nodes.Refused(g.NodePools, pool.First())
		if len(refusals) == 0 {
			continue
		}
		for _, n := range pool.Nodes {
			running, err := p.Source.PodsOnNode(ctx, n.Name())
			if err != nil {
				return metav1.Condition{}, err
			}
			for pod := range running.All() {
				ns := state.Namespaces[pod.Namespace]
				if ns == nil {
					continue
				}
				if why := policies.Misplaced(state, g, ns, pod, refusals, p.Now()); len(why) > 0 {
					pods = append(pods, fmt.Sprintf("%s/%s on node %s, which is %s", pod.Namespace, pod.Name, n.Name(), why[0].Text))
				}
			}
		}
	}
	if len(g.NodePools.AllowedRegions) > 0 {
		list, err := p.Source.Volumes(ctx)
		if err != nil {
			return metav1.Condition{}, err
		}
		for i := range list {
			if where := policies.VolumeOutside(state, g, &list[i]); where != "" {
				volumes = append(volumes, fmt.Sprintf("%s of %s/%s, which is %s", list[i].Name, list[i].Spec.ClaimRef.Namespace, list[i].Spec.ClaimRef.Name, where))
			}
		}
	}
	return placementCondition(pods, volumes), nil
}

func placementCondition(pods, volumes []string) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionPlacementCompliant, Status: metav1.ConditionFalse}
	var texts []string
	if len(pods) > 0 {
		texts = append(texts, counted(len(pods), "pod runs where it may not", "pods run where they may not")+": "+firstNames(pods))
	}
	if len(volumes) > 0 {
		texts = append(texts, counted(len(volumes), "volume is where it must not be", "volumes are where they must not be")+": "+firstNames(volumes))
	}
	switch c.Message = strings.Join(texts, "; "); {
	case len(pods) > 0:
		c.Reason = "PodsMisplaced"
	case len(volumes) > 0:
		c.Reason = "VolumesMisplaced"
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "AllPlaced", "no pod and no volume of this guard is where it must not be"
	}
	return c
}

func counted(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// longestNote is what the API server takes as the text of an event, less a bit.
const longestNote = 1000

// warnOf leaves an event when a condition of a guard has ceased to hold, once.
func warnOf(recorder events.EventRecorder, guard *v1alpha1.MeshGuard, before []metav1.Condition, kind string) {
	c := meta.FindStatusCondition(guard.Status.Conditions, kind)
	if c == nil || c.Status != metav1.ConditionFalse || meta.IsStatusConditionFalse(before, kind) {
		return
	}
	recorder.Eventf(guard, nil, corev1.EventTypeWarning, c.Reason, "Observe", "%s", shortened(c.Message))
}
