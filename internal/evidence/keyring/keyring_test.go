package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

func ring(c client.Client) *Keyring {
	return New(Config{Live: c, Client: c, Secret: client.ObjectKey{Namespace: "meshvakt-system", Name: "meshvakt-evidence"}, Random: rand.Reader})
}

func TestAllReplicasHaveTheSameKey(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "cluster-uid"}}).Build()
	keys := make([]record.Key, 8)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			k := ring(c)
			if uid, err := k.Cluster(t.Context()); uid != "cluster-uid" || err != nil {
				t.Errorf("cluster is %q, %v", uid, err)
			}
			var err error
			if keys[i], err = k.Key(t.Context(), "2026q4"); err != nil {
				t.Error(err)
			}
			if _, err = k.Key(t.Context(), "2027q1"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, k := range keys[1:] {
		if k != keys[0] {
			t.Fatal("replicas have different keys")
		}
	}
	if next, err := ring(c).Key(t.Context(), "2027q1"); err != nil || next == keys[0] {
		t.Errorf("the next period has the same key, %v", err)
	}
}

func TestAKeyOfAnotherLengthIsNotReplaced(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-evidence"}, Data: map[string][]byte{"2026q4": []byte("short")}}
	c := fake.NewClientBuilder().WithObjects(secret).Build()
	if _, err := ring(c).Key(t.Context(), "2026q4"); err == nil || !strings.Contains(err.Error(), "5 bytes") {
		t.Errorf("a key of 5 bytes: %v", err)
	}
}

// log keeps what is recorded, when it takes it.
type log struct {
	mu   sync.Mutex
	err  error
	told []*record.KeyDestroyed
}

// takes has it take what is recorded, and counted returns how much it has, while somebody records.
func (l *log) takes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = nil
}

func (l *log) counted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.told)
}

func (l *log) Shard() string { return "2027q4" }

func (l *log) Append(_ context.Context, _ string, build func(record.Pseudonymiser) (record.Body, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	body, err := build(record.NewPseudonymiser(record.Key{}))
	if err == nil {
		l.told = append(l.told, body.(*record.KeyDestroyed))
	}
	return err
}

func TestKeysEndWithRetention(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	k := ring(c)
	k.Client, k.user = telling(c, &time.Time{}), "system:serviceaccount:meshvakt-system:meshvakt"
	old, err := k.Key(t.Context(), "2026q3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Key(t.Context(), "2026q4"); err != nil {
		t.Fatal(err)
	}
	if _, kept := k.keys["2026q3"]; kept || len(k.keys) != 1 {
		t.Errorf("%d keys are in memory; must be that of the newest period alone", len(k.keys))
	}
	now := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 13, 0)
	l := &log{err: errors.New("full")}
	r := &Retainer{
		Keys: k, Log: l, Retention: now.Sub(time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)),
		Origin: func(_ context.Context, p volume.Period) (string, error) {
			return "evidence.example.org/c/meshvakt-0/" + string(p), nil
		},
		Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now.Add(-time.Second) },
	}
	r.Retain(t.Context())
	if left := left(t, c); left != 2 {
		t.Fatalf("a second before the end of retention %d keys are left; must be 2", left)
	}
	r.Now = func() time.Time { return now }
	r.Retain(t.Context())
	if left := left(t, c); left != 1 || len(l.told) != 0 {
		t.Errorf("%d keys are left, %d recorded; must be 1 and none, as the log is full", left, len(l.told))
	}
	l.err = nil
	r.Retain(t.Context())
	if len(l.told) != 1 || l.told[0].ID != old.ID() || !strings.HasSuffix(l.told[0].Origin, "/2026q3") || l.told[0].Why != "retention" {
		t.Errorf("recorded %+v", l.told)
	}
	r.Retain(t.Context())
	if len(l.told) != 1 {
		t.Error("the destruction is recorded twice")
	}
	// The key cannot be got back, not from memory either: the period would have another one.
	if again, err := k.Key(t.Context(), "2026q3"); err != nil || again == old {
		t.Errorf("the key is still there, %v", err)
	}
}

func left(t *testing.T, c client.Client) int {
	t.Helper()
	var s corev1.Secret
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "meshvakt-system", Name: "meshvakt-evidence"}, &s); err != nil {
		t.Fatal(err)
	}
	return len(s.Data)
}
