package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// injecting is a cluster where pods of namespace prod get a sidecar, and a guard of its
// resources.
func injecting(t testing.TB) facts.Cluster {
	c := guarded(t)
	g, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		t.Fatal(err)
	}
	g.MeshMembership, g.StrictMTLS = nil, nil
	c.Guards = []facts.Guard{g}
	c.Injection = mesh.DefaultInjection("default")
	c.Namespaces["prod"].Labels["istio-injection"] = "enabled"
	return c
}

// annotatedReview is a review of a pod with one of Istio's four annotations.
func annotatedReview(uid string) *admissionv1.AdmissionReview {
	r := podReview(uid)
	r.Request.Object.Raw = []byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"prod","annotations":{"sidecar.istio.io/proxyCPU":"200m"}},` +
		`"spec":{"newer":{"deep":[1,2]},"containers":[{"name":"c","image":"i","resources":{"newer":true}}]}}`)
	return r
}

func mutation(t *testing.T, w *webhookUnderTest, r *admissionv1.AdmissionReview) *admissionv1.AdmissionResponse {
	t.Helper()
	got := post(w, PathMutate, bytes.NewReader(encode(t, r)))
	if got.Code != http.StatusOK {
		t.Fatalf("HTTP %d %s", got.Code, got.Body)
	}
	return decodeAnswer(t, got.Body.Bytes())
}

// Only what changes is in the patch, so that fields which our types do not know are
// still there when it has been applied.
func TestMutationKeepsWhatItDoesNotKnow(t *testing.T) {
	w := newWebhook(t, injecting(t))
	review := annotatedReview("u")
	a := mutation(t, w, review)
	patch, err := jsonpatch.DecodePatch(a.Patch)
	if err != nil {
		t.Fatal(err)
	}
	got, err := patch.Apply(review.Request.Object.Raw)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"prod","annotations":{"sidecar.istio.io/proxyCPU":"200m","sidecar.istio.io/proxyMemory":"128Mi","sidecar.istio.io/proxyCPULimit":"2","sidecar.istio.io/proxyMemoryLimit":"1Gi"}},` +
		`"spec":{"newer":{"deep":[1,2]},"containers":[{"name":"c","image":"i","resources":{"newer":true}}]}}`
	if !jsonpatch.Equal(got, []byte(want)) {
		t.Errorf("%s comes to %s", a.Patch, got)
	}
	if !a.Allowed || a.UID != "u" || !slices.Equal(w.recorder.patched, []bool{true}) || len(w.recorder.outcomes) != 0 {
		t.Errorf("allowed %t, UID %s, counted as %v and %v", a.Allowed, a.UID, w.recorder.patched, w.recorder.outcomes)
	}
	if log := w.log.String(); !strings.Contains(log, "metadata.annotations.sidecar.istio.io/proxyMemory") || strings.Contains(log, "128Mi") {
		t.Errorf("the log must name what is changed, and no values: %s", log)
	}
}

func TestMutationOfWhatNeedsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		cluster facts.Cluster
		review  *admissionv1.AdmissionReview
	}{
		"the mesh says the same":     {injecting(t), podReview("u")},
		"a guard that does not ask":  {guarded(t), annotatedReview("u")},
		"a kind that is not changed": {injecting(t), namespaceReview()},
	} {
		w := newWebhook(t, c.cluster)
		if a := mutation(t, w, c.review); !a.Allowed || a.Patch != nil || a.PatchType != nil || !slices.Equal(w.recorder.patched, []bool{false}) {
			t.Errorf("%s: %+v, counted as %v", name, a, w.recorder.patched)
		}
	}
}

// What cannot be said is an error, so that the failure policy decides, and the judgement
// of the final pod after it.
func TestMutationFails(t *testing.T) {
	broken := policies.SidecarResources()
	broken.Mutation = &policies.Mutation{Matches: broken.Mutation.Matches, Enforced: broken.Mutation.Enforced}
	changes := func(f func(*facts.Review, []*facts.Guard) ([]facts.Change, error)) func(*Config) {
		return func(c *Config) {
			p := broken
			p.Mutation = &policies.Mutation{Matches: broken.Mutation.Matches, Enforced: broken.Mutation.Enforced, Changes: f}
			c.Policies = []policies.Policy{p}
		}
	}
	nowhere := injecting(t)
	delete(nowhere.Namespaces, "prod")
	for name, c := range map[string]struct {
		cluster facts.Cluster
		change  func(*Config)
		facts   error
		code    int
		stage   string
	}{
		"facts":         {injecting(t), func(*Config) {}, errors.New("watch is stale"), 503, StageFacts},
		"no namespace":  {nowhere, func(*Config) {}, nil, 503, StageFacts},
		"panic":         {injecting(t), changes(func(*facts.Review, []*facts.Guard) ([]facts.Change, error) { panic("hunter2") }), nil, 500, StagePanic},
		"policy":        {injecting(t), changes(func(*facts.Review, []*facts.Guard) ([]facts.Change, error) { return nil, errors.New("cannot tell") }), nil, 500, StageEvaluate},
		"absurd change": {injecting(t), changes(func(*facts.Review, []*facts.Guard) ([]facts.Change, error) { return []facts.Change{{}}, nil }), nil, 500, StageRespond},
	} {
		w := newWebhook(t, c.cluster, c.change)
		w.facts.before = func(context.Context) error { return c.facts }
		got := post(w, PathMutate, bytes.NewReader(encode(t, annotatedReview("u"))))
		if got.Code != c.code || strings.Contains(got.Body.String(), "hunter2") || json.Valid(got.Body.Bytes()) {
			t.Errorf("%s: HTTP %d %s, want %d and a cause", name, got.Code, got.Body, c.code)
		}
		if s := w.recorder.failures(); !slices.Equal(s, []string{c.stage}) || len(w.recorder.patched) != 0 {
			t.Errorf("%s: counted as %v and %v, want %s", name, s, w.recorder.patched, c.stage)
		}
	}
}
