package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// useLog keeps what is recorded, unless it fails.
type useLog struct {
	mu      sync.Mutex
	records []*record.KeyUsed
	fail    error
}

func (*useLog) Shard() string { return "2026q4" }

func (l *useLog) Append(_ context.Context, _ string, build func(record.Pseudonymiser) (record.Body, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	body, err := build(record.NewPseudonymiser(record.Key{1}))
	if err != nil {
		return err
	}
	l.records = append(l.records, body.(*record.KeyUsed))
	return record.Check(body)
}

func (l *useLog) breaks(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

func (l *useLog) told() (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		list = append(list, fmt.Sprintf("%s %q %d", r.Origin, r.Reason, r.N))
	}
	return list
}

func eventClient(objects ...client.Object) client.WithWatch {
	return fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme).WithObjects(objects...).
		WithIndex(&eventsv1.Event{}, "reason", func(o client.Object) []string { return []string{o.(*eventsv1.Event).Reason} }).Build()
}

func keySecret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-evidence", UID: "u"}}
}

func useOf(reason string, origins ...string) Use {
	u := Use{By: "kari@example.org", Reason: reason}
	for i, o := range origins {
		u.Shards = append(u.Shards, Found{Origin: o, Key: record.Key{byte(i)}.ID(), N: uint64(i)})
	}
	return u
}

// recording runs a test in a bubble of time, in which a leader records.
func recording(t *testing.T, c client.WithWatch, test func(t *testing.T, l *useLog, announce func(Use) (string, error))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &useLog{}
		u := &Uses{Client: c, Namespace: "meshvakt-system", Secret: "meshvakt-evidence", Replica: "meshvakt-1", Log: l, Logger: slog.New(slog.DiscardHandler), Now: time.Now}
		var running sync.WaitGroup
		running.Go(func() { _ = u.Start(ctx) })
		// A watch of the fake client begins when it is asked for, whatever was listed before: what is announced between the
		// two would be lost, which the API server does not do.
		synctest.Wait()
		test(t, l, func(use Use) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return Announce(ctx, c, keySecret(), use, time.Now())
		})
		cancel()
		running.Wait()
	})
}

func TestUseOfKeysIsRecorded(t *testing.T) {
	recording(t, eventClient(), func(t *testing.T, l *useLog, announce func(Use) (string, error)) {
		where, err := announce(useOf("Access request 2026-14", "a/b/c/2026q3", "a/b/c/2026q4"))
		if err != nil || where != "meshvakt-1/2026q4" {
			t.Fatalf("recorded by %q, %v", where, err)
		}
		if got := strings.Join(l.told(), "; "); got != `a/b/c/2026q3 "Access request 2026-14" 0; a/b/c/2026q4 "Access request 2026-14" 1` {
			t.Errorf("told %s", got)
		}
		if by := l.records[0].By; by.Kind != record.User || !strings.HasPrefix(by.ID, "p1:") {
			t.Errorf("used by %+v; must be a pseudonym", by)
		}
		time.Sleep(time.Hour) // the watch goes on, or begins anew
		if _, err := announce(useOf("another", "a/b/c/2026q4")); err != nil {
			t.Fatal(err)
		}
		if n := len(l.told()); n != 3 {
			t.Errorf("%d records; must be 3, none of them twice", n)
		}
	})
}

func TestUseOfKeysWaitsForTheLog(t *testing.T) {
	recording(t, eventClient(), func(t *testing.T, l *useLog, announce func(Use) (string, error)) {
		l.breaks(errors.New("full"))
		if where, err := announce(useOf("r", "a/b/c/2026q4")); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("recorded by %q, %v; nothing can be", where, err)
		}
		l.breaks(nil)
		time.Sleep(time.Minute)
		if n := len(l.told()); n != 1 {
			t.Errorf("%d records; the use must be recorded late, once", n)
		}
	})
}

func TestUseOfKeysThatCannotBeRecorded(t *testing.T) {
	event := func(name, reason, secret, text string) *eventsv1.Event {
		return &eventsv1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: name, Annotations: map[string]string{useAnnotation: text}},
			Reason:     reason, Regarding: corev1.ObjectReference{Kind: "Secret", Name: secret},
		}
	}
	long := strings.Repeat("x", 501)
	c := eventClient(event("no-json", useReason, "meshvakt-evidence", "{"), event("nobody", useReason, "meshvakt-evidence", `{"reason":"r","shards":[{"origin":"o","key":"k"}]}`),
		event("no-key", useReason, "meshvakt-evidence", `{"by":"b","reason":"r","shards":[{"origin":"o","key":"k"}]}`),
		event("long", useReason, "meshvakt-evidence", `{"by":"b","reason":"`+long+`","shards":[{"origin":"o","key":"`+record.Key{}.ID()+`"}]}`),
		event("other-secret", useReason, "other", "{"), event("other-reason", "Other", "meshvakt-evidence", "{"))
	recording(t, c, func(t *testing.T, l *useLog, announce func(Use) (string, error)) {
		time.Sleep(10 * time.Second)
		for name, refused := range map[string]bool{"no-json": true, "nobody": true, "no-key": true, "long": true, "other-secret": false, "other-reason": false} {
			var e eventsv1.Event
			if err := c.Get(t.Context(), client.ObjectKey{Namespace: "meshvakt-system", Name: name}, &e); err != nil {
				t.Fatal(err)
			}
			if got := e.Annotations[RefusedAnnotation]; (got != "") != refused || e.Annotations[RecordedAnnotation] != "" {
				t.Errorf("%s: answered %q and %q", name, got, e.Annotations[RecordedAnnotation])
			}
		}
		for name, u := range map[string]Use{"no reason": useOf(" ", "o"), "no shard": useOf("r"), "an origin that is none": useOf("r", "o p"), "a long reason": useOf(long, "o")} {
			if _, err := announce(u); err == nil {
				t.Errorf("%s: announced", name)
			}
		}
		if n := len(l.told()); n != 0 {
			t.Errorf("%d records", n)
		}
	})
}

// Who may create Events must not fill the log.
func TestUsesOfKeysAreBounded(t *testing.T) {
	recording(t, eventClient(), func(t *testing.T, l *useLog, announce func(Use) (string, error)) {
		var origins []string
		for i := range 200 {
			origins = append(origins, fmt.Sprintf("a/b/c/%d", i))
		}
		for range 2 {
			if _, err := announce(useOf("r", origins...)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := announce(useOf("r", origins...)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v; must wait", err)
		}
		if n := len(l.told()); n != 400 {
			t.Errorf("%d records within a minute", n)
		}
		time.Sleep(usesEvery)
		if n := len(l.told()); n != 600 {
			t.Errorf("%d records in the end; must be 600", n)
		}
	})
}
