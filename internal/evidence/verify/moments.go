package verify

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// leastMoment is how long a standing must have lasted to count: wall clock and monotonic clock may be so far apart.
const leastMoment = jump

// moments are the times in which the namespace was violated for certain, of which it is not known exactly when: a
// change and the next were nearer to each other than the bounds of either, or the error of the clock.
//
// On the clock of the replica, whatever it was off by, a standing lasted at least from the record that tells it to the
// time at which all had last been heard before the next. Standings that only seem to be, for what came of one kind
// was in the table before what came of another, do not last so long.
func (s *scene) moments(intervals []Interval) []Moment {
	var list []Moment
	for i := range s.views {
		v := &s.views[i]
		for j := 1; j+1 < len(v.steps); j++ {
			here, next := &v.steps[j], &v.steps[j+1]
			from, to := here.certain-here.error, next.from+next.error
			m := span{from - here.error, to + next.error}
			if to-from < int64(leastMoment) || m.from < max(v.from, s.from) || m.to > min(v.to, s.to) || !s.violated(m, here.standing) {
				continue
			}
			list = append(list, Moment{From: timeOf(m.from), To: timeOf(m.to), AtLeast: time.Duration(to - from), Why: weakness(here.standing)})
		}
	}
	list = joinMoments(list)
	return slices.DeleteFunc(list, func(m Moment) bool { // what is seen anyway
		first := sort.Search(len(intervals), func(i int) bool { return intervals[i].To.After(m.From) })
		for _, in := range intervals[first:] {
			if !in.From.Before(m.To) {
				break
			}
			if in.Grade == Violated {
				return true
			}
		}
		return false
	})
}

// violated reports whether a standing is Violated whenever in m it was, and no other replica knows better.
func (s *scene) violated(m span, p standing) bool {
	if slices.ContainsFunc(s.absences, func(a absence) bool { return a.from < m.to && m.from < a.to }) {
		return false
	}
	at := []int64{m.from}
	for _, e := range s.exemptions {
		at = append(at, e.from, e.to)
	}
	for _, x := range at {
		in := Interval{}
		if m.has(x) {
			s.gradeOne(&in, x, p)
		}
		if m.has(x) && in.Grade != Violated {
			return false
		}
	}
	for i := range s.views {
		v := &s.views[i]
		if v.from <= m.from && m.to <= v.to && !v.saw(m, p) {
			return false
		}
	}
	return true
}

// saw reports whether a standing may have been, by what was seen, at some time in m.
func (v *view) saw(m span, p standing) bool {
	first, behind := v.near(m.from, m.to)
	for i := first; i < behind; i++ {
		begins := i == 0 || v.steps[i].from < m.to
		ended := i+1 < len(v.steps) && v.steps[i+1].certain <= m.from
		if begins && !ended && v.steps[i].looks() == p.looks() {
			return true
		}
	}
	return false
}

// joinMoments takes those that may be of one and the same time for one, as when two replicas tell of it.
func joinMoments(list []Moment) []Moment {
	slices.SortFunc(list, func(a, b Moment) int {
		return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To), cmp.Compare(a.AtLeast, b.AtLeast))
	})
	joined := []Moment{}
	for _, m := range list {
		n := len(joined)
		if n == 0 || !m.From.Before(joined[n-1].To) {
			joined = append(joined, m)
			continue
		}
		last := &joined[n-1]
		last.To = latest(last.To, m.To)
		if m.AtLeast > last.AtLeast {
			last.AtLeast, last.Why = m.AtLeast, m.Why
		}
	}
	return joined
}
