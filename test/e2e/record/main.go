// Command record writes down what a real API server sends to a webhook while
// Istio's samples are deployed with real injection: the bodies that benchmarks
// are run on. It boots a control plane with istiod of its own.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

func main() {
	out := flag.String("out", "", "file to write: one review per line, gzip")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string) error {
	if out == "" {
		return errors.New("-out must be given")
	}
	plane, err := controlplane.Boot(ctx, controlplane.Options{Istio: true, Log: os.Stderr, OwnSignals: true})
	if err != nil {
		return err
	}
	defer plane.Stop()
	builder := controlplane.Builder{Log: os.Stderr}
	istio, err := builder.Istio(ctx)
	if err != nil {
		return err
	}
	rec, err := listen()
	if err != nil {
		return err
	}
	defer rec.server.Close()
	if err := plane.Apply(ctx, rec.configuration()); err != nil {
		return fmt.Errorf("register the recorder: %w", err)
	}
	if err := deploy(ctx, plane, filepath.Join(filepath.Dir(istio.Manifests), "samples")); err != nil {
		return err
	}
	return rec.write(out)
}

// deploy creates what produces the reviews, in namespaces with injection.
func deploy(ctx context.Context, plane *controlplane.ControlPlane, samples string) error {
	kubectl := func(args ...string) error {
		if _, stderr, err := plane.Kubectl(ctx, controlplane.Developer, "", args...); err != nil {
			return fmt.Errorf("kubectl %v: %w: %s", args, err, stderr)
		}
		return nil
	}
	manifests := []string{
		"bookinfo/platform/kube/bookinfo.yaml", "bookinfo/platform/kube/bookinfo-mysql.yaml", "curl/curl.yaml",
		"helloworld/helloworld.yaml", "httpbin/httpbin.yaml", "tcp-echo/tcp-echo.yaml", "websockets/app.yaml",
	}
	for _, name := range []string{"prod-shop", "prod-pay", "stage-shop"} {
		if err := kubectl("create", "namespace", name); err != nil {
			return err
		}
		if err := kubectl("label", "namespace", name, "istio-injection=enabled", "meshvakt.io/guarded=true"); err != nil {
			return err
		}
		if err := plane.WaitNamespace(ctx, name); err != nil {
			return err
		}
		for _, mode := range []string{"PERMISSIVE", "STRICT"} {
			pa := fmt.Sprintf(`{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"default","namespace":%q},"spec":{"mtls":{"mode":%q}}}`, name, mode)
			if _, stderr, err := plane.Kubectl(ctx, controlplane.Developer, pa, "apply", "-f", "-"); err != nil {
				return fmt.Errorf("apply PeerAuthentication: %w: %s", err, stderr)
			}
		}
		for _, m := range manifests {
			if err := kubectl("-n", name, "apply", "-f", filepath.Join(samples, m)); err != nil {
				return err
			}
		}
		if err := kubectl("-n", name, "wait", "--for=create", "pod", "-l", "app=reviews", "--timeout=60s"); err != nil {
			return err
		}
		for _, deployment := range []string{"reviews-v3", "tcp-echo", "helloworld-v2"} {
			if err := kubectl("-n", name, "rollout", "restart", "deployment", deployment); err != nil {
				return err
			}
		}
	}
	return nil
}

// recorder is a webhook that allows everything and keeps what it was asked.
type recorder struct {
	server *http.Server
	url    string
	ca     []byte

	mu      sync.Mutex
	reviews [][]byte // guarded by mu
	last    time.Time
}

func listen() (*recorder, error) {
	cert, ca, err := selfSigned()
	if err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return nil, err
	}
	r := &recorder{url: "https://" + listener.Addr().String(), ca: ca, last: time.Now()}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = r.server.Serve(listener) }()
	return r, nil
}

// ServeHTTP implements http.Handler.
func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var review struct {
		Request struct {
			UID string `json:"uid"`
		} `json:"request"`
	}
	if err == nil {
		err = json.Unmarshal(body, &review)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.reviews = append(r.reviews, bytes.TrimSpace(body))
	r.last = time.Now()
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,"allowed":true}}`, review.Request.UID)
}

// configuration registers the recorder for everything that Meshvakt is asked
// about.
func (r *recorder) configuration() []byte {
	config := map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
		"metadata": map[string]any{"name": "recorder"},
		"webhooks": []any{map[string]any{
			"name":                    "recorder.meshvakt.io",
			"clientConfig":            map[string]any{"url": r.url, "caBundle": r.ca},
			"sideEffects":             "None",
			"admissionReviewVersions": []string{"v1"},
			"rules": []any{
				map[string]any{"apiGroups": []string{""}, "apiVersions": []string{"v1"}, "operations": []string{"CREATE", "UPDATE"}, "resources": []string{"pods", "namespaces"}},
				map[string]any{"apiGroups": []string{"security.istio.io"}, "apiVersions": []string{"v1"}, "operations": []string{"CREATE", "UPDATE", "DELETE"}, "resources": []string{"peerauthentications"}},
			},
		}},
	}
	text, err := json.Marshal(config)
	if err != nil {
		panic(err) // plain maps and strings
	}
	return text
}

// write waits until no review has come for a while and writes all, sorted so that
// the file does not depend on what came first.
func (r *recorder) write(path string) error {
	for quiet := false; !quiet; {
		time.Sleep(200 * time.Millisecond)
		r.mu.Lock()
		quiet = time.Since(r.last) > 5*time.Second
		r.mu.Unlock()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.reviews, bytes.Compare)
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	zip := gzip.NewWriter(file)
	lines := bufio.NewWriter(zip)
	size := 0
	for _, review := range r.reviews {
		size += len(review)
		lines.Write(review)
		lines.WriteByte('\n')
	}
	if err := errors.Join(lines.Flush(), zip.Close(), file.Close()); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "record: %d reviews, %d bytes on average, in %s\n", len(r.reviews), size/max(1, len(r.reviews)), path)
	return nil
}

func selfSigned() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "recorder"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
