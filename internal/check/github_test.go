package check_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
)

// TestAnnotationsCannotBeForged: whatever names and values say, each line is one of ours,
// and what a runner reads of it is what was meant.
func TestAnnotationsCannotBeForged(t *testing.T) {
	const forged = `"x\r\n::error file=f,line=1::forged %0A"`
	manifest := strings.Replace(overridden, `excludeInboundPorts: "8080"`, "excludeInboundPorts: "+forged, 1)
	manifest = strings.Replace(manifest, "  name: web\n", "  name: "+forged+"\n", 1)
	const file = "a,b:c%\n::stop-commands::x/m.yaml"
	docs, err := check.Parse(file, []byte(injectedProd+manifest))
	if err != nil {
		t.Fatal(err)
	}
	result, err := check.Desired(docs, false, time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	result.Notes = append(result.Notes, "a note\n::error::forged")
	var b strings.Builder
	if err := result.WriteGitHub(&b); err != nil {
		t.Fatal(err)
	}
	findings := len(result.Results[len(result.Results)-1].Findings)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if want := findings + len(result.Notes) + 1; len(lines) != want || findings < 2 {
		t.Errorf("%d lines; must be %d, one for each of %d findings and %d notes, and the sum:\n%s", len(lines), want, findings, len(result.Notes), b.String())
	}
	command := regexp.MustCompile(`^::(error|warning|notice) ([^:]*)::(.*)$`)
	unescape := strings.NewReplacer("%3A", ":", "%2C", ",", "%0D", "\r", "%0A", "\n", "%25", "%")
	for _, line := range lines[:len(lines)-1] {
		m := command.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no command: %q", line)
			continue
		}
		properties := map[string]string{}
		for _, p := range strings.Split(m[2], ",") {
			name, value, _ := strings.Cut(p, "=")
			properties[name] = unescape.Replace(value)
		}
		if got, ok := properties["file"]; ok && got != file {
			t.Errorf("file %q; must be %q", got, file)
		}
		if !strings.HasPrefix(properties["title"], "MV") && properties["title"] != "meshvakt check" {
			t.Errorf("title %q", properties["title"])
		}
	}
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "3 objects: ") {
		t.Errorf("the sum is %q", last)
	}
}
