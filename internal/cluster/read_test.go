package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// apiServer answers reads like an API server: counted, in pages, and with an
// error if there is to be one.
type apiServer struct {
	client.Client
	fail func(verb string, of any) error

	mu    sync.Mutex
	reads []string // guarded by mu
}

func (a *apiServer) note(verb string, of any, at string) error {
	a.mu.Lock()
	a.reads = append(a.reads, fmt.Sprintf("%s %T %s", verb, of, at))
	a.mu.Unlock()
	if a.fail != nil {
		return a.fail(verb, of)
	}
	return nil
}

func (a *apiServer) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.reads)
}

func (a *apiServer) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if err := a.note("get", o, key.String()); err != nil {
		return err
	}
	return a.Client.Get(ctx, key, o, opts...)
}

func (a *apiServer) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	options := (&client.ListOptions{}).ApplyOptions(opts)
	if err := a.note("list", list, options.Continue); err != nil {
		return err
	}
	from, _ := strconv.Atoi(options.Continue)
	limit := int(options.Limit)
	all := *options
	all.Continue, all.Limit = "", 0
	if err := a.Client.List(ctx, list, &all); err != nil || limit == 0 {
		return err
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return err
	}
	to := min(len(items), from+limit)
	if list.SetContinue(""); to < len(items) {
		list.SetContinue(strconv.Itoa(to))
	}
	return meta.SetList(list, items[from:to])
}

func storedNamespace(name string, labels map[string]string, version string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, ResourceVersion: version}}
}

func storedPolicy(namespace, name, mode, version string) *objects.PeerAuthentication {
	return &objects.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: version},
		Spec:       objects.PeerAuthenticationSpec{MTLS: &objects.MutualTLS{Mode: mode}},
	}
}

func meshConfig(name, text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name}, Data: map[string]string{"mesh": text}}
}

// reading returns a Source with an empty index, whose API server holds the
// objects and whose cache of policies has reached a version.
func reading(t *testing.T, version string, stored ...client.Object) (*Source, *apiServer) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	server := &apiServer{Client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(stored...).Build()}
	s := New(Config{Live: server, IstioNamespace: "istio-system", OwnNamespace: "meshvakt-system", Catalogue: catalogue(t), Log: slog.New(slog.DiscardHandler)})
	s.policies = holding(t, version)
	s.index.setGuards(defaultGuards(t), 1)
	s.synced.Store(true)
	return s, server
}

func catalogue(t testing.TB) *nodes.Catalogue {
	t.Helper()
	c, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func about(kind, namespace, name string) *facts.Review {
	gvk := corev1.SchemeGroupVersion.WithKind(kind)
	if kind == "PeerAuthentication" {
		gvk = objects.PeerAuthenticationKind()
	}
	return &facts.Review{Kind: gvk, Namespace: namespace, Name: name}
}

// The cache serves pods only while it provably knows as much as the API server
// did when it asked.
func TestReadChoosesCacheOrLive(t *testing.T) {
	prod := func(s *Source) { s.index.setNamespace("prod", guardedLabels(), false, "10") }
	for name, c := range map[string]struct {
		policiesAt string
		cached     func(*Source)
		review     *facts.Review
		live       bool
	}{
		"a pod where the policies are newer than the labels": {"11", prod, about("Pod", "prod", "web"), false},
		"a pod where the policies are as new as the labels":  {"10", prod, about("Pod", "prod", "web"), false},
		"a pod where the policies are older than the labels": {"9", prod, about("Pod", "prod", "web"), true},
		"a pod where the age of the policies is not known":   {"", prod, about("Pod", "prod", "web"), true},
		"a pod in a namespace the cache does not know":       {"11", func(*Source) {}, about("Pod", "prod", "web"), true},
		"a pod in a namespace of which only a policy is known": {
			"11", func(s *Source) { s.index.setPolicy(strictPolicy("prod", "default"), "9") }, about("Pod", "prod", "web"), true,
		},
		"a pod in a namespace that the cache takes for unguarded": {
			"11", func(s *Source) { s.index.setNamespace("prod", nil, false, "10") }, about("Pod", "prod", "web"), true,
		},
		"a pod where a guard is newer than the policies": {
			"11", func(s *Source) { prod(s); s.index.setGuards(defaultGuards(t), 12) }, about("Pod", "prod", "web"), true,
		},
		"a pod where all that the informer holds is in the index": {
			"11", func(s *Source) {
				prod(s)
				s.policies = holding(t, "11", storedPolicy("prod", "default", "STRICT", "8"), storedPolicy("istio-system", "default", "STRICT", "7"), storedPolicy("other", "default", "STRICT", "11"))
				s.index.setPolicy(strictPolicy("prod", "default"), "8")
				s.index.setNamespace("istio-system", nil, false, "1")
				s.index.setPolicy(strictPolicy("istio-system", "default"), "7")
			}, about("Pod", "prod", "web"), false,
		},
		"a pod where the index has not heard yet that a policy is gone": {
			"11", func(s *Source) { prod(s); s.index.setPolicy(strictPolicy("prod", "default"), "8") }, about("Pod", "prod", "web"), true,
		},
		"a pod where the index has not heard yet that a policy has changed": {
			"11", func(s *Source) {
				prod(s)
				s.policies = holding(t, "11", storedPolicy("prod", "default", "PERMISSIVE", "9"))
				s.index.setPolicy(strictPolicy("prod", "default"), "8")
			}, about("Pod", "prod", "web"), true,
		},
		"a pod where the index has not heard yet of a policy of the root namespace": {
			"11", func(s *Source) {
				prod(s)
				s.index.setNamespace("istio-system", nil, false, "1")
				s.policies = holding(t, "11", storedPolicy("istio-system", "default", "PERMISSIVE", "9"))
			}, about("Pod", "prod", "web"), true,
		},
		"a pod where the older policies have been verified": {
			"9", func(s *Source) { prod(s); s.index.verify("prod", 10) }, about("Pod", "prod", "web"), false,
		},
		"a pod where the labels are newer than the verification": {
			"9", func(s *Source) { s.index.setNamespace("prod", nil, false, "5"); s.index.verify("prod", 8); prod(s) }, about("Pod", "prod", "web"), true,
		},
		"a pod without any guard in the cache": {
			"11", func(s *Source) { prod(s); s.index.setGuards(nil, 2) }, about("Pod", "prod", "web"), true,
		},
		"a namespace": {"11", prod, about("Namespace", "", "prod"), true},
		"a policy":    {"11", prod, about("PeerAuthentication", "prod", "default"), true},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := reading(t, c.policiesAt, storedNamespace("prod", guardedLabels(), "10"), v1alpha1.DefaultGuard())
			c.cached(s)
			got, err := s.Read(t.Context(), c.review)
			if err != nil {
				t.Fatal(err)
			}
			if got.Live != c.live || (server.count() > 0) != c.live {
				t.Errorf("live %t with %d reads; want live %t", got.Live, server.count(), c.live)
			}
			if got.Namespaces["prod"] == nil || len(got.Guards) != 1 || !slices.Contains(got.Unguardable, "meshvakt-system") {
				t.Errorf("incomplete: %+v", got)
			}
		})
	}
}

// The first pod after the labels pays for a live read; if that shows the cache to
// be complete, the next ones do not.
func TestReadVerifies(t *testing.T) {
	strict := storedPolicy("prod", "default", "STRICT", "7")
	mesh1 := storedPolicy("istio-system", "default", "STRICT", "6")
	for name, c := range map[string]struct {
		cached   func(*Source)
		verified bool
	}{
		"the cache holds what was read": {func(s *Source) {
			s.index.setPolicy(strictPolicy("prod", "default"), "7")
			s.index.setPolicy(strictPolicy("istio-system", "default"), "6")
		}, true},
		"the cache lacks a policy": {func(s *Source) {
			s.index.setPolicy(strictPolicy("istio-system", "default"), "6")
		}, false},
		"the cache has an older version": {func(s *Source) {
			s.index.setPolicy(strictPolicy("prod", "default"), "5")
			s.index.setPolicy(strictPolicy("istio-system", "default"), "6")
		}, false},
		"the cache has a policy that is gone": {func(s *Source) {
			s.index.setPolicy(strictPolicy("prod", "default"), "7")
			s.index.setPolicy(strictPolicy("prod", "old"), "3")
			s.index.setPolicy(strictPolicy("istio-system", "default"), "6")
		}, false},
		"the cache lacks a policy of the root namespace": {func(s *Source) {
			s.index.setPolicy(strictPolicy("prod", "default"), "7")
		}, false},
		"the cache has other root namespaces": {func(s *Source) {
			s.index.setPolicy(strictPolicy("prod", "default"), "7")
			s.index.setPolicy(strictPolicy("istio-system", "default"), "6")
			s.index.setPlane("istio-b", mesh.ControlPlane{Revision: "b", RootNamespace: "mesh-b"}, nil)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := reading(t, "8", storedNamespace("prod", guardedLabels(), "10"), storedNamespace("istio-system", nil, "2"),
				v1alpha1.DefaultGuard(), strict.DeepCopy(), mesh1.DeepCopy())
			s.index.setNamespace("istio-system", nil, false, "2")
			s.index.setNamespace("prod", guardedLabels(), false, "10")
			c.cached(s)
			for i, live := range []bool{true, !c.verified} {
				before := server.count()
				got, err := s.Read(t.Context(), about("Pod", "prod", "web"))
				if err != nil {
					t.Fatal(err)
				}
				if read := server.count() > before; got.Live != live || read != live {
					t.Errorf("read %d: live %t; want %t", i+1, got.Live, live)
				}
				if n := len(got.Namespaces["prod"].PeerAuthentications); n != 1 {
					t.Errorf("read %d: %d policies in prod; want 1", i+1, n)
				}
			}
		})
	}
}

func TestReadLiveIsLive(t *testing.T) {
	leaving := storedNamespace("prod", guardedLabels(), "10")
	leaving.DeletionTimestamp, leaving.Finalizers = &metav1.Time{Time: metav1.Now().Time}, []string{"example.com/wait"}
	s, _ := reading(t, "20", leaving, storedNamespace("mesh-config", map[string]string{"a": "b"}, "3"),
		storedPolicy("prod", "default", "DISABLE", "7"), storedPolicy("mesh-config", "default", "STRICT", "6"), storedPolicy("other", "default", "STRICT", "5"),
		meshConfig("istio", "rootNamespace: mesh-config"))
	// The cache believes something else about everything.
	s.index.setNamespace("prod", nil, false, "1")
	s.index.setPolicy(strictPolicy("prod", "default"), "2")
	got, err := s.ReadLive(t.Context(), about("PeerAuthentication", "prod", "default"))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Live || len(got.Guards) != 0 || !slices.Equal(got.RootNamespaces(), []string{"mesh-config"}) {
		t.Errorf("got %+v", got)
	}
	if names := slices.Sorted(maps.Keys(got.Namespaces)); !slices.Equal(names, []string{"mesh-config", "prod"}) {
		t.Errorf("namespaces %q", names)
	}
	if d := describe(got.Namespaces["prod"]); d != "prod map[meshvakt.io/guarded:true] true: prod/default=DISABLE" {
		t.Errorf("prod is %s", d)
	}
	if c, err := s.Cached("prod"); err != nil || !slices.Equal(c.RootNamespaces(), []string{"mesh-config"}) {
		t.Errorf("what was read of the control plane is not in the index: %v, %v", c.RootNamespaces(), err)
	}
	// A namespace that is being created is not there.
	if got, err = s.ReadLive(t.Context(), about("Namespace", "", "new")); err != nil || got.Namespaces["new"] != nil || got.Namespaces["mesh-config"] == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A change in a mesh root namespace concerns all of them, however many there
// are; pods there concern only themselves.
func TestReadLiveOfRootNamespaceReadsEverything(t *testing.T) {
	const n = 2*pageSize + 1
	stored := []client.Object{v1alpha1.DefaultGuard(), storedNamespace("istio-system", nil, "2"), storedPolicy("istio-system", "default", "STRICT", "3")}
	for i := range n {
		name := fmt.Sprintf("ns-%04d", i)
		stored = append(stored, storedNamespace(name, guardedLabels(), "4"), storedPolicy(name, "default", "STRICT", "5"))
	}
	stored = append(stored, storedPolicy("nowhere", "default", "STRICT", "5")) // its namespace went between the reads
	s, server := reading(t, "20", stored...)
	for name, c := range map[string]struct {
		review *facts.Review
		want   int
	}{
		"a policy of the root namespace": {about("PeerAuthentication", "istio-system", "default"), n + 1},
		"the root namespace itself":      {about("Namespace", "", "istio-system"), n + 1},
		"a pod in the root namespace":    {about("Pod", "istio-system", "gateway"), 1},
		"a policy of another namespace":  {about("PeerAuthentication", "ns-0000", "default"), 2},
	} {
		t.Run(name, func(t *testing.T) {
			before := server.count()
			got, err := s.ReadLive(t.Context(), c.review)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Namespaces) != c.want {
				t.Errorf("%d namespaces; want %d", len(got.Namespaces), c.want)
			}
			for name, ns := range got.Namespaces {
				if ns.Name != name || len(ns.PeerAuthentications) != 1 || ns.PeerAuthentications[0].Namespace != name {
					t.Fatalf("namespace %s is %s", name, describe(ns))
				}
			}
			if reads := server.count() - before; c.want > 2 && reads != 4+3+3 {
				t.Errorf("%d reads; want guards, two ConfigMaps, webhooks and three pages of each kind", reads)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	down := errors.New("the API server is down")
	failing := func(verb, of string) func(string, any) error {
		return func(v string, o any) error {
			if v == verb && reflect.TypeOf(o).Elem().Name() == of {
				return down
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		fail   func(string, any) error
		review *facts.Review
	}{
		"guards":                    {failing("list", "MeshGuardList"), about("Pod", "prod", "web")},
		"settings of Istio":         {failing("get", "ConfigMap"), about("Pod", "prod", "web")},
		"a namespace":               {failing("get", "PartialObjectMetadata"), about("Pod", "prod", "web")},
		"policies of a namespace":   {failing("list", "PeerAuthenticationList"), about("Pod", "prod", "web")},
		"all namespaces":            {failing("list", "PartialObjectMetadataList"), about("PeerAuthentication", "istio-system", "default")},
		"all policies":              {failing("list", "PeerAuthenticationList"), about("PeerAuthentication", "istio-system", "default")},
		"the namespace in a review": {failing("get", "PartialObjectMetadata"), about("Namespace", "", "prod")},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := reading(t, "20", storedNamespace("prod", guardedLabels(), "10"))
			server.fail = c.fail
			if got, err := s.Read(t.Context(), c.review); !errors.Is(err, down) || got.Namespaces != nil {
				t.Errorf("got %+v, %v; must fail", got, err)
			}
		})
	}
	t.Run("caches that are not filled", func(t *testing.T) {
		s, server := reading(t, "20")
		s.synced.Store(false)
		for what, read := range map[string]func() error{
			"Read":     func() error { _, err := s.Read(t.Context(), about("Pod", "prod", "web")); return err },
			"ReadLive": func() error { _, err := s.ReadLive(t.Context(), about("Pod", "prod", "web")); return err },
			"Snapshot": func() error { _, err := s.Snapshot(); return err },
			"Cached":   func() error { _, err := s.Cached("prod"); return err },
		} {
			if err := read(); !errors.Is(err, ErrNotSynced) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if server.count() > 0 {
			t.Error("the API server is asked all the same")
		}
	})
	t.Run("settings of Istio that cannot be read and never could", func(t *testing.T) {
		s, _ := reading(t, "20", storedNamespace("prod", guardedLabels(), "10"), meshConfig("istio", "rootNamespace: ["))
		for _, kind := range []string{"Pod", "PeerAuthentication"} {
			if got, err := s.Read(t.Context(), about(kind, "prod", "x")); err == nil {
				t.Errorf("%s: got %+v; what Istio does is not known", kind, got)
			}
		}
	})
	t.Run("settings of Istio that cannot be read any more", func(t *testing.T) {
		s, _ := reading(t, "20", storedNamespace("prod", guardedLabels(), "10"), meshConfig("istio", "rootNamespace: ["))
		s.index.setPlane("istio", mesh.ControlPlane{Revision: "default", RootNamespace: "mesh-config"}, nil)
		got, err := s.Read(t.Context(), about("PeerAuthentication", "prod", "x"))
		if err != nil || !slices.Equal(got.RootNamespaces(), []string{"mesh-config"}) {
			t.Errorf("root namespaces %q, %v; want the last good ones", got.RootNamespaces(), err)
		}
	})
}

// What informers tell goes into the index, and listeners hear whom it concerns.
func TestEvents(t *testing.T) {
	namespaceEvent := func(name string, labels map[string]string) *metav1.PartialObjectMetadata {
		m := namespaceMeta()
		m.Name, m.Labels, m.ResourceVersion = name, labels, "5"
		return m
	}
	for name, c := range map[string]struct {
		event func(s *Source)
		heard []string
		want  func(facts.Cluster) bool
	}{
		"a namespace comes": {
			func(s *Source) { s.onNamespace().OnAdd(namespaceEvent("new", guardedLabels()), false) },
			[]string{"new"}, func(c facts.Cluster) bool { return c.Namespaces["new"] != nil },
		},
		"a namespace goes": {
			func(s *Source) { s.onNamespace().OnDelete(namespaceEvent("prod", nil)) },
			[]string{"prod"}, func(c facts.Cluster) bool { return c.Namespaces["prod"] == nil },
		},
		"a namespace went while the watch was broken": {
			func(s *Source) {
				s.onNamespace().OnDelete(toolscache.DeletedFinalStateUnknown{Key: "prod", Obj: namespaceEvent("prod", nil)})
			},
			[]string{"prod"}, func(c facts.Cluster) bool { return c.Namespaces["prod"] == nil },
		},
		"a policy changes": {
			func(s *Source) { s.onPolicy().OnUpdate(nil, storedPolicy("prod", "default", "DISABLE", "6")) },
			[]string{"prod"}, func(c facts.Cluster) bool {
				return c.Namespaces["prod"].PeerAuthentications[0].Mode == mesh.ModeDisable
			},
		},
		"a policy has a mode that nobody knows": {
			func(s *Source) { s.onPolicy().OnUpdate(nil, storedPolicy("prod", "default", "FANCY", "6")) },
			[]string{"prod"}, func(c facts.Cluster) bool {
				return c.Namespaces["prod"].PeerAuthentications[0].Mode == mesh.ModeDisable
			},
		},
		"a policy of the root namespace comes": {
			func(s *Source) { s.onPolicy().OnAdd(storedPolicy("istio-system", "default", "STRICT", "6"), false) },
			[]string{""}, func(c facts.Cluster) bool { return len(c.Namespaces["istio-system"].PeerAuthentications) == 1 },
		},
		"a policy went while the watch was broken": {
			func(s *Source) {
				s.onPolicy().OnDelete(toolscache.DeletedFinalStateUnknown{Obj: storedPolicy("prod", "default", "STRICT", "6")})
			},
			[]string{"prod"}, func(c facts.Cluster) bool { return len(c.Namespaces["prod"].PeerAuthentications) == 0 },
		},
		"settings of Istio change": {
			func(s *Source) { s.onConfigMap().OnAdd(meshConfig("istio", "rootNamespace: elsewhere"), false) },
			[]string{""}, func(c facts.Cluster) bool { return slices.Equal(c.RootNamespaces(), []string{"elsewhere"}) },
		},
		"settings of Istio become unreadable": {
			func(s *Source) {
				s.onConfigMap().OnAdd(meshConfig("istio", "rootNamespace: elsewhere"), false)
				s.onConfigMap().OnUpdate(nil, meshConfig("istio", "rootNamespace: ["))
			},
			[]string{"", ""}, func(c facts.Cluster) bool { return slices.Equal(c.RootNamespaces(), []string{"elsewhere"}) },
		},
		"settings of Istio go": {
			func(s *Source) {
				s.onConfigMap().OnAdd(meshConfig("istio", "rootNamespace: elsewhere"), false)
				s.onConfigMap().OnDelete(meshConfig("istio", ""))
			},
			[]string{"", ""}, func(c facts.Cluster) bool { return slices.Equal(c.RootNamespaces(), []string{"istio-system"}) },
		},
		"a ConfigMap loses its settings": {
			func(s *Source) {
				s.onConfigMap().OnAdd(meshConfig("istio", "rootNamespace: elsewhere"), false)
				s.onConfigMap().OnUpdate(nil, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"}})
			},
			[]string{"", ""}, func(c facts.Cluster) bool { return slices.Equal(c.RootNamespaces(), []string{"istio-system"}) },
		},
		"another ConfigMap of Istio comes": {
			func(s *Source) { s.onConfigMap().OnAdd(meshConfig("values", "rootNamespace: elsewhere"), false) },
			nil, func(c facts.Cluster) bool { return slices.Equal(c.RootNamespaces(), []string{"istio-system"}) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := reading(t, "20")
			s.index.setNamespace("istio-system", nil, false, "1")
			s.index.setNamespace("prod", guardedLabels(), false, "2")
			s.index.setPolicy(strictPolicy("prod", "default"), "3")
			var heard []string
			s.OnChange(func(namespace string) { heard = append(heard, namespace) })
			c.event(s)
			if !slices.Equal(heard, c.heard) {
				t.Errorf("heard of changes in %q; want %q", heard, c.heard)
			}
			got, err := s.Snapshot()
			if err != nil || !c.want(got) {
				t.Errorf("the snapshot is %+v, %v", got, err)
			}
		})
	}
}

func TestSlim(t *testing.T) {
	m := namespaceMeta()
	m.Annotations, m.ManagedFields = map[string]string{"a": "b"}, []metav1.ManagedFieldsEntry{{}}
	m.Labels = guardedLabels()
	if _, err := slim(m); err != nil || m.Annotations != nil || m.ManagedFields != nil || len(m.Labels) != 1 {
		t.Errorf("got %+v, %v", m, err)
	}
	for name, want := range map[string]bool{"istio": true, "istio-canary": true, "istio-ca-root-cert": true, "istiod": false, "values": false} {
		cm := meshConfig(name, "x")
		cm.Data["other"] = "large"
		if _, err := slimConfigMap(cm); err != nil || (cm.Data["mesh"] == "x") != want || cm.Data["other"] != "" {
			t.Errorf("%s: got %v, %v", name, cm.Data, err)
		}
	}
	if got, err := slim("a tombstone"); got != "a tombstone" || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}
