package cluster

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// WatchState is how the watch of one kind stands.
type WatchState struct {
	Kind            string
	ResourceVersion string
	// Epoch counts the lists from anew. Between two of them something may have come and gone unseen.
	Epoch uint64
	// Open: there is a watch, and all that was there when it began is known.
	Open bool
	// Heard is when the API server last said something on it, if only how far it is: at least each WordEvery.
	Heard time.Time
}

// WordEvery is how long a watch is with ShortWatches, and others that evidence takes. The API server says how far it is once a
// minute, and some two seconds before the end of a watch: short ones are how to hear it more often. Each goes on where
// the one before it ended.
const WordEvery = 20 * time.Second

// WatchStates are those of all kinds that namespaces stand by, sorted by kind. They say nothing of epochs unless
// NewInformer was given to the cache.
func (s *Source) WatchStates() []WatchState {
	s.watches.mu.Lock()
	defer s.watches.mu.Unlock()
	states := make([]WatchState, 0, len(s.watches.kinds))
	for _, kind := range slices.Sorted(maps.Keys(s.watches.kinds)) {
		k := s.watches.kinds[kind]
		states = append(states, WatchState{kind, progress(k.informer), k.epoch, k.open, k.heard})
	}
	return states
}

// NewInformer is to be given to the cache: what its informers hear from the API server, that they cannot reach it, and
// when they have to begin anew, shows nowhere else.
func (s *Source) NewInformer(lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
	if kind := kindWatched(example); kind != "" {
		lw = &hearing{toolscache.ToListerWatcherWithContext(lw), lw, kind, s.watches, s.cfg.Now, s.cfg.ShortWatches}
	}
	return toolscache.NewSharedIndexInformer(lw, example, resync, indexers)
}

// kindWatched is the kind of what the Source reads, empty for other kinds, which the same cache may hold.
func kindWatched(o runtime.Object) string {
	switch o := o.(type) {
	case *corev1.ConfigMap, *admissionregistrationv1.MutatingWebhookConfiguration, *v1alpha1.MeshGuard, *v1alpha1.GuardException,
		*objects.PeerAuthentication, *corev1.Node:
		return kindOf(o.(client.Object))
	case *metav1.PartialObjectMetadata:
		if o.GroupVersionKind() == corev1.SchemeGroupVersion.WithKind("Namespace") {
			return "Namespace"
		}
	}
	return ""
}

// hearing passes on what an informer asks and is told.
type hearing struct {
	toolscache.ListerWatcherWithContext
	under   toolscache.ListerWatcher
	kind    string
	watches *watches
	now     func() time.Time
	short   bool // watches
}

// List and Watch are those of the old interface, which informers do not call any more.
func (h *hearing) List(o metav1.ListOptions) (runtime.Object, error) {
	return h.ListWithContext(context.Background(), o)
}

func (h *hearing) Watch(o metav1.ListOptions) (apiwatch.Interface, error) {
	return h.WatchWithContext(context.Background(), o)
}

// IsWatchListSemanticsUnSupported is asked by reflectors, of the client that is behind this one.
func (h *hearing) IsWatchListSemanticsUnSupported() bool {
	return watchlist.DoesClientNotSupportWatchListSemantics(h.under)
}

// ListWithContext begins an epoch with the first page.
func (h *hearing) ListWithContext(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	if o.Continue == "" {
		h.watches.note(h.kind, func(k *watch) { k.epoch++; k.opens(false) })
	}
	list, err := h.ListerWatcherWithContext.ListWithContext(ctx, o)
	if err == nil {
		h.watches.note(h.kind, func(k *watch) { k.heard = h.now() })
	} else if ctx.Err() == nil {
		h.watches.reached(h.kind, err, time.Now()) // and only a watch is the end of that
	}
	return list, err
}

// WatchWithContext notes what is heard. A watch that sends all there is first is a list from anew, and open once it
// has.
func (h *hearing) WatchWithContext(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
	initial := o.SendInitialEvents != nil && *o.SendInitialEvents
	if initial {
		h.watches.note(h.kind, func(k *watch) { k.epoch++; k.opens(false) })
	} else if h.short {
		o.TimeoutSeconds = new(int64(WordEvery / time.Second))
	}
	w, err := h.begin(ctx, o)
	if err != nil {
		return nil, err
	}
	h.watches.note(h.kind, func(k *watch) { k.opens(!initial); k.heard = h.now() })
	return newHeardWatch(w, func(e apiwatch.Event) (last time.Duration) {
		h.watches.note(h.kind, func(k *watch) {
			k.heard = h.now()
			if initial && e.Type == apiwatch.Bookmark && endsInitialEvents(e.Object) {
				k.opens(true)
				if h.short {
					last = WordEvery // it may take any time until here, and no longer than others from here on
				}
			}
		})
		return last
	}, func() { h.watches.note(h.kind, func(k *watch) { k.opens(false) }) }), nil
}

// refusedAgain is how soon a watch is asked for again where nobody listens.
const refusedAgain = time.Second

// begin asks for a watch until somebody listens. An informer would go on from the same place too, but rest
// longer each time, for up to half a minute; as long as that, replicas would not be ready when the API server
// is back.
func (h *hearing) begin(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
	for {
		w, err := h.ListerWatcherWithContext.WatchWithContext(ctx, o)
		if ctx.Err() == nil {
			h.watches.reached(h.kind, err, time.Now())
		}
		if err == nil || !utilnet.IsConnectionRefused(err) {
			return w, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(refusedAgain):
		}
	}
}

func endsInitialEvents(o runtime.Object) bool {
	m, ok := o.(metav1.Object)
	return ok && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
}

// heardWatch is a watch that tells of each event before it passes it on, and of its end. Where heard returns a time, it
// ends after that as if the API server had ended it: an end of our own making would come as an error, after which an
// informer begins anew.
type heardWatch struct {
	under  apiwatch.Interface
	events chan apiwatch.Event
	done   chan struct{}
	once   sync.Once // for done
}

func newHeardWatch(w apiwatch.Interface, heard func(apiwatch.Event) time.Duration, ended func()) *heardWatch {
	h := &heardWatch{under: w, events: make(chan apiwatch.Event), done: make(chan struct{})}
	go func() {
		defer close(h.events)
		defer ended()
		var over <-chan time.Time
		for {
			e, more := next(w, over)
			if !more {
				return
			}
			if last := heard(e); last > 0 {
				over = time.After(last)
			}
			select {
			case h.events <- e:
			case <-h.done:
				return
			}
		}
	}()
	return h
}

// next is the next event, unless the watch has ended or is over.
func next(w apiwatch.Interface, over <-chan time.Time) (e apiwatch.Event, more bool) {
	select {
	case e, more = <-w.ResultChan():
	case <-over:
		w.Stop()
	}
	return e, more
}

// Stop implements watch.Interface.
func (h *heardWatch) Stop() {
	h.once.Do(func() { close(h.done) })
	h.under.Stop()
}

// ResultChan implements watch.Interface.
func (h *heardWatch) ResultChan() <-chan apiwatch.Event { return h.events }
