package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestColumnsAreDocumented, for people build on their names and places.
func TestColumnsAreDocumented(t *testing.T) {
	path := filepath.Join("..", "..", "..", "docs", "evidence-report.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const head = "| File | Columns |\n|---|---|\n"
	r, err := narrow(rich())
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, reg := range r.registers() {
		fmt.Fprintf(&want, "| `%s.csv` | `%s` |\n", reg.name, strings.Join(reg.columns, "`, `"))
	}
	before, rest, found := strings.Cut(string(text), head)
	_, after, ended := strings.Cut(rest, "\n\n")
	if !found || !ended {
		t.Fatal("the page has no table of the columns")
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+head+want.String()+"\n"+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, _, _ := strings.Cut(rest, "\n\n"); got+"\n" != want.String() {
		t.Errorf("the table of the columns is\n%s\nmust be\n%s", got, want.String())
	}
}
