package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Source gives facts about a cluster. It is safe for concurrent use.
type Source struct {
	cfg    Config
	index  *index
	synced atomic.Bool
	// policies is the informer of PeerAuthentications, whose progress says how
	// new the cached policies are. Set before synced.
	policies cache.Informer
	watches  *watches
	heavy    chan struct{} // see lease
	nodes    *nodeIndex
	// returning: memory is about to be returned.
	returning atomic.Bool

	mu       sync.Mutex
	onChange []func(namespace string) // guarded by mu
	// onNodeChange is told of nodes.
	onNodeChange []func(name string) // guarded by mu
	// onExceptionChange is told of exceptions.
	onExceptionChange []func(namespace string) // guarded by mu
}

// ErrNotSynced is returned until the caches have been filled.
var ErrNotSynced = errors.New("caches are not filled yet")

// New returns a Source that knows nothing before Start.
func New(cfg Config) *Source {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Source{cfg: cfg, index: newIndex(), watches: newWatches(), heavy: make(chan struct{}, heavyReads), nodes: newNodeIndex(cfg.Catalogue)}
}

// OnChange adds a function that is called, with the namespace's name, after the
// cached state of a namespace has changed, and with "" after something that
// concerns all has. It must not block.
func (s *Source) OnChange(f func(namespace string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onChange = append(s.onChange, f)
}

// OnException adds a function that is called, with the namespace's name, after the
// exceptions of a namespace have changed, and after what OnChange adds. It must not block.
func (s *Source) OnException(f func(namespace string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onExceptionChange = append(s.onExceptionChange, f)
}

func (s *Source) changedException(namespace string) {
	s.changed(namespace)
	s.mu.Lock()
	listeners := s.onExceptionChange
	s.mu.Unlock()
	for _, f := range listeners {
		f(namespace)
	}
}

func (s *Source) changed(namespace string) {
	s.mu.Lock()
	listeners := s.onChange
	s.mu.Unlock()
	for _, f := range listeners {
		f(namespace)
	}
}

// Start fills the index and keeps it up to date until ctx ends. The cache must
// be running.
func (s *Source) Start(ctx context.Context) error {
	type watch struct {
		object   client.Object
		handlers toolscache.ResourceEventHandler
	}
	var registrations []toolscache.ResourceEventHandlerRegistration
	for _, w := range []watch{
		{&corev1.ConfigMap{}, s.onConfigMap()},
		{&admissionregistrationv1.MutatingWebhookConfiguration{}, s.onWebhooks()},
		{&v1alpha1.MeshGuard{}, s.onGuard(ctx)},
		{&objects.PeerAuthentication{}, s.onPolicy()},
		{&v1alpha1.GuardException{}, s.onException()},
		{&corev1.Node{}, s.onNode()},
		{namespaceMeta(), s.onNamespace()},
	} {
		informer, err := s.informer(ctx, w.object)
		if err != nil {
			return err
		}
		if _, is := w.object.(*objects.PeerAuthentication); is {
			s.policies = informer
		}
		s.watches.add(kindOf(w.object), informer)
		registration, err := informer.AddEventHandler(w.handlers)
		if err != nil {
			return fmt.Errorf("watch %s: %w", kindOf(w.object), err)
		}
		registrations = append(registrations, registration)
	}
	for _, r := range registrations {
		// HasSynced of a registration is true once its handlers have seen the
		// whole first list, not just the informer's store.
		if !toolscache.WaitForCacheSync(ctx.Done(), r.HasSynced) {
			return nil
		}
	}
	s.synced.Store(true)
	s.changed("")
	// The first lists of a large cluster leave more garbage behind than the facts
	// take; it is not needed again.
	debug.FreeOSMemory()
	s.watches.run(ctx)
	return nil
}

// NeedLeaderElection lets every replica have its facts.
func (s *Source) NeedLeaderElection() bool { return false }

// informer returns the informer of a kind. It waits for the kind to exist: a
// cluster may get Istio after Meshvakt.
func (s *Source) informer(ctx context.Context, o client.Object) (cache.Informer, error) {
	for said := false; ; {
		informer, err := s.cfg.Cache.GetInformer(ctx, o, cache.BlockUntilSynced(false))
		if err == nil || !meta.IsNoMatchError(err) {
			return informer, err
		}
		if !said {
			s.cfg.Log.WarnContext(ctx, "waiting for a custom resource that is not installed yet", "kind", kindOf(o), "error", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func kindOf(o client.Object) string {
	switch o.(type) {
	case *corev1.ConfigMap:
		return "ConfigMap"
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		return "MutatingWebhookConfiguration"
	case *v1alpha1.MeshGuard:
		return "MeshGuard"
	case *v1alpha1.GuardException:
		return "GuardException"
	case *objects.PeerAuthentication:
		return "PeerAuthentication"
	case *corev1.Node:
		return "Node"
	default:
		return "Namespace"
	}
}

func (s *Source) onNamespace() toolscache.ResourceEventHandler {
	set := func(o any) {
		if ns, ok := o.(*metav1.PartialObjectMetadata); ok {
			s.index.meetNamespace(ns)
			s.changed(ns.Name)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if ns, ok := unwrap[*metav1.PartialObjectMetadata](o); ok {
				s.index.removeNamespace(ns.Name)
				s.changed(ns.Name)
			}
		},
	}
}

func (s *Source) onPolicy() toolscache.ResourceEventHandler {
	set := func(o any) {
		if p, ok := o.(*objects.PeerAuthentication); ok {
			m, err := p.Mesh()
			if err != nil {
				s.cfg.Log.Error("a stored PeerAuthentication has a value that Istio's schema does not know; it counts as DISABLE", "namespace", p.Namespace, "name", p.Name, "error", err)
			}
			s.index.setPolicy(m, p.ResourceVersion)
			s.changedPolicy(p.Namespace)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if p, ok := unwrap[*objects.PeerAuthentication](o); ok {
				s.index.removePolicy(p.Namespace, p.Name)
				s.changedPolicy(p.Namespace)
			}
		},
	}
}

func (s *Source) onException() toolscache.ResourceEventHandler {
	set := func(o any) {
		if e, ok := o.(*v1alpha1.GuardException); ok {
			if x := s.exception(e); x != nil {
				s.index.setException(x)
			} else {
				s.index.removeException(e.Namespace, e.Name)
			}
			s.changedException(e.Namespace)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if e, ok := unwrap[*v1alpha1.GuardException](o); ok {
				s.index.removeException(e.Namespace, e.Name)
				s.changedException(e.Namespace)
			}
		},
	}
}

// exception reads a GuardException, nil for one that cannot be read, which the API server
// should have refused: it lets nothing pass.
func (s *Source) exception(e *v1alpha1.GuardException) *facts.Exception {
	x, err := facts.NewException(e)
	if err != nil {
		s.cfg.Log.Error("cannot read a GuardException, it lets nothing pass", "namespace", e.Namespace, "name", e.Name, "error", err)
		return nil
	}
	return x
}

// changedPolicy reports a change in a namespace; in a root namespace it concerns
// all.
func (s *Source) changedPolicy(namespace string) {
	if c, _, _, err := s.index.around(namespace); err == nil {
		for _, root := range c.RootNamespaces() {
			if root == namespace {
				s.changed("")
				return
			}
		}
	}
	s.changed(namespace)
}

func (s *Source) onConfigMap() toolscache.ResourceEventHandler {
	set := func(o any) {
		if cm, ok := o.(*corev1.ConfigMap); ok && s.takeConfigMap(cm) {
			s.changed("")
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			cm, ok := unwrap[*corev1.ConfigMap](o)
			if !ok {
				return
			}
			plane, injector := s.index.removePlane(cm.Name, cm.ResourceVersion), s.index.removeInjector(cm.Name, cm.ResourceVersion)
			if plane || injector {
				s.changed("")
			}
		},
	}
}

// takeConfigMap reports whether there are settings in the ConfigMap, or were. Other
// ConfigMaps of Istio, without settings, come this way too.
func (s *Source) takeConfigMap(cm *corev1.ConfigMap) bool {
	plane, isPlane, err := s.planeIn(cm)
	if isPlane {
		s.index.meetPlane(cm, plane, err)
	} else {
		isPlane = s.index.removePlane(cm.Name, cm.ResourceVersion)
	}
	injector, isInjector, err := s.injectorIn(cm)
	if isInjector {
		s.index.setInjector(cm.Name, cm.ResourceVersion, injector, err)
	} else {
		isInjector = s.index.removeInjector(cm.Name, cm.ResourceVersion)
	}
	return isPlane || isInjector
}

// onWebhooks keeps the webhooks that lead to injectors.
func (s *Source) onWebhooks() toolscache.ResourceEventHandler {
	set := func(o any) {
		c, ok := o.(*admissionregistrationv1.MutatingWebhookConfiguration)
		if !ok {
			return
		}
		list, err := mesh.ParseInjectionWebhooks(c)
		if err != nil {
			s.cfg.Log.Error("cannot read the webhooks of an injector; the last good ones stay", "error", err)
		}
		if s.index.setWebhooks(c.Name, c.ResourceVersion, list, err) {
			s.changed("")
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if c, ok := unwrap[*admissionregistrationv1.MutatingWebhookConfiguration](o); ok && s.index.removeWebhooks(c.Name, c.ResourceVersion) {
				s.changed("")
			}
		},
	}
}

// onGuard reads all guards anew at every event: they are few.
func (s *Source) onGuard(ctx context.Context) toolscache.ResourceEventHandler {
	generations := map[string]int64{}
	var newest uint64
	read := func(o any) {
		if g, ok := unwrap[*v1alpha1.MeshGuard](o); ok && generations[g.Name] != g.Generation {
			generations[g.Name] = g.Generation
			newest = max(newest, revision(g.ResourceVersion))
		}
		var list v1alpha1.MeshGuardList
		if err := s.cfg.Cache.List(ctx, &list); err != nil {
			s.cfg.Log.ErrorContext(ctx, "cannot list MeshGuards from the cache", "error", err)
			return
		}
		s.index.setGuards(s.guards(ctx, list.Items), newest)
		s.changed("")
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    read,
		UpdateFunc: func(_, o any) { read(o) },
		DeleteFunc: func(o any) {
			if g, ok := unwrap[*v1alpha1.MeshGuard](o); ok {
				delete(generations, g.Name)
			}
			read(nil)
		},
	}
}

// guards parses MeshGuards. One whose selector cannot be read guards nothing; the
// API server refuses such a guard, so this is a matter for the log.
func (s *Source) guards(ctx context.Context, items []v1alpha1.MeshGuard) []facts.Guard {
	guards := make([]facts.Guard, 0, len(items))
	for i := range items {
		v1alpha1.SetDefaults(&items[i])
		g, err := facts.NewGuard(&items[i])
		if err != nil {
			s.cfg.Log.ErrorContext(ctx, "cannot read a MeshGuard, it guards nothing", "guard", items[i].Name, "error", err)
			continue
		}
		guards = append(guards, g)
	}
	return guards
}

// Synced reports whether the caches have been filled.
func (s *Source) Synced() bool { return s.synced.Load() }

// Ready returns nil when the caches have been filled and no watch is broken for
// longer than MaxStaleness.
func (s *Source) Ready(now time.Time) error {
	if !s.Synced() {
		return ErrNotSynced
	}
	return s.watches.healthy(now)
}

// Snapshot returns the whole cached state.
func (s *Source) Snapshot() (facts.Cluster, error) {
	if !s.Synced() {
		return facts.Cluster{}, ErrNotSynced
	}
	c, err := s.index.all()
	s.addCached(&c)
	return c, err
}

// Cached returns the cached facts that pods of a namespace meet.
func (s *Source) Cached(namespace string) (facts.Cluster, error) {
	if !s.Synced() {
		return facts.Cluster{}, ErrNotSynced
	}
	c, _, _, err := s.index.around(namespace)
	s.addCached(&c)
	return c, err
}

// addCached adds what is the same for all namespaces.
func (s *Source) addCached(c *facts.Cluster) {
	c.Unguardable, c.NodeFacts = s.unguardable(), s.nodes.facts(c.Guards)
}

// IstioNamespace is where istiod's ConfigMaps are.
func (s *Source) IstioNamespace() string { return s.cfg.IstioNamespace }

func (s *Source) unguardable() []string {
	return append(facts.SystemNamespaces(), s.cfg.OwnNamespace)
}
