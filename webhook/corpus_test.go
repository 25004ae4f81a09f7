package webhook_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/webhook"
)

const userWithRight, userWithoutRight = "platform", "developer"

// clusters are the facts of all cases, by the UID of the request; so a case
// would also fail if requests were mixed up.
type clusters map[string]facts.Cluster

func (c clusters) Read(_ context.Context, r *facts.Review) (facts.Cluster, error) {
	cluster, ok := c[r.UID]
	if !ok {
		return facts.Cluster{}, errors.New("facts are read for a case that nobody judges")
	}
	return cluster, nil
}

func (c clusters) ReadLive(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	cluster, err := c.Read(ctx, r)
	cluster.Live = true
	return cluster, err
}

type byUserName struct{}

func (byUserName) MayApprove(_ context.Context, user authenticationv1.UserInfo, _, _ string) (bool, error) {
	return user.Username == userWithRight, nil
}

func (byUserName) MayUnguard(_ context.Context, user authenticationv1.UserInfo, _ string) (bool, error) {
	return user.Username == userWithRight, nil
}

// TestCorpusOverHTTP is the second reader of the corpus: every case goes through
// TLS and JSON, and comes back as what the API server reads.
func TestCorpusOverHTTP(t *testing.T) {
	cases := policytest.Load(t, "../policies/testdata")
	known := clusters{}
	for i := range cases {
		if asked(&cases[i], t) {
			known[cases[i].Name] = cases[i].Review(t).Cluster
		}
	}
	h, err := webhook.New(webhook.Config{Policies: policies.All(), Facts: known, Authorizer: byUserName{}, Now: policytest.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(webhook.Routes(h))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()

	for i := range cases {
		c := &cases[i]
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			code, body := send(t, server, wireReview(t, c))
			if !asked(c, t) {
				if code != http.StatusUnprocessableEntity || c.Want.Decision != policytest.NotApplicable {
					t.Errorf("HTTP %d %s for what no policy matches, want 422 and decision %s", code, body, policytest.NotApplicable)
				}
				return
			}
			if code != http.StatusOK {
				t.Fatalf("HTTP %d %s, want 200", code, body)
			}
			var got admissionv1.AdmissionReview
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatal(err)
			}
			want := admissionv1.AdmissionReview{
				TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
				Response: wantResponse(t, c),
			}
			if got.Response != nil && got.Response.Result != nil {
				// Its first line is TestRefusal's matter; here its findings count.
				_, got.Response.Result.Message, _ = strings.Cut(got.Response.Result.Message, "\n")
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("answer differs\n got: %s\nwant: %s", asJSON(t, got), asJSON(t, want))
			}
		})
	}
}

// TestCorpusOverHTTPMutates is the same reader on the other path: what is changed in a
// pod as its author submits it, and what in one that has been injected.
func TestCorpusOverHTTPMutates(t *testing.T) {
	cases := policytest.Load(t, "../policies/testdata")
	known := clusters{}
	for i := range cases {
		known[cases[i].Name] = cases[i].Review(t).Cluster
	}
	h, err := webhook.New(webhook.Config{Policies: policies.All(), Facts: known, Authorizer: byUserName{}, Now: policytest.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(webhook.Routes(h))
	defer server.Close()
	changed := 0
	for i := range cases {
		c := &cases[i]
		if c.ObjectDocument(t).Kind != corev1.SchemeGroupVersion.WithKind("Pod") || c.Want.Operation != admissionv1.Create {
			continue
		}
		t.Run(c.Policy+"/"+c.Name, func(t *testing.T) {
			changed += mutates(t, server, wireReview(t, c), c.Want.PatchFinal)
			if c.Submits(t) {
				review := wireReview(t, c)
				review.Request.Object.Raw = stored(t, c.ReviewSubmitted(t), c.ObjectDocument(t).JSON, c.ReviewSubmitted(t).Object)
				changed += mutates(t, server, review, c.Want.Patch)
			}
		})
	}
	if changed < 30 {
		t.Errorf("only %d pods are changed", changed)
	}
}

// mutates sends the review and compares the patch; it returns 1 if there is one.
func mutates(t *testing.T, server *httptest.Server, review *admissionv1.AdmissionReview, want []objects.Operation) int {
	t.Helper()
	code, body := sendTo(t, server, webhook.PathMutate, review)
	var got admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &got); err != nil || code != http.StatusOK || got.Response == nil || !got.Response.Allowed {
		t.Fatalf("HTTP %d %s, want an answer that allows", code, body)
	}
	if len(want) == 0 {
		if got.Response.Patch != nil || got.Response.PatchType != nil {
			t.Errorf("patch %s, want none", got.Response.Patch)
		}
		return 0
	}
	if got.Response.PatchType == nil || *got.Response.PatchType != admissionv1.PatchTypeJSONPatch || string(got.Response.Patch) != asJSON(t, want) {
		t.Errorf("patch %s, want %s", got.Response.Patch, asJSON(t, want))
	}
	return 1
}

// asked reports whether the API server would ask about the request at all.
func asked(c *policytest.Case, tb testing.TB) bool {
	kind := c.ObjectDocument(tb).Kind
	for _, p := range policies.All() {
		for _, m := range p.Matches {
			if m.Group == kind.Group && m.Kind == kind.Kind && slices.Contains(m.Operations, c.Want.Operation) {
				return true
			}
		}
	}
	return false
}

func send(t *testing.T, server *httptest.Server, review *admissionv1.AdmissionReview) (int, []byte) {
	t.Helper()
	return sendTo(t, server, webhook.PathValidate, review)
}

func sendTo(t *testing.T, server *httptest.Server, path string, review *admissionv1.AdmissionReview) (int, []byte) {
	t.Helper()
	resp, err := server.Client().Post(server.URL+path+"?timeout=10s", "application/json", strings.NewReader(asJSON(t, review)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// wireReview is the case as the API server sends it.
func wireReview(t *testing.T, c *policytest.Case) *admissionv1.AdmissionReview {
	t.Helper()
	r := c.Review(t)
	kind, resource := metav1.GroupVersionKind(r.Kind), metav1.GroupVersionResource(r.Resource)
	if resource.Resource == "" {
		resource = metav1.GroupVersionResource{Group: kind.Group, Version: kind.Version, Resource: strings.ToLower(kind.Kind) + "s"}
	}
	dryRun := true
	user := cmp.Or(c.Want.User, userWithoutRight)
	if c.Want.MayUnguard {
		user = userWithRight
	}
	q := &admissionv1.AdmissionRequest{
		UID:  types.UID(c.Name),
		Kind: kind, RequestKind: &kind,
		Resource: resource, RequestResource: &resource,
		SubResource: r.SubResource, RequestSubResource: r.SubResource,
		Name: r.Name, Namespace: r.Namespace,
		Operation: r.Operation,
		UserInfo:  authenticationv1.UserInfo{Username: user, Groups: []string{"system:authenticated"}},
		DryRun:    &dryRun,
		Options:   runtime.RawExtension{Raw: []byte(`{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}`)},
	}
	if kind.Kind == "Namespace" {
		q.Namespace = r.Name
	}
	object := c.FinalDocument(t).JSON
	old, hasOld := c.OldDocument(t)
	if r.Operation != admissionv1.Create && hasOld {
		q.OldObject.Raw = stored(t, r, old.JSON, r.OldObject)
	}
	if r.Operation != admissionv1.Delete {
		q.Object.Raw = stored(t, r, object, r.Object)
	}
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  q,
	}
}

// stored fills in what the API server would have: namespace, the label with the
// name of a namespace, and the times of creation and deletion.
func stored(t *testing.T, r *facts.Review, raw []byte, decoded any) []byte {
	t.Helper()
	var object map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&object); err != nil {
		t.Fatal(err)
	}
	meta, ok := object["metadata"].(map[string]any)
	if !ok {
		t.Fatalf("no metadata in %s", raw)
	}
	created, deleted := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), false
	if r.Namespace != "" {
		meta["namespace"] = r.Namespace
	}
	switch o := decoded.(type) {
	case *corev1.Namespace:
		meta["labels"], deleted = o.Labels, o.DeletionTimestamp != nil
	case *corev1.Pod:
		deleted = o.DeletionTimestamp != nil
	case *facts.Workload:
		deleted = o.DeletionTimestamp != nil
	case *facts.IstioObject:
		deleted = o.DeletionTimestamp != nil
	case *v1alpha1.MeshGuard:
		deleted = o.DeletionTimestamp != nil
	case *v1alpha1.GuardException:
		if deleted, created = o.DeletionTimestamp != nil, policytest.Now(); !o.CreationTimestamp.IsZero() {
			created = o.CreationTimestamp.Time
		}
	case *mesh.PeerAuthentication:
		deleted = o.Terminating
		if !o.Created.IsZero() {
			created = o.Created
		}
	}
	meta["uid"], meta["creationTimestamp"] = "00000000-0000-4000-8000-000000000000", created.Format(time.RFC3339)
	delete(meta, "deletionTimestamp")
	if deleted {
		meta["deletionTimestamp"] = created.Format(time.RFC3339)
	}
	return []byte(asJSON(t, object))
}

// wantResponse is want.yaml as an answer. The cause type, which want.yaml leaves
// out, is that of the same finding of the policies.
func wantResponse(t *testing.T, c *policytest.Case) *admissionv1.AdmissionResponse {
	t.Helper()
	r := c.Review(t)
	decision, err := policies.Evaluate(policies.All(), r)
	if err != nil {
		t.Fatal(err)
	}
	causeType := map[string]metav1.CauseType{}
	for _, f := range decision.Findings {
		causeType[f.Reason.Name+f.Field+f.Message] = f.Type
	}
	out := &admissionv1.AdmissionResponse{
		UID: types.UID(c.Name), Allowed: c.Want.Decision != policies.Deny,
		AuditAnnotations: map[string]string{},
	}
	var texts, codes, audits, excepted []string
	var causes []metav1.StatusCause
	for _, f := range c.Want.Findings {
		code := codeOf(t, f.Reason)
		text := f.Message + " [" + code + "]"
		if f.Remedy != "" {
			text += "; " + f.Remedy
		}
		line := text
		if f.Field != "" {
			line = f.Field + ": " + text
		}
		if !slices.Contains(codes, code) {
			codes = append(codes, code)
		}
		switch f.Action {
		case v1alpha1.Deny:
			texts = append(texts, line)
			causes = append(causes, metav1.StatusCause{Type: causeType[f.Reason+f.Field+f.Message], Message: text, Field: f.Field})
		case v1alpha1.Warn:
			// What the API server might cut begins with what helps.
			if utf8.RuneCountInString(line) > 256 && f.Remedy != "" {
				line = "[" + code + "] " + f.Remedy + "; " + strings.TrimSuffix(line, "; "+f.Remedy)
			}
			out.Warnings = append(out.Warnings, line)
		case policies.Excepted:
			// It begins with what lets the finding pass, and has no way out.
			out.Warnings = append(out.Warnings, "["+code+"] let pass until "+endOf(t, r, f.Exception)+" by GuardException "+path.Base(f.Exception)+": "+strings.TrimSuffix(line, "; "+f.Remedy))
			if by := code + " by " + f.Exception; !slices.Contains(excepted, by) {
				excepted = append(excepted, by)
			}
		case v1alpha1.Audit:
			audits = append(audits, line)
		}
	}
	decided := c.Want.Decision
	if decided == policytest.NotApplicable {
		decided = policies.Allow
	} else {
		out.AuditAnnotations[webhook.AnnotationPolicies] = strings.Join(decision.Judged, ",")
	}
	out.AuditAnnotations[webhook.AnnotationDecision] = strings.ToLower(string(decided))
	if len(codes) > 0 {
		out.AuditAnnotations[webhook.AnnotationFindings] = strings.Join(codes, ",")
	}
	if len(excepted) > 0 {
		out.AuditAnnotations[webhook.AnnotationExcepted] = strings.Join(excepted, ",")
	}
	if len(audits) > 0 {
		out.AuditAnnotations[webhook.AnnotationAudit] = strings.Join(audits, "\n")
	}
	if !out.Allowed {
		out.Result = &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden,
			Message: strings.Join(texts, "\n"),
			Details: &metav1.StatusDetails{Name: r.Name, Group: r.Kind.Group, Kind: r.Kind.Kind, Causes: causes},
		}
	}
	return out
}

// endOf is when the exception ends that a finding names.
func endOf(t *testing.T, r *facts.Review, key string) string {
	t.Helper()
	namespace, name, _ := strings.Cut(key, "/")
	for _, e := range r.Cluster.Namespaces[namespace].Exceptions {
		if e.Name == name {
			return e.Spec.ExpiresAt.UTC().Format(time.RFC3339)
		}
	}
	t.Fatalf("the facts hold no GuardException %s", key)
	return ""
}

func codeOf(t *testing.T, reason string) string {
	t.Helper()
	for _, p := range policies.All() {
		for _, r := range p.Reasons {
			if r.Name == reason {
				return r.Code
			}
		}
	}
	t.Fatalf("no policy has reason %q", reason)
	return ""
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
