package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// result is what came of a request.
type result struct {
	code  int
	proto int
	err   error
}

func start(c *http.Client, path string) <-chan result {
	out := make(chan result, 1)
	go func() {
		resp, err := c.Post("https://meshvakt"+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			out <- result{err: err}
			return
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		out <- result{resp.StatusCode, resp.ProtoMajor, err}
	}()
	return out
}

// The order of the end: readiness goes at once; reviews, old and new, are served
// during the delay; then nothing new is taken, what is in flight is finished, and
// only then does Run return.
func TestDrain(t *testing.T) {
	for name, protocol := range map[string]func(*http.Transport){"HTTP/1.1": http1, "HTTP/2": http2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testDrain(t, protocol) })
		})
	}
}

func testDrain(t *testing.T, protocol func(*http.Transport)) {
	leave := make(chan struct{})
	var slowCtx context.Context // owned by the handler until slow is answered
	f := newFixture(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			slowCtx = r.Context()
			<-leave
		}
	}), func(c *Config) { c.DrainDelay = 5 * time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()

	kept := f.client(t, protocol)
	if r := <-start(kept, "/"); r.err != nil || r.code != http.StatusOK {
		t.Fatalf("before: %+v", r)
	}
	slow := start(f.client(t, protocol), "/slow")
	synctest.Wait()
	if code, _ := f.probe(t, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz before: %d", code)
	}

	cancel()
	synctest.Wait()
	if code, body := f.probe(t, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "[-] serving: draining") {
		t.Errorf("/readyz right after the signal: %d %s", code, body)
	}
	if code, _ := f.probe(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz while draining: %d", code)
	}
	time.Sleep(5*time.Second - time.Millisecond)
	for what, c := range map[string]*http.Client{"kept": kept, "new": f.client(t, protocol)} {
		if r := <-start(c, "/"); r.err != nil || r.code != http.StatusOK {
			t.Errorf("%s connection during the delay: %+v", what, r)
		}
	}
	if slowCtx.Err() != nil {
		t.Errorf("review in flight was cancelled by the signal: %v", slowCtx.Err())
	}

	time.Sleep(time.Millisecond)
	synctest.Wait()
	for what, c := range map[string]*http.Client{"kept": kept, "new": f.client(t, protocol)} {
		if r := <-start(c, "/"); !errors.Is(r.err, errRefused) {
			t.Errorf("%s connection after the delay: %+v, want refused", what, r)
		}
	}
	if code, _ := f.probe(t, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz while a review is in flight: %d", code)
	}
	select {
	case err := <-done:
		t.Fatalf("Run returned %v with a review in flight", err)
	default:
	}
	close(leave)
	if r := <-slow; r.err != nil || r.code != http.StatusOK {
		t.Errorf("review in flight: %+v, want HTTP 200", r)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRequestsThatNeverEndAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			func(c *Config) { c.ShutdownTimeout = 3 * time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		stuck := start(f.client(t), "/")
		synctest.Wait()
		begin := time.Now()
		cancel()
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 3*time.Second {
			t.Errorf("Run returned %v after %s, want deadline exceeded after 3s", err, time.Since(begin))
		}
		if r := <-stuck; r.err == nil {
			t.Errorf("stuck request got %+v", r)
		}
	})
}

func TestListenerFails(t *testing.T) {
	broken := errors.New("broken")
	for name, pick := range map[string]func(*fixture) *pipeListener{
		"admission":  func(f *fixture) *pipeListener { return f.admission },
		"operations": func(f *fixture) *pipeListener { return f.operations },
	} {
		for _, draining := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, http.NotFoundHandler(), func(c *Config) { c.DrainDelay = time.Hour })
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- f.Run(ctx) }()
				if draining {
					cancel()
				}
				synctest.Wait()
				pick(f).err <- broken
				if err := <-done; !errors.Is(err, broken) || !strings.Contains(err.Error(), name) {
					t.Errorf("%s: Run returned %v", name, err)
				}
				for _, l := range []*pipeListener{f.admission, f.operations} {
					select {
					case <-l.closed:
					default:
						t.Errorf("%s: a listener was left open", name)
					}
				}
			})
		}
	}
}
