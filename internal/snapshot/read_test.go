package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"

	"github.com/meshvakt/meshvakt/internal/check"
)

// apiServer answers what Read asks for.
type apiServer struct {
	// objects by the path that lists them.
	objects map[string][]map[string]any
	// forbidden are the paths that the user may not list.
	forbidden []string
	// absent are the groups that are not there.
	absent []string
	// expire is the path of which the second page is once no longer known.
	expire string

	mu    sync.Mutex
	pages map[string]int // guarded by mu; requests by path
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/version":
		writeJSON(w, version.Info{GitVersion: "v1.37.2"})
	case parts[0] == "api" && len(parts) == 2, parts[0] == "apis" && len(parts) == 3:
		group := ""
		if parts[0] == "apis" {
			group = parts[1]
		}
		if slices.Contains(a.absent, group) {
			http.NotFound(w, r)
			return
		}
		a.resources(w, group, parts[len(parts)-1])
	default:
		a.list(w, r)
	}
}

// resources says that every resource that Read knows in the version is there.
func (a *apiServer) resources(w http.ResponseWriter, group, v string) {
	list := metav1.APIResourceList{}
	for _, k := range kinds(DefaultIstioNamespace) {
		if k.Group == group && slices.Contains(k.versions, v) {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: k.resource, Kind: k.Kind})
		}
	}
	writeJSON(w, list)
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.pages[r.URL.Path]++
	expired := a.expire == r.URL.Path && r.URL.Query().Get("continue") != ""
	if expired {
		a.expire = ""
	}
	a.mu.Unlock()
	if expired {
		w.WriteHeader(http.StatusGone)
		writeJSON(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonExpired, Code: http.StatusGone})
		return
	}
	if slices.Contains(a.forbidden, r.URL.Path) {
		w.WriteHeader(http.StatusForbidden)
		writeJSON(w, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden})
		return
	}
	all := a.objects[r.URL.Path]
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil {
		http.Error(w, "a list without limit", http.StatusBadRequest)
		return
	}
	to := min(len(all), from+limit)
	items := all[from:to]
	if items == nil {
		items = []map[string]any{}
	}
	meta := map[string]any{"resourceVersion": "1"}
	if to < len(all) {
		meta["continue"] = strconv.Itoa(to)
	}
	writeJSON(w, map[string]any{"apiVersion": "v1", "kind": "List", "metadata": meta, "items": items})
}

func writeJSON(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func thing(apiVersion, kind, namespace, name string, spec map[string]any) map[string]any {
	metadata := map[string]any{"name": name}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	return map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": metadata, "spec": spec}
}

func read(t *testing.T, a *apiServer) *Snapshot {
	t.Helper()
	a.pages = map[string]int{}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	s, err := Read(t.Context(), &rest.Config{Host: server.URL, QPS: -1}, "", time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func small() *apiServer {
	strict := map[string]any{"mtls": map[string]any{"mode": "STRICT"}}
	return &apiServer{objects: map[string][]map[string]any{
		"/api/v1/namespaces": {thing("v1", "Namespace", "", "prod", nil), thing("v1", "Namespace", "", "dev", nil)},
		"/apis/security.istio.io/v1/peerauthentications": {
			thing("security.istio.io/v1", "PeerAuthentication", "prod", "default", strict),
			thing("security.istio.io/v1", "PeerAuthentication", "gone", "default", strict),
		},
	}}
}

func names(s *Snapshot) []string {
	var list []string
	for i := range s.Documents {
		d := &s.Documents[i]
		list = append(list, d.Kind.Kind+" "+d.Namespace+"/"+d.Name)
	}
	return list
}

// TestReadsWhatIsThere: sorted, and without what is in namespaces that are not there.
func TestReadsWhatIsThere(t *testing.T) {
	a := small()
	a.absent = []string{"argoproj.io"}
	s := read(t, a)
	if got, want := names(s), []string{"Namespace /dev", "Namespace /prod", "PeerAuthentication prod/default"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
	if want := []string{"Rollout.argoproj.io"}; !reflect.DeepEqual(s.Absent, want) || s.Kubernetes != "v1.37.2" {
		t.Errorf("absent %q of %s; want %q", s.Absent, s.Kubernetes, want)
	}
	if err := s.Complete(); err != nil {
		t.Errorf("a kind that is not there is an error: %v", err)
	}
	if _, err := check.NewClusterState(s.State()); err != nil {
		t.Error(err)
	}
}

// TestReadsPages: no answer of the API server holds more than a page.
func TestReadsPages(t *testing.T) {
	a := small()
	for i := range 2*pageSize + 1 {
		a.objects["/api/v1/nodes"] = append(a.objects["/api/v1/nodes"], thing("v1", "Node", "", fmt.Sprintf("n%05d", i), nil))
	}
	a.expire = "/api/v1/nodes"
	if s := read(t, a); len(s.Documents) != 3+2*pageSize+1 || a.pages["/api/v1/nodes"] < 5 {
		t.Errorf("got %d objects in %d pages; must begin anew", len(s.Documents), a.pages["/api/v1/nodes"])
	}
	s := read(t, a)
	if len(s.Documents) != 3+2*pageSize+1 || a.pages["/api/v1/nodes"] != 3 {
		t.Errorf("got %d objects in %d pages", len(s.Documents), a.pages["/api/v1/nodes"])
	}
}

// TestNamesAllMissingRights: all of them at once, also where a kind is not there, and as
// they are asked for with kubectl auth can-i.
func TestNamesAllMissingRights(t *testing.T) {
	a := small()
	a.absent = []string{"argoproj.io"}
	a.forbidden = []string{"/api/v1/nodes", "/api/v1/namespaces/istio-system/configmaps", "/apis/security.istio.io/v1/peerauthentications", "/apis/argoproj.io/v1alpha1/rollouts"}
	s := read(t, a)
	err := s.Complete()
	if !errors.Is(err, ErrPartial) {
		t.Fatalf("got %v; want %v", err, ErrPartial)
	}
	if want := "no right to: list configmaps -n istio-system, list nodes -A, list peerauthentications.security.istio.io -A"; !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %q; must end in %q", err, want)
	}
	if got, want := s.State().Unread, []string{"configmaps", "nodes", "peerauthentications"}; !reflect.DeepEqual(got, want) {
		t.Errorf("unread %q; want %q", got, want)
	}
}

// TestFileHoldsAll: what is saved is loaded, compressed or not.
func TestFileHoldsAll(t *testing.T) {
	a := small()
	a.absent, a.forbidden = []string{"argoproj.io"}, []string{"/api/v1/nodes"}
	want := read(t, a)
	for _, name := range []string{"state.yaml", "state.yaml.gz"} {
		path := filepath.Join(t.TempDir(), name)
		if err := want.Save(path); err != nil {
			t.Fatal(err)
		}
		got, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(names(got), names(want)) || !reflect.DeepEqual(got.Missing, want.Missing) || !reflect.DeepEqual(got.Absent, want.Absent) ||
			got.Kubernetes != want.Kubernetes || !got.Taken.Equal(want.Taken) {
			t.Errorf("%s: got %+v; want %+v", name, got, want)
		}
		for i := range got.Documents {
			if !got.Documents[i].Stored || string(got.Documents[i].JSON) != string(want.Documents[i].JSON) {
				t.Errorf("%s: got %+v; want %+v", name, got.Documents[i], want.Documents[i])
			}
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; others must not read it", name, info.Mode(), err)
		}
		text, err := os.ReadFile(path)
		if err != nil || (string(text[:2]) == "\x1f\x8b") != strings.HasSuffix(name, ".gz") {
			t.Errorf("%s begins with %q, %v", name, text[:2], err)
		}
	}
}

// TestFilesThatAreNoSnapshots are refused with what is wrong.
func TestFilesThatAreNoSnapshots(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "not a snapshot"},
		{"manifests", "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod}\n", "must be a ClusterSnapshot"},
		{"of later times", "apiVersion: meshvakt.io/v1alpha1\nkind: ClusterSnapshot\nmetadata: {name: cluster}\nformat: 2\n", "format 2"},
		{"half a gzip", "\x1f\x8b\x08", "unpack"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(path); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; must contain %q", err, tt.want)
			}
		})
	}
}
