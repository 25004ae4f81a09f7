package arch

import (
	"go/build/constraint"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// simulatedTag makes a build whose time a test sets. Who could bring it into a cluster could date evidence as they like.
const simulatedTag = "simulatedtime"

// TestNothingReleasedHasSimulatedTime: the tag stands where it must and nowhere else, so that nobody builds with it by
// accident, and one file alone is what it brings.
func TestNothingReleasedHasSimulatedTime(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "git", "-C", "../..", "grep", "-l", "-e", simulatedTag).Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	var bring []string
	for _, name := range strings.Fields(string(out)) {
		switch {
		case strings.HasSuffix(name, ".md"), strings.HasPrefix(name, "test/"):
		case strings.HasPrefix(name, "cmd/meshvakt/") && strings.HasSuffix(name, ".go"):
			if constrained(t, name) {
				bring = append(bring, name)
			}
		default:
			t.Errorf("%s: names the tag %s; only tests must build with it", name, simulatedTag)
		}
	}
	if want := []string{"cmd/meshvakt/clock_simulated.go"}; !slices.Equal(bring, want) {
		t.Errorf("the tag %s brings %q; must be %q", simulatedTag, bring, want)
	}
}

// constrained reports whether a file is there with the tag alone.
func constrained(t *testing.T, name string) bool {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	expr, err := constraint.Parse(line)
	if err != nil {
		t.Errorf("%s: begins with %q; must begin with its constraint: %v", name, line, err)
		return true
	}
	return expr.Eval(func(tag string) bool { return tag == simulatedTag })
}
