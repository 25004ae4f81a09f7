package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// The oracle of the quarter. It knows what was done and when, and nothing of logs, records or the verifier; what it
// says follows from docs/evidence-verify.md.

// deed is one thing that was done, or has come about, at an instant by a clock that is right.
type deed struct {
	at        time.Time
	what      what
	namespace string    // of those about one
	mode      string    // of standsAt
	until     time.Time // of excepted
	replica   int       // of those about one
}

type what int

const (
	entersGuard what = iota + 1 // a guard selects the namespace from now on
	leavesGuard                 // none does any more
	standsAt                    // the weakest mode that applies in the namespace, from now on
	flickered                   // it was weaker for no time at all: that it was shows, and not for how long
	altered                     // what that follows from is not the same any more; the mode is
	excepted                    // an exception for a weaker mode is in force
	ended                       // somebody has ended it
	watches                     // the replica has begun to watch, with a beat
	ceases                      // its process is no more
	blind                       // it sees or stores nothing that counts
	sees                        // it does again, with a beat
)

// stretch is a time in which a namespace was of one grade.
type stretch struct {
	from, to time.Time
	grade    verify.Grade
	mode     string
}

func (s stretch) String() string {
	return fmt.Sprintf("%s to %s %s %s", s.from.Format("01-02 15:04:05.00"), s.to.Format("01-02 15:04:05.00"), s.grade, s.mode)
}

// oracleOfQuarter is what was done, in order, and how far apart beats are.
type oracleOfQuarter struct {
	deeds    []deed
	beat     time.Duration
	begun    time.Time // the first beat
	replicas int
}

// beatBefore is the last beat until an instant. They go on from the beginning, and anew from the end of the quarter,
// with which another log begins.
func (o *oracleOfQuarter) beatBefore(at time.Time) time.Time {
	from := o.begun
	if end := endOfQuarter(); !at.Before(end) {
		from = end
	}
	return from.Add(at.Sub(from).Truncate(o.beat))
}

// seen are the times that some replica saw: between its beats.
func (o *oracleOfQuarter) seen(to time.Time) []stretch {
	var list []stretch
	for r := range o.replicas {
		from, up, clear := time.Time{}, false, true
		see := func(at time.Time, is bool) {
			if was := !from.IsZero(); was && !is {
				list = append(list, stretch{from: from, to: o.beatBefore(at)})
				from = time.Time{}
			} else if !was && is {
				from = at
			}
		}
		for _, d := range o.deeds {
			if d.replica != r {
				continue
			}
			switch d.what {
			case watches:
				up = true
			case ceases:
				up = false
			case blind:
				clear = false
			case sees:
				clear = true
			default:
				continue
			}
			see(d.at, up && clear)
		}
		see(to, false)
	}
	slices.SortFunc(list, func(a, b stretch) int { return a.from.Compare(b.from) })
	var joined []stretch
	for _, s := range list {
		if n := len(joined); n > 0 && !s.from.After(joined[n-1].to) {
			if s.to.After(joined[n-1].to) {
				joined[n-1].to = s.to
			}
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// of says how a namespace stood, from an instant to another.
func (o *oracleOfQuarter) of(namespace string, from, to time.Time) []stretch {
	seen := o.seen(to.Add(o.beat))
	edges := []time.Time{from, to}
	for _, s := range seen {
		edges = append(edges, s.from, s.to)
	}
	for _, d := range o.deeds {
		if d.namespace == namespace {
			edges = append(edges, d.at)
			if d.what == excepted {
				edges = append(edges, d.until)
			}
		}
	}
	slices.SortFunc(edges, time.Time.Compare)
	var list []stretch
	for i := 0; i+1 < len(edges); i++ {
		s := stretch{from: edges[i], to: edges[i+1]}
		if s.from.Before(from) || s.to.After(to) || !s.from.Before(s.to) {
			continue
		}
		s.grade, s.mode = o.grade(namespace, s.from, seen)
		list = append(list, s)
	}
	return joinAlike(list)
}

func joinAlike(list []stretch) []stretch {
	var joined []stretch
	for _, s := range list {
		if n := len(joined); n > 0 && joined[n-1].grade == s.grade && joined[n-1].mode == s.mode {
			joined[n-1].to = s.to
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// grade is that of an instant.
func (o *oracleOfQuarter) grade(namespace string, at time.Time, seen []stretch) (verify.Grade, string) {
	i := slices.IndexFunc(seen, func(s stretch) bool { return at.Before(s.to) })
	watched := i >= 0 && !at.Before(seen[i].from)
	if !watched && (i <= 0 || o.touched(namespace, seen[i-1].to, seen[i].from)) {
		return verify.Unknown, ""
	}
	under, mode, exception := false, "", time.Time{}
	for _, d := range o.deeds {
		if d.namespace != namespace || d.at.After(at) {
			continue
		}
		switch d.what {
		case entersGuard, leavesGuard:
			under = d.what == entersGuard
		case standsAt:
			mode = d.mode
		case excepted:
			exception = d.until
		case ended:
			exception = time.Time{}
		}
	}
	switch {
	case !under:
		return verify.Unknown, ""
	case mode == "STRICT" && watched:
		return verify.Observed, mode
	case mode == "STRICT":
		return verify.Inferred, mode
	case at.Before(exception):
		return verify.Excepted, mode
	}
	return verify.Violated, mode
}

// touched: something was done to the namespace while nobody saw.
func (o *oracleOfQuarter) touched(namespace string, from, to time.Time) bool {
	return slices.ContainsFunc(o.deeds, func(d deed) bool {
		return d.namespace == namespace && !d.at.Before(from) && d.at.Before(to) && slices.Contains([]what{entersGuard, leavesGuard, standsAt, altered, flickered}, d.what)
	})
}

// verdict is what comes of the claim that a namespace was STRICT for all of a time.
func (o *oracleOfQuarter) verdict(namespace string, from, to time.Time, acceptInferred bool) verify.Verdict {
	v := verify.Holds
	if slices.ContainsFunc(o.deeds, func(d deed) bool {
		return d.what == flickered && d.namespace == namespace && d.at.After(from) && d.at.Before(to)
	}) {
		v = verify.NotProvable
	}
	for _, s := range o.of(namespace, from, to) {
		switch {
		case s.grade == verify.Violated:
			return verify.IsViolated
		case s.grade != verify.Observed && (s.grade != verify.Inferred || !acceptInferred):
			v = verify.NotProvable
		}
	}
	return v
}

// borderOfQuarter is how long before a change it is known to have been otherwise, and how wrong all clocks may be.
const borderOfQuarter = saidBefore + doneAfter + 2*clockErrorOfQuarter

// told is what the verifier says of a namespace, without the borders: the times just before a change in which it cannot
// know when it came about.
func (o *oracleOfQuarter) told(line *verify.Timeline, from, to time.Time) []stretch {
	var list []stretch
	for _, in := range line.Intervals {
		s := stretch{from: in.From, to: in.To, grade: in.Grade, mode: in.Mode}
		if in.Grade == verify.Unknown {
			s.mode = ""
		}
		if s.from.Before(from) {
			s.from = from
		}
		if s.to.After(to) {
			s.to = to
		}
		if s.from.Before(s.to) {
			list = append(list, s)
		}
	}
	border := func(s stretch) bool {
		return s.grade == verify.Unknown && slices.ContainsFunc(o.deeds, func(d deed) bool {
			return d.namespace == line.Namespace && !s.from.Before(d.at.Add(-borderOfQuarter)) && !s.to.After(d.at.Add(2*clockErrorOfQuarter))
		})
	}
	return joinAlike(slices.DeleteFunc(joinAlike(list), border))
}

// compare holds both against each other, interval by interval.
func (o *oracleOfQuarter) compare(t testing.TB, name string, line *verify.Timeline, from, to time.Time) (same int) {
	t.Helper()
	want, got := o.of(line.Namespace, from, to), o.told(line, from, to)
	near := func(want, got time.Time) bool {
		late, most := got.Sub(want), 2*clockErrorOfQuarter
		if !slices.ContainsFunc(o.deeds, func(d deed) bool { return d.namespace == line.Namespace && d.at.Equal(want) }) {
			most += patienceOfBeat * time.Second // the end of what was seen, which is a beat
		}
		return -borderOfQuarter <= late && late <= most
	}
	if !slices.EqualFunc(want, got, func(a, b stretch) bool {
		return a.grade == b.grade && a.mode == b.mode && near(a.from, b.from) && near(a.to, b.to)
	}) {
		t.Errorf("namespace %s: the verifier says\n%s\nand the oracle\n%s", name, lines(got), lines(want))
		return 0
	}
	return len(want)
}

func lines(list []stretch) (text string) {
	for _, s := range list {
		text += "\t" + s.String() + "\n"
	}
	return text
}
