package observe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	controlled "k8s.io/client-go/tools/cache/testing"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// memory is a log in memory, which reads back every record as a verifier would.
type memory struct {
	t *testing.T

	mu      sync.Mutex
	shard   string
	key     record.Key
	chain   record.Chain
	records []record.Record
	random  *rand.ChaCha8
	fail    error
	failed  int           // records that were not taken
	slow    time.Duration // what a record takes to be stored
	begun   time.Time
	boot    string
	// tolerant: a record that has no place in the format is no fault of the test.
	tolerant bool
}

func newMemory(t *testing.T) *memory {
	return &memory{t: t, random: rand.NewChaCha8([32]byte{1}), begun: time.Now(), boot: "0123456789abcdef0123456789abcdef"}
}

// open begins a shard.
func (m *memory) open(shard string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shard = shard
	m.key, _ = record.NewKey(m.random)
	g := &record.Genesis{Origin: "evidence.example.org/" + shard, Cluster: "c", Replica: "meshvakt-0", Shard: shard, Pseudonyms: m.key.ID()}
	before := record.Hash{}
	if m.chain.Size() > 0 {
		before = m.chain.Last()
		g.PrevOrigin, g.PrevSize = "evidence.example.org/before", m.chain.Size()
	}
	m.chain = record.Begin(before)
	m.store(g)
	m.store(&record.Boot{Why: record.BootShard, Pod: "p", Node: "n", Version: "v", Durability: "spool", Mode: "bestEffort", BeatSeconds: 60})
}

func (m *memory) Shard() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shard
}

func (m *memory) breaks(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// refused is how often it was asked while it took nothing.
func (m *memory) refused() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

func (m *memory) Append(_ context.Context, shard string, build func(record.Pseudonymiser) (record.Body, error)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	time.Sleep(m.slow) // in the bubble
	if m.fail != nil {
		if m.failed++; m.failed > 10_000 { // or time would not pass in the bubble
			m.t.Errorf("a log that takes nothing is asked without end")
			m.fail = nil
		}
		return fmt.Errorf("the log is not available: %w", m.fail)
	}
	if shard != m.shard {
		return errors.New("another shard is open")
	}
	body, err := build(record.NewPseudonymiser(m.key))
	if err != nil {
		return fmt.Errorf("make a record: %w", err)
	}
	return m.store(body)
}

func (m *memory) store(body record.Body) error {
	link, next, err := m.chain.Next(body, m.boot, time.Now().UTC(), time.Since(m.begun), m.random)
	if err != nil {
		if !m.tolerant {
			m.t.Errorf("record of kind %s: %v", body.Kind(), err)
		}
		return err
	}
	r, _, err := m.chain.Follow(link.Line)
	if err != nil {
		m.t.Errorf("record of kind %s cannot be read back: %v", body.Kind(), err)
	}
	m.chain = next
	m.records = append(m.records, r)
	return nil
}

func (m *memory) Counts() record.Counters         { return record.Counters{In: 3, Written: 2, Admitted: 1} }
func (m *memory) Sealed() (uint64, time.Duration) { return 4, 5 * time.Second }

// told returns the records so far, without beats unless they are wanted, and forgets them not.
func (m *memory) told() []record.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]record.Record(nil), m.records...)
}

// of are the bodies of one type.
func of[B record.Body](list []record.Record) []B {
	var found []B
	for _, r := range list {
		if b, ok := r.Body.(B); ok {
			found = append(found, b)
		}
	}
	return found
}

// replay applies snapshots and states, and holds the table against every beat.
func replay(t *testing.T, list []record.Record) map[string]record.Row {
	t.Helper()
	table, part := map[string]record.Row{}, map[string]record.Row{}
	hash := func() record.Hash {
		rows := make([]record.Row, 0, len(table))
		for _, r := range table {
			rows = append(rows, r)
		}
		parts, err := record.Snapshots("boot", time.Unix(0, 0).UTC(), rows)
		if err != nil {
			t.Fatal(err)
		}
		return parts[0].Table
	}
	for _, r := range list {
		switch b := r.Body.(type) {
		case *record.Snapshot:
			if b.Part == 1 {
				part = map[string]record.Row{}
			}
			for _, row := range b.Rows {
				part[row.Namespace] = row
			}
			if b.Part == b.Of {
				table = part
				if got := hash(); got != b.Table {
					t.Errorf("record %d: the rows of a snapshot have hash %s; it says %s", r.Seq, got, b.Table)
				}
			}
		case *record.State:
			if b.After.After(r.Time) {
				t.Errorf("record %d: after %s is later than %s", r.Seq, b.After, r.Time)
			}
			if b.What == "set" {
				table[b.Row.Namespace] = b.Row
			} else {
				delete(table, b.Row.Namespace)
			}
		case *record.Beat:
			if got := hash(); got != b.Table || b.RowsN != uint64(len(table)) {
				t.Errorf("record %d: a beat has the table %s of %d rows; replayed it is %s of %d", r.Seq, b.Table, b.RowsN, got, len(table))
			}
		}
	}
	return table
}

// sources is what the API server would have, by the type of the objects. It is a cache with real informers.
type sources struct {
	cache.Cache // what is not overridden must not be called
	ctx         context.Context
	source      *cluster.Source

	mu        sync.Mutex
	kinds     map[string]*controlled.FakeControllerSource
	informers map[string]toolscache.SharedIndexInformer
	expired   map[string]*atomic.Bool
	running   sync.WaitGroup
}

func newSources(ctx context.Context) *sources {
	return &sources{ctx: ctx, kinds: map[string]*controlled.FakeControllerSource{}, informers: map[string]toolscache.SharedIndexInformer{}, expired: map[string]*atomic.Bool{}}
}

func (s *sources) kind(o runtime.Object) *controlled.FakeControllerSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprintf("%T", o)
	if s.kinds[key] == nil {
		s.kinds[key] = controlled.NewFakeControllerSource()
	}
	return s.kinds[key]
}

// fullSource turns off what the fake does not do, and can forget what it has told.
type fullSource struct {
	*controlled.FakeControllerSource
	expired *atomic.Bool
}

func (f fullSource) Watch(o metav1.ListOptions) (apiwatch.Interface, error) {
	if f.expired.Swap(false) {
		return nil, apierrors.NewResourceExpired("too old")
	}
	return f.FakeControllerSource.Watch(o)
}

// forget has the API server end the watch of a kind, and not know any more where it was.
func (s *sources) forget(o runtime.Object) {
	k := s.kind(o)
	s.mu.Lock()
	s.expired[fmt.Sprintf("%T", o)].Store(true)
	s.mu.Unlock()
	k.ResetWatch()
}

func (fullSource) IsWatchListSemanticsUnSupported() bool { return true }

func (s *sources) GetInformer(_ context.Context, o client.Object, _ ...cache.InformerGetOption) (cache.Informer, error) {
	k := s.kind(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprintf("%T", o)
	if s.informers[key] == nil {
		s.expired[key] = &atomic.Bool{}
		lw := fullSource{k, s.expired[key]}
		i := s.source.NewInformer(lw, o, 0, toolscache.Indexers{})
		s.informers[key] = i
		s.running.Go(func() { i.Run(s.ctx.Done()) })
	}
	return s.informers[key], nil
}

func (s *sources) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	guards, ok := list.(*v1alpha1.MeshGuardList)
	if !ok {
		return fmt.Errorf("no %T in the cache", list)
	}
	s.mu.Lock()
	i := s.informers[fmt.Sprintf("%T", &v1alpha1.MeshGuard{})]
	s.mu.Unlock()
	for _, o := range i.GetStore().List() {
		guards.Items = append(guards.Items, *o.(*v1alpha1.MeshGuard).DeepCopy())
	}
	return nil
}

// setting is a cluster with an Observer, in a bubble of time.
type setting struct {
	t        *testing.T
	log      *memory
	sources  *sources
	client   client.WithWatch
	observer *Observer
	canary   *canary
	clock    record.Clock
	ahead    atomic.Int64 // of the wall clock, as a time.Duration
	start    func()
	stop     func()
}

type canary struct {
	age time.Duration
	ok  bool
}

func (c *canary) Age() (time.Duration, bool) { return c.age, c.ok }

// inCluster runs a test in a bubble: time passes when all wait, so nothing in it depends on how fast the machine is.
func inCluster(t *testing.T, test func(t *testing.T, s *setting), stored ...client.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSetting(t, stored...)
		defer s.stop()
		test(t, s)
	})
}

func newSetting(t *testing.T, stored ...client.Object) *setting {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, cluster.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &setting{t: t, log: newMemory(t), canary: &canary{age: 3 * time.Second, ok: true}, clock: record.Clock{MaxErrorMicros: 1500}}
	s.client = newFake(scheme)
	s.sources = newSources(ctx)
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	source := cluster.New(cluster.Config{Cache: s.sources, Live: s.client, IstioNamespace: "istio-system", OwnNamespace: "meshvakt-system", Catalogue: catalogue, Log: log})
	s.sources.source = source
	for _, o := range stored {
		s.set(o)
	}
	begun := time.Now()
	s.observer, err = New(Config{
		FailsOpen: func(_, entry string) bool { return entry == "everywhere.mesh.meshvakt.io" },
		Log:       s.log, Source: source, Cache: s.sources, Client: s.client, Canary: s.canary,
		Namespace: "meshvakt-system", Service: "meshvakt", Pod: "meshvakt-0", Boot: s.log.boot, Logger: log,
		Own:   []OwnObject{{rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), "meshvakt"}},
		Now:   func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())).UTC() },
		Since: func() time.Duration { return time.Since(begun) }, Clock: func() record.Clock { return s.clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	s.start = func() {
		for _, r := range []interface{ Start(context.Context) error }{source, s.observer} {
			running.Go(func() {
				if err := r.Start(ctx); err != nil {
					t.Error(err)
				}
			})
		}
	}
	s.stop = func() {
		cancel()
		running.Wait()
		s.sources.running.Wait()
		for _, k := range s.sources.kinds {
			k.Shutdown()
		}
	}
	return s
}

// newFake is an API server for what is read without a cache. Unlike the fake it gives versions to lists; selectors it
// does not heed, so there must be nothing that they would leave out.
func newFake(scheme *runtime.Scheme) client.WithWatch {
	return fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			options := (&client.ListOptions{}).ApplyOptions(opts)
			options.FieldSelector = nil
			err := c.List(ctx, list, options)
			if list.GetResourceVersion() == "" {
				list.SetResourceVersion("1")
			}
			return err
		},
	}).Build()
}

// set creates an object, or changes it.
func (s *setting) set(o client.Object) {
	switch o := o.(type) {
	case *corev1.Namespace:
		m := &metav1.PartialObjectMetadata{ObjectMeta: o.ObjectMeta}
		m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
		s.sources.kind(m).Modify(m)
	case *objects.PeerAuthentication, *v1alpha1.MeshGuard, *v1alpha1.GuardException, *corev1.ConfigMap:
		s.sources.kind(o).Modify(o)
	default:
		err := s.client.Create(context.Background(), o)
		if apierrors.IsAlreadyExists(err) {
			was := o.DeepCopyObject().(client.Object)
			if err = s.client.Get(context.Background(), client.ObjectKeyFromObject(o), was); err == nil {
				o.SetResourceVersion(was.GetResourceVersion())
				err = s.client.Update(context.Background(), o)
			}
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *setting) remove(o client.Object) {
	switch o := o.(type) {
	case *corev1.Namespace:
		m := &metav1.PartialObjectMetadata{ObjectMeta: o.ObjectMeta}
		m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
		s.sources.kind(m).Delete(m)
	case *objects.PeerAuthentication, *v1alpha1.MeshGuard, *v1alpha1.GuardException, *corev1.ConfigMap:
		s.sources.kind(o).Delete(o)
	default:
		if err := s.client.Delete(context.Background(), o); err != nil {
			s.t.Fatal(err)
		}
	}
}

// pass lets time pass, and all that happens in it.
func (s *setting) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func uid(o metav1.Object) types.UID {
	return types.UID(fmt.Sprintf("u-%s-%s", o.GetNamespace(), o.GetName()))
}

func namespaceNamed(name string, labels ...string) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}}}
	ns.UID = uid(ns)
	for _, l := range labels {
		ns.Labels[l[:bytes.IndexByte([]byte(l), '=')]] = l[bytes.IndexByte([]byte(l), '=')+1:]
	}
	return ns
}

func policyOf(namespace, name, mode string) *objects.PeerAuthentication {
	p := &objects.PeerAuthentication{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1, CreationTimestamp: metav1.Unix(1e9, 0)},
		Spec:       objects.PeerAuthenticationSpec{MTLS: &objects.MutualTLS{Mode: mode}},
	}
	p.UID = uid(p)
	return p
}

func defaultGuard() *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.UID, g.Generation = "u-guard", 1
	return g
}

func meshConfig(text string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}, Data: map[string]string{"mesh": text}}
	cm.UID = uid(cm)
	return cm
}
