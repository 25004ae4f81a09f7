package mutation

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/meshvakt/meshvakt/policies/policytest"
)

// engine are the files of package policies that hold no rules; their own tests hold
// them.
func engine() []string {
	return []string{"evaluate.go", "mutate.go", "policies.go", "restore.go", "sidecar_cost.go", "standing.go"}
}

// TestEveryRuleIsHeldByACase demands a case for every mutant that equivalents.txt
// does not explain. With -v it lists which case holds what.
func TestEveryRuleIsHeldByACase(t *testing.T) {
	// The cases are read by another process; go test keeps a result until a file changes
	// that this one has read.
	policytest.Load(t, "../../policies/testdata")
	mutants, overlay := instrumented(t)
	killers := try(t, overlay, len(mutants))
	reasons := equivalents(t)
	killed := 0
	for i, m := range mutants {
		name, tried := killers[i+1]
		_, explained := reasons[m.key]
		delete(reasons, m.key)
		switch {
		case !tried:
			t.Errorf("%s was not tried", m.key)
		case name == "" && !explained:
			t.Errorf("no case notices this mutant, at line %d; add one, or remove what decides nothing\n%s", m.line, m.key)
		case name != "" && explained:
			t.Errorf("%s notices this mutant; take it out of equivalents.txt\n%s", name, m.key)
		case name != "":
			killed++
			t.Logf("%s\n\theld by %s", m.key, name)
		}
	}
	for key := range reasons {
		t.Errorf("equivalents.txt explains a mutant that is not there any more\n%s", key)
	}
	t.Logf("%d mutants, %d noticed by a case", len(mutants), killed)
}

// instrumented writes the policies with their mutation points into a directory, and
// returns the mutants with the file that lays it over the sources.
func instrumented(t *testing.T) (mutants []mutant, overlay string) {
	t.Helper()
	sources, err := filepath.Glob("../../policies/*.go")
	if err != nil {
		t.Fatal(err)
	}
	dir, i := t.TempDir(), instrumenter{keys: map[string]int{}}
	replace := map[string]string{}
	for _, path := range sources {
		name := filepath.Base(path)
		if strings.HasSuffix(name, "_test.go") || slices.Contains(engine(), name) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out, err := i.instrument(name, string(text))
		if err != nil {
			t.Fatal(err)
		}
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		replace[absolute] = filepath.Join(dir, name)
		if err := os.WriteFile(replace[absolute], []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(i.mutants) < 1000 {
		t.Fatalf("found only %d mutants; the policies are not where they were", len(i.mutants))
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return i.mutants, overlay
}

// try builds the corpus reader on the instrumented policies, and returns the case
// that notices each mutant.
func try(t *testing.T, overlay string, mutants int) map[int]string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "corpus.test")
	// Cases are found by the directory that the binary runs in.
	run := func(name string, args ...string) error {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = "corpus"
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := run("go", "test", "-c", "-overlay", overlay, "-o", binary, "."); err != nil {
		t.Fatal(err)
	}
	shards := runtime.GOMAXPROCS(0)
	errs := make([]error, shards)
	var wait sync.WaitGroup
	result := func(shard int) string { return filepath.Join(dir, fmt.Sprintf("%d.json", shard)) }
	for shard := range shards {
		wait.Go(func() {
			errs[shard] = run(binary, "-test.timeout=10m", fmt.Sprintf("-mutants=%d", mutants),
				fmt.Sprintf("-shard=%d", shard), fmt.Sprintf("-shards=%d", shards), "-result="+result(shard))
		})
	}
	wait.Wait()
	killers := map[int]string{}
	for shard := range shards {
		if errs[shard] != nil {
			t.Fatal(errs[shard])
		}
		data, err := os.ReadFile(result(shard))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &killers); err != nil {
			t.Fatal(err)
		}
	}
	return killers
}

// equivalents reads equivalents.txt: the key of a mutant on one line, and indented
// below it why no case can notice it.
func equivalents(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("equivalents.txt")
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]string{}
	key := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		reason, indented := strings.CutPrefix(line, "\t")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case !indented:
			if _, twice := reasons[line]; twice {
				t.Errorf("equivalents.txt: %s stands twice", line)
			}
			key = line
			reasons[key] = ""
		case key == "":
			t.Errorf("equivalents.txt: %q belongs to no mutant", reason)
		default:
			reasons[key] += reason
		}
	}
	for key, reason := range reasons {
		if reason == "" {
			t.Errorf("equivalents.txt: no reason below %s", key)
		}
	}
	return reasons
}
