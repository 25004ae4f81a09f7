// Package report shows people, and the programs of auditors, what verifying the evidence has told: one page of HTML
// that prints, registers as CSV, and OSCAL assessment results.
//
// It decides nothing. Grades, verdicts and findings are those of verify.Result; what is added is arithmetic of
// durations, which rounds against whoever is audited: observed time down, all other time up. It has no clock: the
// same Input gives the same bytes, dated by the period and the logs.
package report

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/verify"
)

// Input is what is reported on.
type Input struct {
	Result *verify.Result
	// From and To are the period. Time in it of which the logs tell nothing is shown as unknown.
	From time.Time
	To   time.Time
	// Namespaces are those that the report is about; empty for all that were guarded.
	Namespaces []string
	// AcceptInferred is that of the claim whose answer the Result has.
	AcceptInferred bool
	// Told is how the verifier was told what to go by, for the commands that the page shows.
	Told Told
}

// Told is what else the verifier went by. Without a policy, keys or their own keys being trusted, it went by nothing.
type Told struct {
	Policy        bool // a policy file
	Keys          []string
	TrustLogKey   bool
	MaxClockError string // as the flag takes it; empty for its default
	AuditLog      bool   // an audit log of API servers
	// NoDeclaredClock: what operators say of clocks was not believed.
	NoDeclaredClock bool
}

// report is an Input, narrowed to its period and namespaces.
type report struct {
	Input
	logs       []verify.Log
	answer     *verify.Answer // nil where the claim was not put to the verifier
	namespaces []namespace
	exceptions []verify.Exception
	gaps       []verify.Gap
	refusals   []verify.Refusal
	// refusedMore counts refusals that the Result does not list one by one.
	refusedMore uint64
	counts      []refusedBy
	findings    []verify.Finding
	changes     []verify.Change
	fixes       []verify.Remediation
	runs        []verify.Run
	keys        []verify.Key
	clusters    []string
}

// namespace is the timeline of one within the period, without a hole in it.
type namespace struct {
	cluster   string
	name      string
	verdict   verify.Verdict
	intervals []verify.Interval
	// moments are those that lie in the period for certain.
	moments []verify.Moment
}

// uncovered stands for the text, in the language of the page, of time that no log tells of.
const uncovered = "\x00uncovered"

func narrow(in Input) (*report, error) {
	switch {
	case in.Result == nil:
		return nil, errors.New("make a report: there is no result of a verification")
	case !in.From.Before(in.To):
		return nil, fmt.Errorf("make a report: the period is from %s to %s; must end after it begins", in.From.UTC().Format(time.RFC3339), in.To.UTC().Format(time.RFC3339))
	}
	r := &report{Input: in}
	res := in.Result
	r.logs = res.Logs
	r.gaps = keep(res.Gaps, func(g verify.Gap) bool { return r.touches(g.From, g.To) })
	r.exceptions = keep(res.Exceptions, func(e verify.Exception) bool {
		from, to := cmpTime(e.Requested, e.Granted), e.End
		if to.IsZero() {
			to = e.Until
		}
		return r.asked(e.Namespace) && (r.touches(from, to) || r.within(e.Requested) || e.Used > 0 && r.touches(e.FirstUsed, e.LastUsed))
	})
	r.refusals = keep(res.Refusals.List, func(d verify.Refusal) bool { return r.asked(d.Namespace) && r.within(d.At) })
	r.findings = keep(res.Findings, func(f verify.Finding) bool {
		return r.asked(f.Namespace) && (f.From.IsZero() || r.touches(f.From, f.To))
	})
	r.changes = keep(res.Changes, func(c verify.Change) bool { return r.within(c.At) })
	r.fixes = keep(res.Remediations, func(m verify.Remediation) bool {
		return r.asked(m.Namespace) && r.touches(cmpTime(m.After, m.Found), m.Done)
	})
	r.runs = keep(res.Runs, func(run verify.Run) bool { return r.touches(run.Started, run.Last) })
	r.keys = keep(res.Keys, func(k verify.Key) bool { return r.within(k.At) })
	if listed := uint64(len(res.Refusals.List)); res.Refusals.Total+res.Refusals.Errors > listed {
		r.refusedMore = res.Refusals.Total + res.Refusals.Errors - listed
	}
	r.answer = r.findAnswer()
	for _, t := range res.Namespaces {
		n := namespace{t.Cluster, t.Namespace, r.verdict(t.Cluster, t.Namespace), r.whole(t.Intervals), nil}
		n.moments = keep(t.Moments, func(m verify.Moment) bool { return !m.From.Before(r.From) && !m.To.After(r.To) })
		// One that no guard selected in all of the period is in no scope, unless it was asked for.
		if len(r.Namespaces) == 0 && n.sums(r.From, r.To).whole() > 0 || len(r.Namespaces) > 0 && r.asked(t.Namespace) {
			r.namespaces = append(r.namespaces, n)
		}
	}
	r.counts = r.refusedByRule()
	for _, l := range r.logs {
		r.clusters = append(r.clusters, l.Cluster)
	}
	for _, n := range r.namespaces {
		r.clusters = append(r.clusters, n.cluster)
	}
	slices.Sort(r.clusters)
	r.clusters = slices.Compact(r.clusters)
	return r, nil
}

// cmpTime is the first that is not zero.
func cmpTime(a, b time.Time) time.Time {
	if a.IsZero() {
		return b
	}
	return a
}

func keep[T any](list []T, wanted func(T) bool) []T {
	var kept []T
	for _, e := range list {
		if wanted(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

// asked: what is about no namespace, or the mesh as a whole, is about those that were asked for too.
func (r *report) asked(namespace string) bool {
	return len(r.Namespaces) == 0 || namespace == "" || slices.Contains(r.Namespaces, namespace)
}

func (r *report) within(t time.Time) bool { return !t.Before(r.From) && t.Before(r.To) }

// touches takes times in either order, for a clock may have been set back between them.
func (r *report) touches(from, to time.Time) bool {
	if to.Before(from) {
		from, to = to, from
	}
	return !to.Before(r.From) && from.Before(r.To)
}

// findAnswer is that to the claim about all of the period, which the caller has put to the verifier.
func (r *report) findAnswer() *verify.Answer {
	for i := range r.Result.Claims {
		a := &r.Result.Claims[i]
		if a.Claim.MTLS == "STRICT" && a.Claim.Cluster == "" && !a.Claim.From.After(r.From) && !a.Claim.To.Before(r.To) && a.Claim.AcceptInferred == r.AcceptInferred {
			return a
		}
	}
	return nil
}

// verdict is what the verifier has said of one namespace. Without an answer nothing is proven; nor where whoever
// verified did not want to believe the log's own key, which the answer tells of for all namespaces at once.
func (r *report) verdict(cluster, name string) verify.Verdict {
	if len(r.Result.Problems) > 0 {
		return verify.NotTrusted
	}
	if r.answer == nil {
		return verify.NotProvable
	}
	for _, n := range r.answer.Namespaces {
		if n.Cluster == cluster && n.Namespace == name {
			if n.Verdict == verify.Holds && r.answer.Verdict != verify.Holds && r.answer.Why != "" && r.ownKey() {
				return verify.NotProvable
			}
			return n.Verdict
		}
	}
	return verify.NotProvable
}

// whole cuts intervals to the period, and fills what they leave out of it.
func (r *report) whole(intervals []verify.Interval) []verify.Interval {
	sorted := slices.SortedStableFunc(slices.Values(intervals), func(a, b verify.Interval) int { return a.From.Compare(b.From) })
	var list []verify.Interval
	at := r.From
	fill := func(to time.Time) {
		if at.Before(to) {
			list = append(list, verify.Interval{From: at, To: to, Grade: verify.Unknown, Why: uncovered})
		}
	}
	for _, in := range sorted {
		if !in.To.After(r.From) || !in.From.Before(r.To) {
			continue
		}
		in.From, in.To = latest(in.From, r.From), earliest(in.To, r.To)
		if in.Unguarded {
			in.Grade = unguarded
		}
		fill(in.From)
		list = append(list, in)
		at = latest(at, in.To)
	}
	fill(r.To)
	return list
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// refusedBy counts refusals by one rule in one namespace and month. The month is zero where the Result lists too few
// of them to tell.
type refusedBy struct {
	cluster, namespace, rule string
	month                    time.Time
	n                        uint64
}

// refusedByRule counts a request once for each rule that refused it.
func (r *report) refusedByRule() []refusedBy {
	var list []refusedBy
	if r.refusedMore > 0 {
		for _, c := range r.Result.Refusals.Counts {
			if r.asked(c.Namespace) {
				list = append(list, refusedBy{c.Cluster, c.Namespace, c.Rule, time.Time{}, c.N})
			}
		}
		return list
	}
	counts := map[refusedBy]uint64{}
	for _, d := range r.refusals {
		at := d.At.UTC()
		for _, rule := range d.Rules {
			counts[refusedBy{d.Cluster, d.Namespace, rule, time.Date(at.Year(), at.Month(), 1, 0, 0, 0, 0, time.UTC), 0}]++
		}
	}
	for k, n := range counts {
		k.n = n
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b refusedBy) int {
		return cmp.Or(cmp.Compare(a.cluster, b.cluster), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.rule, b.rule), a.month.Compare(b.month))
	})
	return list
}

// Claim is what has to be put to the verifier, so that its Result has the answer of the page.
func (in Input) Claim() (verify.Claim, error) {
	r := report{Input: in}
	return verify.ParseClaim(r.claim(), in.From, in.To, in.AcceptInferred)
}
