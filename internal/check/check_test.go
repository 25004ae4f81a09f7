package check_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
)

func parse(t *testing.T, text string) []check.Document {
	t.Helper()
	docs, err := check.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

const guardedProd = `
apiVersion: v1
kind: Namespace
metadata:
  name: prod
  labels: {meshvakt.io/guarded: "true"}
`

func policy(name, mode, created string) string {
	if created != "" {
		created = "\n  creationTimestamp: " + created
	}
	return `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  namespace: prod
  name: ` + name + created + `
spec:
  mtls: {mode: ` + mode + `}
`
}

// TestAges covers who is older than whom: with a timestamp before without, then
// by file; on CREATE the object under review is the youngest, on UPDATE it keeps
// the age of what it replaces.
func TestAges(t *testing.T) {
	const early, late = "2020-01-01T00:00:00Z", "2024-01-01T00:00:00Z"
	tests := []struct {
		name            string
		cluster, object string
		want            policies.Outcome
		reason          string
	}{
		{"undated are aged by file", guardedProd + policy("z", "STRICT", "") + policy("a", "PERMISSIVE", ""), policy("a", "DISABLE", ""), policies.Allow, ""},
		{"dated is older than undated", guardedProd + policy("z", "PERMISSIVE", "") + policy("a", "STRICT", late), policy("z", "DISABLE", ""), policies.Allow, ""},
		{"dated by their dates", guardedProd + policy("z", "STRICT", late) + policy("a", "STRICT", early), policy("z", "PERMISSIVE", ""), policies.Allow, ""},
		{"an update keeps its age", guardedProd + policy("z", "STRICT", early) + policy("a", "STRICT", late), policy("z", "PERMISSIVE", late), policies.Deny, "PolicyWeakensMTLS"},
		{"an undated update keeps its age", guardedProd + policy("z", "STRICT", "") + policy("a", "STRICT", ""), policy("z", "PERMISSIVE", ""), policies.Deny, "PolicyWeakensMTLS"},
		{"a creation is the youngest, whatever it says", guardedProd + policy("z", "STRICT", late), policy("a", "PERMISSIVE", early), policies.Allow, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			result, err := check.Decide(check.Requests{Objects: parse(t, tt.object), Cluster: parse(t, tt.cluster)})
			if err != nil {
				t.Fatal(err)
			}
			got := result.Results[0]
			if got.Decision != tt.want || tt.reason != "" && got.Findings[0].Reason != tt.reason {
				t.Errorf("got %+v, want %s %s", got, tt.want, tt.reason)
			}
		})
	}
}

// TestDesiredJudgesByAge makes sure that a policy of a desired state is not taken
// for the youngest: here it wins, being the older.
func TestDesiredJudgesByAge(t *testing.T) {
	for _, order := range []struct {
		files string
		want  policies.Outcome
	}{
		{guardedProd + policy("open", "PERMISSIVE", "") + policy("strict", "STRICT", ""), policies.Deny},
		{guardedProd + policy("strict", "STRICT", "") + policy("open", "PERMISSIVE", ""), policies.Allow},
	} {
		result, err := check.Desired(parse(t, order.files), false, time.Time{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range result.Results {
			if r.Object.Name == "open" && r.Decision != order.want {
				t.Errorf("got %s, want %s", r.Decision, order.want)
			}
		}
		if len(result.Notes) == 0 {
			t.Error("no note that the order of creation decides")
		}
	}
}

// TestReviewSettlesDefaults covers what the API server would fill in.
func TestReviewSettlesDefaults(t *testing.T) {
	state, err := check.NewState(nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := state.Review(check.Request{Object: parse(t, guardedProd)[0]})
	if err != nil {
		t.Fatal(err)
	}
	if r.Operation != "CREATE" || r.Resource.Resource != "namespaces" || r.Namespace != "" {
		t.Errorf("got %+v", r)
	}
	if root := r.Cluster.Namespaces[mesh.DefaultControlPlane().RootNamespace]; root == nil || root.Labels["kubernetes.io/metadata.name"] != root.Name {
		t.Errorf("root namespace %+v", root)
	}
	if r.Cluster.Namespaces["default"] != nil || len(r.Cluster.Guards) != 1 || len(r.Cluster.ControlPlanes) != 1 {
		t.Errorf("cluster %+v", r.Cluster)
	}
}

// TestReviewLeavesTheStateAlone makes sure that requests do not see each other.
func TestReviewLeavesTheStateAlone(t *testing.T) {
	state, err := check.NewState(parse(t, guardedProd+policy("a", "STRICT", "")))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, text := range []string{policy("a", "PERMISSIVE", ""), policy("b", "DISABLE", ""), strings.ReplaceAll(guardedProd, `"true"`, `"false"`)} {
			r, err := state.Review(check.Request{Object: parse(t, text)[0]})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := policies.Evaluate(policies.All(), r); err != nil {
				t.Fatal(err)
			}
			ns := r.Cluster.Namespaces["prod"]
			if len(ns.PeerAuthentications) != 1 || ns.PeerAuthentications[0].Mode != mesh.ModeStrict || ns.Labels["meshvakt.io/guarded"] != "true" {
				t.Fatalf("state changed: %+v", ns)
			}
		}
	}
}

// FuzzParse makes sure that no input is worse than an error.
func FuzzParse(f *testing.F) {
	f.Add(guardedProd + policy("a", "STRICT", ""))
	f.Add("--- # comment\n{\"kind\": \"List\", \"apiVersion\": \"v1\", \"items\": [null, {}, 3]}\n--- x\n---")
	f.Add("apiVersion: meshvakt.io/v1alpha1\nkind: MeshGuard\nmetadata: {name: g}\nspec: {namespaceSelector: {}, strictMTLS: {}}")
	f.Add("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata: {mesh: \"rootNamespace: a\"}")
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := check.Parse("fuzz.yaml", []byte(text))
		if err != nil {
			return
		}
		result, err := check.Desired(docs, false, time.Time{}, nil)
		if err == nil && result.Summary.Objects != len(docs) {
			t.Errorf("%d documents, %+v", len(docs), result.Summary)
		}
	})
}

// TestNoteOnInjection tells when a verdict rests on settings that nobody gave.
func TestNoteOnInjection(t *testing.T) {
	const injected = `
apiVersion: v1
kind: Namespace
metadata:
  name: prod
  labels: {istio-injection: enabled, meshvakt.io/guarded: "true"}
`
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: prod}
spec:
  containers: [{name: web, image: registry.example/web}]
`
	const injector = `
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio-sidecar-injector, namespace: istio-system}
data: {config: "policy: enabled", values: "{}"}
`
	const node = `
---
apiVersion: v1
kind: Node
metadata: {name: n1}
`
	const ignoring = `
---
apiVersion: meshvakt.io/v1alpha1
kind: MeshGuard
metadata: {name: default}
spec:
  namespaceSelector: {matchLabels: {meshvakt.io/guarded: "true"}}
  nodePools: {controlPlane: Ignore}
`
	const noNodes = "where pods can land is judged by what they ask for alone: the manifests hold no Node (kubectl get nodes -o yaml)"
	for _, tt := range []struct {
		name, object, cluster, want string
	}{
		{"nothing is said", pod, injected, "lack its MutatingWebhookConfigurations and ConfigMap istio-sidecar-injector\n" + noNodes},
		{"half is said", pod, injected + injector, "lack its MutatingWebhookConfigurations\n" + noNodes},
		{"nodes are said", pod, injected + node, "lack its MutatingWebhookConfigurations and ConfigMap istio-sidecar-injector"},
		{"the mesh's own pods", strings.ReplaceAll(pod, "prod", "istio-system"), injected, noNodes},
		{"the mesh's own pods, ignored", strings.ReplaceAll(pod, "prod", "istio-system"), injected + ignoring, ""},
		{"no workload", strings.ReplaceAll(injected, "prod", "stage"), injected, ""},
		{"no guard", pod, strings.ReplaceAll(injected, "guarded:", "other:"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			result, err := check.Decide(check.Requests{Objects: parse(t, tt.object), Cluster: parse(t, tt.cluster)})
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(result.Notes, "\n")
			if (tt.want == "") != (got == "") || !strings.HasSuffix(got, tt.want) {
				t.Errorf("got notes %q; must end in %q", got, tt.want)
			}
		})
	}
}

// TestPodsReadBack: a pod as kubectl get shows it has been injected already.
func TestPodsReadBack(t *testing.T) {
	const namespace = `
apiVersion: v1
kind: Namespace
metadata:
  name: prod
  labels: {istio-injection: enabled, meshvakt.io/guarded: "true"}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: prod}
spec: {mtls: {mode: STRICT}}
`
	golden, err := os.ReadFile("../../policies/testdata/injected/native.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const note = "judged as they are, as with --final"
	plain := "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: prod}\nspec: {containers: [{name: web, image: registry.example/web}"
	for _, tt := range []struct {
		name, object string
		final, noted bool
		want         policies.Outcome
	}{
		{"read back", string(golden), false, true, policies.Allow},
		{"read back, and said to be final", string(golden), true, false, policies.Allow},
		{"without capture", strings.ReplaceAll(string(golden), "name: istio-init", "name: other"), false, true, policies.Deny},
		{"never injected", plain + "]}", false, false, policies.Allow},
		{"a proxy of the author's", plain + ", {name: istio-proxy, image: example.com/evil}]}", false, false, policies.Deny},
		{"a status of the author's", strings.Replace(plain, "{name: web,", "{annotations: {sidecar.istio.io/status: '{}'}, name: web,", 1) + ", {name: istio-proxy, image: auto}]}", false, false, policies.Allow},
	} {
		t.Run(tt.name, func(t *testing.T) {
			decided, err := check.Decide(check.Requests{Objects: parse(t, tt.object), Cluster: parse(t, namespace), Final: tt.final})
			if err != nil {
				t.Fatal(err)
			}
			desired, err := check.Desired(parse(t, namespace+"\n---\n"+tt.object), tt.final, time.Time{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range []*check.Result{decided, desired} {
				last := r.Results[len(r.Results)-1]
				if last.Object.Kind != "Pod" || last.Decision != tt.want {
					t.Errorf("got %+v; want %s", last, tt.want)
				}
				if noted := strings.Contains(strings.Join(r.Notes, "\n"), note); noted != tt.noted {
					t.Errorf("got notes %q; said to be read back must be %t", r.Notes, tt.noted)
				}
			}
		})
	}
}

// TestCostGrowsWithManifests and not with their square: each is judged by the few
// namespaces that matter to it, and not by a copy of all. What is allocated stands for the
// time, which no test can go by.
func TestCostGrowsWithManifests(t *testing.T) {
	cost := func(namespaces int) float64 {
		var b strings.Builder
		for i := range namespaces {
			name := fmt.Sprintf("ns-%05d", i)
			b.WriteString("---" + strings.ReplaceAll(guardedProd+policy("default", "STRICT", ""), "prod", name))
		}
		docs := parse(t, b.String())
		c := ofCluster(t, b.String())
		var before, between, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := check.Desired(docs, false, time.Time{}, nil); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&between)
		if _, err := check.Apply(check.Change{Manifests: docs, Cluster: c}); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return float64(max(between.TotalAlloc-before.TotalAlloc, after.TotalAlloc-between.TotalAlloc)) / float64(namespaces)
	}
	few, many := cost(100), cost(2000)
	if many > 2*few {
		t.Errorf("a namespace with its policy costs %.0f B among 100, and %.0f B among 2000", few, many)
	}
}
