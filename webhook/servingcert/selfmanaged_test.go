package servingcert

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errNoCA = errors.New("no CA yet")

const day = 24 * time.Hour

// startSource runs a source over the authority until the test ends.
func startSource(t testing.TB, f *fakeAuthority, trust Trust) *SelfManaged {
	t.Helper()
	s, err := NewSelfManaged(SelfManagedConfig{
		Authority: f, DNSNames: []string{"meshvakt.meshvakt-system.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		Trust: trust, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	return s
}

// apiServer is the rest of the world: the caBundle in the webhook configurations,
// written by the leader some time after a rotation, and known to the API server
// some time after that.
type apiServer struct {
	t *testing.T

	mu        sync.Mutex
	caBundle  []byte // as stored
	effective []byte // as the API server uses it
}

const (
	publishAfter = 3 * time.Second
	seenAfter    = 4 * time.Second
	apiClock     = -4 * time.Second // the API server's clock is behind
)

// publish follows a rotation: the leader merges the CA in, every replica
// observes it, the API server catches up.
func (a *apiServer) publish(ca *testCA, b *Bundle) {
	time.Sleep(publishAfter)
	a.mu.Lock()
	merged, err := MergeBundle(a.caBundle, ca.pem(), time.Now())
	a.caBundle = merged
	a.mu.Unlock()
	if err != nil {
		a.t.Error(err)
		return
	}
	b.Observe(merged)
	time.Sleep(seenAfter)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.effective = merged
}

func (a *apiServer) trusts() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.effective
}

// TestRotationUnderLoad replaces the CA again and again, also twice before the
// first one could be published, and lets certificates be renewed in between. An
// API server that knows only what is published, late, and whose clock is behind,
// must accept the certificate at every moment. Without the gate it does not.
func TestRotationUnderLoad(t *testing.T) {
	for name, gated := range map[string]bool{"gated": true, "not gated": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refused, calls := rotateUnderLoad(t, gated)
				if gated && refused != 0 {
					t.Errorf("%d of %d handshakes failed", refused, calls)
				}
				if !gated && refused == 0 {
					t.Error("no handshake failed without the gate: the test proves nothing")
				}
			})
		})
	}
}

func rotateUnderLoad(t *testing.T, gated bool) (refused, calls int) {
	f := &fakeAuthority{t: t, leafLife: 10 * time.Minute}
	first := f.rotate()
	bundle := NewBundle(0)
	bundle.Observe()
	var trust Trust
	if gated {
		trust = bundle
	}
	s := startSource(t, f, trust)
	synctest.Wait()
	if !s.Healthy() {
		t.Fatal("nothing is published, and there is no certificate at once")
	}
	api := &apiServer{t: t}
	api.publish(first, bundle)

	events := map[int]func(){
		60:  func() { go api.publish(f.rotate(), bundle) },
		120: func() { f.rotate() }, // never published: replaced a second later
		121: func() { go api.publish(f.rotate(), bundle) },
		300: func() { f.rotate() },
		304: func() { go api.publish(f.rotate(), bundle) },
	}
	var last *testCA
	for second := range 900 { // renewals fall in between, at two thirds of 10 min
		if event := events[second]; event != nil {
			event()
		}
		for range 4 {
			time.Sleep(250 * time.Millisecond)
			synctest.Wait()
			calls++
			if err := handshake(s, api.trusts(), time.Now().Add(apiClock), "meshvakt.meshvakt-system.svc"); err != nil {
				refused++
			}
		}
	}
	f.mu.Lock()
	last = f.ca
	f.mu.Unlock()
	if servedBy(t, s, last, first) != last {
		t.Error("the last CA is not in service at the end")
	}
	return refused, calls
}

// A certificate that expires is replaced even if nobody publishes its CA.
func TestHoldingEndsBeforeExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: time.Hour}
		old := f.rotate()
		bundle := NewBundle(0)
		bundle.Observe(old.pem())
		s := startSource(t, f, bundle)
		synctest.Wait()
		expiry := NotAfter(s)
		young := f.rotate()

		time.Sleep(time.Until(expiry) - lastResort - maxPoll)
		synctest.Wait()
		if servedBy(t, s, old, young) != old {
			t.Error("new certificate went into service although its CA is not published")
		}
		time.Sleep(2 * maxPoll)
		synctest.Wait()
		if servedBy(t, s, old, young) != young {
			t.Error("old certificate is still in service just before it expires")
		}
	})
}

// A replica that starts in the middle of a rotation waits for the publication
// rather than show what the API server refuses; it is not ready so long.
func TestStartDuringRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: 7 * day}
		old := newTestCA(t, time.Now().Add(-day), 365*day)
		young := f.rotate()
		bundle := NewBundle(0)
		bundle.Observe(old.pem())
		s := startSource(t, f, bundle)
		time.Sleep(time.Second)
		if s.Healthy() {
			t.Fatal("certificate in service that the API server refuses")
		}
		merged, err := MergeBundle(old.pem(), young.pem(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		bundle.Observe(merged)
		time.Sleep(DefaultSettleDelay - minPoll)
		synctest.Wait()
		if s.Healthy() {
			t.Error("in service before it is settled")
		}
		time.Sleep(2 * maxPoll)
		synctest.Wait()
		if !s.Healthy() || servedBy(t, s, young) != young {
			t.Error("not in service once it is settled")
		}
	})
}

// What the API server trusts is asked for before the first certificate.
func TestStartBeforeAnythingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: 7 * day}
		ca := f.rotate()
		bundle := NewBundle(0)
		s := startSource(t, f, bundle)
		time.Sleep(time.Second)
		if s.Healthy() {
			t.Error("certificate in service before it is known what is trusted")
		}
		bundle.Observe(ca.pem())
		time.Sleep(minPoll)
		synctest.Wait()
		if !s.Healthy() {
			t.Error("no certificate although its CA is the one that is published")
		}
	})
}

func TestStartWithoutCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: 7 * day}
		s := startSource(t, f, nil)
		time.Sleep(time.Second)
		if s.Healthy() || !NotAfter(s).IsZero() {
			t.Error("healthy without a CA")
		}
		f.rotate()
		time.Sleep(retryInterval)
		synctest.Wait()
		if !s.Healthy() {
			t.Errorf("no certificate %s after the CA was created", retryInterval)
		}
	})
}

func TestHeldSignEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: 7 * day}
		f.rotate()
		startSource(t, f, NewBundle(0)) // never observed: held; the cleanup waits for Start
		time.Sleep(time.Second)
	})
}

func TestCertificateIsForNamesAndAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: 7 * day}
		ca := f.rotate()
		s := startSource(t, f, nil)
		synctest.Wait()
		for name, works := range map[string]bool{
			"meshvakt.meshvakt-system.svc": true, "127.0.0.1": true, "127.0.0.2": false, "example.com": false,
		} {
			if err := handshake(s, ca.pem(), time.Now(), name); (err == nil) != works {
				t.Errorf("%s: %v", name, err)
			}
		}
		if want := time.Now().Add(7 * day).Truncate(time.Second); NotAfter(s).Sub(want).Abs() > time.Second {
			t.Errorf("expires %s, want %s", NotAfter(s), want)
		}
	})
}

func TestExpiredIsNotHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAuthority{t: t, leafLife: time.Minute}
		f.rotate()
		s := startSource(t, f, nil)
		synctest.Wait()
		f.mu.Lock()
		f.ca = nil // no renewal succeeds
		f.mu.Unlock()
		time.Sleep(time.Minute - 2*time.Second)
		if !s.Healthy() {
			t.Error("not healthy before expiry")
		}
		time.Sleep(3 * time.Second)
		if s.Healthy() {
			t.Error("healthy after expiry")
		}
	})
}

func TestSelfManagedConfigIsChecked(t *testing.T) {
	f := &fakeAuthority{t: t}
	for name, c := range map[string]SelfManagedConfig{
		"no authority": {DNSNames: []string{"a"}},
		"no names":     {Authority: f},
	} {
		if _, err := NewSelfManaged(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// cert-manager's chatter is debug output; its errors are errors.
func TestLogLevels(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(quiet{slog.NewTextHandler(&b, nil)})
	log.Info("attempt")
	log.With("a", 1).WithGroup("g").Info("attempt")
	log.Error("trouble")
	if got := b.String(); strings.Contains(got, "attempt") || !strings.Contains(got, "level=ERROR msg=trouble") {
		t.Errorf("logged %q", got)
	}
	b.Reset()
	slog.New(quiet{slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})}).Info("attempt")
	if !strings.Contains(b.String(), "level=DEBUG msg=attempt") {
		t.Errorf("logged %q", b.String())
	}
}
