package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/webhook"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documents are all Markdown files outside of directories with a dot.
func documents(t *testing.T) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2 {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			relative, err := filepath.Rel(root, path)
			list = append(list, filepath.ToSlash(relative))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// anchors are those that GitHub gives the headings of a document.
func anchors(text string) []string {
	var list []string
	drop := regexp.MustCompile(`[^a-z0-9 _-]`)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		list = append(list, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return list
}

func TestLinksLeadSomewhere(t *testing.T) {
	links := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, document := range documents(t) {
		for _, m := range links.FindAllStringSubmatch(read(t, document), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := document
			if path != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(document), path))
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: link to %s leads nowhere", document, m[1])
			} else if anchor != "" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s: %s has no heading for #%s", document, target, anchor)
			}
		}
	}
}

// The page of a policy has a heading with the name of every reason, and its code
// and title below.
func TestPagesOfPolicies(t *testing.T) {
	for _, p := range policies.All() {
		page := read(t, "docs/policies/"+p.ID+".md")
		for _, r := range p.Reasons {
			_, section, found := strings.Cut(page, "\n### "+r.Name+"\n")
			section, _, _ = strings.Cut(section, "\n#")
			text := strings.Join(strings.Fields(section), " ")
			if !found || !strings.HasPrefix(text, "Code "+r.Code+". "+r.Title) {
				t.Errorf("docs/policies/%s.md: no heading %q followed by %q", p.ID, r.Name, "Code "+r.Code+". "+r.Title)
			}
		}
		for _, c := range p.Citations {
			if !strings.Contains(page, c) {
				t.Errorf("docs/policies/%s.md: does not cite %s", p.ID, c)
			}
		}
		if !strings.Contains(page, "\n"+p.Title+".\n") {
			t.Errorf("docs/policies/%s.md: does not say %q", p.ID, p.Title)
		}
	}
}

// Metrics that documents and alerts name exist, and the runbook knows all of them
// and all stages.
func TestMetrics(t *testing.T) {
	name := regexp.MustCompile(`meshvakt_[a-z_]+`)
	sources, err := filepath.Glob(filepath.Join(root, "internal/telemetry/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	sources = append(sources, filepath.Join(root, "internal/evidence/seal/metrics.go"))
	runbook := read(t, "docs/operations.md")
	var exist []string
	for _, s := range sources {
		if strings.HasSuffix(s, "_test.go") {
			continue
		}
		text, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range name.FindAllString(string(text), -1) {
			exist = append(exist, n)
			if !strings.Contains(runbook, "`"+n+"`") {
				t.Errorf("docs/operations.md: does not know %s", n)
			}
		}
	}
	for _, path := range append(documents(t), "charts/meshvakt/templates/prometheusrule.yaml") {
		for _, n := range name.FindAllString(read(t, path), -1) {
			if n = strings.TrimSuffix(n, "_bucket"); !slices.Contains(exist, n) {
				t.Errorf("%s: there is no metric %s", path, n)
			}
		}
	}
	for _, stage := range webhook.Stages() {
		if !strings.Contains(runbook, "`"+stage+"`") {
			t.Errorf("docs/operations.md: does not know the stage %s", stage)
		}
	}
}

func TestReadmeIsShort(t *testing.T) {
	const most = 250
	if lines := strings.Count(read(t, "README.md"), "\n"); lines > most {
		t.Errorf("README.md: %d lines; must be at most %d", lines, most)
	}
}
