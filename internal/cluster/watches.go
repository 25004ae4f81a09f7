package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// MaxStaleness is how long a watch may be broken before the replica says that it
// is not ready.
const MaxStaleness = 30 * time.Second

// checkInterval is how often the progress of the watches is looked at.
const checkInterval = time.Second

// watches tells broken watches from quiet ones. A quiet watch makes no progress
// either; a broken one has reported an error, and has made no progress since.
type watches struct {
	mu    sync.Mutex
	kinds map[string]*watch // guarded by mu
}

type watch struct {
	informer cache.Informer
	// failing is when the first error since the last progress was seen, zero when
	// there was none.
	failing time.Time
	err     error
	// at is the resourceVersion that the watch had reached when it failed.
	at string
	// unreached is since when no watch can be begun, zero while one can. An informer whose connection
	// is refused goes on trying and reports no error; only NewInformer is told.
	unreached    time.Time
	unreachedErr error

	// What NewInformer is told: how often all was listed from anew, whether a watch is open, and when the API server
	// was last heard on it.
	epoch uint64
	open  bool
	heard time.Time
	// opened is when the watch was, zero while it is not open.
	opened time.Time
}

func newWatches() *watches { return &watches{kinds: map[string]*watch{}} }

func (w *watches) add(kind string, informer cache.Informer) {
	w.note(kind, func(k *watch) { k.informer = informer })
}

func (w *watches) note(kind string, what func(*watch)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.kinds[kind]
	if k == nil {
		k = &watch{}
		w.kinds[kind] = k
	}
	what(k)
}

// failed notes that the watch of a kind broke off with an error. The informer
// tries again by itself.
func (w *watches) failed(kind string, err error, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.kinds[kind]
	if k == nil {
		return
	}
	if k.failing.IsZero() {
		k.failing, k.at = now, progress(k.informer)
	}
	k.err = err
}

// reached notes that the API server has begun a watch, or that it could not be asked to.
func (w *watches) reached(kind string, err error, now time.Time) {
	w.note(kind, func(k *watch) {
		switch {
		case err == nil:
			k.unreached, k.unreachedErr = time.Time{}, nil
		case k.unreached.IsZero():
			k.unreached, k.unreachedErr = now, err
		default:
			k.unreachedErr = err
		}
	})
}

func (k *watch) opens(is bool) {
	k.open, k.opened = is, time.Time{}
	if is {
		k.opened = time.Now()
	}
}

// broken is for how long the watch has been broken, and why; 0 for one that works.
func (k *watch) broken(now time.Time) (time.Duration, error) {
	var since time.Duration
	var why error
	if !k.failing.IsZero() {
		since, why = now.Sub(k.failing), k.err
	}
	if !k.unreached.IsZero() && now.Sub(k.unreached) > since {
		since, why = now.Sub(k.unreached), k.unreachedErr
	}
	return since, why
}

// run looks at the progress of the watches until ctx ends.
func (w *watches) run(ctx context.Context) {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			w.check(time.Now())
		}
	}
}

// lasting is how long a watch has been open that is not about to break off again.
const lasting = 5 * time.Second

// check clears the failure of every watch that has moved on, or lasts: a quiet one moves on about once a minute.
func (w *watches) check(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.kinds {
		lasts := !k.opened.IsZero() && k.opened.After(k.failing) && now.Sub(k.opened) >= lasting
		if !k.failing.IsZero() && (lasts || progress(k.informer) != k.at) {
			k.failing, k.err = time.Time{}, nil
		}
	}
}

// healthy returns an error that names the watches broken for longer than
// MaxStaleness.
func (w *watches) healthy(now time.Time) error {
	w.check(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	for _, kind := range slices.Sorted(maps.Keys(w.kinds)) {
		if since, err := w.kinds[kind].broken(now); since > MaxStaleness {
			errs = append(errs, fmt.Errorf("watch of %s broken for %s: %w", kind, since.Round(time.Second), err))
		}
	}
	return errors.Join(errs...)
}

// Ages returns for how long each watch has been broken; 0 for one that works.
func (s *Source) Ages(now time.Time) map[string]time.Duration {
	s.watches.check(now)
	s.watches.mu.Lock()
	defer s.watches.mu.Unlock()
	ages := make(map[string]time.Duration, len(s.watches.kinds))
	for kind, k := range s.watches.kinds {
		ages[kind], _ = k.broken(now)
	}
	return ages
}

// WatchErrorHandler is to be given to the cache: it tells the Source of watches
// that break.
func (s *Source) WatchErrorHandler(ctx context.Context, r *toolscache.Reflector, err error) {
	toolscache.DefaultWatchErrorHandler(ctx, r, err)
	s.watches.failed(reflectorKind(r.TypeDescription()), err, time.Now())
}

func progress(i cache.Informer) string {
	if p, ok := i.(interface{ LastSyncResourceVersion() string }); ok {
		return p.LastSyncResourceVersion()
	}
	return ""
}

// reflectorKind maps a reflector's description of its type to the kind.
func reflectorKind(description string) string {
	for suffix, kind := range map[string]string{
		"ConfigMap": "ConfigMap", "MutatingWebhookConfiguration": "MutatingWebhookConfiguration", "MeshGuard": "MeshGuard", "GuardException": "GuardException", "Node": "Node", "PeerAuthentication": "PeerAuthentication", "PartialObjectMetadata": "Namespace", "Namespace": "Namespace",
	} {
		if len(description) >= len(suffix) && description[len(description)-len(suffix):] == suffix {
			return kind
		}
	}
	return description
}
