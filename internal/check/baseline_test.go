package check_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
)

func denied(t *testing.T) *check.Result {
	t.Helper()
	result, err := check.Desired(parse(t, injectedProd+overridden), false, time.Time{}, nil)
	if err != nil || result.Summary.Denied != 1 {
		t.Fatalf("%v: %+v", err, result)
	}
	return result
}

// TestBaselineIsReadAsItWasWritten, and knows all that was denied.
func TestBaselineIsReadAsItWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.yaml")
	if err := denied(t).Baseline(nil).Save(path); err != nil {
		t.Fatal(err)
	}
	b, err := check.LoadBaseline(path)
	if err != nil {
		t.Fatal(err)
	}
	r := denied(t)
	r.Acknowledge(b, clock())
	if r.Summary.Denied != 0 || r.Summary.Known != 1 {
		t.Errorf("got %+v", r.Summary)
	}
	last := r.Results[len(r.Results)-1]
	if last.Decision != policies.Deny {
		t.Errorf("the decision is %s; must be what the webhook says, Deny", last.Decision)
	}
	for _, f := range last.Findings {
		if !f.Known {
			t.Errorf("not known: %+v", f)
		}
	}
}

// TestBaselineEnds after its last day, in UTC; one finding that ends refuses the object.
func TestBaselineEnds(t *testing.T) {
	b := denied(t).Baseline(nil)
	b.Findings[0].Until = "2026-05-31"
	for _, tt := range []struct {
		now  time.Time
		want int
	}{
		{time.Date(2026, 5, 31, 23, 59, 59, 0, time.UTC), 0},
		{time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), 1},
		{time.Date(2026, 6, 1, 1, 0, 0, 0, time.FixedZone("", 2*60*60)), 0},
	} {
		r := denied(t)
		r.Acknowledge(b, tt.now)
		if r.Summary.Denied != tt.want {
			t.Errorf("at %s: %+v; want %d denied", tt.now, r.Summary, tt.want)
		}
		if told := strings.Contains(strings.Join(r.Notes, "\n"), "expired in the baseline, and no longer let pass: "+b.Findings[0].ID); told != (tt.want == 1) {
			t.Errorf("at %s: notes %q", tt.now, r.Notes)
		}
	}
}

// TestBaselineIsWrittenAnew without what is gone, and with the ends that were given.
func TestBaselineIsWrittenAnew(t *testing.T) {
	old := denied(t).Baseline(nil)
	kept := old.Findings[1].ID
	old.Findings[1].Until = "2027-01-01"
	old.Findings = append(old.Findings, check.KnownFinding{ID: "0000000000000000", Object: "Pod prod/gone", Finding: "f"})
	r := denied(t)
	b := r.Baseline(old)
	if len(b.Findings) != len(old.Findings)-1 {
		t.Errorf("got %+v", b.Findings)
	}
	for _, f := range b.Findings {
		if (f.Until == "2027-01-01") != (f.ID == kept) {
			t.Errorf("got %+v", f)
		}
	}
	r.Acknowledge(old, clock())
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "0000000000000000 (Pod prod/gone)") {
		t.Errorf("what is gone is not named: %q", notes)
	}
}

// TestBaselinesThatCannotBeRead are errors: what they let pass would be anybody's guess.
func TestBaselinesThatCannotBeRead(t *testing.T) {
	const head = "apiVersion: meshvakt.io/v1alpha1\nkind: CheckBaseline\nfindings:\n"
	for _, tt := range []struct{ text, want string }{
		{head + "- {id: a, object: o, finding: f, until: 2026-12-31}\n", ""},
		{head + "- {id: a, object: o, finding: f, until: \"2026-12-31\"}\n", ""},
		{head + "- {id: a, object: o, finding: f, until: \"31.12.2026\"}\n", "must be a day"},
		{head + "- {object: o, finding: f}\n", "id: must be set"},
		{head + "- {id: a, object: o, finding: f}\n- {id: a, object: o, finding: f}\n", "stands twice"},
		{head + "- {id: a, end: \"2026-12-31\"}\n", "unknown field"},
		{"apiVersion: meshvakt.io/v1\nkind: CheckBaseline\n", "not a baseline"},
		{"", "not a baseline"},
		{"- a", "cannot unmarshal"},
	} {
		path := filepath.Join(t.TempDir(), "baseline.yaml")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := check.LoadBaseline(path)
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v; want %q", tt.text, err, tt.want)
		}
	}
}
