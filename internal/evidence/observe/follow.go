package observe

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	toolswatch "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/cluster"
)

const (
	// followPage bounds what one answer to a list holds: pods with a sidecar take 20 KiB each.
	followPage = 250
	// followAgain is how long a watch that could not be begun rests.
	followAgain = 2 * time.Second
)

// follower watches one kind, and holds nothing of it. A cache would hold all of it.
type follower struct {
	client client.WithWatch
	kind   string
	// list makes an empty list of the kind.
	list   func() client.ObjectList
	fields fields.Selector
	log    *slog.Logger
	now    func() time.Time
	// begin is called before all there is comes anew, by set; end when it has come. Gone is called for what goes.
	begin, end func()
	set, gone  func(client.Object)

	mu    sync.Mutex
	state cluster.WatchState // guarded by mu
}

func (f *follower) note(what func(*cluster.WatchState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what(&f.state)
}

// State is how the watch stands.
func (f *follower) State() cluster.WatchState {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	s.Kind = f.kind
	return s
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := f.follow(ctx); err != nil && ctx.Err() == nil {
			f.log.WarnContext(ctx, "evidence: a watch has to begin anew", "kind", f.kind, "error", err)
		}
		f.note(func(s *cluster.WatchState) { s.Open = false })
		select {
		case <-ctx.Done():
		case <-time.After(followAgain):
		}
	}
}

// follow lists all there is and watches what becomes of it, until the API server has forgotten where it was.
func (f *follower) follow(ctx context.Context) error {
	f.note(func(s *cluster.WatchState) { s.Epoch++ })
	version, err := f.listAll(ctx)
	if err != nil {
		return err
	}
	w, err := toolswatch.NewRetryWatcherWithContext(ctx, version, f)
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.kind, err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		switch event.Type {
		case apiwatch.Added, apiwatch.Modified:
			if o, ok := event.Object.(client.Object); ok {
				f.set(o)
			}
		case apiwatch.Deleted:
			if o, ok := event.Object.(client.Object); ok {
				f.gone(o)
			}
		case apiwatch.Error:
			return fmt.Errorf("watch %s: %w", f.kind, apierrors.FromObject(event.Object))
		}
	}
	return nil
}

// listAll goes through all there is, page by page, and returns the version at which that was so.
func (f *follower) listAll(ctx context.Context) (string, error) {
	f.begin()
	version := ""
	for next := ""; ; {
		list := f.list()
		if err := f.client.List(ctx, list, &client.ListOptions{Limit: followPage, Continue: next, FieldSelector: f.fields}); err != nil {
			return "", fmt.Errorf("list %s: %w", f.kind, err)
		}
		f.note(func(s *cluster.WatchState) { s.Heard = f.now() })
		if version == "" {
			version = list.GetResourceVersion() // that of all pages
		}
		if err := meta.EachListItem(list, func(o runtime.Object) error {
			if o, ok := o.(client.Object); ok {
				f.set(o)
			}
			return nil
		}); err != nil {
			return "", fmt.Errorf("list %s: %w", f.kind, err)
		}
		if next = list.GetContinue(); next == "" {
			f.end()
			f.note(func(s *cluster.WatchState) { s.ResourceVersion = version })
			return version, nil
		}
	}
}

// WatchWithContext implements what RetryWatcher asks: each time it goes on, a new watch from where the last one was.
func (f *follower) WatchWithContext(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) {
	o.TimeoutSeconds = new(int64(cluster.WordEvery / time.Second))
	w, err := f.client.Watch(ctx, f.list(), &client.ListOptions{FieldSelector: f.fields, Raw: &o})
	if err != nil {
		f.note(func(s *cluster.WatchState) { s.Open = false })
		return nil, err
	}
	f.note(func(s *cluster.WatchState) { s.Open, s.Heard = true, f.now() })
	return apiwatch.Filter(w, func(e apiwatch.Event) (apiwatch.Event, bool) {
		f.note(func(s *cluster.WatchState) {
			s.Heard = f.now()
			if o, ok := e.Object.(client.Object); ok && o.GetResourceVersion() != "" {
				s.ResourceVersion = o.GetResourceVersion()
			}
		})
		return e, true
	}), nil
}
