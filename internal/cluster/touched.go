package cluster

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	toolswatch "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// watchAgain is how long a watch that could not be begun rests.
const watchAgain = 5 * time.Second

// Touched tells in which namespaces pods, and what makes them, change in something that
// is judged. It watches their metadata and keeps nothing of it but a number for each
// object: 150,000 pods take some 10 MiB, and no list of them is ever held. What the
// numbers are compared with is what was judged last, so that the news of a kubelet,
// which are most of what such a watch has to say, touch nothing.
type Touched struct {
	client client.WithWatch
	log    *slog.Logger
	seed   maphash.Seed
	ready  chan struct{}

	mu     sync.Mutex
	judged map[uint64]uint64 // guarded by mu; by object, what of it was judged
	fresh  map[uint64]uint64 // guarded by mu; nil unless a pass over all objects is under way
}

// NewTouched returns a Touched that has heard of nothing.
func NewTouched(c client.WithWatch, log *slog.Logger) *Touched {
	return &Touched{client: c, log: log, seed: maphash.MakeSeed(), ready: make(chan struct{}), judged: map[uint64]uint64{}}
}

// Begin notes that all objects are about to be judged; what is not met until End is
// forgotten.
func (t *Touched) Begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh = map[uint64]uint64{}
}

// End ends what Begin has begun; unless the pass was complete, all stays as it was.
func (t *Touched) End(complete bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if complete {
		t.judged = t.fresh
	}
	t.fresh = nil
}

// Judged notes that an object has been judged as it is here.
func (t *Touched) Judged(r *Running) {
	o := r.object()
	k, v := t.key(r.Kind.Kind, o), t.print(o)
	if r.Pod != nil && r.Pod.Spec.NodeName == "" {
		v |= waits
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.judged[k] = v
	if t.fresh != nil {
		t.fresh[k] = v
	}
}

func (t *Touched) key(kind string, o metav1.Object) uint64 {
	return maphash.String(t.seed, kind+"\x00"+o.GetNamespace()+"\x00"+o.GetName()+"\x00"+string(o.GetUID()))
}

// print is a number for what is judged of an object, as far as its metadata tell: that
// the spec has changed shows in the generation.
func (t *Touched) print(o metav1.Object) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	fmt.Fprintf(&h, "%d %t", o.GetGeneration(), o.GetDeletionTimestamp() != nil)
	for _, m := range []map[string]string{o.GetLabels(), o.GetAnnotations()} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			h.WriteString(k + "\x00" + m[k] + "\x00")
		}
		h.WriteString("\x01")
	}
	return h.Sum64() &^ waits
}

// waits marks what was judged of a pod before it had a node. That it gets one does not
// show in its metadata.
const waits = 1

// Ready is closed when nothing that happens from then on will be missed.
func (t *Touched) Ready() <-chan struct{} { return t.ready }

// Watch calls touched with the names of namespaces, and with "" when something may have
// been missed, until ctx ends. perhaps says that a pod has news that waits for a node,
// which may be that it has got one, or what the scheduler says of it time after time.
func (t *Touched) Watch(ctx context.Context, touched func(namespace string, perhaps bool)) {
	var kinds, begun sync.WaitGroup
	for _, kind := range []schema.GroupVersionKind{
		corev1.SchemeGroupVersion.WithKind("Pod"),
		appsv1.SchemeGroupVersion.WithKind("Deployment"),
		appsv1.SchemeGroupVersion.WithKind("StatefulSet"),
		appsv1.SchemeGroupVersion.WithKind("DaemonSet"),
		batchv1.SchemeGroupVersion.WithKind("CronJob"),
	} {
		begun.Add(1)
		once := sync.OnceFunc(begun.Done)
		kinds.Go(func() {
			defer once()
			for ctx.Err() == nil {
				if err := t.watch(ctx, kind, once, touched); err != nil && ctx.Err() == nil {
					t.log.WarnContext(ctx, "a watch has ended, all is looked at again", "kind", kind.Kind, "error", err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(watchAgain):
					touched("", false)
				}
			}
		})
	}
	begun.Wait()
	close(t.ready)
	kinds.Wait()
}

// watch watches one kind until the API server has forgotten where it was.
func (t *Touched) watch(ctx context.Context, kind schema.GroupVersionKind, begun func(), touched func(namespace string, perhaps bool)) error {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	if err := t.client.List(ctx, list, client.Limit(1)); err != nil {
		return fmt.Errorf("list one %s: %w", kind.Kind, err)
	}
	w, err := toolswatch.NewRetryWatcherWithContext(ctx, list.ResourceVersion, metadataWatch{t.client, kind})
	if err != nil {
		return fmt.Errorf("watch %s: %w", kind.Kind, err)
	}
	defer w.Stop()
	begun() // from this version on
	for event := range w.ResultChan() {
		switch o := event.Object.(type) {
		case *metav1.PartialObjectMetadata:
			if changed, perhaps := t.changes(kind.Kind, event.Type, o); changed || perhaps {
				touched(o.Namespace, !changed)
			}
		default:
			if event.Type == apiwatch.Error {
				return fmt.Errorf("watch %s: %w", kind.Kind, apierrors.FromObject(event.Object))
			}
		}
	}
	return nil
}

// changes reports whether an event is about something that has not been judged, or
// perhaps is.
func (t *Touched) changes(kind string, event apiwatch.EventType, o metav1.Object) (changed, perhaps bool) {
	k := t.key(kind, o)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch event {
	case apiwatch.Added, apiwatch.Modified:
		was, ok := t.judged[k]
		return !ok || was&^waits != t.print(o), was&waits != 0
	case apiwatch.Deleted:
		delete(t.judged, k)
		return true, false
	}
	return false, false
}

// metadataWatch watches the metadata of a kind.
type metadataWatch struct {
	client client.WithWatch
	kind   schema.GroupVersionKind
}

// WatchWithContext implements cache.WatcherWithContext.
func (m metadataWatch) WatchWithContext(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(m.kind.GroupVersion().WithKind(m.kind.Kind + "List"))
	return m.client.Watch(ctx, list, &client.ListOptions{Raw: &o})
}
