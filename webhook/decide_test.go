package webhook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func TestPanicCostsOneRequest(t *testing.T) {
	panics := true
	w := newWebhook(t, guarded(t), judgedBy(func(*facts.Review, *facts.Guard) ([]policies.Finding, error) {
		if panics {
			panic("password hunter2")
		}
		return nil, nil
	}))
	got := post(w, PathValidate, bytes.NewReader(encode(t, podReview("u"))))
	if got.Code != http.StatusInternalServerError || strings.Contains(got.Body.String(), "hunter2") {
		t.Errorf("HTTP %d %s, want 500 without what the panic carried", got.Code, got.Body)
	}
	if s := w.recorder.failures(); !slices.Equal(s, []string{StagePanic}) {
		t.Errorf("counted as %v, want panic", s)
	}
	panics = false
	if a := w.ask(t, podReview("v")); !a.Allowed || a.UID != "v" {
		t.Errorf("next request: %+v", a)
	}
}

// Canaries are answered like all others, and neither counted nor logged.
func TestCanariesAreNotCounted(t *testing.T) {
	w := newWebhook(t, guarded(t), func(c *Config) {
		c.Canary = func(r *facts.Review) bool { return r.Name == "canary" }
	})
	canary := podReview("u")
	canary.Request.Name = "canary"
	canary.Request.Object.Raw = bytes.ReplaceAll(canary.Request.Object.Raw, []byte(`"name":"web"`), []byte(`"name":"canary"`))
	if a := w.ask(t, canary); a.Allowed || a.UID != "u" {
		t.Errorf("answered %+v; must be refused", a)
	}
	if got := post(w, PathMutate, bytes.NewReader(encode(t, canary))); got.Code != http.StatusOK {
		t.Errorf("HTTP %d: %s", got.Code, got.Body)
	}
	if len(w.recorder.outcomes) > 0 || len(w.recorder.patched) > 0 || w.log.Len() > 0 {
		t.Errorf("counted %v and %v, logged %s", w.recorder.outcomes, w.recorder.patched, w.log)
	}
	if w.ask(t, podReview("v")); len(w.recorder.outcomes) != 1 || w.log.Len() == 0 {
		t.Errorf("what users do must be counted and logged: %v, %s", w.recorder.outcomes, w.log)
	}
}

func TestPanicOutsidePolicies(t *testing.T) {
	w := newWebhook(t, guarded(t))
	w.facts.before = func(context.Context) error { panic("facts") }
	for range 300 { // more than there are slots: a panic must give its slot back
		if got := post(w, PathValidate, bytes.NewReader(encode(t, podReview("u")))); got.Code != http.StatusInternalServerError {
			t.Fatalf("HTTP %d %s, want 500", got.Code, got.Body)
		}
	}
	if len(w.recorder.failures()) != 300 || w.recorder.failures()[0] != StagePanic || w.recorder.ended != 300 {
		t.Errorf("%d failures, %d ends, want 300 of each", len(w.recorder.failures()), w.recorder.ended)
	}
}

func TestFacts(t *testing.T) {
	broken := errors.New("watch is stale")
	for name, c := range map[string]struct {
		cached, live facts.Cluster
		err, liveErr error
		code         int
		allowed      bool
		liveReads    int32
		stage        string
	}{
		"cached allow stands":           {cached: strict(t), live: guarded(t), code: 200, allowed: true, liveReads: 0},
		"cached denial is confirmed":    {cached: guarded(t), live: guarded(t), code: 200, allowed: false, liveReads: 1},
		"cached denial is overturned":   {cached: guarded(t), live: strict(t), code: 200, allowed: true, liveReads: 1},
		"namespace not cached yet":      {cached: facts.Cluster{Guards: guarded(t).Guards}, live: strict(t), code: 200, allowed: true, liveReads: 1},
		"namespace is nowhere":          {cached: facts.Cluster{Guards: guarded(t).Guards}, live: facts.Cluster{Guards: guarded(t).Guards}, code: 503, liveReads: 1, stage: StageFacts},
		"cache is broken":               {err: broken, code: 503, stage: StageFacts},
		"denial that nobody can verify": {cached: guarded(t), liveErr: broken, code: 503, liveReads: 1, stage: StageFacts},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWebhook(t, c.cached)
			w.facts.live, w.facts.err, w.facts.liveErr = c.live, c.err, c.liveErr
			got := post(w, PathValidate, bytes.NewReader(encode(t, podReview("u"))))
			if got.Code != c.code {
				t.Fatalf("HTTP %d %s, want %d", got.Code, got.Body, c.code)
			}
			if n := w.facts.liveReads.Load(); n != c.liveReads {
				t.Errorf("%d live reads, want %d", n, c.liveReads)
			}
			if c.code == http.StatusOK {
				if a := decodeAnswer(t, got.Body.Bytes()); a.Allowed != c.allowed {
					t.Errorf("allowed %t, want %t", a.Allowed, c.allowed)
				}
				if len(w.recorder.outcomes) != 1 {
					t.Errorf("%d decisions counted, want 1", len(w.recorder.outcomes))
				}
			} else if s := w.recorder.failures(); !slices.Equal(s, []string{c.stage}) {
				t.Errorf("counted as %v, want %s", s, c.stage)
			}
		})
	}
}

func TestLiveDenialIsNotReadAgain(t *testing.T) {
	c := guarded(t)
	c.Live = true
	w := newWebhook(t, c)
	if a := w.ask(t, podReview("u")); a.Allowed || w.facts.liveReads.Load() != 0 {
		t.Errorf("allowed %t after %d more live reads, want a denial and none", a.Allowed, w.facts.liveReads.Load())
	}
}

func TestPolicyErrorIsNotADecision(t *testing.T) {
	w := newWebhook(t, guarded(t), judgedBy(func(*facts.Review, *facts.Guard) ([]policies.Finding, error) {
		return nil, errors.New("cannot tell")
	}))
	got := post(w, PathValidate, bytes.NewReader(encode(t, podReview("u"))))
	if got.Code != http.StatusInternalServerError || !strings.Contains(got.Body.String(), "cannot tell") {
		t.Errorf("HTTP %d %s, want 500 and the cause", got.Code, got.Body)
	}
}

func TestLeavingAGuard(t *testing.T) {
	for name, c := range map[string]struct {
		may     bool
		err     error
		code    int
		allowed bool
	}{
		"with the right":       {may: true, code: 200, allowed: true},
		"without the right":    {may: false, code: 200, allowed: false},
		"right cannot be told": {err: errors.New("no answer"), code: 503},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			w := newWebhook(t, strict(t), func(cfg *Config) {
				cfg.Authorizer = authorizerFunc(func(u authenticationv1.UserInfo, guard string) (bool, error) {
					asked = append(asked, u.Username+" "+guard)
					return c.may, c.err
				})
			})
			got := post(w, PathValidate, bytes.NewReader(encode(t, namespaceReview())))
			if got.Code != c.code {
				t.Fatalf("HTTP %d %s, want %d", got.Code, got.Body, c.code)
			}
			if c.code == http.StatusOK {
				if a := decodeAnswer(t, got.Body.Bytes()); a.Allowed != c.allowed {
					t.Errorf("allowed %t, want %t", a.Allowed, c.allowed)
				}
			}
			// Once, although the denial is judged twice.
			if !slices.Equal(asked, []string{"kari@example.com production"}) {
				t.Errorf("asked %v, want once", asked)
			}
		})
	}
	w := newWebhook(t, strict(t), func(cfg *Config) {
		cfg.Authorizer = authorizerFunc(func(authenticationv1.UserInfo, string) (bool, error) {
			t.Error("asked for a pod")
			return false, nil
		})
	})
	w.ask(t, podReview("u"))
}

func TestDeadline(t *testing.T) {
	for target, want := range map[string]time.Duration{
		"/validate?timeout=10s":  9500 * time.Millisecond,
		"/validate?timeout=1s":   900 * time.Millisecond,
		"/validate?timeout=30s":  29500 * time.Millisecond,
		"/validate?timeout=1h":   29500 * time.Millisecond,
		"/validate":              9500 * time.Millisecond,
		"/validate?timeout=soon": 9500 * time.Millisecond,
		"/validate?timeout=-1s":  9500 * time.Millisecond,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWebhook(t, guarded(t))
			w.facts.before = func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}
			start := time.Now()
			got := post(w, target, bytes.NewReader(encode(t, podReview("u"))))
			if took := time.Since(start); got.Code != http.StatusGatewayTimeout || took != want {
				t.Errorf("%s: HTTP %d after %s, want 504 after %s", target, got.Code, took, want)
			}
			if s := w.recorder.failures(); !slices.Equal(s, []string{StageDeadline}) {
				t.Errorf("counted as %v, want deadline", s)
			}
		})
	}
}

// A judgement that comes too late is not counted as given.
func TestTooLateToAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWebhook(t, strict(t), judgedBy(func(*facts.Review, *facts.Guard) ([]policies.Finding, error) {
			time.Sleep(2 * time.Second)
			return nil, nil
		}))
		got := post(w, "/validate?timeout=1s", bytes.NewReader(encode(t, podReview("u"))))
		if got.Code != http.StatusGatewayTimeout || len(w.recorder.outcomes) != 0 {
			t.Errorf("HTTP %d and %d decisions, want 504 and none", got.Code, len(w.recorder.outcomes))
		}
	})
}

func TestOverload(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	w := newWebhook(t, strict(t), func(c *Config) { c.MaxInFlight = 1 })
	w.facts.before = func(context.Context) error {
		entered <- struct{}{}
		<-leave
		return nil
	}
	first := make(chan int)
	go func() { first <- post(w, PathValidate, bytes.NewReader(encode(t, podReview("a")))).Code }()
	<-entered
	second := post(w, PathValidate, bytes.NewReader(encode(t, podReview("b"))))
	if second.Code != http.StatusServiceUnavailable || second.Header().Get("Retry-After") == "" {
		t.Errorf("HTTP %d, Retry-After %q; want 503 with one", second.Code, second.Header().Get("Retry-After"))
	}
	close(leave)
	if code := <-first; code != http.StatusOK {
		t.Errorf("first request: HTTP %d, want 200", code)
	}
	go func() { <-entered }()
	if code := post(w, PathValidate, bytes.NewReader(encode(t, podReview("c")))).Code; code != http.StatusOK {
		t.Errorf("after the overload: HTTP %d, want 200", code)
	}
}

// Whoever does not finish a body holds no slot.
func TestUnfinishedBodyHoldsNoSlot(t *testing.T) {
	w := newWebhook(t, strict(t), func(c *Config) { c.MaxInFlight = 1 })
	body, feed := io.Pipe()
	slow := make(chan int)
	go func() { slow <- post(w, PathValidate, body).Code }()
	raw := encode(t, podReview("slow"))
	if _, err := feed.Write(raw[:10]); err != nil { // returns once the handler has read it
		t.Fatal(err)
	}
	if a := w.ask(t, podReview("quick")); !a.Allowed {
		t.Error("refused")
	}
	if _, err := feed.Write(raw[10:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if code := <-slow; code != http.StatusOK {
		t.Errorf("slow client: HTTP %d, want 200", code)
	}
}

func TestCutOffBody(t *testing.T) {
	w := newWebhook(t, strict(t))
	r := httptest.NewRequest(http.MethodPost, PathValidate, io.MultiReader(strings.NewReader("{"), errorReader{}))
	r.Header.Set("Content-Type", "application/json")
	got := httptest.NewRecorder()
	w.ServeHTTP(got, r)
	if got.Code != http.StatusBadRequest || !slices.Equal(w.recorder.failures(), []string{StageBody}) {
		t.Errorf("HTTP %d in %v, want 400 in body", got.Code, w.recorder.failures())
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Neither objects nor users reach the log.
func TestLogNamesNoUserAndNoObject(t *testing.T) {
	w := newWebhook(t, guarded(t))
	w.ask(t, podReview("u"))
	line := w.log.String()
	for _, want := range []string{`"uid":"u"`, `"kind":"Pod"`, `"namespace":"prod"`, `"name":"web"`, `"operation":"CREATE"`, `"decision":"deny"`, `"codes":"MV101"`, `"level":"INFO"`, `"duration":`} {
		if !strings.Contains(line, want) {
			t.Errorf("log has no %s: %s", want, line)
		}
	}
	for _, secret := range []string{"kari", "secret-image"} {
		if strings.Contains(line, secret) {
			t.Errorf("log holds %q: %s", secret, line)
		}
	}
	if n := strings.Count(line, "\n"); n != 1 {
		t.Errorf("%d log lines, want 1", n)
	}
}
