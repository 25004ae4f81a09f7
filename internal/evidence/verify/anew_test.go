package verify

import (
	"slices"
	"strings"
	"testing"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// TestAVolumeThatWasLost: a replica loses its volume within a quarter and goes on in a log of another name on a new one. The
// other replica saw all of the time, but what the lost log had may say otherwise.
func TestAVolumeThatWasLost(t *testing.T) {
	const lostAt, back = 4 * 60, 6 * 60
	lost := quiet("meshvakt-0", 4) // one beat a minute, and no stop
	next := newBook("meshvakt-0", 2)
	next.rows["payments"] = next.row("payments", "STRICT", 0, 1)
	next.boot, next.started = must(record.NewBoot(next.random)), seconds(back)
	next.openShard(seconds(back), "2026q4-2", nil)
	next.add(seconds(back), next.bootRecord(record.BootStart))
	next.snapshot(seconds(back), "boot", seconds(back))
	other := newBook("meshvakt-1", 3)
	other.rows["payments"] = other.row("payments", "STRICT", 0, 1)
	other.start(0)
	other.snapshot(0, "boot", 0)
	for m := range 11 {
		at := seconds(60 * m)
		other.ready = []record.Replica{{Pod: "meshvakt-0", Boot: lost.boot}, {Pod: "meshvakt-1", Boot: other.boot}}
		if m > 6 {
			other.ready[0].Boot = next.boot
			next.ready = other.ready
			next.beat(at)
		}
		other.beat(at)
	}
	half := logFiles(lost.now().origin, lost.now().key, lost.now().lines[:5]) // a copy, as far as it was made: two beats
	for name, c := range map[string]struct {
		logs  []*Source
		from  int
		to    int
		want  Verdict
		codes []string
		says  string
	}{
		"before it was lost, without its log":      {slices.Concat(next.sources(), other.sources()), 30, 200, NotProvable, []string{FindingMissingLog, FindingMissingShard}, "2026q4 is not here"},
		"afterwards, without its log":              {slices.Concat(next.sources(), other.sources()), 60*7 + 30, 60 * 9, Holds, []string{FindingMissingLog, FindingMissingShard}, ""},
		"with a copy, of the time that it has":     {slices.Concat([]*Source{sourceOf("copy", half)}, next.sources(), other.sources()), 10, 50, Holds, []string{FindingMissingLog, FindingMissingShard}, "what " + lost.now().origin + " had behind its 5 records is missing"},
		"with a copy, of the time behind it":       {slices.Concat([]*Source{sourceOf("copy", half)}, next.sources(), other.sources()), 150, 300, NotProvable, []string{FindingMissingLog, FindingMissingShard}, ""},
		"with a copy, after the other has come":    {slices.Concat([]*Source{sourceOf("copy", half)}, next.sources(), other.sources()), 60*7 + 30, 60 * 9, Holds, []string{FindingMissingLog, FindingMissingShard}, ""},
		"with all of it, until shortly after that": {slices.Concat(lost.sources(), next.sources(), other.sources()), 30, lostAt, Holds, []string{FindingMissingShard}, ""},
	} {
		r := verifyAll(t, Options{Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", c.from, c.to)}}, c.logs...)
		found := false
		for _, f := range r.Findings {
			found = found || strings.Contains(f.What, c.says)
		}
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want || !slices.Equal(codes(r), c.codes) || !found {
			t.Errorf("%s: %s, must be %s; problems %+v, findings %+v", name, r.Claims[0].Verdict, c.want, r.Problems, r.Findings)
		}
	}
}
