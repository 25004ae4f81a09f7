package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// run starts the server and stops it when the test ends.
func (f *fixture) run(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func answerOK() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
}

// In faked time, since over a pipe a refused handshake waits for its alert to be
// read until it gives up.
func TestTLSVersions(t *testing.T) { synctest.Test(t, testTLSVersions) }

func testTLSVersions(t *testing.T) {
	for _, c := range []struct {
		minimum, client uint16
		works           bool
	}{
		{0, tls.VersionTLS13, true},
		{0, tls.VersionTLS12, false},
		{tls.VersionTLS13, tls.VersionTLS12, false},
		{tls.VersionTLS12, tls.VersionTLS12, true},
		{tls.VersionTLS12, tls.VersionTLS11, false},
	} {
		f := newFixture(t, answerOK(), func(cfg *Config) { cfg.MinTLSVersion = c.minimum })
		f.run(t)
		client := f.client(t, func(tr *http.Transport) {
			tr.TLSClientConfig.MinVersion, tr.TLSClientConfig.MaxVersion = tls.VersionTLS10, c.client
		})
		if _, _, err := get(t, client, "https://meshvakt/"); (err == nil) != c.works {
			t.Errorf("minimum %s, client %s: error %v, works should be %t", tls.VersionName(c.minimum), tls.VersionName(c.client), err, c.works)
		}
	}
}

func TestProtocols(t *testing.T) {
	f := newFixture(t, answerOK())
	f.run(t)
	for want, protocol := range map[int]func(*http.Transport){1: http1, 2: http2} {
		if r := <-start(f.client(t, protocol), "/"); r.err != nil || r.proto != want {
			t.Errorf("HTTP/%d: %+v", want, r)
		}
	}
}

func TestClientCertificate(t *testing.T) { synctest.Test(t, testClientCertificate) }

func testClientCertificate(t *testing.T) {
	clients, strangers := newCA(t), newCA(t)
	f := newFixture(t, answerOK(), func(c *Config) {
		c.ClientCAs, c.ClientNames = clients.pool(), []string{"kube-apiserver"}
	})
	f.run(t)
	for name, c := range map[string]struct {
		cert  *tls.Certificate
		works bool
	}{
		"none":         {nil, false},
		"right":        {clients.issue(t, "kube-apiserver", x509.ExtKeyUsageClientAuth), true},
		"other name":   {clients.issue(t, "kubelet", x509.ExtKeyUsageClientAuth), false},
		"other CA":     {strangers.issue(t, "kube-apiserver", x509.ExtKeyUsageClientAuth), false},
		"server usage": {clients.issue(t, "kube-apiserver", x509.ExtKeyUsageServerAuth), false},
	} {
		client := f.client(t, func(tr *http.Transport) {
			if c.cert != nil {
				tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
			}
		})
		if _, _, err := get(t, client, "https://meshvakt/"); (err == nil) != c.works {
			t.Errorf("%s: error %v, works should be %t", name, err, c.works)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{
		Admission:         answerOK(),
		GetCertificate:    func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") },
		AdmissionListener: newPipeListener(), OperationsListener: newPipeListener(),
	}
	for name, edit := range map[string]func(*Config){
		"no handler":          func(c *Config) { c.Admission = nil },
		"no certificate":      func(c *Config) { c.GetCertificate = nil },
		"TLS 1.1":             func(c *Config) { c.MinTLSVersion = tls.VersionTLS11 },
		"names without CA":    func(c *Config) { c.ClientNames = []string{"kube-apiserver"} },
		"address of nonsense": func(c *Config) { c.AdmissionListener, c.AdmissionAddress = nil, "nowhere:-1" },
	} {
		c := good
		edit(&c)
		if _, err := New(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(t.Context(), good); err != nil {
		t.Error(err)
	}
}

func TestReadiness(t *testing.T) {
	missing := errors.New("namespaces not synced\nfor 3 s")
	f := newFixture(t, answerOK(), func(c *Config) {
		c.Checks = []Check{
			{"certificate", func() error { return nil }},
			{"facts", func() error { return missing }},
		}
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metrics here") })
	})
	f.run(t)
	code, body := f.probe(t, "/readyz")
	if want := "[+] serving\n[+] certificate\n[-] facts: namespaces not synced; for 3 s\n"; code != 503 || body != want {
		t.Errorf("/readyz: %d %q, want 503 %q", code, body, want)
	}
	if code, _ := f.probe(t, "/healthz"); code != 200 {
		t.Errorf("/healthz: %d, want 200 although not ready", code)
	}
	if code, body := f.probe(t, "/metrics"); code != 200 || body != "metrics here" {
		t.Errorf("/metrics: %d %q", code, body)
	}
	if code, _ := f.probe(t, "/validate"); code != 404 {
		t.Errorf("/validate on the operations listener: %d, want 404", code)
	}
}

func TestNoMetrics(t *testing.T) {
	f := newFixture(t, answerOK())
	f.run(t)
	if code, body := f.probe(t, "/readyz"); code != 200 || body != "[+] serving\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if code, _ := f.probe(t, "/metrics"); code != 404 {
		t.Errorf("/metrics: %d, want 404", code)
	}
}

// Clients that dribble are cut off in time, and others do not notice them.
func TestSlowClients(t *testing.T) {
	const headers = "POST /validate HTTP/1.1\r\nHost: meshvakt\r\n"
	for name, c := range map[string]struct {
		sends string
		after time.Duration
	}{
		"no handshake":       {"", 2 * time.Second},
		"unfinished headers": {headers, 2 * time.Second},
		"unfinished body":    {headers + "Content-Length: 100\r\n\r\n{", 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						w.WriteHeader(http.StatusRequestTimeout)
					}
				}), func(c *Config) { c.ReadHeaderTimeout, c.ReadTimeout = 2*time.Second, 7*time.Second })
				f.run(t)
				raw, err := f.admission.DialContext(t.Context(), "", "")
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				slow := raw
				if c.sends != "" {
					conn := tls.Client(raw, &tls.Config{RootCAs: f.ca.pool(), ServerName: "meshvakt", NextProtos: []string{"http/1.1"}})
					if err := conn.HandshakeContext(t.Context()); err != nil {
						t.Fatal(err)
					}
					slow = conn
				}
				begin := time.Now()
				if _, err := io.WriteString(slow, c.sends); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if code, _, err := get(t, f.client(t), "https://meshvakt/"); err != nil || code != http.StatusOK {
					t.Errorf("another client: %d, %v", code, err)
				}
				if time.Since(begin) != 0 {
					t.Errorf("another client waited %s", time.Since(begin))
				}
				// The connection ends; a 408 may come first. TLS closing notes
				// may take the server some more time.
				_, _ = io.Copy(io.Discard, bufio.NewReader(slow))
				if took := time.Since(begin); took < c.after || took > c.after+time.Second {
					t.Errorf("cut off after %s, want %s", took, c.after)
				}
			})
		})
	}
}

// Real sockets: port 0 is bound by New and can be asked for.
func TestAddresses(t *testing.T) {
	f := newFixture(t, answerOK(), func(c *Config) {
		c.AdmissionListener, c.OperationsListener = nil, nil
		c.AdmissionAddress, c.OperationsAddress = "127.0.0.1:0", "127.0.0.1:0"
	})
	f.run(t)
	for _, a := range []net.Addr{f.AdmissionAddr(), f.OperationsAddr()} {
		if strings.HasSuffix(a.String(), ":0") {
			t.Errorf("address %s", a)
		}
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: f.ca.pool(), ServerName: "meshvakt"}, DisableKeepAlives: true,
	}}
	if code, _, err := get(t, client, "https://"+f.AdmissionAddr().String()); err != nil || code != 200 {
		t.Errorf("admission: %d, %v", code, err)
	}
	if code, _, err := get(t, client, "http://"+f.OperationsAddr().String()+"/healthz"); err != nil || code != 200 {
		t.Errorf("operations: %d, %v", code, err)
	}
}

// saying hands on the attribute "operations" of what is logged.
type saying struct {
	slog.Handler
	operations chan string
}

func (saying) Enabled(context.Context, slog.Level) bool { return true }

func (s saying) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "operations" {
			s.operations <- a.Value.String()
		}
		return true
	})
	return nil
}

func TestWait(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	at := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- Wait(ctx, "127.0.0.1:0", slog.New(saying{slog.DiscardHandler, at}), Check{"api-server", func() error { return errors.New("is away") }})
	}()
	url := "http://" + <-at
	for path, want := range map[string]struct {
		code int
		body string
	}{"/healthz": {http.StatusOK, "ok\n"}, "/readyz": {http.StatusServiceUnavailable, "[+] serving\n[-] api-server: is away\n"}, "/metrics": {http.StatusNotFound, "404 page not found\n"}} {
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want.code || string(body) != want.body {
			t.Errorf("GET %s: %d %q; must be %d %q", path, resp.StatusCode, body, want.code, want.body)
		}
	}
	end()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatalf("the address is not free for who serves next: %v", err)
	}
	_ = l.Close()
	if err := Wait(ctx, "no such address", slog.New(slog.DiscardHandler), Check{}); err == nil || !strings.Contains(err.Error(), "listen for operations") {
		t.Errorf("with an address that is none: %v", err)
	}
}
