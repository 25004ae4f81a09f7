package survey

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/meshvakt/meshvakt/internal/preflight"
)

// apiServer answers what a survey asks for.
type apiServer struct {
	// lists are the objects by the path that lists them: how many there are, and each.
	lists map[string]objectList
	// refused are the paths that are forbidden; told says that the review of rights says so.
	refused []string
	told    bool
	// expires is the path of which the first token has expired when it is used.
	expires string
	broken  string // a group that cannot be discovered

	mu      sync.Mutex
	largest map[string]int // guarded by mu; objects of one answer by path
	wrote   []string       // guarded by mu; what was not read
	expired bool           // guarded by mu
}

type objectList struct {
	n      int
	object func(i int) string
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	a.mu.Lock()
	defer a.mu.Unlock()
	switch path := r.URL.Path; {
	case r.Method != http.MethodGet:
		a.review(w, r)
	case path == "/version":
		fmt.Fprint(w, `{"major":"1","minor":"37","gitVersion":"v1.37.2"}`)
	case path == "/api":
		fmt.Fprint(w, `{"kind":"APIVersions","versions":["v1"]}`)
	case path == "/apis":
		a.groups(w)
	case path == "/api/v1" || strings.HasPrefix(path, "/apis/") && strings.Count(path, "/") == 3:
		a.resources(w, strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/"))
	default:
		a.list(w, r)
	}
}

func resources() map[string][]string {
	return map[string][]string{
		"v1":      {"namespaces", "nodes", "pods", "configmaps", "limitranges", "resourcequotas", "replicationcontrollers"},
		"apps/v1": {"deployments", "daemonsets", "replicasets", "statefulsets"}, "batch/v1": {"jobs", "cronjobs"},
		"admissionregistration.k8s.io/v1": {"mutatingwebhookconfigurations", "validatingwebhookconfigurations"},
		"discovery.k8s.io/v1":             {"endpointslices"}, "policy/v1": {"poddisruptionbudgets"},
		"security.istio.io/v1": {"peerauthentications"}, "networking.istio.io/v1": {"destinationrules"},
		"meshvakt.io/v1alpha1": {"meshguards", "guardexceptions"},
	}
}

func (a *apiServer) groups(w io.Writer) {
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList"}}
	for gv := range resources() {
		if group, version, ok := strings.Cut(gv, "/"); ok {
			v := metav1.GroupVersionForDiscovery{GroupVersion: gv, Version: version}
			list.Groups = append(list.Groups, metav1.APIGroup{Name: group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
		}
	}
	_ = json.NewEncoder(w).Encode(list)
}

func (a *apiServer) resources(w http.ResponseWriter, gv string) {
	if group, _, _ := strings.Cut(gv, "/"); group == a.broken {
		http.Error(w, `{"kind":"Status","status":"Failure","code":503}`, http.StatusServiceUnavailable)
		return
	}
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList"}, GroupVersion: gv}
	for _, name := range resources()[gv] {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: name, Verbs: []string{"list"}})
	}
	_ = json.NewEncoder(w).Encode(list)
}

func (a *apiServer) review(w http.ResponseWriter, r *http.Request) {
	var review authorizationv1.SelfSubjectAccessReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || !strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews") {
		a.wrote = append(a.wrote, r.Method+" "+r.URL.Path)
		http.Error(w, "", http.StatusForbidden)
		return
	}
	asked := review.Spec.ResourceAttributes
	review.Status.Allowed = !a.told || !slices.ContainsFunc(a.refused, func(p string) bool { return strings.HasSuffix(p, "/"+asked.Resource) })
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review)
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request) {
	path, query := r.URL.Path, r.URL.Query()
	if slices.Contains(a.refused, path) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
		return
	}
	from, _ := strconv.Atoi(query.Get("continue"))
	if path == a.expires && from > 0 && !a.expired {
		a.expired = true
		w.WriteHeader(http.StatusGone)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"metadata":{"continue":"%d"}}`, from)
		return
	}
	limit, _ := strconv.Atoi(query.Get("limit"))
	list := a.lists[path]
	to := min(from+limit, list.n)
	if a.largest == nil {
		a.largest = map[string]int{}
	}
	a.largest[path] = max(a.largest[path], to-from)
	next := ""
	if to < list.n {
		next = strconv.Itoa(to)
	}
	fmt.Fprintf(w, `{"kind":"List","metadata":{"continue":%q},"items":[`, next)
	for i := from; i < to; i++ {
		if i > from {
			fmt.Fprint(w, ",")
		}
		fmt.Fprint(w, list.object(i))
	}
	fmt.Fprint(w, "]}")
}

// objectsOf are the objects in JSON.
func objectsOf(list ...string) objectList {
	return objectList{len(list), func(i int) string { return list[i] }}
}

// few are as many pods as a page holds and one.
const few = pageSize + 1

// smallCluster has one guarded namespace with so many pods.
func smallCluster(n int) *apiServer {
	return &apiServer{lists: map[string]objectList{
		"/api/v1/namespaces": objectsOf(`{"metadata":{"name":"istio-system"}}`,
			`{"metadata":{"name":"payments","labels":{"meshvakt.io/guarded":"true","istio-injection":"enabled"}}}`),
		"/api/v1/nodes": objectsOf(`{"metadata":{"name":"n","labels":{"node.kubernetes.io/instance-type":"m5.large"}}}`),
		"/api/v1/namespaces/istio-system/configmaps": objectsOf(`{"metadata":{"name":"istio","namespace":"istio-system"},"data":{"mesh":"{}"}}`,
			`{"metadata":{"name":"istio-sidecar-injector","namespace":"istio-system"},"data":{"config":"policy: enabled","values":"{}"}}`),
		"/apis/security.istio.io/v1/peerauthentications": objectsOf(`{"metadata":{"name":"default","namespace":"istio-system"},"spec":{"mtls":{"mode":"STRICT"}}}`,
			// Of a namespace that has gone in between.
			`{"metadata":{"name":"default","namespace":"gone"},"spec":{"mtls":{"mode":"STRICT"}}}`),
		"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations": objectsOf(`{"metadata":{"name":"istio-sidecar-injector"},"webhooks":[{"name":"namespace.sidecar-injector.istio.io",
			"rules":[{"apiGroups":[""],"apiVersions":["v1"],"resources":["pods"],"operations":["CREATE"]}],"namespaceSelector":{"matchLabels":{"istio-injection":"enabled"}}}]}`),
		"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations": objectsOf(`{"metadata":{"name":"other"},"webhooks":[{"name":"other.example.com",
			"clientConfig":{"service":{"namespace":"payments","name":"other"}},"rules":[{"apiGroups":[""],"apiVersions":["v1"],"resources":["services"],"operations":["CREATE"]}]}]}`),
		"/apis/discovery.k8s.io/v1/namespaces/payments/endpointslices": objectsOf(`{"metadata":{"name":"other-1"},"endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true}},{"addresses":["10.0.0.2"],"conditions":{"ready":false}}]}`),
		"/apis/apps/v1/deployments":                                    objectsOf(deployment("api")),
		"/api/v1/pods":                                                 {n, func(i int) string { return pod("payments", i) }},
		"/api/v1/namespaces/payments/pods":                             {n, func(i int) string { return pod("payments", i) }},
	}}
}

func deployment(name string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"payments"},"spec":{"replicas":1,"template":{"metadata":{"labels":{"app":%q}},"spec":{"containers":[{"name":"app","image":"x"}]}}}}`, name, name)
}

// pod is one that has not been injected.
func pod(namespace string, i int) string {
	return fmt.Sprintf(`{"metadata":{"name":"pod-%d","namespace":%q,"labels":{"app":"api"}},"spec":{"nodeName":"n","containers":[{"name":"app","image":"x"}]},"status":{"phase":"Running"}}`, i, namespace)
}

func report(t testing.TB, a *apiServer, o Options) (*preflight.Report, error) {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	s, err := New(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	o.Names = preflight.Names{Namespace: "meshvakt-system", IstioNamespace: "istio-system", Validating: "meshvakt", Mutating: "before-istio.meshvakt.io"}
	o.Now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	return s.Report(t.Context(), o)
}

func result(r *preflight.Report, id string) preflight.Result {
	for _, c := range r.Checks {
		if c.ID == id {
			return c.Result
		}
	}
	return ""
}

func pods(r *preflight.Report) preflight.KindCount {
	for _, k := range r.Forecast.Kinds {
		if k.Kind == "Pod" {
			return k
		}
	}
	return preflight.KindCount{}
}

func TestSurvey(t *testing.T) {
	const some = 2*pageSize + 200
	a := smallCluster(some)
	var lacking []preflight.Right
	progress := 0
	r, err := report(t, a, Options{Lacking: func(l []preflight.Right) { lacking = l }, Judged: func(string, int) { progress++ }})
	if err != nil {
		t.Fatal(err)
	}
	if len(lacking)+len(r.MissingRights) > 0 || r.Summary.Unknown > 0 {
		t.Errorf("lacks %v, %+v", r.MissingRights, r.Checks)
	}
	if k := pods(r); k.Judged != some || k.Refused != some || progress != 2 {
		t.Errorf("%+v, progress %d", k, progress)
	}
	for path, n := range a.largest {
		if n > pageSize {
			t.Errorf("%s: %d objects in one answer", path, n)
		}
	}
	if len(a.wrote) > 0 {
		t.Errorf("it writes: %q", a.wrote)
	}
	for id, want := range map[string]preflight.Result{"istio-mesh-mode": preflight.Pass, "webhook-locks": preflight.Pass, "forecast-namespaces": preflight.Pass, "forecast-templates": preflight.Pass} {
		if got := result(r, id); got != want {
			t.Errorf("%s is %s; want %s", id, got, want)
		}
	}
}

// Replicas that keep evidence are of a StatefulSet, and nobody takes them for missing.
func TestSurveyFindsReplicasThatKeepEvidence(t *testing.T) {
	a := smallCluster(1)
	a.lists["/apis/apps/v1/namespaces/meshvakt-system/statefulsets"] = objectsOf(`{"metadata":{"name":"meshvakt","namespace":"meshvakt-system",
		"labels":{"app.kubernetes.io/name":"meshvakt","app.kubernetes.io/component":"webhook"}},"spec":{"replicas":3,"template":{"metadata":{"labels":{"app.kubernetes.io/name":"meshvakt"}}}},
		"status":{"readyReplicas":3}}`)
	a.lists["/apis/policy/v1/namespaces/meshvakt-system/poddisruptionbudgets"] = objectsOf(`{"metadata":{"name":"meshvakt","namespace":"meshvakt-system"},
		"spec":{"selector":{"matchLabels":{"app.kubernetes.io/name":"meshvakt"}}},"status":{"disruptionsAllowed":1}}`)
	r, err := report(t, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"meshvakt-replicas", "meshvakt-disruption"} {
		if got := result(r, id); got != preflight.Pass {
			t.Errorf("%s is %s; want a pass", id, got)
		}
	}
}

// An expired token is followed by the one that the API server offers.
func TestSurveyGoesOn(t *testing.T) {
	a := smallCluster(few)
	a.expires = "/api/v1/pods"
	r, err := report(t, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if k := pods(r); k.Judged != few || !a.expired {
		t.Errorf("%+v, expired %t", k, a.expired)
	}
}

// Whether the review of rights says so or only the list itself, what is forbidden is
// named, and the rest is judged.
func TestSurveyWithFewRights(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprintf("told %t", told), func(t *testing.T) {
			a := smallCluster(few)
			a.told, a.refused = told, []string{"/api/v1/pods", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", "/apis/meshvakt.io/v1alpha1/guardexceptions"}
			var early []preflight.Right
			r, err := report(t, a, Options{Lacking: func(l []preflight.Right) { early = l }})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, m := range r.MissingRights {
				names = append(names, m.Resource)
			}
			if got := strings.Join(names, " "); got != "guardexceptions mutatingwebhookconfigurations pods" {
				t.Errorf("lacks %s", got)
			}
			if (len(early) == 3) != told {
				t.Errorf("told at once of %v", early)
			}
			for _, id := range []string{"webhook-order", "istio-injection", "forecast-pods", "forecast-templates"} {
				if got := result(r, id); got != preflight.Unknown {
					t.Errorf("%s is %s", id, got)
				}
			}
			for _, id := range []string{"istio-mesh-mode", "forecast-policies", "forecast-istio-objects"} {
				if got := result(r, id); got != preflight.Pass {
					t.Errorf("%s is %s", id, got)
				}
			}
			if len(r.Forecast.Notes) != 2 {
				t.Errorf("notes %q", r.Forecast.Notes)
			}
		})
	}
	t.Run("no namespaces", func(t *testing.T) {
		a := smallCluster(few)
		a.refused = []string{"/api/v1/namespaces"}
		r, err := report(t, a, Options{})
		if err != nil || r.Forecast != nil || result(r, "forecast-pods") != preflight.Unknown || result(r, "guarded-namespaces") != preflight.Unknown {
			t.Errorf("%v, %+v", err, r)
		}
	})
	t.Run("one namespace", func(t *testing.T) {
		a := smallCluster(few)
		a.refused = []string{"/api/v1/pods"}
		r, err := report(t, a, Options{Namespaces: []string{"payments"}})
		if err != nil || pods(r).Judged != few {
			t.Errorf("%v, %+v", err, r.MissingRights)
		}
	})
}

// A part of the API that cannot be discovered is not taken for one that is not there.
func TestSurveyOfABrokenAPI(t *testing.T) {
	a := smallCluster(few)
	a.broken = "networking.istio.io"
	r, err := report(t, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"forecast-istio-objects", "istio-kinds"} {
		if got := result(r, id); got != preflight.Unknown {
			t.Errorf("%s is %s", id, got)
		}
	}
}

func TestGuards(t *testing.T) {
	a := smallCluster(few)
	a.lists["/apis/meshvakt.io/v1alpha1/meshguards"] = objectsOf(
		`{"metadata":{"name":"none"},"spec":{"namespaceSelector":{"matchLabels":{"a":"b"}},"strictMTLS":{}}}`,
		`{"metadata":{"name":"all"},"spec":{"namespaceSelector":{},"meshMembership":{"validationActions":["Warn"]}}}`)
	all, err := report(t, a, Options{})
	if err != nil || !slices.Equal(all.Forecast.Guards, []string{"all", "none"}) || all.Forecast.Namespaces.Guarded != 2 {
		t.Errorf("%v, %+v", err, all)
	}
	one, err := report(t, a, Options{Guard: "none"})
	if err != nil || !slices.Equal(one.Forecast.Guards, []string{"none"}) || one.Forecast.Namespaces.Guarded != 0 || result(one, "guarded-namespaces") != preflight.Warn {
		t.Errorf("%v, %+v", err, one)
	}
	denying, err := report(t, a, Options{Guard: "all", Deny: true})
	if err != nil || pods(denying).Refused != few || pods(all).Refused != 0 {
		t.Errorf("%v, %+v, %+v", err, pods(denying), pods(all))
	}
	if _, err := report(t, a, Options{Namespaces: []string{"payments", "misspelt"}}); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("%v", err)
	}
	if _, err := report(t, a, Options{Guard: "other"}); !errors.Is(err, ErrNoGuard) {
		t.Errorf("%v", err)
	}
}

// What a cluster takes does not grow with its pods: they are read page by page, and an
// object is gone once it has been judged.
func TestSurveyOfALargeCluster(t *testing.T) {
	const namespaces, fewer, more = 50, 20, 200
	small, large := heapOf(t, namespaces, fewer), heapOf(t, namespaces, more)
	const most = 48 << 20 // some pages of whole pods, on their way through
	if large-small > most {
		t.Errorf("the heap grows from %d to %d MiB with ten times the pods", small>>20, large>>20)
	}
}

// BenchmarkSurvey is a cluster of 10,000 namespaces and 150,000 pods.
func BenchmarkSurvey(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(float64(heapOf(b, 10_000, 15))/(1<<20), "MiB")
	}
}

// heapOf is what the heap comes to in between.
func heapOf(t testing.TB, namespaces, each int) int64 {
	t.Helper()
	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r, err := report(t, largeCluster(namespaces, each), Options{Judged: func(string, int) {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		peak.HeapInuse = max(peak.HeapInuse, now.HeapInuse)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if k := pods(r); k.Judged != namespaces*each {
		t.Errorf("%+v", k)
	}
	return int64(peak.HeapInuse) - int64(before.HeapInuse)
}

func largeCluster(namespaces, each int) *apiServer {
	a := smallCluster(0)
	name := func(i int) string { return fmt.Sprintf("ns-%05d", i) }
	a.lists["/api/v1/namespaces"] = objectList{namespaces, func(i int) string {
		return fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"meshvakt.io/guarded":"true","istio-injection":"enabled","kubernetes.io/metadata.name":%q}}}`, name(i), name(i))
	}}
	a.lists["/apis/security.istio.io/v1/peerauthentications"] = objectList{namespaces, func(i int) string {
		return fmt.Sprintf(`{"metadata":{"name":"default","namespace":%q},"spec":{"mtls":{"mode":"STRICT"}}}`, name(i))
	}}
	// As large as pods are, most of it fields that nobody reads here.
	fields := strings.Repeat(`{"manager":"kubelet","operation":"Update","fieldsV1":{"f:status":{"f:conditions":{}}}},`, 60)
	a.lists["/api/v1/pods"] = objectList{namespaces * each, func(i int) string {
		p := pod(name(i/each), i)
		return strings.Replace(p, `"labels"`, `"managedFields":[`+strings.TrimSuffix(fields, ",")+`],"labels"`, 1)
	}}
	return a
}

// Settings that cannot be read are told of, and no others are taken for them.
func TestSurveyOfBrokenSettings(t *testing.T) {
	a := smallCluster(few)
	a.lists["/api/v1/namespaces/istio-system/configmaps"] = objectsOf(
		`{"metadata":{"name":"istio","namespace":"istio-system"},"data":{"mesh":"{"}}`,
		`{"metadata":{"name":"istio-sidecar-injector","namespace":"istio-system"},"data":{"config":"policy: enabled","values":"{}"}}`)
	r, err := report(t, a, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"istio-control-planes", "istio-mesh-mode", "istio-injection", "forecast-policies"} {
		if got := result(r, id); got != preflight.Unknown {
			t.Errorf("%s is %s", id, got)
		}
	}
}
