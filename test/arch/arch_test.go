// Package arch holds the rules about the tree itself: who may import whom, how
// long files and functions may be, what must not be in them. They run with all
// other tests, so that a breach is red before anybody reviews it.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/meshvakt/meshvakt/"

// source is one Go file of the root module's packages or of a test module.
type source struct {
	path string // slash-separated, relative to the root
	text string
	file *ast.File
	set  *token.FileSet
}

func (s *source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

func (s *source) generated() bool { return ast.IsGenerated(s.file) }

func sources(t *testing.T) []*source {
	t.Helper()
	var list []*source
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel("../..", path)
		if err != nil {
			return err
		}
		list = append(list, &source{filepath.ToSlash(relative), string(text), file, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 50 {
		t.Fatalf("found only %d Go files; the walk looks in the wrong place", len(list))
	}
	return list
}

// mayImport lists, for each part of the root module, the parts it may import. A
// part that is not listed may import nothing of ours.
func mayImport() map[string][]string {
	return map[string][]string{
		"api/v1alpha1":        {},
		"internal/mesh":       {},
		"internal/nodes":      {"api/v1alpha1"},
		"internal/probe":      {},
		"internal/publish":    {"api/v1alpha1", "internal/probe"},
		"internal/objects":    {"api/v1alpha1", "internal/mesh", "policies/facts"},
		"policies/facts":      {"api/v1alpha1", "internal/mesh", "internal/nodes"},
		"policies":            {"api/v1alpha1", "internal/mesh", "internal/nodes", "policies/facts"},
		"policies/static":     {},
		"policies/celpack":    {"api/v1alpha1", "policies"},
		"policies/policytest": {"api/v1alpha1", "internal/check", "internal/mesh", "internal/nodes", "internal/objects", "policies", "policies/facts"},
		"internal/check":      {"api/v1alpha1", "internal/mesh", "internal/nodes", "internal/objects", "policies", "policies/facts"},
		"internal/snapshot":   {"api/v1alpha1", "internal/check", "internal/mesh", "internal/objects", "policies", "policies/facts"},
		"internal/cluster":    {"api/v1alpha1", "internal/mesh", "internal/nodes", "internal/objects", "policies/facts"},
		"internal/preflight":  {"api/v1alpha1", "internal/check", "internal/mesh", "internal/nodes", "policies", "policies/facts"},
		"internal/survey":     {"api/v1alpha1", "internal/check", "internal/mesh", "internal/objects", "internal/preflight"},
		"internal/scan":       {"api/v1alpha1", "internal/mesh", "policies", "policies/facts"},
		"internal/telemetry":  {"api/v1alpha1", "internal/scan", "policies"},
		"internal/keeper":     {"api/v1alpha1"},
		"internal/controller": {"api/v1alpha1", "internal/cluster", "internal/keeper", "internal/nodes", "internal/objects", "internal/scan", "policies", "policies/celpack", "policies/facts", "webhook/servingcert"},
		"webhook":             {"api/v1alpha1", "internal/mesh", "internal/objects", "policies", "policies/facts"},
		"webhook/server":      {},
		"webhook/servingcert": {},

		"internal/evidence/record":    {},
		"internal/evidence/canonical": {"api/v1alpha1", "internal/mesh", "internal/objects", "policies/facts"},
		"internal/evidence/spool":     {},
		"internal/evidence/keyring":   {"internal/evidence/record", "internal/evidence/volume"},
		"internal/evidence/volume":    {},
		"internal/evidence/journal":   {"api/v1alpha1", "internal/evidence/canonical", "internal/evidence/record", "internal/evidence/spool", "internal/evidence/volume", "policies", "policies/facts"},
		"internal/evidence/observe":   {"api/v1alpha1", "internal/cluster", "internal/evidence/canonical", "internal/evidence/record", "internal/mesh", "internal/scan", "policies", "policies/facts"},
		"internal/evidence/seal":      {"internal/evidence/record", "internal/evidence/spool", "internal/evidence/store", "internal/evidence/volume"},
		"internal/evidence/store":     {},
		"internal/evidence/supervise": {},
		"internal/evidence/verify":    {"internal/evidence/record", "internal/evidence/volume"},
		"internal/evidence/report":    {"internal/evidence/record", "internal/evidence/verify"},
	}
}

func TestImportsPointDownwards(t *testing.T) {
	allowed := mayImport()
	for _, s := range sources(t) {
		dir := filepath.ToSlash(filepath.Dir(s.path))
		if s.test() || strings.HasPrefix(dir, "cmd/") || strings.HasPrefix(dir, "test/") {
			continue
		}
		rules, known := allowed[dir]
		if !known {
			t.Errorf("%s: package %s is not in the import rules; say what it may import", s.path, dir)
			continue
		}
		for _, i := range s.file.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			if ours, is := strings.CutPrefix(path, module); is && !slices.Contains(rules, ours) {
				t.Errorf("%s: imports %s; must import only %q of ours", s.path, ours, rules)
			}
		}
	}
}

// Tessera ends its process where a disk fails, which the webhook must outlive.
func TestTesseraStaysInTheSealer(t *testing.T) {
	importers := map[string][]string{}
	sealer := []string{"cmd/meshvakt/evidence_mirror.go", "cmd/meshvakt/evidence_seal.go"}
	for _, s := range sources(t) {
		for _, i := range s.file.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			if strings.HasPrefix(path, "github.com/transparency-dev/tessera") && filepath.ToSlash(filepath.Dir(s.path)) != "internal/evidence/seal" {
				t.Errorf("%s: imports %s; only internal/evidence/seal must", s.path, path)
			}
			if strings.HasPrefix(path, "github.com/minio/") && filepath.ToSlash(filepath.Dir(s.path)) != "internal/evidence/store" && !strings.HasPrefix(s.path, "test/") {
				t.Errorf("%s: imports %s; only internal/evidence/store must", s.path, path)
			}
			if (path == module+"internal/evidence/seal" || path == module+"internal/evidence/store") && !s.test() {
				importers[path] = append(importers[path], s.path)
			}
		}
	}
	if got := importers[module+"internal/evidence/seal"]; !slices.Equal(got, sealer) {
		t.Errorf("internal/evidence/seal is imported by %q; must be by %q alone", got, sealer)
	}
	if got := importers[module+"internal/evidence/store"]; !slices.Equal(got, []string{sealer[0], "internal/evidence/seal/mirror.go"}) {
		t.Errorf("internal/evidence/store is imported by %q; must be by the sealer alone", got)
	}
}

// Who verifies must not have to trust the code that writes, by whatever way it comes in.
func TestTheVerifierHasNothingOfTheSealer(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../../internal/evidence/verify").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(dep, "github.com/transparency-dev/") || dep == module+"internal/evidence/seal" || dep == module+"internal/evidence/spool" {
			t.Errorf("internal/evidence/verify comes to import %s; must do without", dep)
		}
	}
}

func TestPoliciesArePure(t *testing.T) {
	forbidden := []string{"net/http", "os", "log", "log/slog", "math/rand", "math/rand/v2", "k8s.io/client-go", "sigs.k8s.io/controller-runtime", "github.com/prometheus"}
	clock := regexp.MustCompile(`\btime\.(Now|Since|Until|After|Sleep|Tick|NewTimer|NewTicker)\b`)
	for _, s := range sources(t) {
		dir := filepath.ToSlash(filepath.Dir(s.path))
		if s.test() || !slices.Contains([]string{"policies", "policies/celpack", "policies/facts", "internal/mesh", "internal/evidence/record"}, dir) {
			continue
		}
		for _, i := range s.file.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			for _, f := range forbidden {
				if path == f || strings.HasPrefix(path, f+"/") {
					t.Errorf("%s: imports %s; judgements must be pure", s.path, path)
				}
			}
		}
		if m := clock.FindString(s.text); m != "" {
			t.Errorf("%s: calls %s; the clock is what is passed in", s.path, m)
		}
	}
}

func TestSizes(t *testing.T) {
	const maxFile, maxFunction = 500, 90
	for _, s := range sources(t) {
		if s.generated() {
			continue
		}
		if lines := strings.Count(s.text, "\n"); lines > maxFile && !s.test() {
			t.Errorf("%s: %d lines; must be at most %d, so split it", s.path, lines, maxFile)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || s.test() {
				continue
			}
			if lines := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line + 1; lines > maxFunction {
				t.Errorf("%s: function %s has %d lines; must be at most %d", s.path, f.Name.Name, lines, maxFunction)
			}
		}
	}
}

func TestNoHiddenState(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || s.generated() {
			continue
		}
		if slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, s.file.Name.Name) {
			t.Errorf("%s: package %s says nothing about what it holds", s.path, s.file.Name.Name)
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.Name == "init" && d.Recv == nil {
					t.Errorf("%s: has an init function; what happens must be written where it happens", s.path)
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR && !strings.HasPrefix(s.path, "test/") {
					checkVariables(t, s, d)
				}
			}
		}
	}
}

// checkVariables lets sentinel errors, compile-time assertions and embedded files
// pass, which nobody assigns to.
func checkVariables(t *testing.T, s *source, d *ast.GenDecl) {
	t.Helper()
	for _, spec := range d.Specs {
		v := spec.(*ast.ValueSpec)
		at := s.set.Position(d.Pos()).Offset
		embedded := d.Doc != nil && strings.Contains(s.text[max(0, at-200):at], "//go:embed")
		for _, name := range v.Names {
			if name.Name != "_" && !strings.HasPrefix(name.Name, "Err") && !strings.HasPrefix(name.Name, "err") && !embedded {
				t.Errorf("%s: package variable %s; must be a constant, a function or a field", s.path, name.Name)
			}
		}
	}
}

func TestNoLeftovers(t *testing.T) {
	// Put together so that this file does not find itself.
	unfinished := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)
	machine := regexp.MustCompile(`(/wo` + `rk/|/ro` + `ot/|/tmp/ba` + `sh_|\.\./sha` + `red)`)
	files, err := exec.Command("git", "-C", "../..", "ls-files").Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	for _, path := range strings.Fields(string(files)) {
		if strings.HasSuffix(path, ".sum") || strings.HasPrefix(path, "test/arch/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../..", path))
		if err != nil {
			continue // deleted in the work tree
		}
		if m := machine.Find(text); m != nil {
			t.Errorf("%s: names a place on somebody's machine: %s", path, m)
		}
		if m := unfinished.Find(text); m != nil && strings.HasSuffix(path, ".go") {
			t.Errorf("%s: %s; finish it or open an issue", path, m)
		}
	}
}

func TestEveryDependencyHasAReason(t *testing.T) {
	for _, path := range []string{"go.mod", "test/controlplane/go.mod", "test/e2e/go.mod", "test/conformance/go.mod", "test/conformance/scheduler/go.mod", "test/formats/go.mod"} {
		text, err := os.ReadFile(filepath.Join("../..", path))
		if err != nil {
			t.Error(err)
			continue
		}
		direct := regexp.MustCompile(`(?m)^(?:require )?\s*([a-z0-9./-]+\.[a-z]+/\S+) v\S+(.*)$`)
		for _, m := range direct.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[2], "// indirect") || strings.HasPrefix(m[1], strings.TrimSuffix(module, "/")) || strings.Contains(m[0], "=>") {
				continue
			}
			if !strings.Contains(m[2], "//") {
				t.Errorf("%s: %s has no reason; write one behind it", path, m[1])
			}
		}
	}
}

func TestHeavyModulesStayOutside(t *testing.T) {
	for _, path := range []string{"go.mod", "test/controlplane/go.mod", "test/e2e/go.mod"} {
		text, err := os.ReadFile(filepath.Join("../..", path))
		if err != nil {
			t.Fatal(err)
		}
		for _, heavy := range []string{"k8s.io/kubernetes ", "istio.io/istio ", "helm.sh/helm"} {
			if regexp.MustCompile(`(?m)^\s*(require )?` + regexp.QuoteMeta(heavy) + `v`).Match(text) {
				t.Errorf("%s: requires %s", path, heavy)
			}
		}
	}
}
