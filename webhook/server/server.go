// Package server runs the listeners of Meshvakt: admission, over TLS, which the
// API server calls, and operations, over plain HTTP, for probes and metrics. It
// knows nothing of policies.
//
// The order of the end is what this package is about. When the context of Run is
// cancelled, readiness is withdrawn at once, but reviews are served as before
// for DrainDelay, because until the endpoints are updated everywhere the API
// server keeps calling, and under failurePolicy Fail a refused connection is a
// refused deployment. Then the listener closes, requests in flight are
// finished, and Run returns.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// The defaults of Config.
const (
	DefaultAdmissionAddress  = ":9443"
	DefaultOperationsAddress = ":8081"
	DefaultDrainDelay        = 5 * time.Second
	DefaultShutdownTimeout   = 20 * time.Second
	DefaultReadHeaderTimeout = 5 * time.Second
	DefaultReadTimeout       = 10 * time.Second
)

const (
	// writeTimeout covers reading, judging and answering; the API server never
	// waits longer than 30 s.
	writeTimeout = 35 * time.Second
	// idleTimeout is above the 90 s after which the API server's client gives up
	// an idle connection, so that it is never the server that closes one just as
	// a review is sent on it.
	idleTimeout = 120 * time.Second
	// maxHeaderBytes is generous: the API server sends well below 1 KiB.
	maxHeaderBytes = 32 << 10
)

// Config is what a Server needs.
type Config struct {
	// AdmissionAddress and OperationsAddress are where to listen, "" for the
	// defaults. A listener that is given takes the place of its address.
	AdmissionAddress, OperationsAddress   string
	AdmissionListener, OperationsListener net.Listener

	// Admission serves the reviews. Required.
	Admission http.Handler
	// GetCertificate returns the serving certificate. Required.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// MinTLSVersion is tls.VersionTLS13 or tls.VersionTLS12; 0 means 1.3.
	MinTLSVersion uint16

	// ClientCAs, if set, makes a client certificate from one of these CAs a
	// condition of every connection. Without it everybody who reaches the port
	// can ask for judgements (and learn from them, but change nothing).
	ClientCAs *x509.CertPool
	// ClientNames, if set, are the common names one of which the client
	// certificate must have. Without it every certificate of the CAs will do,
	// which with the cluster's CA includes every kubelet.
	ClientNames []string

	// Metrics serves /metrics, nil for 404.
	Metrics http.Handler
	// Checks must all pass for /readyz to say so.
	Checks []Check

	// DrainDelay is how long reviews are served as before after readiness was
	// withdrawn; 0 means not at all.
	DrainDelay time.Duration
	// ShutdownTimeout is how long requests in flight may then take, 0 for
	// DefaultShutdownTimeout.
	ShutdownTimeout time.Duration
	// ReadHeaderTimeout and ReadTimeout cut off clients that are slow to send
	// headers, and headers and body; 0 for the defaults.
	ReadHeaderTimeout, ReadTimeout time.Duration

	// Log is nil for slog.Default.
	Log *slog.Logger
}

// Server is a pair of bound listeners and what serves them.
type Server struct {
	admission, operations                 *http.Server
	admissionListener, operationsListener net.Listener

	drainDelay, shutdownTimeout time.Duration
	log                         *slog.Logger

	draining atomic.Bool // set once, when Run's context is cancelled
}

// New binds the listeners. Connections queue up until Run.
func New(ctx context.Context, c Config) (*Server, error) {
	if c.Admission == nil || c.GetCertificate == nil {
		return nil, errors.New("server: admission handler and certificate source must be set")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{
		drainDelay:         c.DrainDelay,
		shutdownTimeout:    orDefault(c.ShutdownTimeout, DefaultShutdownTimeout),
		log:                c.Log,
		admissionListener:  c.AdmissionListener,
		operationsListener: c.OperationsListener,
	}
	tlsConfig, err := newTLSConfig(c)
	if err != nil {
		return nil, err
	}
	s.admission = newHTTPServer(c, c.Admission)
	s.admission.TLSConfig = tlsConfig
	s.operations = newHTTPServer(c, s.operationsHandler(c.Metrics, c.Checks))

	if s.admissionListener == nil {
		if s.admissionListener, err = listen(ctx, c.AdmissionAddress, DefaultAdmissionAddress); err != nil {
			return nil, fmt.Errorf("listen for admission: %w", err)
		}
	}
	if s.operationsListener == nil {
		if s.operationsListener, err = listen(ctx, c.OperationsAddress, DefaultOperationsAddress); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for operations: %w", err), s.admissionListener.Close())
		}
	}
	return s, nil
}

func listen(ctx context.Context, address, fallback string) (net.Listener, error) {
	if address == "" {
		address = fallback
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", address)
}

func newHTTPServer(c Config, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: orDefault(c.ReadHeaderTimeout, DefaultReadHeaderTimeout),
		ReadTimeout:       orDefault(c.ReadTimeout, DefaultReadTimeout),
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
	}
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}

// AdmissionAddr is where reviews are served.
func (s *Server) AdmissionAddr() net.Addr { return s.admissionListener.Addr() }

// OperationsAddr is where probes and metrics are served.
func (s *Server) OperationsAddr() net.Addr { return s.operationsListener.Addr() }

// Draining reports whether the end has begun.
func (s *Server) Draining() bool { return s.draining.Load() }

// Run serves until ctx is cancelled and then ends in order. The error is nil
// unless a listener failed or requests were cut off by the shutdown timeout. It
// may be called once.
func (s *Server) Run(ctx context.Context) error {
	// Requests do not inherit the cancellation of ctx: a signal to stop must not
	// abort the reviews it is meant to let finish.
	base := context.WithoutCancel(ctx)
	failed := make(chan error, 2)
	start := func(name string, server *http.Server, serve func() error) {
		server.BaseContext = func(net.Listener) context.Context { return base }
		go func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", name, err)
			}
		}()
	}
	start("operations", s.operations, func() error { return s.operations.Serve(s.operationsListener) })
	start("admission", s.admission, func() error { return s.admission.ServeTLS(s.admissionListener, "", "") })
	s.log.InfoContext(ctx, "serving", "admission", s.AdmissionAddr().String(), "operations", s.OperationsAddr().String())

	select {
	case err := <-failed:
		return errors.Join(err, s.admission.Close(), s.operations.Close())
	case <-ctx.Done():
	}
	s.draining.Store(true)
	s.log.InfoContext(base, "draining", "delay", s.drainDelay)
	delay := time.NewTimer(s.drainDelay)
	defer delay.Stop()
	select {
	case err := <-failed:
		return errors.Join(err, s.admission.Close(), s.operations.Close())
	case <-delay.C:
	}
	return s.shutdown(base)
}

// shutdown closes the admission listener, waits for requests in flight, and
// closes the operations listener last, so that probes and metrics can follow.
func (s *Server) shutdown(base context.Context) error {
	ctx, cancel := context.WithTimeout(base, s.shutdownTimeout)
	defer cancel()
	// Shutdown also tells clients, by GOAWAY or Connection: close, to send no
	// further reviews on connections they hold.
	err := s.admission.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests in flight were cut off after %s: %w", s.shutdownTimeout, err), s.admission.Close())
	}
	s.log.InfoContext(base, "stopped")
	return errors.Join(err, s.operations.Close())
}
