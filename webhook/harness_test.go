package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// guarded is a cluster where namespace prod is guarded and not STRICT.
func guarded(t testing.TB) facts.Cluster {
	t.Helper()
	g, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		t.Fatal(err)
	}
	g.MeshMembership, g.SidecarResources, g.NodePools = nil, nil, nil // of strict-mtls alone
	g.Name = "production"
	return facts.Cluster{
		ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()},
		Guards:        []facts.Guard{g},
		Namespaces: map[string]*facts.Namespace{
			"prod":         {Name: "prod", Labels: map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}},
			"dev":          {Name: "dev"},
			"istio-system": {Name: "istio-system"},
		},
		Unguardable: facts.SystemNamespaces(),
	}
}

// strict is guarded with the mesh STRICT.
func strict(t testing.TB) facts.Cluster {
	c := guarded(t)
	c.Namespaces["istio-system"].PeerAuthentications = []*mesh.PeerAuthentication{
		{Namespace: "istio-system", Name: "default", Mode: mesh.ModeStrict},
	}
	return c
}

type fakeFacts struct {
	cached, live     facts.Cluster
	err, liveErr     error
	reads, liveReads atomic.Int32
	before           func(context.Context) error // runs first in Read
}

func (f *fakeFacts) Read(ctx context.Context, _ *facts.Review) (facts.Cluster, error) {
	f.reads.Add(1)
	if f.before != nil {
		if err := f.before(ctx); err != nil {
			return facts.Cluster{}, err
		}
	}
	return f.cached, f.err
}

func (f *fakeFacts) ReadLive(context.Context, *facts.Review) (facts.Cluster, error) {
	f.liveReads.Add(1)
	live := f.live
	live.Live = true
	return live, f.liveErr
}

type authorizerFunc func(authenticationv1.UserInfo, string) (bool, error)

func (f authorizerFunc) MayUnguard(_ context.Context, user authenticationv1.UserInfo, guard string) (bool, error) {
	return f(user, guard)
}

func (f authorizerFunc) MayApprove(_ context.Context, user authenticationv1.UserInfo, namespace, name string) (bool, error) {
	return f(user, namespace+"/"+name)
}

func nobody(authenticationv1.UserInfo, string) (bool, error) { return false, nil }

type recorder struct {
	mu       sync.Mutex
	begun    []string
	ended    int
	outcomes []policies.Outcome
	stages   []string
	patched  []bool
}

func (r *recorder) Begin(path string) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun = append(r.begun, path)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended++
	}
}

func (r *recorder) Changed(_ string, patched bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.patched = append(r.patched, patched)
}

func (r *recorder) Decided(_, _ string, d policies.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomes = append(r.outcomes, d.Outcome)
}

func (r *recorder) Failed(stage string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stages = append(r.stages, stage)
}

func (r *recorder) failures() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.stages)
}

// webhookUnderTest is a handler on its routes, with what it talks to.
type webhookUnderTest struct {
	http.Handler
	facts    *fakeFacts
	recorder *recorder
	log      *bytes.Buffer
}

// newWebhook makes a webhook over a cached view of cluster; change edits the
// configuration first.
func newWebhook(t testing.TB, cluster facts.Cluster, change ...func(*Config)) *webhookUnderTest {
	t.Helper()
	w := &webhookUnderTest{
		facts:    &fakeFacts{cached: cluster, live: cluster},
		recorder: &recorder{},
		log:      &bytes.Buffer{},
	}
	c := Config{
		Policies:   policies.All(),
		Facts:      w.facts,
		Authorizer: authorizerFunc(nobody),
		Recorder:   w.recorder,
		Log:        slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&c)
	}
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.Handler = Routes(h)
	return w
}

// judgedBy replaces the rules of the one policy.
func judgedBy(judge func(*facts.Review, *facts.Guard) ([]policies.Finding, error)) func(*Config) {
	return func(c *Config) {
		p := policies.StrictMTLS()
		p.Judge = judge
		c.Policies = []policies.Policy{p}
	}
}

// podReview is a well-formed review of a pod that is created in prod.
func podReview(uid string) *admissionv1.AdmissionReview {
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID:       types.UID(uid),
			Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Name:      "web",
			Namespace: "prod",
			Operation: admissionv1.Create,
			UserInfo:  authenticationv1.UserInfo{Username: "kari@example.com", Groups: []string{"dev"}},
			Object:    runtime.RawExtension{Raw: []byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"prod","labels":{"app":"web"}},"spec":{"containers":[{"name":"c","image":"secret-image"}]}}`)},
		},
	}
}

// namespaceReview is a review of prod losing its guard label.
func namespaceReview() *admissionv1.AdmissionReview {
	r := podReview("ns")
	q := r.Request
	q.Kind.Kind, q.Resource.Resource = "Namespace", "namespaces"
	q.Name, q.Namespace, q.Operation = "prod", "", admissionv1.Update
	q.Object.Raw = []byte(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"prod"}}`)
	q.OldObject.Raw = []byte(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"prod","labels":{"meshvakt.io/guarded":"true"}}}`)
	return r
}

func encode(t testing.TB, r *admissionv1.AdmissionReview) []byte {
	t.Helper()
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func post(h http.Handler, target string, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, target, body)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// ask sends a review and returns the answer, which must be HTTP 200.
func (w *webhookUnderTest) ask(t testing.TB, r *admissionv1.AdmissionReview) *admissionv1.AdmissionResponse {
	t.Helper()
	got := post(w, PathValidate+"?timeout=10s", bytes.NewReader(encode(t, r)))
	if got.Code != http.StatusOK {
		t.Fatalf("HTTP %d: %s", got.Code, got.Body)
	}
	return decodeAnswer(t, got.Body.Bytes())
}

func decodeAnswer(t testing.TB, raw []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	if out.APIVersion != "admission.k8s.io/v1" || out.Kind != "AdmissionReview" || out.Request != nil || out.Response == nil {
		t.Fatalf("answer is not an AdmissionReview with a response: %s", raw)
	}
	return out.Response
}
