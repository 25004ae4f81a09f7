// Package controller holds the loops that only the leading replica runs: the
// registration of the webhooks, the bindings of the admission policy, the provisioning
// of STRICT policies, the classes of nodes, the scan of what stands and what is told of
// it, the restoration of what was STRICT, the status of guards and exceptions.
package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/celpack"
)

// settle is how long the status waits for further changes before it is counted
// anew: a namespace rarely changes alone.
const settle = 500 * time.Millisecond

// queue is what a controller is fed through.
type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// Add adds the controllers to the manager, which runs them while it leads.
func Add(m manager.Manager, s *cluster.Source, r *Registrar, b *Binder, p *Provisioner, st *Standing, n *NodeClasses, pl *Placement) error {
	registration, err := controller.New("registration", m, controller.Options{
		Reconciler: r,
		// Where it fails nobody may be asked, so it is not put off for long.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 5*time.Second),
	})
	if err != nil {
		return fmt.Errorf("create the registration controller: %w", err)
	}
	one := reconcile.Request{NamespacedName: types.NamespacedName{Name: WebhookName}}
	always := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{one} })
	for _, src := range []source.Source{
		source.Kind[client.Object](m.GetCache(), &admissionregistrationv1.ValidatingWebhookConfiguration{}, always),
		// Those of injectors come by the Source.
		source.Kind[client.Object](m.GetCache(), &admissionregistrationv1.MutatingWebhookConfiguration{},
			handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
				if o.GetName() != MutatingName {
					return nil
				}
				return []reconcile.Request{one}
			})),
		source.Kind[client.Object](m.GetCache(), &corev1.Secret{}, always),
		feed(s, func(namespace string, q queue) {
			if namespace == "" {
				q.Add(one)
			}
		}),
	} {
		if err := registration.Watch(src); err != nil {
			return fmt.Errorf("feed the registration controller: %w", err)
		}
	}

	if err := addBinder(m, s, b); err != nil {
		return err
	}
	if err := addNodeClasses(m, s, n); err != nil {
		return err
	}
	if err := addPlacement(m, s, pl); err != nil {
		return err
	}

	provision, err := controller.New("provision", m, controller.Options{Reconciler: p, MaxConcurrentReconciles: 4})
	if err != nil {
		return fmt.Errorf("create the provision controller: %w", err)
	}
	// Most namespaces need nothing, and a queue that all of them went through keeps room for them.
	if err := provision.Watch(feed(s, func(namespace string, q queue) {
		each(s, namespace, func(name string) {
			if cached, err := s.Cached(name); err != nil || policies.NeedsProvision(&cached, name) {
				q.Add(request(name))
			}
		})
	})); err != nil {
		return fmt.Errorf("feed the provision controller: %w", err)
	}
	return addStanding(m, s, st)
}

// addStanding adds the controller of the guards' status.
func addStanding(m manager.Manager, s *cluster.Source, st *Standing) error {
	standing, err := controller.New("standing", m, controller.Options{Reconciler: st})
	if err != nil {
		return fmt.Errorf("create the standing controller: %w", err)
	}
	guards := func(ctx context.Context) []reconcile.Request {
		var list v1alpha1.MeshGuardList
		if err := m.GetClient().List(ctx, &list); err != nil {
			return nil
		}
		requests := make([]reconcile.Request, 0, len(list.Items))
		for i := range list.Items {
			requests = append(requests, request(list.Items[i].Name))
		}
		return requests
	}
	if err := standing.Watch(feed(s, func(_ string, q queue) {
		for _, r := range guards(context.Background()) { // reads the cache, so there is nothing to cancel
			q.AddAfter(r, settle)
		}
	})); err != nil {
		return fmt.Errorf("feed the standing controller: %w", err)
	}
	if st.Ledger != nil {
		if err := standing.Watch(source.Func(func(_ context.Context, q queue) error {
			st.Ledger.OnChange(func(guard string) { q.AddAfter(request(guard), statusEvery) })
			return nil
		})); err != nil {
			return fmt.Errorf("feed the standing controller: %w", err)
		}
	}
	if err := standing.Watch(source.Func(func(_ context.Context, q queue) error {
		all := func() {
			for _, r := range guards(context.Background()) {
				q.Add(r)
			}
		}
		st.Canary.OnChange(all)
		if st.Own != nil {
			st.Own.OnChange(all)
		}
		return nil
	})); err != nil {
		return fmt.Errorf("feed the standing controller: %w", err)
	}
	return standing.Watch(source.Kind[client.Object](m.GetCache(), &admissionregistrationv1.ValidatingWebhookConfiguration{},
		handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request { return guards(ctx) })))
}

// addBinder adds the controller of the bindings where the API server knows them. One
// that is upgraded meanwhile is asked again when the process starts anew. All bindings
// are watched: the cache takes no selector for a kind that may not be there.
func addBinder(m manager.Manager, s *cluster.Source, b *Binder) error {
	bindable, err := Bindable(m.GetRESTMapper())
	if err != nil {
		return err
	}
	if !bindable {
		b.Log.Warn("the API server serves no ValidatingAdmissionPolicies: nothing is refused while no replica answers but what the webhook's failure policy refuses")
		return nil
	}
	c, err := controller.New("binding", m, controller.Options{Reconciler: b})
	if err != nil {
		return fmt.Errorf("create the binding controller: %w", err)
	}
	one := request(celpack.PolicyName)
	always := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{one} })
	for _, src := range []source.Source{
		source.Kind[client.Object](m.GetCache(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}, always),
		feed(s, func(namespace string, q queue) {
			if namespace == "" {
				q.Add(one)
			}
		}),
		source.Func(func(_ context.Context, q queue) error {
			s.OnException(func(string) { q.Add(one) })
			return nil
		}),
	} {
		if err := c.Watch(src); err != nil {
			return fmt.Errorf("feed the binding controller: %w", err)
		}
	}
	return nil
}

func request(name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
}

// feed lets the changes a Source sees put requests into a controller's queue,
// beginning with one that concerns everything.
func feed(s *cluster.Source, put func(namespace string, q queue)) source.Source {
	return source.Func(func(_ context.Context, q queue) error {
		s.OnChange(func(namespace string) { put(namespace, q) })
		put("", q)
		return nil
	})
}

// each calls f with the namespace, or with all that are guarded for "".
func each(s *cluster.Source, namespace string, f func(string)) {
	if namespace != "" {
		f(namespace)
		return
	}
	state, err := s.Snapshot()
	if err != nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(state.Namespaces)) {
		if state.Guarded(name, state.Namespaces[name].Labels) {
			f(name)
		}
	}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
