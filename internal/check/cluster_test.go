package check_test

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
)

const liveGuard = `
apiVersion: meshvakt.io/v1alpha1
kind: MeshGuard
metadata: {name: default}
spec:
  namespaceSelector: {matchLabels: {meshvakt.io/guarded: "true"}}
  strictMTLS: {validationActions: [Deny]}
  meshMembership: {validationActions: [Deny]}
  exceptions: {maxDuration: 720h, approval: TwoPerson}
`

const liveInjection = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio-sidecar-injector, namespace: istio-system}
data: {config: "policy: enabled", values: "{}"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: istio-sidecar-injector}
webhooks:
- name: namespace.sidecar-injector.istio.io
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  namespaceSelector: {matchLabels: {istio-injection: enabled}}
`

const liveNamespaces = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: prod, labels: {istio-injection: enabled, meshvakt.io/guarded: "true"}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: prod, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {mtls: {mode: STRICT}}
`

func ofCluster(t *testing.T, parts ...string) check.Cluster {
	t.Helper()
	docs := parse(t, strings.Join(parts, "\n---\n"))
	for i := range docs {
		docs[i].Stored = true
	}
	return check.Cluster{Documents: docs}
}

func liveCluster(t *testing.T, more ...string) check.Cluster {
	t.Helper()
	return ofCluster(t, append([]string{liveGuard, liveInjection, liveNamespaces}, more...)...)
}

func clock() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

func apply(t *testing.T, c check.Cluster, manifests string) *check.Result {
	t.Helper()
	result, err := check.Apply(check.Change{Manifests: parse(t, manifests), Cluster: c, Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// answers are the decisions with the codes of the findings, in the order of the manifests.
func answers(r *check.Result) []string {
	list := []string{}
	for _, o := range r.Results {
		text := string(o.Decision)
		for _, f := range o.Findings {
			text += " " + f.Code
		}
		list = append(list, text)
	}
	return list
}

func workload(name, annotations string) string {
	return "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: " + name + ", namespace: prod}\nspec: {template: {metadata: {labels: {app: " + name + "}, annotations: {" + annotations +
		"}}, spec: {containers: [{name: web, image: registry.example.com/web}]}}}\n"
}

const excludes = `traffic.sidecar.istio.io/excludeInboundPorts: "8080"`

// TestApplyJudgesManifestsAlone, as updates of what is there or as being created, each
// where all others are there already.
func TestApplyJudgesManifestsAlone(t *testing.T) {
	bad := workload("bad", excludes)
	for _, tt := range []struct {
		name, more, manifests string
		want                  []string
	}{
		{"what is there is not judged", bad, workload("good", ""), []string{"Allow"}},
		{"what is new is judged as such", "", bad, []string{"Deny MV206"}},
		{"what was bad before is told", bad, bad, []string{"Warn MV230"}},
		{"what becomes worse is denied", bad, workload("bad", `traffic.sidecar.istio.io/excludeInboundPorts: "8080,9090"`), []string{"Deny MV206"}},
		{"a policy that is weakened", "", policy("default", "PERMISSIVE", ""), []string{"Deny MV103"}},
		{"a policy keeps its age", "", policy("default", "STRICT", "") + policy("other", "PERMISSIVE", ""), []string{"Allow", "Allow"}},
		{"a new policy is the youngest, whatever it says", "", policy("other", "PERMISSIVE", "2020-01-01T00:00:00Z"), []string{"Allow"}},
		{"a namespace with its policy", "", strings.ReplaceAll(guardedProd+policy("default", "STRICT", ""), "prod", "new"), []string{"Warn MV203", "Allow"}},
		{"a namespace without one", "", strings.ReplaceAll(guardedProd, "prod", "new"), []string{"Deny MV101 MV203"}},
		{"labels that a manifest leaves out", "", "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, labels: {team: a}}", []string{"Allow"}},
		{"a label that a manifest changes", "", "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, labels: {meshvakt.io/guarded: \"false\"}}", []string{"Deny MV105"}},
		{"a guard among the manifests", "", strings.ReplaceAll(liveGuard, "name: default", "name: all") + "\n---\n" + strings.Replace(bad, "---", "", 1), []string{"Deny MV206"}},
		{"a guard that demands less", "", strings.Replace(liveGuard, "  strictMTLS: {validationActions: [Deny]}\n", "", 1), []string{"Deny MV512 MV511"}},
		{"a guard that demands less lets the rest pass", "", strings.Replace(liveGuard, "  meshMembership: {validationActions: [Deny]}\n", "", 1) + bad, []string{"Deny MV512 MV511", "Allow"}},
		{"what no policy reads", "", "apiVersion: v1\nkind: Service\nmetadata: {name: web}", []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			more := []string{}
			if tt.more != "" {
				more = append(more, tt.more)
			}
			result := apply(t, liveCluster(t, more...), tt.manifests)
			if got := answers(result); !slices.Equal(got, tt.want) {
				t.Errorf("got %q; want %q: %+v", got, tt.want, result.Results)
			}
		})
	}
}

// TestNothingIsTakenForGranted in a cluster: no guard guards nothing, and without an
// injector nothing is injected.
func TestNothingIsTakenForGranted(t *testing.T) {
	bad := workload("bad", excludes)
	if got := answers(apply(t, ofCluster(t, liveInjection, liveNamespaces), bad)); !slices.Equal(got, []string{"Allow"}) {
		t.Errorf("without a guard: %q", got)
	}
	result := apply(t, ofCluster(t, liveGuard, liveNamespaces), workload("good", ""))
	if got := answers(result); len(got) != 1 || !strings.HasPrefix(got[0], "Deny") {
		t.Errorf("without an injector: %q", got)
	}
	if len(result.Notes) != 0 {
		t.Errorf("notes %q of settings that are known", result.Notes)
	}
}

// TestUnknownNodes: a cluster without nodes is one on which nothing can run; one whose
// nodes may not be read is not known.
func TestUnknownNodes(t *testing.T) {
	guard := strings.Replace(liveGuard, "  meshMembership: {validationActions: [Deny]}\n", "  nodePools: {validationActions: [Deny]}\n", 1)
	pinned := strings.Replace(workload("pinned", ""), "spec: {containers", "spec: {nodeName: gone, containers", 1)
	c := ofCluster(t, guard, liveInjection, liveNamespaces)
	if got := answers(apply(t, c, pinned)); !slices.Equal(got, []string{"Deny MV404"}) {
		t.Errorf("without nodes: %q", got)
	}
	c.Unread = []string{"nodes"}
	result := apply(t, c, pinned)
	if got := answers(result); !slices.Equal(got, []string{"Allow"}) || len(result.Notes) != 1 {
		t.Errorf("without the right to read nodes: %q, notes %q", got, result.Notes)
	}
}

const exception = `
---
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: legacy, namespace: prod CREATED}
spec:
  policies: [{name: mesh-membership}]
  objectSelector: {matchLabels: {app: bad}}
  reason: r
  reference: OPS-1
  expiresAt: "2026-06-20T00:00:00Z" SIGNED
`

func exceptionOf(created bool, signed string) string {
	text := strings.Replace(exception, " CREATED", "", 1)
	if created {
		text = strings.Replace(exception, " CREATED", `, creationTimestamp: "2026-05-25T00:00:00Z"`, 1)
	}
	return strings.Replace(text, " SIGNED", signed, 1)
}

// TestExceptionsOfACluster: those that are approved there let pass, also when their
// manifest is applied again, which does not repeat who approved; those that are new let
// pass nothing, whatever they say.
func TestExceptionsOfACluster(t *testing.T) {
	const approved = "\n  approved: true\n  requester: user-1\n  approver: user-2"
	bad := workload("bad", excludes)
	there := exceptionOf(true, approved)
	for _, tt := range []struct {
		name, state, manifests string
		want                   []string
	}{
		{"approved there", there, bad, []string{"Warn MV206"}},
		{"approved there, and applied again", there, exceptionOf(false, "") + bad, []string{"Allow", "Warn MV206"}},
		{"applied again with the names that stand there", there, exceptionOf(true, "\n  approved: true\n  requester: alice\n  approver: bob") + bad, []string{"Allow", "Warn MV206"}},
		{"not approved there", exceptionOf(true, "\n  requester: user-1"), bad, []string{"Deny MV206"}},
		{"new", "", exceptionOf(false, "") + bad, []string{"Allow", "Deny MV206"}},
		{"new, and approved by itself", "", exceptionOf(false, "\n  approved: true\n  requester: alice\n  approver: bob") + bad, []string{"Deny MV505 MV505", "Deny MV206"}},
		{"changed after its approval", there, strings.Replace(exceptionOf(false, ""), "app: bad", "app: other", 1), []string{"Deny MV507"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			more := []string{}
			if tt.state != "" {
				more = append(more, tt.state)
			}
			result := apply(t, liveCluster(t, more...), tt.manifests)
			if got := answers(result); !slices.Equal(got, tt.want) {
				t.Errorf("got %q; want %q: %+v", got, tt.want, result.Results)
			}
		})
	}
}

// TestBrokenObjectsOfACluster: what is there and cannot be read does not keep anything
// from being judged.
func TestBrokenObjectsOfACluster(t *testing.T) {
	broken := "apiVersion: meshvakt.io/v1alpha1\nkind: MeshGuard\nmetadata: {name: broken}\nspec: {namespaceSelector: {matchExpressions: [{key: a, operator: Odd}]}}"
	strange := "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strange, namespace: prod}\nspec: {selector: {matchLabels: {app: web}}, mtls: {mode: FUTURE}}"
	result := apply(t, liveCluster(t, broken, strange), workload("bad", excludes))
	if got := answers(result); !slices.Equal(got, []string{"Deny MV206"}) || len(result.Notes) != 1 || !strings.Contains(result.Notes[0], `MeshGuard "broken"`) {
		t.Errorf("got %q, notes %q", got, result.Notes)
	}
}

// TestApplyErrs where it cannot be told.
func TestApplyErrs(t *testing.T) {
	for name, manifests := range map[string]string{
		"a namespace that is nowhere": strings.ReplaceAll(workload("w", ""), "prod", "nowhere"),
		"a manifest twice":            workload("w", "") + workload("w", ""),
		"a mode that is none":         policy("default", "STRCT", ""),
	} {
		_, err := check.Apply(check.Change{Manifests: parse(t, manifests), Cluster: liveCluster(t), Now: clock()})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if missing := errors.Is(err, check.ErrMissingManifest); missing != (name == "a namespace that is nowhere") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestApplyLeavesTheStateAlone, and gives the same answers in any order of the manifests.
func TestApplyLeavesTheStateAlone(t *testing.T) {
	manifests := parse(t, policy("default", "PERMISSIVE", "")+workload("bad", excludes)+workload("good", ""))
	c := liveCluster(t)
	answer := func() map[string]policies.Outcome {
		result, err := check.Apply(check.Change{Manifests: manifests, Cluster: c, Now: clock()})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]policies.Outcome{}
		for _, o := range result.Results {
			got[o.Object.Kind+" "+o.Object.Name] = o.Decision
		}
		return got
	}
	first := answer()
	slices.Reverse(manifests)
	if second := answer(); !reflect.DeepEqual(first, second) || first["Deployment bad"] != policies.Deny {
		t.Errorf("got %v, then %v", first, second)
	}
}
