package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// sequences is how many times each client plays each story.
const sequences = 250

// Two clients, two replicas that take turns, one thousand stories of a change
// and, at once, a request that depends on it. No answer may rest on what was true
// before the change.
func TestNothingStale(t *testing.T) {
	replicas := balanced(t)
	guard(t, defaultGuard(v1alpha1.OnMissingHold))
	enforcing(t, "default")

	var wrong, unasked atomic.Int64
	say := func(format string, args ...any) {
		if wrong.Add(1) <= 10 {
			t.Errorf(format, args...)
		}
	}
	var clients sync.WaitGroup
	for n := range 2 {
		name := unique(fmt.Sprintf("fresh%d", n))
		dev := clientFor(t, controlplane.Developer)
		create(t, dev, namespace(name, false))
		serviceAccount(t, name)
		clients.Go(func() {
			for i := range sequences {
				createThenLabel(t.Context(), dev, fmt.Sprintf("%s-%d", name, i), say)
			}
			weakenThenPod(t, dev, name, replicas, &unasked, say)
		})
	}
	clients.Wait()
	for i, r := range replicas {
		if n := r.metric(t.Context(), "meshvakt_admission_decisions_total"); n < sequences {
			t.Errorf("replica %d decided only %.0f requests; the proxy does not take turns", i, n)
		}
	}
	t.Logf("%d sequences, %d wrong answers; in %d the API server did not know yet that it had to ask", 4*sequences, wrong.Load(), unasked.Load())
}

// createThenLabel creates a namespace and its STRICT policy and puts it under the
// guard at once: there is nothing to warn of. Then it takes a STRICT policy
// away that was needed, which must be refused.
func createThenLabel(ctx context.Context, c client.Client, name string, say func(string, ...any)) {
	ns := namespace(name, false)
	if err := c.Create(ctx, ns); err != nil {
		say("create namespace: %v", err)
		return
	}
	defer func() { _ = c.Delete(context.WithoutCancel(ctx), ns) }()
	strict := policy(name, "default", "STRICT")
	if err := c.Create(ctx, strict); err != nil {
		say("create policy: %v", err)
		return
	}
	if err := relabel(ctx, c, ns, v1alpha1.GuardedLabel, "true"); err != nil {
		say("label namespace after its STRICT policy was created: %v", err)
	}
	if err := c.Delete(ctx, strict); err == nil || !strings.Contains(err.Error(), "MV103") {
		say("delete the only STRICT policy right after the namespace was labelled: %v", err)
	}
}

// weakenThenPod, over and over: the policy of a namespace becomes PERMISSIVE or
// STRICT while the namespace is out of the guard, it comes under the guard again,
// and a pod is created at once. The API server matches the guard's selector
// against a cache of its own and may not ask about the pod yet; that is counted,
// and the pod of the next moment is judged instead.
func weakenThenPod(t *testing.T, c client.Client, name string, replicas []*replica, unasked *atomic.Int64, say func(string, ...any)) {
	t.Helper()
	ctx := t.Context()
	platform := clientFor(t, controlplane.Platform)
	dryRun := client.NewDryRunClient(c)
	ns := namespace(name, false)
	pa := policy(name, "default", "STRICT")
	if err := c.Create(ctx, pa); err != nil {
		say("create policy: %v", err)
		return
	}
	setMode := func(mode string) error {
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"mtls":{"mode":"`+mode+`"}}}`))
		return c.Patch(ctx, &objects.PeerAuthentication{ObjectMeta: pa.ObjectMeta}, patch)
	}
	// A name for each pod: what a log says late of the pod before must not be taken for an answer about this one.
	ask := func() (asked func() bool, err error) {
		p := pod(name, nil)
		p.GenerateName, p.Name = "", unique("app")
		return func() bool {
			return slices.ContainsFunc(replicas, func(r *replica) bool { return r.decidedOn([]string{p.Name}) })
		}, dryRun.Create(ctx, p)
	}
	for i := range sequences {
		mode := []string{"PERMISSIVE", "STRICT"}[i%2]
		if err := relabel(ctx, platform, ns, v1alpha1.GuardedLabel, ""); err != nil {
			say("unguard: %v", err)
		}
		if err := setMode(mode); err != nil {
			say("set mode %s while unguarded: %v", mode, err)
		}
		if err := relabel(ctx, c, ns, v1alpha1.GuardedLabel, "true"); err != nil {
			say("guard: %v", err)
		}
		asked, err := ask()
		for err == nil && mode == "PERMISSIVE" && !answered(asked) {
			unasked.Add(1)
			asked, err = ask()
		}
		switch {
		case mode == "PERMISSIVE" && (err == nil || !strings.Contains(err.Error(), "MV101")):
			say("sequence %d: pod right after the policy became PERMISSIVE: %v", i, err)
		case mode == "STRICT" && err != nil:
			say("sequence %d: pod right after the policy became STRICT: %v", i, err)
		}
	}
}

// answered reports whether there was a decision: a replica logs it before it answers, but its log is read at leisure.
func answered(asked func() bool) bool {
	for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if asked() {
			return true
		}
	}
	return false
}

// balanced runs two replicas behind a proxy that gives every request to the
// other one, and registers the proxy.
func balanced(t *testing.T) []*replica {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // at once, lest one of the replicas gets the port
	must(t, err)
	address := listener.Addr().String()
	dir := t.TempDir()
	cert, certPEM, keyPEM := selfSigned(t)
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	must(t, os.WriteFile(certFile, certPEM, 0o600))
	must(t, os.WriteFile(keyFile, keyPEM, 0o600))

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	backends := make([]*url.URL, 2)
	replicas := make([]*replica, 2)
	for i := range backends {
		listen := freeAddress(t)
		replicas[i] = startReplica(t, "--listen", listen, "--webhook-url", "https://"+address,
			"--certificates", "files", "--cert-file", certFile, "--key-file", keyFile, "--ca-file", certFile)
		backends[i] = &url.URL{Scheme: "https", Host: listen}
	}
	var turn atomic.Uint64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(backends[turn.Add(1)%2]) },
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13},
			MaxIdleConnsPerHost: 16,
		},
	}
	server := &http.Server{Handler: proxy, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	for _, r := range replicas {
		r.ready(t.Context())
	}
	return replicas
}
