package preflight

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The page knows every check and no other, and the role as it is printed.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/preflight.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	var documented, made []string
	checks, _, _ := strings.Cut(page, "\n## The forecast\n")
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(checks, -1) {
		documented = append(documented, m[1])
	}
	for _, c := range New(ready(t), emptyForecast(), nil).Checks {
		made = append(made, c.ID)
	}
	if !slices.Equal(documented, made) {
		t.Errorf("documented %q; made %q", documented, made)
	}
	var role bytes.Buffer
	if err := WriteRoles(&role, Names{Namespace: "meshvakt-system", IstioNamespace: "istio-system"}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page, "```yaml\n"+role.String()+"```\n") {
		t.Errorf("the page shows another role than\n%s", role.String())
	}
}
