package cluster

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"

	"github.com/meshvakt/meshvakt/internal/objects"
)

// asked is an API server that is asked by one informer.
type asked struct {
	mu    sync.Mutex
	fail  error
	watch *apiwatch.FakeWatcher
	how   metav1.ListOptions
}

func (a *asked) List(metav1.ListOptions) (runtime.Object, error) {
	return &objects.PeerAuthenticationList{}, a.fail
}

func (a *asked) Watch(o metav1.ListOptions) (apiwatch.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watch, a.how = apiwatch.NewFake(), o
	return a.watch, a.fail
}

func (a *asked) IsWatchListSemanticsUnSupported() bool { return true }

func TestHearing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, server := New(Config{}), &asked{}
		h := &hearing{toolscache.ToListerWatcherWithContext(server), server, "PeerAuthentication", s.watches, time.Now, true}
		if !watchlist.DoesClientNotSupportWatchListSemantics(h) {
			t.Error("it says that it can do what the client behind it cannot")
		}
		state := func() WatchState {
			synctest.Wait()
			return s.WatchStates()[0]
		}
		expect := func(when string, epoch uint64, open bool, heard time.Time) {
			t.Helper()
			if got := state(); got.Epoch != epoch || got.Open != open || !got.Heard.Equal(heard) || got.Kind != "PeerAuthentication" {
				t.Errorf("%s: %+v; want epoch %d, open %t, heard %s", when, got, epoch, open, heard)
			}
		}
		listed := time.Now()
		for _, o := range []metav1.ListOptions{{}, {Continue: "next"}} {
			if _, err := h.ListWithContext(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		expect("after a list of two pages", 1, false, listed)

		time.Sleep(time.Second)
		w, err := h.WatchWithContext(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		opened := time.Now()
		expect("while it watches", 1, true, opened)
		time.Sleep(time.Minute)
		expect("while it hears nothing", 1, true, opened)
		server.watch.Action(apiwatch.Bookmark, &objects.PeerAuthentication{})
		if e := <-w.ResultChan(); e.Type != apiwatch.Bookmark {
			t.Errorf("passed on %+v", e)
		}
		said := time.Now()
		expect("after a bookmark", 1, true, said)
		server.watch.Stop()
		if _, more := <-w.ResultChan(); more {
			t.Error("it goes on after the end")
		}
		expect("after its end", 1, false, said)

		// Where it goes on from where it was, nothing was missed.
		if w, err = h.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "7"}); err != nil {
			t.Fatal(err)
		}
		expect("while it watches again", 1, true, time.Now())
		if got := server.how.TimeoutSeconds; got == nil || *got != 20 {
			t.Errorf("a watch is asked for with a timeout of %v seconds; want 20", got)
		}
		server.watch.Add(&objects.PeerAuthentication{}) // which nobody takes
		w.Stop()
		w.Stop()
		expect("after it was stopped", 1, false, time.Now())

		// A watch that sends all there is first.
		initial := true
		if w, err = h.WatchWithContext(t.Context(), metav1.ListOptions{SendInitialEvents: &initial}); err != nil {
			t.Fatal(err)
		}
		go func() {
			for range w.ResultChan() {
			}
		}()
		expect("while all comes anew", 2, false, time.Now())
		if got := server.how.TimeoutSeconds; got != nil {
			t.Errorf("a list of all, which takes the time that it takes, is asked for with a timeout of %d seconds", *got)
		}
		server.watch.Add(&objects.PeerAuthentication{})
		server.watch.Action(apiwatch.Bookmark, &objects.PeerAuthentication{})
		expect("before all has come", 2, false, time.Now())
		server.watch.Action(apiwatch.Bookmark, &objects.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}})
		expect("when all has come", 2, true, time.Now())
		// It lasts no longer than others from then on, for only the end of a watch makes the API server say how far it is.
		time.Sleep(WordEvery - time.Second)
		expect("shortly before its time is up", 2, true, time.Now().Add(time.Second-WordEvery))
		time.Sleep(time.Second)
		expect("when its time is up", 2, false, time.Now().Add(-WordEvery))
		w.Stop()

		server.fail = errors.New("connection refused")
		time.Sleep(time.Second)
		before := state().Heard
		if _, err := h.ListWithContext(t.Context(), metav1.ListOptions{}); err == nil {
			t.Error("an error is kept back")
		}
		if _, err := h.WatchWithContext(t.Context(), metav1.ListOptions{}); err == nil {
			t.Error("an error is kept back")
		}
		expect("when nobody answers", 3, false, before)
		time.Sleep(time.Minute)
		if got := s.Ages(time.Now()); got["PeerAuthentication"] != time.Minute {
			t.Errorf("when nobody has answered for a minute, the watches have been broken for %v", got)
		}
		server.fail, h.short = nil, false
		if w, err = h.WatchWithContext(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := s.Ages(time.Now()); got["PeerAuthentication"] != 0 || server.how.TimeoutSeconds != nil {
			t.Errorf("with a watch again, the watches have been broken for %v; it is asked for with a timeout of %v", got, server.how.TimeoutSeconds)
		}
		w.Stop()

		// Where nobody listens it asks again soon, and long afterwards as soon.
		server.fail = syscall.ECONNREFUSED
		back := time.Now().Add(10*time.Minute + time.Millisecond)
		go func() {
			time.Sleep(time.Until(back))
			server.mu.Lock()
			defer server.mu.Unlock()
			server.fail = nil
		}()
		if w, err = h.WatchWithContext(t.Context(), metav1.ListOptions{}); err != nil || time.Since(back) > refusedAgain {
			t.Errorf("%v, %s after there was somebody to ask", err, time.Since(back))
		}
		w.Stop()
		server.fail = syscall.ECONNREFUSED
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := h.WatchWithContext(ctx, metav1.ListOptions{}); !errors.Is(err, syscall.ECONNREFUSED) || ctx.Err() == nil {
			t.Errorf("it gives up with %v, %v", err, ctx.Err())
		}
	})
}

func TestKindWatched(t *testing.T) {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	for want, o := range map[string]runtime.Object{"Namespace": namespaceMeta(), "PeerAuthentication": &objects.PeerAuthentication{}, "ConfigMap": &corev1.ConfigMap{}} {
		if got := kindWatched(o); got != want {
			t.Errorf("%T: %q; want %q", o, got, want)
		}
	}
	for _, o := range []runtime.Object{m, &corev1.Secret{}, &corev1.Namespace{}} {
		if got := kindWatched(o); got != "" {
			t.Errorf("%T is taken for %s", o, got)
		}
	}
}

// TestView: all that a namespace stands by, and nothing else.
func TestView(t *testing.T) {
	s := New(Config{OwnNamespace: "meshvakt-system", Log: slog.New(slog.DiscardHandler)})
	if _, err := s.View("prod"); !errors.Is(err, ErrNotSynced) {
		t.Errorf("before the caches are filled: %v", err)
	}
	s.synced.Store(true)
	s.index.setGuards(defaultGuards(t), 1)
	meta := func(name, uid, version string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: guardedLabels(), UID: types.UID("u-" + uid), ResourceVersion: version}}
	}
	for _, m := range []*metav1.PartialObjectMetadata{meta("prod", "prod", "5"), meta("other", "other", "6"), meta("istio-system", "root", "7")} {
		s.index.meetNamespace(m)
	}
	for i, at := range []string{"prod", "other", "istio-system"} {
		p := strictPolicy(at, "default")
		p.UID = "p-" + at
		s.index.setPolicy(p, []string{"11", "12", "13"}[i])
	}
	plane := func(text string) {
		cm := meshConfig("istio", text)
		cm.UID, cm.ResourceVersion = "u-mesh", "9"
		s.takeConfigMap(cm)
	}
	inputs := func() map[string]string {
		v, err := s.View("prod")
		if err != nil || v.Namespace == nil || v.UID != "u-prod" {
			t.Fatalf("%+v, %v", v, err)
		}
		found := map[string]string{}
		for _, in := range v.Inputs {
			found[in.UID] = in.ResourceVersion
		}
		return found
	}
	expect := func(when string, want map[string]string) {
		t.Helper()
		if got := inputs(); len(got) != len(want) {
			t.Errorf("%s: inputs %v; want %v", when, got, want)
		} else {
			for uid, version := range want {
				if got[uid] != version {
					t.Errorf("%s: %s is of version %q; want %q", when, uid, got[uid], version)
				}
			}
		}
	}
	plane("")
	expect("by default", map[string]string{"u-prod": "5", "p-prod": "11", "p-istio-system": "13", "u-mesh": "9"})
	plane("discoverySelectors: [{matchLabels: {a: b}}]")
	expect("where labels say what istiod reads", map[string]string{"u-prod": "5", "u-root": "7", "p-prod": "11", "p-istio-system": "13", "u-mesh": "9"})
	s.index.removePlane("istio", "20")
	expect("without settings", map[string]string{"u-prod": "5", "p-prod": "11", "p-istio-system": "13"})
	if v, err := s.View("nowhere"); err != nil || v.Namespace != nil {
		t.Errorf("%+v, %v", v, err)
	}
	if got := len(s.Namespaces()); got != 3 {
		t.Errorf("%d namespaces", got)
	}
}

// streamed is a watch of the API server as the client has it: stopping it makes an event that says that it cannot be read.
type streamed struct {
	events chan apiwatch.Event
	once   sync.Once
}

func (s *streamed) ResultChan() <-chan apiwatch.Event { return s.events }

func (s *streamed) Stop() {
	s.once.Do(func() {
		s.events <- apiwatch.Event{Type: apiwatch.Error, Object: &metav1.Status{Message: "response body closed"}}
		close(s.events)
	})
}

// TestTheEndOfAWatch: one that has told all there is, and then has lasted for long enough, ends without an error, after
// which an informer would begin anew.
func TestTheEndOfAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		under := &streamed{events: make(chan apiwatch.Event, 1)}
		begun, ended := time.Now(), 0
		w := newHeardWatch(under, func(apiwatch.Event) time.Duration { return WordEvery }, func() { ended++ })
		under.events <- apiwatch.Event{Type: apiwatch.Bookmark}
		var got []apiwatch.EventType
		for e := range w.ResultChan() {
			got = append(got, e.Type)
		}
		synctest.Wait()
		if !slices.Equal(got, []apiwatch.EventType{apiwatch.Bookmark}) || time.Since(begun) != WordEvery || ended != 1 {
			t.Errorf("events %v, after %s, %d ends; must be a bookmark, %s and one", got, time.Since(begun), ended, WordEvery)
		}
	})
}

// TestStoreHearsHowFarTheWatchIs: what an informer holds counts as complete up to where a quiet watch is, or pods of
// namespaces that were labelled meanwhile would be judged by live reads for ever.
func TestStoreHearsHowFarTheWatchIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &asked{}
		informer := toolscache.NewSharedIndexInformer(server, &objects.PeerAuthentication{}, 0, toolscache.Indexers{})
		s := New(Config{})
		s.policies = informer
		go informer.RunWithContext(t.Context())
		synctest.Wait()
		server.watch.Add(&objects.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "default", ResourceVersion: "7"}})
		synctest.Wait()
		if got := s.policiesAsOf(); got != 7 {
			t.Errorf("complete up to %d after an event; want 7", got)
		}
		server.watch.Action(apiwatch.Bookmark, &objects.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "9"}})
		synctest.Wait()
		if got := s.policiesAsOf(); got != 9 {
			t.Errorf("complete up to %d after a bookmark; want 9", got)
		}
	})
}
