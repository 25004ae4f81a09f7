//go:build unix

package webhook_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/telemetry"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/webhook"
	"github.com/meshvakt/meshvakt/webhook/server"
)

// The server of the benchmarks is a process of its own, this binary run once
// more, so that the CPU time it reports is that of serving alone: reading the
// request, TLS and garbage collection included, the client left out.
const benchServerEnv = "MESHVAKT_BENCH_SERVER"

// What it serves: the webhook, and two baselines.
const (
	pathConstant     = "/constant"     // reads the body, answers always the same
	pathEncodingJSON = "/encodingjson" // encoding/json into the types of k8s.io/api, judges nothing
	pathUnguarded    = "/unguarded"    // the webhook where no guard selects the pods
	pathUsage        = "/usage"
)

func TestMain(m *testing.M) {
	if os.Getenv(benchServerEnv) == "" {
		os.Exit(m.Run())
	}
	if err := serveBenchmarks(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// usage is what the server process has spent so far.
type usage struct {
	CPU            time.Duration
	Allocs, Memory uint64
}

func (u usage) minus(v usage) usage {
	return usage{u.CPU - v.CPU, u.Allocs - v.Allocs, u.Memory - v.Memory}
}

func (u usage) plus(v usage) usage {
	return usage{u.CPU + v.CPU, u.Allocs + v.Allocs, u.Memory + v.Memory}
}

// fixedFacts are the same for every request.
type fixedFacts facts.Cluster

func (f *fixedFacts) Read(context.Context, *facts.Review) (facts.Cluster, error) {
	return facts.Cluster(*f), nil
}

func (f *fixedFacts) ReadLive(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	return f.Read(ctx, r)
}

// recordedNamespaces are where the recorded reviews come from.
func recordedNamespaces() []string { return []string{"prod-pay", "prod-shop", "stage-shop"} }

// benchCluster is STRICT and injects; its guard selects the recorded namespaces or nothing.
func benchCluster(guarded bool) (*fixedFacts, error) {
	guard, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		return nil, err
	}
	root := mesh.DefaultControlPlane().RootNamespace
	c := fixedFacts{
		ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()},
		Guards:        []facts.Guard{guard},
		Injection:     mesh.DefaultInjection(mesh.DefaultControlPlane().Revision),
		Namespaces: map[string]*facts.Namespace{root: {Name: root, PeerAuthentications: []*mesh.PeerAuthentication{
			{Namespace: root, Name: "default", Created: time.Unix(1e9, 0), Mode: mesh.ModeStrict},
		}}},
		Unguardable: facts.SystemNamespaces(),
		Live:        true,
	}
	for _, name := range recordedNamespaces() {
		ns := &facts.Namespace{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name, "istio-injection": "enabled"}}
		if guarded {
			ns.Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
		}
		ns.PeerAuthentications = []*mesh.PeerAuthentication{
			{Namespace: name, Name: "default", Created: time.Unix(2e9, 0), Mode: mesh.ModeStrict},
			{Namespace: name, Name: "mysql", Created: time.Unix(2e9, 0), Mode: mesh.ModeStrict, SelectorSet: true, Selector: map[string]string{"app": "mysqldb"}},
		}
		c.Namespaces[name] = ns
	}
	return &c, nil
}

func benchWebhook(guarded bool) (http.Handler, error) {
	cluster, err := benchCluster(guarded)
	if err != nil {
		return nil, err
	}
	metrics, err := telemetry.New(prometheus.NewRegistry(), telemetry.Known{
		Policies: policies.All(), Paths: webhook.Paths(), Stages: webhook.Stages(),
	})
	if err != nil {
		return nil, err
	}
	h, err := webhook.New(webhook.Config{
		Policies: policies.All(), Facts: cluster, Authorizer: byUserName{}, Recorder: metrics,
		Log: slog.New(slog.NewJSONHandler(io.Discard, nil)), //nolint:sloglint // a handler that is enabled, as in production
	})
	if err != nil {
		return nil, err
	}
	return webhook.Routes(h), nil
}

// judgedPolicies are the policies that judge a pod and a namespace; a Deployment is
// judged by the first.
const judgedPolicies = "mesh-membership,strict-mtls"

// constantAnswer is as long as the answer to an allowed pod.
const constantAnswer = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"0171d2cc-f6cf-4f74-b1c9-f2991af8aa76","allowed":true,"auditAnnotations":{"decision":"allow","policies":"` + judgedPolicies + `"}}}`

func answerConstant(w http.ResponseWriter, r *http.Request) {
	if _, err := io.ReadAll(r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, constantAnswer) // a client that is gone shows in the benchmark
}

// answerEncodingJSON is the webhook that everybody writes first: it decodes and
// answers, and judges nothing.
func answerEncodingJSON(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var object any
	switch review.Request.Kind.Kind {
	case "Pod":
		object = &corev1.Pod{}
	case "Deployment":
		object = &appsv1.Deployment{}
	case "Namespace":
		object = &corev1.Namespace{}
	}
	for _, raw := range [][]byte{review.Request.Object.Raw, review.Request.OldObject.Raw} {
		if object == nil || len(raw) == 0 || string(raw) == "null" {
			continue
		}
		if err := json.Unmarshal(raw, object); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	out := admissionv1.AdmissionReview{
		TypeMeta: review.TypeMeta,
		Response: &admissionv1.AdmissionResponse{
			UID: review.Request.UID, Allowed: true,
			AuditAnnotations: map[string]string{"decision": "allow", "policies": judgedPolicies},
		},
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // a client that is gone shows in the benchmark
}

func answerUsage(w http.ResponseWriter, r *http.Request) {
	var rusage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &rusage); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if r.URL.RawQuery == "gc" { // what others left behind is not for whoever is measured next
		runtime.GC()
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &rusage) // did not fail above
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	_ = json.NewEncoder(w).Encode(usage{
		CPU:    time.Duration(rusage.Utime.Nano() + rusage.Stime.Nano()),
		Allocs: mem.Mallocs, Memory: mem.TotalAlloc,
	})
}

// serveBenchmarks serves until standard input ends, and says where.
func serveBenchmarks() error {
	guarded, err := benchWebhook(true)
	if err != nil {
		return err
	}
	unguarded, err := benchWebhook(false)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(webhook.PathValidate, guarded)
	mux.Handle(webhook.PathMutate, guarded)
	mux.Handle(pathUnguarded+"/", http.StripPrefix(pathUnguarded, unguarded))
	mux.HandleFunc(pathConstant, answerConstant)
	mux.HandleFunc(pathEncodingJSON, answerEncodingJSON)
	mux.HandleFunc(pathUsage, answerUsage)
	lent := httptest.NewTLSServer(nil) // for its certificate
	lent.Close()
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	operations, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s, err := server.New(context.Background(), server.Config{
		Admission: mux, AdmissionListener: listener, OperationsListener: operations,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &lent.TLS.Certificates[0], nil },
		Log:            slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	fmt.Println(s.AdmissionAddr())
	return s.Run(ctx)
}

// benchServer is the server process with one connection to it.
type benchServer struct {
	url    string
	client *http.Client
}

func startBenchServer(b *testing.B, http2 bool) *benchServer {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), benchServerEnv+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	// As the API server does: HTTP/1.1 to a Service, HTTP/2 to a URL. The
	// certificate is none of a benchmark's business.
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true},
		ForceAttemptHTTP2: http2, MaxConnsPerHost: 1,
	}
	if !http2 {
		transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	b.Cleanup(transport.CloseIdleConnections)
	return &benchServer{"https://" + strings.TrimSpace(address), &http.Client{Transport: transport}}
}

func (s *benchServer) post(b *testing.B, path string, body []byte) []byte {
	b.Helper()
	resp, err := s.client.Post(s.url+path, "application/json", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		b.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b.Fatalf("%s: HTTP %d %s", path, resp.StatusCode, answer)
	}
	return answer
}

func (s *benchServer) usage(b *testing.B, query string) (u usage) {
	b.Helper()
	if err := json.Unmarshal(s.post(b, pathUsage+query, nil), &u); err != nil {
		b.Fatal(err)
	}
	return u
}

// mustJudge makes sure that the benchmark measures what it says.
func (s *benchServer) mustJudge(b *testing.B, c contender, body []byte) {
	b.Helper()
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(s.post(b, c.path, body), &answer); err != nil {
		b.Fatal(err)
	}
	judged := strings.HasPrefix(c.path, webhook.PathMutate)
	if r := answer.Response; r != nil {
		judged = judged && r.UID != "" || strings.HasPrefix(r.AuditAnnotations["policies"], "mesh-membership")
	}
	if r := answer.Response; r == nil || !r.Allowed || !judged {
		b.Fatalf("%s: answered %+v", c.name, r)
	}
}

// spend sends every review once, so many times, and returns what it cost.
func (s *benchServer) spend(b *testing.B, path string, reviews [][]byte, times int) usage {
	b.Helper()
	before := s.usage(b, "?gc")
	for range times {
		for _, body := range reviews {
			s.post(b, path, body)
		}
	}
	return s.usage(b, "").minus(before)
}

// recorded returns the reviews of a kind that a real API server sent.
func recorded(tb testing.TB, kind string) [][]byte {
	tb.Helper()
	file, err := os.Open("testdata/reviews.jsonl.gz")
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		tb.Fatal(err)
	}
	all, err := io.ReadAll(plain)
	if err != nil {
		tb.Fatal(err)
	}
	var found [][]byte
	for line := range bytes.Lines(all) {
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(line, &review); err != nil {
			tb.Fatal(err)
		}
		if review.Request.Kind.Kind == kind {
			found = append(found, slices.Clip(bytes.TrimSpace(line)))
		}
	}
	if len(found) == 0 {
		tb.Fatalf("no %s is recorded", kind)
	}
	return found
}

// contender is a handler that is measured.
type contender struct{ name, path string }

const benchQuery = "?timeout=10s"

// contenders are the baselines, and Meshvakt on one of its paths.
func contenders(path string) []contender {
	return []contender{
		{"constant", pathConstant + benchQuery},
		{"encodingjson", pathEncodingJSON + benchQuery},
		{"meshvakt", path + benchQuery},
	}
}

func protocols(b *testing.B, run func(*testing.B, *benchServer)) {
	b.Helper()
	for _, name := range []string{"http1", "http2"} {
		b.Run(name, func(b *testing.B) { run(b, startBenchServer(b, name == "http2")) })
	}
}

// BenchmarkHandler measures pod reviews. ns/op is what one client waits, which on
// one machine includes its own work; the other figures are the server's alone.
func BenchmarkHandler(b *testing.B) {
	pods := recorded(b, "Pod")
	protocols(b, func(b *testing.B, s *benchServer) {
		for _, c := range append(contenders(webhook.PathValidate), contender{"meshvakt-unguarded", pathUnguarded + webhook.PathValidate + benchQuery}) {
			b.Run(c.name, func(b *testing.B) {
				if c.path != pathUnguarded+webhook.PathValidate+benchQuery {
					s.mustJudge(b, c, pods[0])
				}
				s.spend(b, c.path, pods, 1) // warm up
				before := s.usage(b, "?gc")
				i := 0
				for b.Loop() {
					s.post(b, c.path, pods[i%len(pods)])
					i++
				}
				report(b, s.usage(b, "").minus(before), b.N)
			})
		}
	})
}

func report(b *testing.B, u usage, reviews int) {
	n := float64(reviews)
	b.ReportMetric(float64(u.CPU.Nanoseconds())/n, "server-cpu-ns/op")
	b.ReportMetric(float64(u.Allocs)/n, "server-allocs/op")
	b.ReportMetric(float64(u.Memory)/n, "server-B/op")
}

// BenchmarkServe is a handler without a network, for profiles.
func BenchmarkServe(b *testing.B) {
	meshvakt, err := benchWebhook(true)
	if err != nil {
		b.Fatal(err)
	}
	for _, kind := range []string{"Pod", "Deployment", "Namespace", "PeerAuthentication"} {
		reviews := reviewsOf(b, kind)
		for _, c := range []struct {
			name    string
			handler http.Handler
		}{
			{"constant", http.HandlerFunc(answerConstant)},
			{"encodingjson", http.HandlerFunc(answerEncodingJSON)},
			{"meshvakt", meshvakt},
		} {
			b.Run(kind+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					r := httptest.NewRequest(http.MethodPost, webhook.PathValidate+benchQuery, bytes.NewReader(reviews[i%len(reviews)]))
					r.Header.Set("Content-Type", "application/json")
					w := httptest.NewRecorder()
					c.handler.ServeHTTP(w, r)
					if w.Code != http.StatusOK {
						b.Fatalf("HTTP %d %s", w.Code, w.Body)
					}
					i++
				}
			})
		}
	}
}
