package report

import (
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// unguarded is of time in which no guard selected the namespace. A verifier calls it unknown and marks it; here it is
// kept apart, for nothing was to be seen of it, and nothing is claimed.
const unguarded verify.Grade = "UNGUARDED"

// shownGrades are those that intervals of a report have, from the best on.
func shownGrades() []verify.Grade {
	list := verify.Grades()
	i := slices.Index(list, verify.Inferred) + 1
	return slices.Insert(list, i, unguarded)
}

// sums is how long a namespace had each grade.
type sums map[verify.Grade]time.Duration

func (n *namespace) sums(from, to time.Time) sums {
	s := sums{}
	for _, in := range n.intervals {
		if d := earliest(in.To, to).Sub(latest(in.From, from)); d > 0 {
			s[in.Grade] += d
		}
	}
	return s
}

// seen is the time that was observed, by whichever means.
func (s sums) seen() time.Duration { return s[verify.Observed] + s[verify.ObservedByAudit] }

// whole is the time that something is claimed of.
func (s sums) whole() time.Duration {
	var d time.Duration
	for _, g := range verify.Grades() {
		d += s[g]
	}
	return d
}

// share is part of whole in hundredths of a percent, rounded down, so that 100 % is said of all and nothing less.
func share(part, whole time.Duration) int64 {
	if whole <= 0 {
		return 0
	}
	if part >= whole {
		return 10000
	}
	// Milliseconds keep the product within 64 bits for a century.
	return min(part.Milliseconds()*10000/max(whole.Milliseconds(), 1), 9999)
}

// month is a calendar month in UTC, cut to the period.
type month struct{ from, to time.Time }

func (r *report) months() []month {
	var list []month
	for at := r.From.UTC(); at.Before(r.To); {
		next := time.Date(at.Year(), at.Month()+1, 1, 0, 0, 0, 0, time.UTC)
		end := earliest(next, r.To.UTC())
		list = append(list, month{at, end})
		at = next
	}
	return list
}

// totals are the figures of the summary.
type totals struct {
	verdicts    map[verify.Verdict]int
	unknown     time.Duration // as all durations here, summed over namespaces
	violated    time.Duration
	excepted    time.Duration
	inferred    time.Duration
	longest     time.Duration // the longest interval that is unknown
	lowest      int64         // hundredths of a percent
	unlogged    uint64
	inexact     bool
	granted     int
	selfGranted int
	weaker      int
	entries     uint64
}

func (r *report) totals() totals {
	t := totals{verdicts: map[verify.Verdict]int{}, lowest: 10000}
	for i := range r.namespaces {
		n := &r.namespaces[i]
		s := n.sums(r.From, r.To)
		t.verdicts[n.verdict]++
		t.unknown += s[verify.Unknown]
		t.violated += s[verify.Violated]
		t.excepted += s[verify.Excepted]
		t.inferred += s[verify.Inferred]
		t.lowest = min(t.lowest, share(s.seen(), s.whole()))
		for _, in := range n.intervals {
			if in.Grade == verify.Unknown {
				t.longest = max(t.longest, in.To.Sub(in.From))
			}
		}
	}
	for _, g := range r.gaps {
		t.unlogged += unlogged(g)
		t.inexact = t.inexact || g.Of == "decisions" && !g.Exact
	}
	for _, e := range r.exceptions {
		if !e.Granted.IsZero() {
			t.granted++
		}
		if selfApproved(e) {
			t.selfGranted++
		}
	}
	for _, c := range r.changes {
		if c.Weaker {
			t.weaker++
		}
	}
	for _, l := range r.logs {
		t.entries += l.Size
	}
	return t
}

// unlogged counts the answers of a gap that left no record.
func unlogged(g verify.Gap) uint64 {
	n := g.Others
	for _, c := range g.Counts {
		n += c.N
	}
	return n
}

// selfApproved compares pseudonyms, so it can say so within a shard alone.
func selfApproved(e verify.Exception) bool { return e.Approver != "" && e.Approver == e.By }

// found counts the findings of one code.
func (r *report) found(code string) int {
	return len(keep(r.findings, func(f verify.Finding) bool { return f.Code == code }))
}

// ownKey tells of a log whose key nobody but the log itself vouches for.
func (r *report) ownKey() bool {
	for _, l := range r.logs {
		if l.Trust == verify.TrustOwn {
			return true
		}
	}
	return false
}

// headline is the key of the answer for all namespaces together: the worst of any.
func (r *report) headline(t totals) string {
	switch {
	case len(r.Result.Problems) > 0:
		return "broken"
	case len(r.Result.Newer) > 0:
		return "newer"
	case len(r.namespaces) == 0 && len(r.Namespaces) == 0:
		return "empty"
	case t.verdicts[verify.IsViolated] > 0:
		return "violated"
	case t.verdicts[verify.Holds] < len(r.namespaces) || r.answer == nil || r.answer.Verdict != verify.Holds:
		return "notProvable"
	case t.inferred > 0:
		return "inferred"
	}
	return "holds"
}
