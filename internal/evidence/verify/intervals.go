package verify

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"strings"
	"time"
)

// This file is the calculus of intervals: from what replicas saw, and when, to how a
// namespace stood. All instants in it are widened by the error of the clocks already.

// view is a time in which one replica saw how a namespace stood, without a break.
type view struct {
	span
	// log is for texts.
	log string
	// steps are in the order of the log; the first is how it stood at the beginning.
	steps []step
	// over has for each step when all before it have ended, and since when it or one behind it may have begun. The
	// clock may go back from one step to the next, so neither is that of the step alone.
	over, since []int64
}

// index makes it quick to find what steps there were at some time. A view may have hundreds of thousands.
func (v *view) index() {
	n := len(v.steps)
	v.over, v.since = make([]int64, n), make([]int64, n)
	over, since := int64(math.MinInt64), int64(math.MaxInt64)
	for i := range v.steps {
		if i > 0 {
			over = max(over, v.steps[i].certain)
		}
		v.over[i] = over
	}
	for i := n - 1; i > 0; i-- {
		since = min(since, v.steps[i].from)
		v.since[i] = since
	}
	v.since[0] = math.MinInt64
}

// near returns the range of steps outside of which all have ended by from, or begin after to.
func (v *view) near(from, to int64) (first, behind int) {
	behind = sort.Search(len(v.since), func(i int) bool { return v.since[i] > to })
	return sort.Search(len(v.over), func(i int) bool { return v.over[i] > from }) - 1, behind
}

// step is a standing that may hold from an instant on. The one before it may still hold until
// it is certain: a watch tells what has changed, and not when.
type step struct {
	from, certain int64
	// error is by how much both are widened already.
	error int64
	standing
}

// at returns the standings one of which is the true one.
func (v *view) at(x int64) []standing {
	var list []standing
	first, behind := v.near(x, x)
	for i := first; i < behind; i++ {
		begun := i == 0 || v.steps[i].from <= x
		ended := i+1 < len(v.steps) && v.steps[i+1].certain <= x
		if begun && !ended {
			list = append(list, v.steps[i].standing)
		}
	}
	return list
}

// absence is a time in which a replica was at work whose log is not here, so that what it
// knew is not.
type absence struct {
	span
	why string
}

// exemption is an exception that is in force in a namespace, by what it covers.
type exemption struct {
	span
	uid        string
	mode       bool // that the mode is weaker
	membership bool // that pods are outside of the mesh
}

// scene is all that is known of one namespace.
type scene struct {
	span
	views      []view
	absences   []absence
	exemptions []exemption
	// unchanged reports whether an audit log shows that nothing came and went in a time; nil without one.
	unchanged func(span) bool
}

// conflict is a time in which two views cannot both be right.
type conflict struct {
	span
	logs []string
}

// intervals tells how the namespace stood, from the first instant to the last.
func (s *scene) intervals() ([]Interval, []conflict) {
	slices.SortStableFunc(s.views, func(a, b view) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.log, b.log)) })
	covered := make([]span, 0, len(s.views))
	for i := range s.views {
		s.views[i].index()
		covered = append(covered, s.views[i].span)
	}
	covered = union(covered)
	var list []Interval
	var conflicts []conflict
	edges := s.edges()
	first := 0 // views before it are over
	for i := 0; i+1 < len(edges); i++ {
		here := span{edges[i], edges[i+1]}
		for first < len(s.views) && s.views[first].to <= here.from {
			first++
		}
		next, c := s.grade(here, s.views[first:], covered)
		if c != nil {
			conflicts = append(conflicts, *c)
		}
		if n := len(list); n > 0 && alike(&list[n-1], &next) {
			list[n-1].To = next.To
			continue
		}
		list = append(list, next)
	}
	return list, conflicts
}

func alike(a, b *Interval) bool {
	return a.Grade == b.Grade && a.Mode == b.Mode && a.Outside == b.Outside && a.Unguarded == b.Unguarded && a.Why == b.Why && slices.Equal(a.Exceptions, b.Exceptions)
}

// edges are the instants at which something may become otherwise.
func (s *scene) edges() []int64 {
	all := []int64{s.from, s.to}
	add := func(at ...int64) {
		for _, a := range at {
			if s.from < a && a < s.to {
				all = append(all, a)
			}
		}
	}
	for i := range s.views {
		add(s.views[i].from, s.views[i].to)
		for _, st := range s.views[i].steps[1:] {
			add(st.from, st.certain)
		}
	}
	for _, a := range s.absences {
		add(a.from, a.to)
	}
	for _, e := range s.exemptions {
		add(e.from, e.to)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// grade judges an elementary interval, in which nothing changes.
func (s *scene) grade(here span, views []view, covered []span) (Interval, *conflict) {
	in := Interval{From: timeOf(here.from), To: timeOf(here.to), Grade: Unknown, Exceptions: []string{}}
	for _, a := range s.absences {
		if a.has(here.from) {
			in.Why = a.why
			return in, nil
		}
	}
	possible, logs, agreed := possibleAt(here.from, views)
	switch {
	case logs == nil:
		s.infer(&in, here.from, covered)
		return in, nil
	case !agreed:
		in.Why = "replicas saw what cannot both be: " + strings.Join(logs, ", ")
		return in, &conflict{here, logs}
	}
	s.gradeAll(&in, here.from, possible)
	return in, nil
}

// possibleAt returns what all views that cover x hold for possible; logs is nil if there is none.
func possibleAt(x int64, views []view) (possible []standing, logs []string, agreed bool) {
	for i := range views {
		v := &views[i]
		if v.from > x {
			break
		}
		if !v.has(x) {
			continue
		}
		mine := v.at(x)
		if logs == nil {
			possible = mine
		} else {
			possible = slices.DeleteFunc(slices.Clone(possible), func(a standing) bool {
				return !slices.ContainsFunc(mine, func(b standing) bool { return a.looks() == b.looks() })
			})
		}
		if !slices.Contains(logs, v.log) {
			logs = append(logs, v.log)
		}
	}
	slices.Sort(logs)
	return possible, logs, len(possible) > 0
}

// gradeAll judges standings one of which is the true one: where they come to different
// grades, it is not known which.
func (s *scene) gradeAll(in *Interval, x int64, possible []standing) {
	for i, p := range possible {
		next := *in
		s.gradeOne(&next, x, p)
		if i == 0 {
			*in = next
			continue
		}
		if next.Grade != in.Grade || next.Unguarded != in.Unguarded {
			*in = Interval{From: in.From, To: in.To, Grade: Unknown, Exceptions: []string{}, Why: "it changed in this time, and nobody saw when"}
			return
		}
		if weaker(next.Mode, in.Mode) || next.Outside && !in.Outside {
			next.Outside = next.Outside || in.Outside
			if weaker(in.Mode, next.Mode) {
				next.Mode = in.Mode
			}
			*in = next
		}
	}
}

func (s *scene) gradeOne(in *Interval, x int64, p standing) {
	in.Mode, in.Outside = p.least, p.outside
	switch {
	case !p.guarded:
		in.Grade, in.Unguarded, in.Why = Unknown, true, "no guard selects the namespace, or it is not there"
		return
	case p.least == "UNKNOWN":
		in.Mode, in.Why = "", "the settings of the mesh could not be read"
		return
	case p.least == "STRICT" && !p.outside:
		in.Grade, in.Why = Observed, ""
		return
	}
	in.Grade, in.Why = Violated, weakness(p)
	mode, uids := "STRICT", []string(nil)
	if p.least != "STRICT" {
		mode, uids = p.uncovered(func(uid string) bool {
			return slices.ContainsFunc(s.exemptions, func(e exemption) bool { return e.uid == uid && e.mode && e.has(x) })
		})
		if len(uids) == 0 { // a row may say that all is excused, and not by what
			mode = p.least
		}
	}
	membership := !p.outside
	for _, e := range s.exemptions {
		if p.outside && e.membership && e.has(x) {
			membership = true
			uids = append(uids, e.uid)
		}
	}
	if mode == "STRICT" && membership {
		slices.Sort(uids)
		in.Grade, in.Exceptions = Excepted, slices.Compact(uids)
	}
}

func weakness(p standing) string {
	var list []string
	if p.least != "STRICT" {
		list = append(list, "a port takes "+p.least)
	}
	if p.outside {
		list = append(list, "pods run outside of the mesh")
	}
	return strings.Join(list, "; ")
}

// infer judges a time that nobody saw, by what was before and behind it.
func (s *scene) infer(in *Interval, x int64, covered []span) {
	i, _ := slices.BinarySearchFunc(covered, x, func(c span, x int64) int { return cmp.Compare(c.from, x) })
	if i == 0 || i == len(covered) {
		in.Why = "nobody saw it, and nothing that was seen lies on both sides"
		return
	}
	before, after := s.ending(covered[i-1].to), s.beginning(covered[i].from)
	for _, b := range before {
		for _, a := range after {
			if a.looks() != b.looks() || !a.inputs.same(b.inputs) {
				continue
			}
			s.gradeOne(in, x, b)
			switch {
			case in.Grade == Observed && s.unchanged != nil && s.unchanged(span{covered[i-1].to, covered[i].from}):
				in.Grade, in.Why = ObservedByAudit, "nobody saw it; the audit log of the API server has no change"
			case in.Grade == Observed:
				in.Grade, in.Why = Inferred, "nobody saw it; all that it is computed from was the same before and after"
			case in.Why != "":
				in.Why += " (nobody saw it; the same before and after)"
			}
			return
		}
	}
	in.Why = "nobody saw it, and not all was the same before and after"
}

// ending are the standings that were certain at the end of what was seen.
func (s *scene) ending(to int64) []standing {
	var list []standing
	for i := range s.views {
		if v := &s.views[i]; v.to == to {
			if at := v.at(to - 1); len(at) == 1 {
				list = append(list, at[0])
			}
		}
	}
	return list
}

func (s *scene) beginning(from int64) []standing {
	var list []standing
	for i := range s.views {
		if v := &s.views[i]; v.from == from {
			if at := v.at(from); len(at) == 1 {
				list = append(list, at[0])
			}
		}
	}
	return list
}

// sum makes the durations of a timeline. Time in which the namespace was not guarded is no part of it.
func sum(list []Interval) (time.Duration, []GradeDuration) {
	var total time.Duration
	durations := make([]GradeDuration, 0, len(Grades()))
	for _, g := range Grades() {
		d := GradeDuration{Grade: g}
		for i := range list {
			if list[i].Grade == g && !list[i].Unguarded {
				d.Duration += list[i].To.Sub(list[i].From)
			}
		}
		total += d.Duration
		durations = append(durations, d)
	}
	return total, durations
}
