package controller

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
)

type passes struct{ ended, failed int }

func (p *passes) ScanEnded(_ time.Duration, err error) {
	if err != nil {
		p.failed++
	} else {
		p.ended++
	}
}

// scanning is a Scanner, whose clock stands, over a cluster with a guard of pods.
type scanning struct {
	*setting
	*Scanner
	passes passes
	now    time.Time
	told   map[string]int           // findings by namespace, as they were last told
	later  map[string]time.Duration // when namespaces are to be looked at again
}

func newScanning(t *testing.T, funcs interceptor.Funcs, stored ...client.Object) *scanning {
	t.Helper()
	guard := v1alpha1.DefaultGuard()
	guard.Spec.SidecarResources, guard.Spec.NodePools = nil, nil
	guard.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 24 * time.Hour}, Approval: v1alpha1.ApprovalNone}
	log := slog.New(slog.DiscardHandler)
	s := &scanning{
		setting: newSetting(t, funcs, append([]client.Object{guard, namespaceOf("istio-system", false), policyOf("istio-system", "default", "STRICT")}, stored...)...),
		now:     time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), told: map[string]int{}, later: map[string]time.Duration{},
	}
	s.Scanner = &Scanner{
		Source: s.source, Touched: cluster.NewTouched(nil, log), Ledger: scan.NewLedger(), Policies: policies.All(), Interval: 10 * time.Minute,
		Recorder: &s.passes, Log: log, Now: func() time.Time { return s.now },
		Tell: func(_ context.Context, namespace string, now *scan.Standing) {
			if now == nil {
				delete(s.told, namespace)
			} else {
				s.told[namespace] = now.Found("")
			}
		},
		Passed: func(context.Context, func(string) bool) {},
		again:  func(namespace string, after time.Duration) { s.later[namespace] = after },
	}
	return s
}

func (s *scanning) look(t *testing.T, name string) time.Duration {
	t.Helper()
	result, err := s.Reconcile(t.Context(), request(name))
	if err != nil {
		t.Fatal(err)
	}
	return result.RequeueAfter
}

func podOf(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
}

// withInjection says on a namespace what keeps it from being a finding itself.
func injectedNamespace(name string, guarded bool) *corev1.Namespace {
	ns := namespaceOf(name, guarded)
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels["istio-injection"] = "enabled"
	return ns
}

func TestScannerPass(t *testing.T) {
	s := newScanning(t, interceptor.Funcs{}, injectedNamespace("prod", true), injectedNamespace("shop", true), injectedNamespace("empty", true), injectedNamespace("dev", false),
		podOf("prod", "a"), podOf("prod", "b"), podOf("shop", "c"), podOf("dev", "d"))
	if again := s.look(t, everything); again != s.Interval {
		t.Errorf("looks again after %s, want %s", again, s.Interval)
	}
	if want := map[string]int{"prod": 2, "shop": 1, "empty": 0}; !maps.Equal(s.told, want) || s.passes != (passes{ended: 1}) {
		t.Errorf("told %v, want %v; %+v", s.told, want, s.passes)
	}
	if totals := s.Ledger.Totals("default", s.now); totals.Guarded != 3 || totals.Violating != 2 || totals.Pods != 3 {
		t.Errorf("%+v", totals)
	}
	// Nothing has changed, and it is not time yet.
	s.now = s.now.Add(4 * time.Minute)
	if again := s.look(t, everything); again != 6*time.Minute || s.passes.ended != 1 {
		t.Errorf("looks again after %s, %+v", again, s.passes)
	}
	s.now = s.now.Add(6 * time.Minute)
	if s.look(t, everything); s.passes.ended != 2 {
		t.Errorf("%+v; want a pass at the end of the interval", s.passes)
	}
	s.due.Store(true)
	if s.look(t, everything); s.passes.ended != 3 {
		t.Errorf("%+v; want a pass that was asked for", s.passes)
	}
	// The policy of the mesh concerns all.
	s.cache.forget(policyOf("istio-system", "default", "STRICT"))
	if s.look(t, everything); s.passes.ended != 4 || s.told["empty"] != 1 {
		t.Errorf("%+v, told %v; want a pass after a change for all", s.passes, s.told)
	}
}

func TestScannerLooksAtOneNamespace(t *testing.T) {
	mine := podOf("prod", "a")
	s := newScanning(t, interceptor.Funcs{}, injectedNamespace("prod", true), injectedNamespace("shop", true), mine, podOf("shop", "c"))
	s.look(t, everything)
	if err := s.client.Delete(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	s.look(t, "prod")
	if want := map[string]int{"prod": 0, "shop": 1}; !maps.Equal(s.told, want) {
		t.Errorf("told %v, want %v", s.told, want)
	}
	s.cache.tell(&metav1.PartialObjectMetadata{ObjectMeta: injectedNamespace("shop", false).ObjectMeta})
	s.look(t, "shop")
	s.look(t, "never-heard-of")
	if want := map[string]int{"prod": 0}; !maps.Equal(s.told, want) || s.Ledger.Totals("default", s.now).Guarded != 1 {
		t.Errorf("told %v, want %v once a namespace is not guarded any more", s.told, want)
	}
}

// One that comes under a guard while a pass is under way is looked at, though that pass has
// not met it.
func TestScannerPassedKnowsWhatHasCome(t *testing.T) {
	var s *scanning
	during := func() {}
	s = newScanning(t, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if _, pods := list.(*corev1.PodList); pods {
			do := during
			during = func() {}
			do()
		}
		return c.List(ctx, list, opts...)
	}}, injectedNamespace("prod", true), injectedNamespace("shop", false), injectedNamespace("dev", false))
	during = func() {
		s.cache.tell(&metav1.PartialObjectMetadata{ObjectMeta: injectedNamespace("shop", true).ObjectMeta})
		s.look(t, "shop")
	}
	known := map[string]bool{}
	s.Passed = func(_ context.Context, is func(string) bool) {
		for _, name := range []string{"prod", "shop", "dev"} {
			known[name] = is(name)
		}
	}
	s.look(t, everything)
	if want := map[string]bool{"prod": true, "shop": true, "dev": false}; !maps.Equal(known, want) {
		t.Errorf("known after the pass %v, want %v", known, want)
	}
}

// A namespace ceases to be guarded while a pass is under way, which judges by what was
// before: nothing of it must stay until the next one.
func TestScannerLetsGoDuringAPass(t *testing.T) {
	var s *scanning
	during := func(context.Context) {}
	s = newScanning(t, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if _, pods := list.(*corev1.PodList); pods {
			do := during
			during = func(context.Context) {}
			do(ctx)
		}
		return c.List(ctx, list, opts...)
	}}, injectedNamespace("prod", true), injectedNamespace("shop", true), injectedNamespace("empty", true), podOf("prod", "a"), podOf("shop", "b"))
	s.look(t, everything)
	during = func(context.Context) {
		for _, name := range []string{"shop", "empty"} {
			s.cache.tell(&metav1.PartialObjectMetadata{ObjectMeta: injectedNamespace(name, false).ObjectMeta})
			s.look(t, name)
		}
		if want := map[string]int{"prod": 1}; !maps.Equal(s.told, want) {
			t.Errorf("told %v during the pass, want %v", s.told, want)
		}
	}
	s.due.Store(true)
	s.look(t, everything)
	if want := map[string]int{"prod": 1}; !maps.Equal(s.told, want) || s.passes.ended != 2 {
		t.Errorf("told %v after the pass, want %v; %+v", s.told, want, s.passes)
	}
	if totals := s.Ledger.Totals("default", s.now); totals.Guarded != 1 || totals.Found != 1 {
		t.Errorf("%+v", totals)
	}
}

func TestScannerComesBackWhenAnExceptionEnds(t *testing.T) {
	exception := exceptionFrom("mesh-membership") // until one o'clock
	for _, key := range []string{"prod", everything} {
		s := newScanning(t, interceptor.Funcs{}, injectedNamespace("prod", true), podOf("prod", "a"), exception)
		s.look(t, key)
		if s.told["prod"] != 0 || s.later["prod"] != time.Hour {
			t.Errorf("%s: told %v, looks again after %v", key, s.told, s.later)
		}
		s.now = s.now.Add(time.Hour)
		s.look(t, "prod")
		if s.told["prod"] != 1 {
			t.Errorf("%s: told %v; want a finding in the second in which the exception ends", key, s.told)
		}
	}
}

// What was known stays known while the API server does not answer.
func TestScannerFails(t *testing.T) {
	boom := errors.New("boom")
	broken := false
	s := newScanning(t, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if _, pods := list.(*corev1.PodList); pods && broken {
			return boom
		}
		return c.List(ctx, list, opts...)
	}}, injectedNamespace("prod", true), podOf("prod", "a"))
	s.look(t, everything)
	broken = true
	s.due.Store(true)
	for _, name := range []string{everything, "prod"} {
		if _, err := s.Reconcile(t.Context(), request(name)); !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
	}
	at, _, failing := s.Ledger.Scanned()
	if !at.Equal(s.now) || !errors.Is(failing, boom) || s.passes != (passes{1, 1}) || s.Ledger.Totals("default", s.now).Found != 1 {
		t.Errorf("scanned %s, %v, %+v", at, failing, s.passes)
	}
	broken = false
	s.look(t, everything) // though the interval is not over
	if _, _, failing := s.Ledger.Scanned(); failing != nil || s.passes.ended != 2 {
		t.Errorf("%v, %+v", failing, s.passes)
	}
}

// The caches tell of every namespace when they begin anew; only what is new is looked at.
func TestScannerKnowsWhatItHasJudged(t *testing.T) {
	s := newScanning(t, interceptor.Funcs{}, injectedNamespace("prod", true), injectedNamespace("dev", false))
	if !s.differs("prod") || s.differs("dev") {
		t.Error("a namespace that was never judged is not looked at, or one is that nobody guards")
	}
	s.look(t, everything)
	s.cache.tell(&metav1.PartialObjectMetadata{ObjectMeta: injectedNamespace("prod", true).ObjectMeta})
	if s.differs("prod") {
		t.Error("what has not changed is looked at again")
	}
	s.cache.tell(policyOf("prod", "default", "PERMISSIVE"))
	if !s.differs("prod") {
		t.Error("a policy does not count")
	}
	s.look(t, "prod")
	s.cache.tell(&metav1.PartialObjectMetadata{ObjectMeta: injectedNamespace("prod", false).ObjectMeta})
	if !s.differs("prod") {
		t.Error("that the namespace is not guarded any more does not count")
	}
	if s.look(t, "prod"); s.differs("prod") {
		t.Error("a namespace that is not guarded is looked at over and over")
	}
}

// delayed notes what a queue is to hand out later.
type delayed struct {
	queue
	later []reconcile.Request
}

func (d *delayed) AddAfter(r reconcile.Request, _ time.Duration) { d.later = append(d.later, r) }

// The first list of nodes tells of each of them, which the first pass sees anyway.
func TestScannerAsksForNoPassBeforeTheFirst(t *testing.T) {
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	q := &delayed{}
	starting := &Scanner{Source: cluster.New(cluster.Config{Catalogue: catalogue})}
	starting.whole(q)
	if len(q.later) > 0 || starting.due.Load() {
		t.Errorf("asked for %v, due %t, before the caches are filled", q.later, starting.due.Load())
	}
	s := newScanning(t, interceptor.Funcs{})
	s.whole(q)
	if !slices.Equal(q.later, []reconcile.Request{request(everything)}) || !s.due.Load() {
		t.Errorf("asked for %v, due %t; want a pass", q.later, s.due.Load())
	}
}

func TestPatience(t *testing.T) {
	s := newScanning(t, interceptor.Funcs{})
	s.Ledger.Put(&scan.Standing{Namespace: "large", Pods: 500})
	s.Ledger.Put(&scan.Standing{Namespace: "huge", Pods: 50_000})
	var got []string
	for _, name := range []string{"unknown", "large", "huge"} {
		got = append(got, s.patience(name).String())
	}
	if !slices.Equal(got, []string{"1s", "6s", "30s"}) {
		t.Errorf("patience %s", strings.Join(got, ", "))
	}
}
