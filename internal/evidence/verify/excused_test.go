package verify

import (
	"slices"
	"testing"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// TestExceptionsExcuseWhatTheyAreFor: time is EXCEPTED only if for each way in which the namespace is weak an exception
// is in force.
func TestExceptionsExcuseWhatTheyAreFor(t *testing.T) {
	excuse := func(mode string, uids ...string) record.Excuse { return record.Excuse{Mode: mode, Exceptions: uids} }
	for name, c := range map[string]struct {
		unexcused string
		excused   []record.Excuse
		want      Grade
		by        []string
	}{
		"all that is weak":                             {"STRICT", []record.Excuse{excuse("PERMISSIVE", "exception")}, Excepted, []string{"exception"}},
		"any one of two":                               {"STRICT", []record.Excuse{excuse("PERMISSIVE", "another", "exception")}, Excepted, []string{"exception"}},
		"one that is not in force":                     {"STRICT", []record.Excuse{excuse("PERMISSIVE", "another")}, Violated, nil},
		"nothing is for it":                            {"PERMISSIVE", nil, Violated, nil},
		"something else is weak too":                   {"PERMISSIVE", []record.Excuse{excuse("DISABLE", "exception")}, Violated, nil},
		"something is said to be for it, and not what": {"STRICT", nil, Violated, nil},
		"something else has another of its own":        {"STRICT", []record.Excuse{excuse("PERMISSIVE", "another"), excuse("DISABLE", "exception")}, Violated, nil},
	} {
		b := quiet("meshvakt-0", 1)
		b.except(seconds(61), "payments", 100_000)
		row := b.row("payments", "DISABLE", 0, 2)
		row.Unexcused, row.Excused = c.unexcused, c.excused
		b.decide(seconds(62), "payments", 2)
		b.state(seconds(63), seconds(62), row)
		for m := 2; m < 5; m++ {
			b.beat(seconds(60 * m))
		}
		r := verifyAll(t, Options{}, b.sources()...)
		got := intervalAt(r, 120)
		if len(r.Problems) > 0 || got.Grade != c.want || got.Mode != "DISABLE" || !slices.Equal(got.Exceptions, c.by) && len(got.Exceptions)+len(c.by) > 0 {
			t.Errorf("%s: %+v, problems %v; must be %s by %v", name, got, r.Problems, c.want, c.by)
		}
	}
}
