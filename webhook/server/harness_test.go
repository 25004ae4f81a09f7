package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// pipeListener is a listener in memory, so that time can be faked around it.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	err    chan error // makes Accept fail
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{}), err: make(chan error)}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case err := <-l.err:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

var errRefused = errors.New("connection refused")

func (l *pipeListener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ca is a certificate authority for tests.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB) *ca {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert, key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (c *ca) issue(t testing.TB, name string, usage x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

func (c *ca) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// fixture is a server with clients for both listeners.
type fixture struct {
	*Server
	ca                    *ca
	admission, operations *pipeListener
}

// newFixture makes a server in memory that serves h.
func newFixture(t testing.TB, h http.Handler, change ...func(*Config)) *fixture {
	t.Helper()
	f := &fixture{ca: newCA(t), admission: newPipeListener(), operations: newPipeListener()}
	leaf := f.ca.issue(t, "meshvakt", x509.ExtKeyUsageServerAuth)
	c := Config{
		AdmissionListener: f.admission, OperationsListener: f.operations,
		Admission:      h,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return leaf, nil },
		Log:            slog.New(slog.DiscardHandler),
	}
	for _, edit := range change {
		edit(&c)
	}
	s, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	f.Server = s
	return f
}

// client returns a new client, with connections of its own, of the admission
// listener; change edits how it talks.
func (f *fixture) client(t testing.TB, change ...func(*http.Transport)) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialContext:       f.admission.DialContext,
		TLSClientConfig:   &tls.Config{RootCAs: f.ca.pool(), ServerName: "meshvakt", MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}
	for _, edit := range change {
		edit(transport)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func http1(t *http.Transport) {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
}

func http2(t *http.Transport) {
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP2(true)
}

// probe asks the operations listener.
func (f *fixture) probe(t testing.TB, path string) (code int, body string) {
	t.Helper()
	transport := &http.Transport{DialContext: f.operations.DialContext, DisableKeepAlives: true}
	code, body, err := get(t, &http.Client{Transport: transport}, "http://meshvakt"+path)
	if err != nil {
		t.Fatal(err)
	}
	return code, body
}

func get(t testing.TB, c *http.Client, url string) (code int, body string, err error) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}
