package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// guardsCRD defines MeshGuards. With it they are all deleted, by the API server itself,
// which asks nobody about any of them.
const guardsCRD = "meshguards.meshvakt.io"

// Guards remembers the MeshGuards, on every replica, and creates those anew that went
// with their definition. A guard that somebody deletes by itself is gone: that was judged.
// Which of the two it was is told by the definition: whether it is still the one that the
// guard belonged to.
//
// GuardExceptions are not brought back. They let something pass, so that their loss
// weakens nothing; and an exception that Meshvakt could create with the approval of
// somebody would be a way to forge one.
type Guards struct {
	Cache  cache.Cache
	Live   client.Reader
	Client client.Client
	// Elected is closed once this replica leads; the others only remember.
	Elected <-chan struct{}
	Ledger  *Ledger
	Log     *slog.Logger

	mu    sync.Mutex
	known map[string]*v1alpha1.MeshGuard // guarded by mu
	gone  map[string]*v1alpha1.MeshGuard // guarded by mu; deleted, and it is not known how
	added bool                           // guarded by mu; a guard has come since the definition was looked at
	wake  chan struct{}

	// definition is the UID of what the known guards belong to, and lost says that it was
	// seen to go. Start alone touches them.
	definition types.UID
	lost       bool
}

// NeedLeaderElection is false: whoever leads next must remember too.
func (g *Guards) NeedLeaderElection() bool { return false }

// Start remembers until ctx ends.
func (g *Guards) Start(ctx context.Context) error {
	g.mu.Lock()
	g.known, g.gone, g.wake = map[string]*v1alpha1.MeshGuard{}, map[string]*v1alpha1.MeshGuard{}, make(chan struct{}, 1)
	g.mu.Unlock()
	informer, err := g.Cache.GetInformer(ctx, &v1alpha1.MeshGuard{})
	if err != nil {
		return fmt.Errorf("watch MeshGuards: %w", err)
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: g.seen, UpdateFunc: func(_, o any) { g.seen(o) }, DeleteFunc: g.deleted,
	}); err != nil {
		return fmt.Errorf("watch MeshGuards: %w", err)
	}
	ticker := time.NewTicker(retry)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wake:
		case <-ticker.C:
		}
		g.step(ctx)
	}
}

func (g *Guards) seen(o any) {
	guard, ok := o.(*v1alpha1.MeshGuard)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known[guard.Name] == nil {
		g.added = true
	}
	g.known[guard.Name] = guard
	if g.gone[guard.Name] != nil {
		delete(g.gone, guard.Name)
		g.Ledger.AsInstalled(guard, "MeshGuard") // whoever has created it
	}
}

func (g *Guards) deleted(o any) {
	if d, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
		o = d.Obj
	}
	guard, ok := o.(*v1alpha1.MeshGuard)
	if !ok {
		return
	}
	g.mu.Lock()
	delete(g.known, guard.Name)
	g.gone[guard.Name] = guard
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// step finds out how guards have gone, and creates those anew that went with their
// definition.
func (g *Guards) step(ctx context.Context) {
	g.mu.Lock()
	gone := make([]*v1alpha1.MeshGuard, 0, len(g.gone))
	for _, name := range slices.Sorted(maps.Keys(g.gone)) {
		gone = append(gone, g.gone[name])
	}
	added := g.added
	g.mu.Unlock()
	if len(gone) == 0 && !added {
		return
	}
	crd := &metav1.PartialObjectMetadata{}
	crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	switch err := g.Live.Get(ctx, client.ObjectKey{Name: guardsCRD}, crd); {
	case apierrors.IsNotFound(err), err == nil && crd.DeletionTimestamp != nil:
		g.lost = true
		// The guards that are known go with it: one that comes from now on belongs to the next.
		g.mu.Lock()
		g.added = false
		g.mu.Unlock()
		return
	case err != nil:
		return // the next round asks again
	case len(gone) == 0:
		g.definition, g.lost = crd.UID, false
		g.mu.Lock()
		g.added = false
		g.mu.Unlock()
		return
	case g.definition == "" && !g.lost: // nothing is known of what was before
		g.definition = crd.UID
		g.forget(gone)
		return
	case crd.UID == g.definition && !g.lost:
		g.forget(gone)
		return
	}
	select {
	case <-g.Elected:
	default:
		return // the leader creates them, and then they are seen again
	}
	for _, guard := range gone {
		if !g.create(ctx, guard) {
			return
		}
	}
	g.definition, g.lost = crd.UID, false
}

func (g *Guards) forget(gone []*v1alpha1.MeshGuard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, guard := range gone {
		if g.gone[guard.Name] == guard {
			delete(g.gone, guard.Name)
		}
	}
}

// create creates a guard as it was last seen, and reports whether it is there. Until the
// API server serves the definition again it says that it finds none.
func (g *Guards) create(ctx context.Context, last *v1alpha1.MeshGuard) bool {
	guard := &v1alpha1.MeshGuard{
		ObjectMeta: metav1.ObjectMeta{Name: last.Name, Labels: maps.Clone(last.Labels), Annotations: maps.Clone(last.Annotations)},
		Spec:       *last.Spec.DeepCopy(),
	}
	switch err := g.Client.Create(ctx, guard); {
	case apierrors.IsAlreadyExists(err):
		g.Ledger.AsInstalled(last, "MeshGuard")
	case err != nil:
		g.Ledger.Unrepaired(ctx, last, "MeshGuard", "its definition was deleted, and it cannot be created anew yet")
		g.Log.DebugContext(ctx, "cannot create a MeshGuard anew yet", "guard", last.Name, "error", err)
		return false
	default:
		g.Ledger.Repaired(ctx, guard, "MeshGuard", Created, "it was deleted with its CustomResourceDefinition")
	}
	g.forget([]*v1alpha1.MeshGuard{last})
	return true
}
