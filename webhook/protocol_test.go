package webhook

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/meshvakt/meshvakt/policies"
)

// Eight callers at once must each get their own UID and their own decision.
func TestEveryCallerGetsItsOwnAnswer(t *testing.T) {
	server := httptest.NewTLSServer(newWebhook(t, guarded(t)))
	defer server.Close()
	var wg sync.WaitGroup
	for caller := range 8 {
		wg.Go(func() {
			for i := range 50 {
				review := podReview(fmt.Sprintf("caller-%d-%d", caller, i))
				if caller%2 == 0 {
					review.Request.Namespace = "dev"
					review.Request.Object.Raw = bytes.ReplaceAll(review.Request.Object.Raw, []byte(`"prod"`), []byte(`"dev"`))
				}
				resp, err := server.Client().Post(server.URL+PathValidate, "application/json", bytes.NewReader(encode(t, review)))
				if err != nil {
					t.Error(err)
					return
				}
				raw, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil {
					t.Error(err)
					return
				}
				got := decodeAnswer(t, raw)
				if got.UID != review.Request.UID || got.Allowed != (caller%2 == 0) {
					t.Errorf("caller %d: uid %q, allowed %t; want %q, %t", caller, got.UID, got.Allowed, review.Request.UID, caller%2 == 0)
				}
			}
		})
	}
	wg.Wait()
}

// Requests that are malformed, contradict themselves or are nobody's to judge
// are answered with an HTTP error and never with allowed: true.
func TestNotJudged(t *testing.T) {
	edit := func(f func(*admissionv1.AdmissionRequest)) string {
		r := podReview("u")
		f(r.Request)
		return string(encode(t, r))
	}
	editNamespace := func(f func(*admissionv1.AdmissionRequest)) string {
		r := namespaceReview()
		f(r.Request)
		return string(encode(t, r))
	}
	good := string(encode(t, podReview("u")))
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s does not hold %s", good, old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, c := range map[string]struct {
		body  string
		code  int
		stage string
		says  string
	}{
		"empty body":             {"", 400, StageDecode, ""},
		"not JSON":               {"hello", 400, StageDecode, ""},
		"null":                   {"null", 400, StageDecode, "must be admission.k8s.io/v1 AdmissionReview"},
		"JSON array":             {"[]", 400, StageDecode, ""},
		"cut off":                {good[:len(good)-1], 400, StageDecode, ""},
		"trailing object":        {good + "{}", 400, StageDecode, ""},
		"trailing garbage":       {good + "x", 400, StageDecode, ""},
		"old version":            {swap("admission.k8s.io/v1", "admission.k8s.io/v1beta1"), 400, StageDecode, "must be admission.k8s.io/v1"},
		"no version":             {swap(`"apiVersion":"admission.k8s.io/v1",`, ""), 400, StageDecode, ""},
		"other kind":             {swap("AdmissionReview", "TokenReview"), 400, StageDecode, ""},
		"no request":             {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400, StageDecode, "no request"},
		"request in capitals":    {swap(`"request":`, `"Request":`), 400, StageDecode, "no request"},
		"no UID":                 {edit(func(q *admissionv1.AdmissionRequest) { q.UID = "" }), 400, StageDecode, "request.uid is empty"},
		"two requests":           {swap(`"request":`, `"request":{},"request":`), 400, StageDecode, "duplicate"},
		"two UIDs":               {swap(`"uid":`, `"uid":"other","uid":`), 400, StageDecode, "duplicate"},
		"two objects":            {swap(`"object":`, `"object":null,"object":`), 400, StageDecode, "duplicate"},
		"two metadata":           {swap(`"metadata":{`, `"metadata":{},"metadata":{`), 400, StageDecode, "duplicate"},
		"two labels of one name": {swap(`"app":"web"`, `"app":"web","app":"db"`), 400, StageDecode, "duplicate"},
		"two keys in what is unread": {
			swap(`"spec":`, `"unread":{"deep":[{"x":1,"x":2}]},"spec":`), 400, StageDecode, "duplicate",
		},
		"invalid UTF-8":             {swap(`"app":"web"`, "\"app\":\"\xff\""), 400, StageDecode, ""},
		"unknown kind":              {edit(func(q *admissionv1.AdmissionRequest) { q.Kind.Kind = "Secret" }), 422, StageNotJudged, "kind /v1, Kind=Secret"},
		"unknown version":           {edit(func(q *admissionv1.AdmissionRequest) { q.Kind.Version = "v2" }), 422, StageNotJudged, ""},
		"unknown group":             {edit(func(q *admissionv1.AdmissionRequest) { q.Kind.Group = "apps" }), 422, StageNotJudged, ""},
		"no kind":                   {edit(func(q *admissionv1.AdmissionRequest) { q.Kind.Kind = "" }), 422, StageNotJudged, ""},
		"subresource":               {edit(func(q *admissionv1.AdmissionRequest) { q.SubResource = "eviction" }), 422, StageNotJudged, `subresource "eviction"`},
		"operation nobody judges":   {edit(func(q *admissionv1.AdmissionRequest) { q.Operation = admissionv1.Delete }), 422, StageNotJudged, `operation "DELETE"`},
		"unknown operation":         {edit(func(q *admissionv1.AdmissionRequest) { q.Operation = "PATCH" }), 422, StageNotJudged, `operation "PATCH"`},
		"resource of other kind":    {edit(func(q *admissionv1.AdmissionRequest) { q.Resource.Resource = "namespaces" }), 400, StageDecode, "is not the resource of request.kind"},
		"resource of other group":   {edit(func(q *admissionv1.AdmissionRequest) { q.Resource.Group = "apps" }), 400, StageDecode, "is not the resource"},
		"resource of other version": {edit(func(q *admissionv1.AdmissionRequest) { q.Resource.Version = "v2" }), 400, StageDecode, "is not the resource"},
		"object of other kind":      {swap(`"kind":"Pod","apiVersion":"v1","metadata"`, `"kind":"Namespace","apiVersion":"v1","metadata"`), 400, StageDecode, "must be what request.kind says"},
		"object of other version":   {swap(`"kind":"Pod","apiVersion":"v1","metadata"`, `"apiVersion":"apps/v1","metadata"`), 400, StageDecode, "must be what request.kind says"},
		"object kind not a string":  {swap(`"kind":"Pod","apiVersion":"v1","metadata"`, `"kind":1,"metadata"`), 400, StageDecode, ""},
		"object is a string":        {edit(func(q *admissionv1.AdmissionRequest) { q.Object.Raw = []byte(`"x"`) }), 400, StageDecode, "must be an object"},
		"object is missing":         {edit(func(q *admissionv1.AdmissionRequest) { q.Object.Raw = nil }), 400, StageDecode, "request.object is missing"},
		"object with wrong types":   {edit(func(q *admissionv1.AdmissionRequest) { q.Object.Raw = []byte(`{"metadata":{"labels":[]}}`) }), 400, StageDecode, ""},
		"old object on CREATE":      {edit(func(q *admissionv1.AdmissionRequest) { q.OldObject = q.Object }), 400, StageDecode, "request.oldObject is set"},
		"no old object on UPDATE":   {edit(func(q *admissionv1.AdmissionRequest) { q.Operation = admissionv1.Update }), 400, StageDecode, "request.oldObject is missing"},
		"object elsewhere":          {edit(func(q *admissionv1.AdmissionRequest) { q.Namespace = "dev" }), 400, StageDecode, `must be in request.namespace "dev"`},
		"object of other name":      {edit(func(q *admissionv1.AdmissionRequest) { q.Name = "db" }), 400, StageDecode, `must be named as request.name, "db"`},
		"pod in no namespace":       {edit(func(q *admissionv1.AdmissionRequest) { q.Namespace = "" }), 400, StageDecode, "request.namespace is empty"},
		"namespace in a namespace":  {editNamespace(func(q *admissionv1.AdmissionRequest) { q.Namespace = "dev" }), 400, StageDecode, "must be empty or the name"},
		"old namespace of other name": {
			editNamespace(func(q *admissionv1.AdmissionRequest) {
				q.OldObject.Raw = []byte(`{"metadata":{"name":"dev"}}`)
			}), 400, StageDecode, "request.oldObject: object is named",
		},
	} {
		for _, path := range Paths() {
			t.Run(name+path, func(t *testing.T) {
				w := newWebhook(t, strict(t))
				got := post(w, path, strings.NewReader(c.body))
				if got.Code != c.code || !strings.Contains(got.Body.String(), c.says) {
					t.Errorf("HTTP %d %s, want %d and %q", got.Code, got.Body, c.code, c.says)
				}
				if got := w.recorder.failures(); !slices.Equal(got, []string{c.stage}) {
					t.Errorf("failed in %v, want %s", got, c.stage)
				}
				if w.facts.reads.Load() != 0 {
					t.Error("facts were read for it")
				}
			})
		}
	}
}

func TestMediaType(t *testing.T) {
	for contentType, want := range map[string]int{
		"application/json":                     200,
		"Application/JSON":                     200,
		"application/json; charset=utf-8":      200,
		"application/json;charset=\"UTF-8\"":   200,
		"application/json; charset=iso-8859-1": 415,
		"application/yaml":                     415,
		"text/plain":                           415,
		"application/json, text/plain":         415,
		"":                                     415,
	} {
		r := httptest.NewRequest(http.MethodPost, PathValidate, bytes.NewReader(encode(t, podReview("u"))))
		r.Header.Set("Content-Type", contentType)
		got := httptest.NewRecorder()
		newWebhook(t, strict(t)).ServeHTTP(got, r)
		if got.Code != want {
			t.Errorf("%q: HTTP %d, want %d", contentType, got.Code, want)
		}
	}
	r := httptest.NewRequest(http.MethodPost, PathValidate, bytes.NewReader(encode(t, podReview("u"))))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Encoding", "gzip")
	got := httptest.NewRecorder()
	newWebhook(t, strict(t)).ServeHTTP(got, r)
	if got.Code != http.StatusUnsupportedMediaType {
		t.Errorf("gzip: HTTP %d, want 415", got.Code)
	}
}

// Two objects of the API server's limit fit; one byte more than MaxBody does not,
// whether the length is announced or not.
func TestBodyLimit(t *testing.T) {
	filled := func(size int) []byte {
		raw := encode(t, podReview("u"))
		return append(raw, bytes.Repeat([]byte(" "), size-len(raw))...)
	}
	w := newWebhook(t, strict(t))
	for _, c := range []struct {
		name string
		body io.Reader
		want int
	}{
		{"limit, announced", bytes.NewReader(filled(MaxBody)), 200},
		{"limit, chunked", io.MultiReader(bytes.NewReader(filled(MaxBody))), 200},
		{"over, announced", bytes.NewReader(filled(MaxBody + 1)), 413},
		{"over, chunked", io.MultiReader(bytes.NewReader(filled(MaxBody + 1))), 413},
	} {
		if got := post(w, PathValidate, c.body); got.Code != c.want {
			t.Errorf("%s: HTTP %d %s, want %d", c.name, got.Code, got.Body, c.want)
		}
	}
	if 2*(3<<20) >= MaxBody {
		t.Error("two objects of 3 MiB do not fit")
	}
}

func TestRoutes(t *testing.T) {
	w := newWebhook(t, strict(t))
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, PathValidate, 405},
		{http.MethodPut, PathMutate, 405},
		{http.MethodPost, "/", 404},
		{http.MethodPost, "/validate/", 404},
		{http.MethodGet, "/metrics", 404},
	} {
		got := httptest.NewRecorder()
		w.ServeHTTP(got, httptest.NewRequest(c.method, c.path, nil))
		if got.Code != c.want {
			t.Errorf("%s %s: HTTP %d, want %d", c.method, c.path, got.Code, c.want)
		}
	}
}

func TestMutateChangesNothing(t *testing.T) {
	w := newWebhook(t, guarded(t))
	got := post(w, PathMutate, bytes.NewReader(encode(t, podReview("u"))))
	if got.Code != http.StatusOK {
		t.Fatalf("HTTP %d %s", got.Code, got.Body)
	}
	a := decodeAnswer(t, got.Body.Bytes())
	if a.UID != "u" || !a.Allowed || a.Patch != nil || a.PatchType != nil {
		t.Errorf("got %+v, want allowed and no patch", a)
	}
}

// The API server names a namespace that is created in request.namespace too.
func TestNamespaceIsInNoNamespace(t *testing.T) {
	r := namespaceReview()
	q := r.Request
	q.Operation, q.Namespace, q.Object, q.OldObject.Raw = admissionv1.Create, "prod", q.OldObject, nil
	if a := newWebhook(t, strict(t)).ask(t, r); !a.Allowed {
		t.Errorf("refused: %s", a.Result.Message)
	}
}

func TestObjectsNeedNotNameTheirType(t *testing.T) {
	r := podReview("u")
	r.Request.Object.Raw = []byte(`{"metadata":{"generateName":"web-","namespace":"prod"}}`)
	r.Request.Name = ""
	if a := newWebhook(t, strict(t)).ask(t, r); !a.Allowed {
		t.Errorf("refused: %s", a.Result.Message)
	}
}

func TestConfigIsChecked(t *testing.T) {
	source, allow := &fakeFacts{}, authorizerFunc(nobody)
	wrongKind := policies.StrictMTLS()
	wrongKind.Matches = []policies.Match{{Group: "apps", Resource: "controllerrevisions", Versions: []string{"v1"}, Kind: "ControllerRevision"}}
	quarrel := policies.StrictMTLS()
	quarrel.Matches = append(quarrel.Matches, policies.Match{Resource: "pods", Versions: []string{"v1"}, Kind: "Pod", Scope: policies.ScopeNamespaces})
	for name, c := range map[string]Config{
		"no facts":         {Policies: policies.All(), Authorizer: allow},
		"no authorizer":    {Policies: policies.All(), Facts: source},
		"no policies":      {Facts: source, Authorizer: allow},
		"bad policy":       {Policies: []policies.Policy{{}}, Facts: source, Authorizer: allow},
		"undecodable kind": {Policies: []policies.Policy{wrongKind}, Facts: source, Authorizer: allow},
		"two scopes":       {Policies: []policies.Policy{quarrel}, Facts: source, Authorizer: allow},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
