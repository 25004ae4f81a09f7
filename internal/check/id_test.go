package check_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
)

const injectedProd = `
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
---
`

const overridden = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: prod
spec:
  template:
    metadata:
      annotations:
        traffic.sidecar.istio.io/excludeInboundPorts: "8080"
    spec:
      containers:
      - name: web
        image: registry.example.com/web
      - name: istio-proxy
        image: auto
        command: [sh]
        env:
        - {name: ISTIO_META_CLUSTER_ID, value: other}
        - {name: ISTIO_META_DNS_CAPTURE, value: "true"}
        - {name: PILOT_CERT_PROVIDER, value: other}
`

func findings(t *testing.T, text string) []check.Finding {
	t.Helper()
	result, err := check.Desired(parse(t, injectedProd+text), false, time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return result.Results[len(result.Results)-1].Findings
}

// TestIDsStay: what moves about does not change what is found, and IDs are for good. A
// failure here breaks the baselines that people have.
func TestIDsStay(t *testing.T) {
	ids := func(list []check.Finding) []string {
		var all []string
		for _, f := range list {
			all = append(all, f.Code+" "+f.ID)
		}
		slices.Sort(all)
		return all
	}
	want := ids(findings(t, overridden))
	golden := []string{"MV206 d14af49dde3036b2", "MV215 3744d5d232006eeb"}
	for _, g := range golden {
		if !slices.Contains(want, g) {
			t.Errorf("got %q; must contain %q as ever", want, g)
		}
	}
	unique := slices.Compact(slices.Clone(want))
	if len(unique) != len(want) || len(want) < 3 {
		t.Errorf("got %q; must be as many different ones as there are findings", want)
	}
	container := "      - name: web\n        image: registry.example.com/web\n"
	for name, text := range map[string]string{
		"another line":          "# comment\n\n" + overridden,
		"another message":       strings.Replace(overridden, `"8080"`, `"8080,9090"`, 1),
		"another order":         strings.Replace(overridden, container, "", 1) + container,
		"another container":     strings.Replace(overridden, container, container+strings.ReplaceAll(container, "web", "log"), 1),
		"other fields besides":  strings.Replace(overridden, "  name: web\n  namespace", "  labels: {a: b}\n  name: web\n  namespace", 1),
		"a list around the two": "apiVersion: v1\nkind: List\nitems:\n- " + strings.TrimSpace(strings.ReplaceAll(overridden, "\n", "\n  ")) + "\n",
	} {
		if got := ids(findings(t, text)); !slices.Equal(got, want) {
			t.Errorf("%s: got %q; want %q", name, got, want)
		}
	}
	for name, text := range map[string]string{
		"another name":      strings.Replace(overridden, "  name: web\n", "  name: api\n", 1),
		"another kind":      strings.Replace(overridden, "kind: Deployment", "kind: StatefulSet", 1),
		"another container": strings.Replace(strings.Replace(overridden, "excludeInboundPorts", "excludeOutboundPorts", 1), "command: [sh]", "args: [sh]", 1),
	} {
		for _, id := range ids(findings(t, text)) {
			if slices.Contains(golden, id) {
				t.Errorf("%s: still has %s", name, id)
			}
		}
	}
}

// TestIDsOfMany tells findings apart that agree in all but their text, however they are
// ordered, and counts the same finding by two actions once.
func TestIDsOfMany(t *testing.T) {
	list := findings(t, overridden)
	env := map[string]string{}
	for _, f := range list {
		if strings.HasSuffix(f.Field, ".env") {
			env[f.Message] = f.ID
		}
	}
	ids := map[string]bool{}
	for _, id := range env {
		ids[id] = true
	}
	if len(env) < 2 || len(ids) != len(env) {
		t.Errorf("got %v; want IDs of their own", env)
	}
	const guards = `apiVersion: meshvakt.io/v1alpha1
kind: MeshGuard
metadata: {name: default}
spec:
  namespaceSelector: {matchLabels: {meshvakt.io/guarded: "true"}}
  meshMembership: {validationActions: [Deny, Audit]}
---
`
	both := findings(t, guards+overridden)
	byAction := map[string][]string{}
	for _, f := range both {
		byAction[string(f.Action)] = append(byAction[string(f.Action)], f.ID)
	}
	if len(byAction["Deny"]) == 0 || !slices.Equal(byAction["Deny"], byAction["Audit"]) {
		t.Errorf("got %v; want the same IDs by both actions", byAction)
	}
}

// TestLines: a finding is shown where its field stands, or what is nearest around it.
func TestLines(t *testing.T) {
	const before = 12 // lines of injectedProd
	lines := func(text string) map[string]int {
		got := map[string]int{}
		for _, f := range findings(t, text) {
			got[f.Code] = f.Line - before
		}
		return got
	}
	if got := lines(overridden); got["MV206"] != 10 || got["MV215"] != 17 {
		t.Errorf("got %v; want MV206 in line 10 and MV215 in line 17", got)
	}
	if got := lines("# comment\n\n" + overridden); got["MV206"] != 12 || got["MV215"] != 19 {
		t.Errorf("got %v; want MV206 in line 12 and MV215 in line 19", got)
	}
	anchored := strings.Replace(overridden, "command: [sh]", "command: *c", 1)
	anchored = strings.Replace(anchored, "  name: web\n", "  name: web\n  finalizers: &c [sh]\n", 1)
	if got := lines(anchored); got["MV215"] != 18 {
		t.Errorf("with an alias: got %v; want MV215 in line 18", got)
	}
	const off = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: prod}\nspec:\n  template:\n    metadata: {labels: {sidecar.istio.io/inject: \"false\"}}\n    spec: {containers: [{name: web, image: i}]}\n"
	if got := lines(off); got["MV202"] != 6 {
		t.Errorf("got %v; want MV202 in line 6", got)
	}
	// Of a list only the place of the whole is known.
	for _, f := range findings(t, "apiVersion: v1\nkind: List\nitems:\n- "+strings.TrimSpace(strings.ReplaceAll(overridden, "\n", "\n  "))+"\n") {
		if f.Line != 0 {
			t.Errorf("got line %d of a list", f.Line)
		}
	}
}
