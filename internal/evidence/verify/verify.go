package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Options are what a verification goes by.
type Options struct {
	Trust *Trust
	// MaxClockError is how wrong the clock may have been, by what the kernel said of it, for
	// time to count as seen. Borders are widened by the error in any case.
	MaxClockError time.Duration
	// RefuseDeclared: what operators say of a clock counts for nothing, only what its kernel says.
	RefuseDeclared bool
	Claims         []Claim
	// Audit is the audit log of a cluster's API servers, nil without one.
	Audit *Audit
}

// Verify reads all sources and tells what they prove. An error says that it could not be
// done; what is wrong with the logs is in the result.
func Verify(ctx context.Context, sources []*Source, o Options) (*Result, error) {
	if o.Audit != nil {
		o.Audit.finish()
	}
	r := &reading{trust: o.Trust, audit: o.Audit, announce: map[string][]string{}, trusted: map[string]string{}}
	list, err := r.openAll(ctx, sources)
	if err != nil {
		return nil, err
	}
	f := fleet{reading: r, options: &o, clusters: map[string]*cluster{}, out: &Result{}}
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].genesis.Cluster == list[0].genesis.Cluster && list[n].genesis.Replica == list[0].genesis.Replica {
			n++
		}
		if err := f.replica(ctx, list[:n]); err != nil {
			return nil, err
		}
		list = list[n:]
	}
	f.ends()
	return f.result(), nil
}

// openAll opens what can be opened, in order, and each log once. A log without records is left
// out: that it should have some is what the logs around it say.
func (r *reading) openAll(ctx context.Context, sources []*Source) ([]*opened, error) {
	var list []*opened
	for _, s := range sources {
		l, err := open(ctx, s)
		name := s.Name
		if l != nil {
			name = l.claimed.Origin
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, errEmpty):
		case err != nil:
			r.unreadable(name, err)
		default:
			list = append(list, l)
		}
	}
	if len(list) == 0 && len(r.problems) == 0 && len(r.newer) == 0 {
		r.problem("", -1, "no log that is given has records")
	}
	arrange(list)
	return once(list), nil
}

func (r *reading) unreadable(name string, err error) {
	if errors.Is(err, record.ErrUnknownVersion) {
		r.newer = append(r.newer, Problem{name, 0, "a record of a format that this version does not know; a newer Meshvakt is needed"})
		return
	}
	r.problem(name, -1, err.Error())
}

// fleet is all clusters of which there are logs.
type fleet struct {
	*reading
	options  *Options
	clusters map[string]*cluster
	logs     []Log
	out      *Result
}

// replica verifies the shards of one replica, in their order.
func (f *fleet) replica(ctx context.Context, shards []*opened) error {
	g := &shards[0].genesis
	c := f.clusters[g.Cluster]
	if c == nil {
		c = newCluster(g.Cluster)
		if a := f.options.Audit; a != nil && a.out.Cluster == g.Cluster {
			c.audit = a
		}
		f.clusters[g.Cluster] = c
	}
	l := newLedger(c, g.Replica, f.options)
	var before *tail
	for _, o := range shards {
		if o.genesis.PrevOrigin == "" {
			l.anew(&o.genesis, before)
		}
		if o.genesis.PrevOrigin != "" && (before == nil || before.origin != o.genesis.PrevOrigin) {
			l.missing(o.genesis.Origin, "it goes on from "+o.genesis.PrevOrigin+", which is not here")
			l.skip(&o.genesis)
		}
		log, end, err := f.verify(ctx, o, before, func(log *Log, r record.Record) error {
			l.log = log
			return l.take(r)
		})
		if err != nil {
			return err
		}
		f.logs = append(f.logs, *log)
		before = end
	}
	if before != nil && before.next != "" {
		l.missing(before.origin, "it is followed by "+before.next+", which is not here")
	}
	if l.log != nil {
		l.finish()
		c.ledgers = append(c.ledgers, l)
	}
	return nil
}

func (l *ledger) missing(origin, what string) {
	l.cluster.findings = append(l.cluster.findings, Finding{Code: FindingMissingShard, Cluster: l.cluster.uid, Log: origin, Seq: -1, What: what})
}

// result puts together what all clusters tell, in an order that does not depend on that of the inputs.
func (f *fleet) result() *Result {
	out := f.out
	out.Logs = append([]Log{}, f.logs...)
	out.Problems, out.Newer = append([]Problem{}, f.problems...), append([]Problem{}, f.newer...)
	out.Findings, out.Namespaces, out.Gaps, out.Exceptions = []Finding{}, []Timeline{}, []Gap{}, []Exception{}
	out.Changes, out.Remediations, out.Runs, out.Keys, out.Claims = []Change{}, []Remediation{}, []Run{}, []Key{}, []Answer{}
	out.Refusals = Refusals{Counts: []RefusalCount{}, List: []Refusal{}}
	if a := f.options.Audit; a != nil {
		a.judge(f.clusters)
		out.Audit = &a.out
	}
	uids := make([]string, 0, len(f.clusters))
	for uid := range f.clusters {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	for _, uid := range uids {
		f.clusters[uid].tell(out)
	}
	out.Findings = append(out.Findings, f.notGiven()...)
	arrangeResult(out)
	for _, claim := range f.options.Claims {
		out.Claims = append(out.Claims, f.answer(claim))
	}
	return out
}

func arrangeResult(out *Result) {
	problems := func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Log, b.Log), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.What, b.What))
	}
	slices.SortFunc(out.Logs, func(a, b Log) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Replica, b.Replica), a.From.Compare(b.From), cmp.Compare(a.Origin, b.Origin))
	})
	slices.SortFunc(out.Problems, problems)
	slices.SortFunc(out.Newer, problems)
	slices.SortFunc(out.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.From.Compare(b.From), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Log, b.Log),
			cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.What, b.What), a.To.Compare(b.To))
	})
	slices.SortFunc(out.Gaps, func(a, b Gap) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.From.Compare(b.From), cmp.Compare(a.Log, b.Log), cmp.Compare(a.Seq, b.Seq))
	})
	slices.SortFunc(out.Exceptions, func(a, b Exception) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Requested.Compare(b.Requested), a.Granted.Compare(b.Granted), cmp.Compare(a.UID, b.UID))
	})
	slices.SortFunc(out.Refusals.Counts, func(a, b RefusalCount) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Rule, b.Rule))
	})
	slices.SortFunc(out.Refusals.List, compareRefusals)
	out.Refusals.List = out.Refusals.List[:min(len(out.Refusals.List), MaxRefusals)]
	slices.SortFunc(out.Changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.At.Compare(b.At), cmp.Compare(a.Log, b.Log), cmp.Compare(a.Seq, b.Seq))
	})
	slices.SortFunc(out.Remediations, func(a, b Remediation) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Found.Compare(b.Found), cmp.Compare(a.Log, b.Log), cmp.Compare(a.Seq, b.Seq))
	})
	slices.SortFunc(out.Runs, func(a, b Run) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.Started.Compare(b.Started), cmp.Compare(a.Replica, b.Replica), cmp.Compare(a.Boot, b.Boot))
	})
	slices.SortFunc(out.Keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), a.At.Compare(b.At), cmp.Compare(a.Log, b.Log), cmp.Compare(a.Seq, b.Seq))
	})
}

// tell adds what the cluster's logs tell.
func (c *cluster) tell(out *Result) {
	absences := c.absences()
	c.findings = append(c.findings, c.unexplained()...)
	c.notAsked()
	c.endExceptions()
	exemptions := map[string][]exemption{}
	for _, e := range c.exceptions {
		c.sumUses(e)
		c.judge(e)
		out.Exceptions = append(out.Exceptions, e.Exception)
		if !e.Granted.IsZero() {
			exemptions[e.Namespace] = append(exemptions[e.Namespace], e.covers()...)
		}
	}
	for _, ns := range c.namespaces() {
		s := scene{span: c.span, absences: absences, exemptions: exemptions[ns], unchanged: c.unchangedIn(ns)}
		for _, l := range c.ledgers {
			s.views = append(s.views, l.views(ns)...)
		}
		intervals, conflicts := s.intervals()
		for _, x := range conflicts {
			c.findings = append(c.findings, Finding{Code: FindingDisagreement, Cluster: c.uid, Namespace: ns, Seq: -1, From: timeOf(x.from), To: timeOf(x.to),
				What: "replicas saw what cannot both be: " + strings.Join(x.logs, ", ")})
		}
		moments := s.moments(intervals)
		out.Namespaces = append(out.Namespaces, Timeline{c.uid, ns, intervals, moments, c.kpi(ns, intervals, moments)})
	}
	c.trimRefusals()
	out.Refusals.Total += c.refused
	out.Refusals.Errors += c.refusalErrors
	out.Refusals.List = append(out.Refusals.List, c.refusalList...)
	for count, n := range c.refusals {
		count.N = n
		out.Refusals.Counts = append(out.Refusals.Counts, count)
	}
	out.Findings, out.Gaps, out.Changes = append(out.Findings, c.findings...), append(out.Gaps, c.gaps...), slices.AppendSeq(out.Changes, maps.Values(c.changes))
	out.Remediations, out.Runs, out.Keys = append(out.Remediations, c.remediations...), append(out.Runs, c.runs...), append(out.Keys, c.keys...)
}

func (c *cluster) namespaces() []string {
	var list []string
	for _, l := range c.ledgers {
		list = append(list, l.namespaces()...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// unchangedIn is what the audit log has to say of times that nobody of ours saw.
func (c *cluster) unchangedIn(ns string) func(span) bool {
	if c.audit == nil || !c.audit.out.Used {
		return nil
	}
	return func(hole span) bool { return c.audit.unchanged(ns, hole) }
}

func (c *cluster) kpi(ns string, list []Interval, moments []Moment) KPI {
	k := KPI{Refused: c.refusedIn[ns], Violations: len(moments)}
	for i := range moments {
		k.LongestViolation = max(k.LongestViolation, moments[i].AtLeast)
	}
	k.Total, k.Durations = sum(list)
	open := time.Duration(0)
	for i := range list {
		if list[i].Grade != Violated {
			open = 0
			continue
		}
		if open == 0 {
			k.Violations++
		}
		open += list[i].To.Sub(list[i].From)
		k.LongestViolation = max(k.LongestViolation, open)
	}
	for i := range c.findings {
		if c.findings[i].Code == FindingUnexplained && c.findings[i].Namespace == ns {
			k.Unexplained++
		}
	}
	for i := range c.remediations {
		if c.remediations[i].Namespace == ns {
			k.Remediated++
		}
	}
	return k
}

// judge finds fault with an exception.
func (c *cluster) judge(e *exception) {
	if e.Granted.IsZero() {
		return
	}
	fault := func(code, what string) {
		c.findings = append(c.findings, Finding{Code: code, Cluster: c.uid, Namespace: e.Namespace, Log: e.log, Seq: e.seq, From: e.Granted, To: e.End, What: what})
	}
	if e.self && e.Approval != "None" {
		fault(FindingSelfApproved, fmt.Sprintf("exception %s was approved by who had asked for it", e.UID))
	}
	if e.Requested.IsZero() {
		fault(FindingNoPrevious, fmt.Sprintf("exception %s was granted, and in these logs nobody asks for it: what it covers is not known", e.UID))
	}
}

// absences are times in which a replica was at work whose log is not here.
func (c *cluster) absences() []absence {
	list := slices.Clone(c.withheld)
	told := map[string]bool{}
	for _, l := range c.ledgers {
		for _, r := range l.ready {
			note := func(s span, why string) {
				if s.from >= s.to {
					s.to = s.from + 1
				}
				list = append(list, absence{s, why})
				if !told[why] {
					told[why] = true
					c.findings = append(c.findings, Finding{Code: FindingMissingLog, Cluster: c.uid, Log: l.log.Origin, Seq: -1, From: timeOf(s.from), To: timeOf(s.to), What: why})
				}
			}
			if r.more > 0 {
				note(r.span, fmt.Sprintf("%d replicas were at work that are not named", r.more))
			}
			for _, replica := range r.ready {
				for _, a := range c.lacks(replica, r, int64(l.patience())) {
					note(a.span, a.why)
				}
			}
		}
	}
	slices.SortFunc(list, func(a, b absence) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.why, b.why))
	})
	return list
}

// lacks tells of which parts of the time of a roster there is no log of a replica. One that has ended in
// order, or has ended less than patience ago, is complete.
func (c *cluster) lacks(r record.Replica, named roster, patience int64) []absence {
	s := named.span
	var list []absence
	lack := func(from, to int64, why string) {
		list = append(list, absence{span{max(s.from, from), min(s.to, to)}, why})
	}
	var starts []bootSpan
	found := false
	for _, l := range c.ledgers {
		if l.replica != r.Pod {
			continue
		}
		found = true
		starts = append(starts, l.spans...)
		for _, h := range l.holes {
			if h.from <= s.to && s.from < h.to {
				lack(h.from, h.to, "a log of replica "+r.Pod+" that its next one goes on from is not here")
			}
		}
	}
	if !found {
		lack(s.from, s.to, "the log of replica "+r.Pod+" is not here")
		return list
	}
	known := r.Boot == ""
	first, last := int64(math.MaxInt64), bootSpan{}
	for _, b := range starts {
		if b.lost && (r.Boot == "" || r.Boot == b.boot) && s.from <= b.until && b.span.to+patience < min(s.to, b.until) {
			lack(b.span.to, b.until, "the volume of replica "+r.Pod+" was lost, and its log ends before")
		}
		known = known || b.boot == r.Boot
		if r.Boot == "" || r.Boot == b.boot {
			first = min(first, b.span.from)
		}
		last = b
		last.span.to = max(last.span.to, b.span.to)
	}
	switch {
	case !known:
		lack(s.from, s.to, "the log of replica "+r.Pod+" does not have its start "+r.Boot)
		return list
	case first > named.named+patience:
		lack(s.from, first, "the log of replica "+r.Pod+" begins behind it")
	}
	// Who is ready after an orderly stop, by whatever start, has started again.
	if last.span.to+patience < s.to && (!last.stopped || r.Boot != last.boot) {
		lack(last.span.to, s.to, "the log of replica "+r.Pod+" ends before")
	}
	return list
}
