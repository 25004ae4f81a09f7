package docs

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

var update = flag.Bool("update", false, "rewrite the pages of cases")

// TestCasesPages holds, for each policy, the page that lists its cases against the
// corpus: what is tried, and what is answered.
func TestCasesPages(t *testing.T) {
	cases := policytest.Load(t, filepath.Join(root, "policies/testdata"))
	for _, p := range policies.All() {
		path := "docs/policies/" + p.ID + "-cases.md"
		want := casesPage(t, &p, cases)
		if *update {
			if err := os.WriteFile(filepath.Join(root, path), []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if read(t, path) != want {
			t.Errorf("%s is not up to date; run go test ./test/docs -update", path)
		}
	}
}

func casesPage(t *testing.T, p *policies.Policy, cases []policytest.Case) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "# %s: cases\n\nEverything that is tried in the tests, with the answer, by reason. Each case leads to its files: the\n"+
		"object, the state of the cluster, and the decision with its full text. This page is generated from\nthem by `go test ./test/docs -update`.\n", p.ID)
	section := func(title string, of func(*policytest.Case) bool) {
		var rows []string
		for i := range cases {
			if c := &cases[i]; c.Policy == p.ID && of(c) {
				rows = append(rows, caseRow(t, p, c))
			}
		}
		if len(rows) > 0 {
			fmt.Fprintf(&b, "\n## %s\n\n| What is tried | Request | Answer |\n|---|---|---|\n%s", title, strings.Join(rows, ""))
		}
	}
	for _, r := range p.Reasons {
		section(fmt.Sprintf("%s: %s", r.Code, r.Name), func(c *policytest.Case) bool { return firstReason(p, c) == r.Name })
	}
	section("Nothing is said", func(c *policytest.Case) bool { return firstReason(p, c) == "" })
	return b.String()
}

// firstReason is the reason of the hardest finding.
func firstReason(p *policies.Policy, c *policytest.Case) string {
	for _, f := range c.Want.Findings {
		if f.Policy == p.ID {
			return f.Reason
		}
	}
	return ""
}

func caseRow(t *testing.T, p *policies.Policy, c *policytest.Case) string {
	t.Helper()
	var codes []string
	for _, r := range p.Reasons {
		if slices.ContainsFunc(c.Want.Findings, func(f policytest.WantFinding) bool { return f.Reason == r.Name }) {
			codes = append(codes, r.Code)
		}
	}
	kind := c.ObjectDocument(t).Kind.Kind
	if c.Want.Subresource != "" {
		kind += "/" + c.Want.Subresource
	}
	answer := strings.TrimSpace(string(c.Want.Decision) + " " + strings.Join(codes, ", "))
	if c.Want.Decision == policytest.NotApplicable {
		answer = "not judged"
	}
	return fmt.Sprintf("| [%s](../../policies/testdata/%s/%s) | %s %s | %s |\n", strings.ReplaceAll(c.Intent(), "|", "\\|"), c.Policy, c.Name, c.Want.Operation, kind, answer)
}
