package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const month = 30 * 24 * time.Hour

// leader is a process that leads: of what another one has known it knows nothing.
func leader(c client.WithWatch, l *log, at string, retention time.Duration) *Retainer {
	now, err := time.Parse(time.DateOnly, at)
	if err != nil {
		panic(err)
	}
	k := ring(c)
	k.Client, k.user = telling(c, &time.Time{}), "system:serviceaccount:meshvakt-system:meshvakt"
	return &Retainer{
		Keys: k, Log: l, Retention: retention, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
		Origin: func(_ context.Context, p volume.Period) (string, error) {
			return "evidence.example.org/c/meshvakt-0/" + string(p), nil
		},
	}
}

// telling is an API server that says what its clock is at.
func telling(c client.WithWatch, now *time.Time) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if review, is := o.(*authenticationv1.SelfSubjectReview); is {
			review.CreationTimestamp = metav1.NewTime(*now)
			return nil
		}
		return c.Create(ctx, o, opts...)
	}})
}

func ends(l *log) (list []string) {
	for _, d := range l.told {
		list = append(list, fmt.Sprintf("%s %s %s by %s", d.ID, d.Origin[len(d.Origin)-6:], d.Why, d.By.Kind))
	}
	return list
}

// edit changes the Secret as a person does.
func edit(t *testing.T, c client.Client, change func(*corev1.Secret)) {
	t.Helper()
	var s corev1.Secret
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "meshvakt-system", Name: "meshvakt-evidence"}, &s); err != nil {
		t.Fatal(err)
	}
	change(&s)
	if err := c.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
}

func keyOf(t *testing.T, c client.Client, p volume.Period) string {
	t.Helper()
	key, err := ring(c).Key(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return key.ID()
}

// The leader that has destroyed a key dies before it has recorded that. The next one records it.
func TestTheEndOfAKeyIsRecordedByTheNextLeader(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	id, l := keyOf(t, c, "2026q3"), &log{err: errors.New("full")}
	leader(c, l, "2026-12-01", month).Retain(t.Context())
	if left(t, c) != 0 {
		t.Fatal("the key is not destroyed")
	}
	l.err = nil
	for range 2 {
		leader(c, l, "2026-12-02", month).Retain(t.Context())
	}
	if want := []string{id + " 2026q3 retention by sa"}; !slices.Equal(ends(l), want) {
		t.Errorf("recorded are %q; must be %q", ends(l), want)
	}
}

// A log that is not open yet as somebody begins to lead is asked again soon, and after that all is quiet for an hour.
func TestTheEndOfAKeyIsRecordedSoon(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	keyOf(t, c, "2026q3")
	synctest.Test(t, func(t *testing.T) {
		l, began := &log{err: errors.New("not open")}, time.Now()
		var looks atomic.Int64
		r := leader(c, l, "2026-12-01", month)
		now := r.Now()
		r.Now = func() time.Time { return now.Add(time.Since(began)) }
		r.Keys.Live = interceptor.NewClient(c, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			looks.Add(1)
			return c.Get(ctx, key, o, opts...)
		}})
		r.Ticker = func(d time.Duration) (<-chan time.Time, func()) {
			ticker := time.NewTicker(d)
			return ticker.C, ticker.Stop
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = r.Start(ctx) }()
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if n := l.counted(); n != 0 {
			t.Errorf("%d ends of keys are recorded", n)
		}
		l.takes()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := l.counted(); n != 1 {
			t.Errorf("%d ends of keys are recorded; must be one", n)
		}
		looks.Store(0)
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if n := looks.Load(); n != 10 {
			t.Errorf("the Secret was read %d times in ten hours; must be 10", n)
		}
	})
}

// A key that somebody takes out is recorded once its period is over, also where keys are kept for ever: replicas have the
// one of now in memory.
func TestAKeyThatSomebodyHasTakenOut(t *testing.T) {
	for _, retention := range []time.Duration{0, 13 * month} {
		c := fake.NewClientBuilder().Build()
		first := keyOf(t, c, "2026q4")
		edit(t, c, func(s *corev1.Secret) { delete(s.Data, "2026q4") })
		second, l := keyOf(t, c, "2026q4"), &log{}
		if first == second {
			t.Fatal("the key is still there")
		}
		leader(c, l, "2026-12-31", retention).Retain(t.Context())
		if len(l.told) != 0 {
			t.Errorf("recorded are %q, in the quarter itself", ends(l))
		}
		leader(c, l, "2027-01-01", retention).Retain(t.Context())
		edit(t, c, func(s *corev1.Secret) { delete(s.Data, "2026q4") })
		for range 2 {
			leader(c, l, "2027-01-02", retention).Retain(t.Context())
		}
		if want := []string{first + " 2026q4 request by unknown", second + " 2026q4 request by unknown"}; !slices.Equal(ends(l), want) {
			t.Errorf("recorded are %q; must be %q", ends(l), want)
		}
	}
}

// No key is destroyed before the clock of an API server, too, says that its time is over.
func TestAClockThatRunsAhead(t *testing.T) {
	server := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	c := fake.NewClientBuilder().Build()
	lead := func(l *log, at string) {
		r := leader(c, l, at, 13*month)
		r.Keys.Client = telling(c, &server)
		r.Retain(t.Context())
	}
	l := &log{}
	id := keyOf(t, c, "2026q3")
	lead(l, "2036-02-07")
	if left(t, c) != 1 || len(l.told) > 0 {
		t.Errorf("%d keys are left, recorded are %q; must be one and none: it is %s", left(t, c), ends(l), server)
	}
	server = server.AddDate(1, 0, 0)
	lead(l, "2026-12-01")
	if left(t, c) != 1 || len(l.told) > 0 {
		t.Errorf("%d keys are left, recorded are %q, by the clock of the API server alone", left(t, c), ends(l))
	}
	lead(l, "2027-12-01")
	if want := []string{id + " 2026q3 retention by sa"}; left(t, c) != 0 || !slices.Equal(ends(l), want) {
		t.Errorf("%d keys are left, recorded are %q; must be none and %q", left(t, c), ends(l), want)
	}
}

// One key in the place of another, and both over: neither end is lost.
func TestAKeyInThePlaceOfAnotherAtTheEndOfRetention(t *testing.T) {
	c, l := fake.NewClientBuilder().Build(), &log{}
	first := keyOf(t, c, "2026q4")
	edit(t, c, func(s *corev1.Secret) { delete(s.Data, "2026q4") })
	second := keyOf(t, c, "2026q4")
	for range 3 {
		leader(c, l, "2027-06-01", month).Retain(t.Context())
	}
	if want := []string{first + " 2026q4 retention by sa", second + " 2026q4 retention by sa"}; !slices.Equal(ends(l), want) || left(t, c) != 0 {
		t.Errorf("recorded are %q, %d keys are left; must be %q and none", ends(l), left(t, c), want)
	}
}

// A Secret of a version that did not note its keys.
func TestKeysThatWereNotNoted(t *testing.T) {
	key := make([]byte, 32)
	c := fake.NewClientBuilder().WithObjects(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-evidence"}, Data: map[string][]byte{"2026q2": key, "2026q3": key, "note": []byte("by hand")},
	}).Build()
	l := &log{}
	leader(c, l, "2026-10-01", 2*month).Retain(t.Context()) // which destroys the first, and notes the second
	edit(t, c, func(s *corev1.Secret) { delete(s.Data, "2026q3") })
	leader(c, l, "2026-10-02", 2*month).Retain(t.Context())
	id := keyOf(t, fake.NewClientBuilder().WithObjects(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-evidence"}, Data: map[string][]byte{"2026q2": key},
	}).Build(), "2026q2")
	if want := []string{id + " 2026q2 retention by sa", id + " 2026q3 request by unknown"}; !slices.Equal(ends(l), want) {
		t.Errorf("recorded are %q; must be %q", ends(l), want)
	}
}
