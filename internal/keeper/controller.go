package keeper

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

type queue = workqueue.TypedRateLimitingInterface[Ref]

// The queue tries again what failed, between these.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// loader has every replica read what was installed, not the leader alone: the ConfigMap
// may be gone when another one begins to lead.
type loader struct {
	keeper *Keeper
	loaded chan struct{}
}

// NeedLeaderElection is false, see loader.
func (l *loader) NeedLeaderElection() bool { return false }

// Start reads.
func (l *loader) Start(ctx context.Context) error {
	if l.keeper.Load(ctx) == nil {
		close(l.loaded)
	}
	return nil
}

// Add adds the Keeper to the manager, which runs it while it leads.
func Add(m manager.Manager, k *Keeper, g *Guards) error {
	l := &loader{keeper: k, loaded: make(chan struct{})}
	if err := m.Add(l); err != nil {
		return fmt.Errorf("add the loader of own objects: %w", err)
	}
	if err := m.Add(g); err != nil {
		return fmt.Errorf("add the memory of guards: %w", err)
	}
	objects, err := dynamic.NewForConfigAndClient(m.GetConfig(), m.GetHTTPClient())
	if err != nil {
		return fmt.Errorf("create the client of own objects: %w", err)
	}
	c, err := controller.NewTyped("own-objects", m, controller.TypedOptions[Ref]{
		Reconciler:  k,
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[Ref](firstRetry, lastRetry),
	})
	if err != nil {
		return fmt.Errorf("create the controller of own objects: %w", err)
	}
	return c.Watch(watch{k, l.loaded, objects, m.GetRESTMapper()})
}

// watch feeds the queue with the own objects: each is watched by its name, since no more
// is granted.
type watch struct {
	keeper  *Keeper
	loaded  <-chan struct{}
	objects dynamic.Interface
	mapper  meta.RESTMapper
}

// Start returns at once, and watches until ctx ends.
func (w watch) Start(ctx context.Context, q queue) error {
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-w.loaded:
		}
		for ref, o := range w.keeper.desired.Load().objects {
			q.Add(ref)
			go w.watch(ctx, q, ref, o)
		}
	}()
	return nil
}

// watch watches one object. A kind that is not served is looked for again: its API may
// be behind at the start.
func (w watch) watch(ctx context.Context, q queue, ref Ref, o desired) {
	for {
		gvk := o.gvk()
		mapping, err := w.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err == nil {
			w.inform(ctx, q, ref, mapping)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reload):
		}
	}
}

func (w watch) inform(ctx context.Context, q queue, ref Ref, mapping *meta.RESTMapping) {
	informer := dynamicinformer.NewFilteredDynamicInformer(w.objects, mapping.Resource, ref.Namespace, 0, toolscache.Indexers{},
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", ref.Name).String()
		}).Informer()
	// The content is read live, and here it is only seen that there is a new one.
	if err := informer.SetTransform(cache.TransformStripManagedFields()); err != nil {
		w.keeper.Log.ErrorContext(ctx, "cannot watch an own object", "object", ref.String(), "error", err)
		return
	}
	add := func(any) { q.Add(ref) }
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: add, UpdateFunc: func(_, o any) { add(o) }, DeleteFunc: add,
	}); err != nil {
		w.keeper.Log.ErrorContext(ctx, "cannot watch an own object", "object", ref.String(), "error", err)
		return
	}
	informer.RunWithContext(ctx)
}
