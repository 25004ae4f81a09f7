package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
)

// Check is one condition of readiness.
type Check struct {
	Name string
	// Ready returns what is missing, nil if nothing is. It is called for every
	// probe and must not wait for anything.
	Ready func() error
}

// operationsHandler serves /healthz, /readyz and /metrics. Health is that the
// process answers, no more: a webhook that lacks its API server must not be
// restarted in a circle.
func (s *Server) operationsHandler(metrics http.Handler, checks []Check) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeReport(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		code, report := s.readiness(checks)
		writeReport(w, code, report)
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	return mux
}

// Wait serves /healthz and /readyz on address, "" for DefaultOperationsAddress, until ctx ends, for a process that has
// nothing else to serve yet: it is healthy, and not ready for want of what is missing.
func Wait(ctx context.Context, address string, log *slog.Logger, missing Check) error {
	listener, err := listen(ctx, address, DefaultOperationsAddress)
	if err != nil {
		return fmt.Errorf("listen for operations: %w", err)
	}
	var s Server
	operations := newHTTPServer(Config{Log: log}, s.operationsHandler(nil, []Check{missing}))
	log.InfoContext(ctx, "waiting", "for", missing.Name, "operations", listener.Addr().String())
	stop := context.AfterFunc(ctx, func() { _ = operations.Close() }) // closes the listener; nobody is answered any more
	defer stop()
	if err := operations.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve operations: %w", err)
	}
	return nil
}

// readiness runs every check, so that the report is complete.
func (s *Server) readiness(checks []Check) (code int, report string) {
	code = http.StatusOK
	var b strings.Builder
	state := func(name, missing string) {
		if missing == "" {
			fmt.Fprintf(&b, "[+] %s\n", name)
			return
		}
		code = http.StatusServiceUnavailable
		fmt.Fprintf(&b, "[-] %s: %s\n", name, missing)
	}
	if s.draining.Load() {
		state("serving", "draining")
	} else {
		state("serving", "")
	}
	for _, c := range checks {
		missing := ""
		if err := c.Ready(); err != nil {
			missing = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		state(c.Name, missing)
	}
	return code, b.String()
}

func writeReport(w http.ResponseWriter, code int, report string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	// A failed write means that the prober is gone.
	_, _ = io.WriteString(w, report)
}
