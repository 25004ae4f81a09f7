package formats

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/joshdk/go-junit"
	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"
	"github.com/xeipuuv/gojsonschema"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
)

// manifests come to every kind of answer: allowed, warned of, denied, excepted, with
// texts that mean something to XML and JSON.
const manifests = `
apiVersion: meshvakt.io/v1alpha1
kind: MeshGuard
metadata: {name: default}
spec:
  namespaceSelector: {matchLabels: {meshvakt.io/guarded: "true"}}
  strictMTLS: {}
  meshMembership: {}
  exceptions: {approval: None}
---
apiVersion: v1
kind: Namespace
metadata:
  name: prod
  labels: {meshvakt.io/guarded: "true", istio-injection: enabled}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: older, namespace: prod}
spec: {}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: younger, namespace: prod}
spec: {mtls: {mode: STRICT}}
---
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: legacy, namespace: prod}
spec:
  policies: [{name: mesh-membership}]
  objectSelector: {matchLabels: {app: legacy}}
  reason: r
  reference: OPS-1
  expiresAt: "2026-06-20T00:00:00Z"
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: good, namespace: prod}
spec:
  template:
    spec: {containers: [{name: web, image: registry.example.com/web}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: bad, namespace: prod}
spec:
  template:
    metadata:
      annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080"}
    spec:
      containers:
      - {name: web, image: registry.example.com/web}
      - {name: istio-proxy, image: auto, command: ["<a>&\"'", "\x01\n]]>"]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: legacy, namespace: prod}
spec:
  template:
    metadata:
      labels: {app: legacy}
      annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080"}
    spec: {containers: [{name: web, image: registry.example.com/web}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: known, namespace: prod}
spec:
  template:
    metadata:
      annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080"}
    spec: {containers: [{name: web, image: registry.example.com/web}]}
`

// judged is the result for the manifests, with the findings of one object known.
func judged(t *testing.T) *check.Result {
	t.Helper()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	var docs []check.Document
	// Two files, one of them in a place whose name a URI has to escape.
	at := strings.LastIndex(manifests, "---")
	for _, file := range []struct{ name, text string }{{"all.yaml", manifests[:at]}, {"charts/my app/100%.yaml", manifests[at:]}} {
		found, err := check.Parse(file.name, []byte(file.text))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, found...)
	}
	result, err := check.Desired(docs, false, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	baseline := result.Baseline(nil)
	baseline.Findings = slices.DeleteFunc(baseline.Findings, func(f check.KnownFinding) bool { return f.Object != "Deployment prod/known" })
	result.Acknowledge(baseline, now)
	if s := result.Summary; s.Denied != 1 || s.Known != 1 || s.Warned < 2 || s.Allowed < 2 {
		t.Fatalf("the manifests do not come to every kind of answer: %+v", s)
	}
	return result
}

// schema is OASIS' schema of SARIF 2.1.0, which the library keeps as a constant.
func schema(t *testing.T) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/owenrumney/go-sarif/v3").Output()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(strings.TrimSpace(string(dir)), "pkg", "report", "v210", "sarif", "schema.go")
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "schema" {
			text, err = strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	if err != nil || !strings.Contains(text, "sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json") {
		t.Fatalf("%s holds no schema of SARIF 2.1.0: %v", path, err)
	}
	return text
}

func valid(t *testing.T, document []byte) []string {
	t.Helper()
	r, err := gojsonschema.Validate(gojsonschema.NewStringLoader(schema(t)), gojsonschema.NewBytesLoader(document))
	if err != nil {
		t.Fatal(err)
	}
	var errs []string
	for _, e := range r.Errors() {
		errs = append(errs, e.String())
	}
	return errs
}

// TestSARIFIsValid by the schema, with findings and without any.
func TestSARIFIsValid(t *testing.T) {
	for name, r := range map[string]*check.Result{"findings": judged(t), "nothing": {}} {
		var b bytes.Buffer
		if err := r.WriteSARIF(&b, "v0.1.0"); err != nil {
			t.Fatal(err)
		}
		if errs := valid(t, b.Bytes()); len(errs) > 0 {
			t.Errorf("%s: not valid: %s", name, strings.Join(errs, "; "))
		}
		// That the schema is asked at all.
		broken := strings.Replace(b.String(), `"version": "2.1.0"`, `"version": "2.0.0"`, 1)
		if errs := valid(t, []byte(broken)); len(errs) == 0 {
			t.Errorf("%s: the schema lets another version pass", name)
		}
	}
}

// TestSARIFSaysWhatWasFound as another program reads it.
func TestSARIFSaysWhatWasFound(t *testing.T) {
	result := judged(t)
	var b bytes.Buffer
	if err := result.WriteSARIF(&b, ""); err != nil {
		t.Fatal(err)
	}
	report, err := sarif.FromBytes(b.Bytes(), sarif.WithStrictValidation())
	if err != nil {
		t.Fatal(err)
	}
	run := report.Runs[0]
	reasons := 0
	for _, p := range policies.All() {
		reasons += len(p.Reasons)
	}
	if len(run.Tool.Driver.Rules) != reasons {
		t.Errorf("%d rules; must be %d, one for each reason", len(run.Tool.Driver.Rules), reasons)
	}
	type seen struct {
		level, uri string
		suppressed bool
	}
	found := map[string]seen{}
	for _, r := range run.Results {
		rule := run.Tool.Driver.Rules[r.RuleIndex]
		if *rule.ID != *r.RuleID || !strings.HasSuffix(*rule.HelpURI, "#"+strings.ToLower(*rule.Name)) {
			t.Errorf("result of %s points at rule %s, %s", *r.RuleID, *rule.ID, *rule.HelpURI)
		}
		physical := r.Locations[0].PhysicalLocation
		if physical.Region == nil || *physical.Region.StartLine < 1 {
			t.Errorf("%s has no line", *r.Message.Text)
		}
		if len(r.PartialFingerprints["meshvaktFinding/v1"]) != 16 {
			t.Errorf("%s has the fingerprints %v", *r.Message.Text, r.PartialFingerprints)
		}
		found[*r.Locations[0].LogicalLocations[0].FullyQualifiedName+" "+*r.RuleID] = seen{string(r.Level), *physical.ArtifactLocation.URI, len(r.Suppressions) > 0}
	}
	for what, want := range map[string]seen{
		"Deployment prod/bad MV206":             {"error", "all.yaml", false},
		"Deployment prod/bad MV215":             {"error", "all.yaml", false},
		"Deployment prod/legacy MV206":          {"note", "all.yaml", true},
		"Deployment prod/known MV206":           {"error", "charts/my%20app/100%25.yaml", true},
		"PeerAuthentication prod/younger MV107": {"warning", "all.yaml", false},
	} {
		if found[what] != want {
			t.Errorf("%s: got %+v; want %+v", what, found[what], want)
		}
	}
	var raw any
	if err := json.Unmarshal(b.Bytes(), &raw); err != nil {
		t.Error(err)
	}
}

// TestJUnitIsRead by a program that reads it: the counts, and what failed.
func TestJUnitIsRead(t *testing.T) {
	result := judged(t)
	var b bytes.Buffer
	if err := result.WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	suites, err := junit.Ingest(b.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	var total junit.Totals
	status := map[string]junit.Status{}
	for _, s := range suites {
		s.Aggregate()
		total.Tests += s.Totals.Tests
		total.Failed += s.Totals.Failed
		total.Skipped += s.Totals.Skipped
		total.Passed += s.Totals.Passed
		for _, c := range s.Tests {
			status[s.Name+" "+c.Name] = c.Status
			if c.Status == junit.StatusFailed && (!strings.Contains(c.Message, "MV206") || !strings.Contains(c.Error.Error(), "MV215")) {
				t.Errorf("%s failed for %q, %v; must name all findings", c.Name, c.Message, c.Error)
			}
		}
	}
	s := result.Summary
	if total.Tests != len(result.Results) || total.Failed != s.Denied || total.Skipped != s.Known || total.Passed != s.Allowed+s.Warned {
		t.Errorf("read %+v; the result has %+v", total, s)
	}
	for name, want := range map[string]junit.Status{
		"all.yaml Deployment prod/good":                 junit.StatusPassed,
		"all.yaml Deployment prod/bad":                  junit.StatusFailed,
		"all.yaml Deployment prod/legacy":               junit.StatusPassed,
		"charts/my app/100%.yaml Deployment prod/known": junit.StatusSkipped,
	} {
		if status[name] != want {
			t.Errorf("%s: got %s; want %s", name, status[name], want)
		}
	}
}
