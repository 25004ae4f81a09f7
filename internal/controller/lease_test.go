package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// storedLease is a Lease in the API server, as far as that lets itself be asked.
type storedLease struct {
	mu      sync.Mutex
	record  resourcelock.LeaderElectionRecord
	version int // 0: there is none
	away    error
}

func (s *storedLease) answers(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *storedLease) holder() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record.HolderIdentity
}

// lock is what one replica has of it.
type lock struct {
	*storedLease
	id   string
	seen int // the version it has read or written last
}

func (l *lock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.away != nil:
		return nil, nil, l.away
	case l.version == 0:
		return nil, nil, apierrors.NewNotFound(coordinationv1.Resource("leases"), "l")
	}
	l.seen = l.version
	record := l.record
	raw, err := json.Marshal(record)
	return &record, raw, err
}

func (l *lock) Create(_ context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(r, 0)
}
func (l *lock) Update(_ context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.write(r, l.seen)
}

func (l *lock) write(r resourcelock.LeaderElectionRecord, after int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.away != nil:
		return l.away
	case l.version != after:
		return apierrors.NewConflict(coordinationv1.Resource("leases"), "l", errors.New("another version"))
	}
	l.version++
	l.seen, l.record = l.version, r
	return nil
}

func (l *lock) RecordEvent(string) {}
func (l *lock) Identity() string   { return l.id }
func (l *lock) Describe() string   { return "meshvakt-system/meshvakt-leader" }

// runs has the real elector of client-go go by a Lease of s, as the manager has it. The channels are closed when it leads,
// and when it does not any more.
func runs(ctx context.Context, t *testing.T, s *storedLease, id string, log *bytes.Buffer) (leads, ended chan struct{}) {
	t.Helper()
	leads, ended = make(chan struct{}), make(chan struct{})
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          &Lease{Interface: &lock{storedLease: s, id: id}, log: slog.New(slog.NewTextHandler(log, nil))},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leads) },
			OnStoppedLeading: func() { close(ended) },
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	go e.Run(ctx)
	return leads, ended
}

func closed(c <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var awayErrors = map[string]error{
	"nobody listens":  errors.New("dial tcp 10.0.0.1:443: connect: connection refused"),
	"no answer":       fmt.Errorf("put lease: %w", context.DeadlineExceeded),
	"unavailable":     apierrors.NewServiceUnavailable("etcd"),
	"internal error":  apierrors.NewInternalError(errors.New("etcdserver: request timed out")),
	"too many":        apierrors.NewTooManyRequests("later", 1),
	"a proxy's error": apierrors.NewGenericServerResponse(http.StatusBadGateway, "put", schema.GroupResource{}, "l", "", 0, true),
}

// A leader whose API server is away for an hour goes on, and is the leader afterwards.
func TestLeaseOutlivesTheAPIServer(t *testing.T) {
	for name, away := range awayErrors {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var s storedLease
				var log bytes.Buffer
				leads, ended := runs(ctx, t, &s, "a", &log)
				time.Sleep(time.Minute)
				if !closed(leads) {
					t.Fatal("does not lead")
				}
				s.answers(away)
				time.Sleep(time.Hour)
				if closed(ended) {
					t.Fatal("has given up while nobody could lead")
				}
				s.answers(nil)
				time.Sleep(time.Minute)
				if closed(ended) || s.holder() != "a" {
					t.Errorf("ended: %v, held by %q; must lead again", closed(ended), s.holder())
				}
				if said := log.String(); strings.Count(said, "goes on leading") != 1 || strings.Count(said, "again") != 1 {
					t.Errorf("logged:\n%s\nmust be once that the API server is away, and once that it is back", said)
				}
				cancel()
				if !closed(ended) || s.holder() != "" {
					t.Errorf("held by %q when told to end; must be given up", s.holder())
				}
			})
		})
	}
}

// One that is cut off alone is followed by another, and ends once it can hear of that.
func TestLeaseThatAnotherHasTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s storedLease
		var log bytes.Buffer
		_, ended := runs(t.Context(), t, &s, "a", &log)
		time.Sleep(time.Minute)
		s.answers(errors.New("no route to host"))
		time.Sleep(time.Minute)
		s.mu.Lock()
		s.away = nil
		s.version++
		s.record.HolderIdentity = "b"
		s.record.LeaderTransitions++
		s.mu.Unlock()
		time.Sleep(15 * time.Second) // to ask again, and the deadline to renew
		if !closed(ended) {
			t.Error("goes on leading beside another")
		}
		if s.holder() != "b" {
			t.Errorf("held by %q; must be left alone", s.holder())
		}
	})
}

// Who does not hold it cannot come to by the API server being away, and a refusal is not an outage.
func TestLeaseIsNotMadeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var s storedLease
		var log bytes.Buffer
		s.record, s.version = resourcelock.LeaderElectionRecord{HolderIdentity: "b", LeaseDurationSeconds: 15}, 1
		l := &lock{storedLease: &s, id: "a"}
		lease := &Lease{Interface: l, log: slog.New(slog.NewTextHandler(&log, nil))}
		if _, _, err := lease.Get(ctx); err != nil {
			t.Fatal(err)
		}
		s.answers(awayErrors["unavailable"])
		if err := lease.Update(ctx, resourcelock.LeaderElectionRecord{HolderIdentity: "a"}); err == nil {
			t.Error("taken from another while the API server was away")
		}
		leads, _ := runs(ctx, t, &s, "c", &log)
		time.Sleep(time.Hour)
		if closed(leads) {
			t.Error("leads without the API server")
		}
		cancel()

		s.answers(nil)
		s.record.HolderIdentity = ""
		leads, ended := runs(t.Context(), t, &s, "d", &log)
		time.Sleep(time.Minute)
		if !closed(leads) {
			t.Fatal("does not lead")
		}
		s.answers(apierrors.NewForbidden(coordinationv1.Resource("leases"), "l", errors.New("no right")))
		time.Sleep(time.Minute)
		if !closed(ended) {
			t.Error("goes on leading without the right to")
		}
	})
}

// A timeout that came to the watches of the process would end each of them every few seconds.
func TestLeaseLeavesTheConfigAlone(t *testing.T) {
	config := &rest.Config{Host: "https://kubernetes.default.svc", UserAgent: "meshvakt"}
	before := rest.CopyConfig(config)
	if _, err := NewLease(config, "meshvakt-system", "meshvakt-leader", slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(config, before) {
		t.Errorf("the configuration is %v now; must be %v", config, before)
	}
}
