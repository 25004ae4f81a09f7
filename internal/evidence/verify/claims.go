package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// ParseClaim reads a claim as in "mtls=STRICT,namespace=payments". Namespace may stand more
// than once, or be * for all that were guarded; cluster is the UID of one cluster.
func ParseClaim(text string, from, to time.Time, acceptInferred bool) (Claim, error) {
	c := Claim{Text: text, Namespaces: []string{}, From: from, To: to, AcceptInferred: acceptInferred}
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		switch {
		case !ok || value == "":
			return Claim{}, fmt.Errorf("claim %q: %q; must be KEY=VALUE", text, part)
		case key == "mtls" && c.MTLS == "" && value == "STRICT":
			c.MTLS = value
		case key == "mtls":
			return Claim{}, fmt.Errorf("claim %q: mtls is %q; must be STRICT, once", text, value)
		case key == "namespace":
			c.Namespaces = append(c.Namespaces, value)
		case key == "cluster" && c.Cluster == "":
			c.Cluster = value
		default:
			return Claim{}, fmt.Errorf("claim %q: key is %q; must be mtls, namespace or cluster", text, key)
		}
	}
	slices.Sort(c.Namespaces)
	c.Namespaces = slices.Compact(c.Namespaces)
	switch {
	case c.MTLS == "":
		return Claim{}, fmt.Errorf("claim %q says nothing of mtls; must be as in mtls=STRICT,namespace=payments", text)
	case len(c.Namespaces) == 0:
		return Claim{}, fmt.Errorf("claim %q names no namespace; must be as in mtls=STRICT,namespace=payments, or namespace=* for all guarded ones", text)
	case len(c.Namespaces) > 1 && slices.Contains(c.Namespaces, "*"):
		return Claim{}, fmt.Errorf("claim %q has * beside namespaces; must be either", text)
	case !from.Before(to):
		return Claim{}, fmt.Errorf("claim %q is from %s to %s; must begin before it ends", text, from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	return c, nil
}

// answer says what the logs prove of a claim: the worst of what they do for each cluster.
func (f *fleet) answer(c Claim) Answer {
	a := Answer{Claim: c, Verdict: Holds, Clusters: []ClusterAnswer{}, Namespaces: []NamespaceAnswer{}}
	for _, uid := range f.uids() {
		if c.Cluster == "" || c.Cluster == uid {
			in, list := f.answerIn(&c, uid)
			a.Clusters, a.Namespaces = append(a.Clusters, in), append(a.Namespaces, list...)
		}
	}
	for _, uid := range f.absentIn(&c) {
		in := ClusterAnswer{Cluster: uid, Verdict: NotProvable}
		in.Why = fmt.Sprintf("the policy or --key names logs of cluster %s, and none of them is given", uid)
		a.Clusters = append(a.Clusters, in)
	}
	slices.SortStableFunc(a.Clusters, func(a, b ClusterAnswer) int { return strings.Compare(a.Cluster, b.Cluster) })
	for _, in := range a.Clusters {
		if in.Verdict == IsViolated || in.Verdict == NotProvable && a.Verdict == Holds {
			a.Verdict = in.Verdict
		}
	}
	if a.Verdict == NotProvable {
		for _, in := range a.Clusters {
			a.Why = cmp.Or(a.Why, in.Why)
		}
	}
	if len(a.Namespaces) == 0 && a.Verdict == Holds {
		a.Verdict, a.Why = NotProvable, "no log tells of a guarded namespace that the claim is about"
	}
	f.distrust(&a)
	return a
}

// answerIn is the part of an answer about one cluster of which there are logs.
func (f *fleet) answerIn(c *Claim, uid string) (ClusterAnswer, []NamespaceAnswer) {
	in := ClusterAnswer{Cluster: uid, Verdict: Holds}
	var list []NamespaceAnswer
	known := map[string]bool{"*": true}
	for i := range f.out.Namespaces {
		t := &f.out.Namespaces[i]
		if t.Cluster != uid || c.Namespaces[0] != "*" && !slices.Contains(c.Namespaces, t.Namespace) {
			continue
		}
		known[t.Namespace] = true
		n := answerOf(c, t)
		if n.Verdict == NothingToTell {
			continue
		}
		list = append(list, n)
		in.Namespaces++
		if n.Verdict != Holds {
			in.Failed++
		}
		if n.Verdict == IsViolated || n.Verdict == NotProvable && in.Verdict == Holds {
			in.Verdict = n.Verdict
		}
	}
	for _, ns := range c.Namespaces {
		if !known[ns] && in.Verdict == Holds {
			in.Verdict, in.Why = NotProvable, fmt.Sprintf("no log of cluster %s tells of namespace %q", uid, ns)
		}
	}
	if in.Namespaces == 0 && in.Verdict == Holds {
		in.Verdict = NothingToTell
	}
	return in, list
}

// absentIn are clusters of which logs are named by who verifies, for a time that the claim is about,
// while none is given: that nothing speaks against them proves nothing.
func (f *fleet) absentIn(c *Claim) []string {
	var list []string
	for origin := range f.trust.keys {
		_, uid, _, shard, err := volume.SplitOrigin(origin)
		if err != nil || f.clusters[uid] != nil || c.Cluster != "" && c.Cluster != uid {
			continue
		}
		period, _, err := volume.ParseShard(shard)
		if err != nil {
			continue
		}
		if from, to, err := period.Bounds(); err == nil && from.Before(c.To) && c.From.Before(to) {
			list = append(list, uid)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// notGiven finds logs that are named by who verifies and are not given, though others of that
// quarter are.
func (f *fleet) notGiven() []Finding {
	given, periods := map[string]bool{}, map[volume.Period]bool{}
	for i := range f.out.Logs {
		given[f.out.Logs[i].Origin] = true
		if period, _, err := volume.ParseShard(f.out.Logs[i].Shard); err == nil {
			periods[period] = true
		}
	}
	var list []Finding
	for origin := range f.trust.keys {
		_, uid, _, shard, err := volume.SplitOrigin(origin)
		if err != nil || given[origin] {
			continue
		}
		if period, _, err := volume.ParseShard(shard); err == nil && periods[period] {
			list = append(list, Finding{Code: FindingMissingLog, Cluster: uid, Log: origin, Seq: -1, What: "the policy or --key names this log, and it is not given"})
		}
	}
	return list
}

func (f *fleet) uids() []string {
	var list []string
	for uid := range f.clusters {
		list = append(list, uid)
	}
	slices.Sort(list)
	return list
}

// distrust takes back what sound intervals cannot carry.
func (f *fleet) distrust(a *Answer) {
	own := slices.IndexFunc(f.out.Logs, func(l Log) bool { return l.Trust == TrustOwn })
	switch {
	case len(f.out.Problems) > 0:
		a.Verdict, a.Why = NotTrusted, "logs are not whole, so nothing is proven"
	case len(f.out.Newer) > 0:
		a.Verdict, a.Why = NotProvable, "a log has records of a newer Meshvakt; verify with that one"
	case own >= 0 && !f.trust.own && a.Verdict == Holds:
		a.Verdict, a.Why = NotProvable, "the key of "+f.out.Logs[own].Origin+" is known from the log itself, so anybody may have written it; give its key with --policy or --key, or accept that with --trust-log-key"
	}
}

// answerOf judges one namespace.
func answerOf(c *Claim, t *Timeline) NamespaceAnswer {
	n := NamespaceAnswer{Cluster: t.Cluster, Namespace: t.Namespace, Verdict: Holds, Intervals: []Interval{}, Moments: []Moment{}}
	var within []Interval
	untold := func(from, to time.Time) {
		if from.Before(to) {
			within = append(within, Interval{From: from, To: to, Grade: Unknown, Why: "no log tells of this time", Exceptions: []string{}})
		}
	}
	last := c.From
	for _, in := range t.Intervals {
		if !in.To.After(c.From) || !in.From.Before(c.To) {
			continue
		}
		in.From, in.To = latest(in.From, c.From), earliest(in.To, c.To)
		untold(last, in.From)
		within = append(within, in)
		last = in.To
	}
	untold(last, c.To)
	all := c.Namespaces[0] == "*"
	for _, in := range within {
		switch {
		case in.Grade == Observed, in.Grade == ObservedByAudit, in.Grade == Inferred && c.AcceptInferred, in.Unguarded && all:
			continue
		case in.Grade == Violated:
			n.Verdict = IsViolated
		case n.Verdict == Holds:
			n.Verdict = NotProvable
		}
		n.Intervals = append(n.Intervals, in)
	}
	for _, m := range t.Moments {
		if !m.From.Before(c.From) && !m.To.After(c.To) {
			n.Verdict, n.Moments = IsViolated, append(n.Moments, m)
		}
	}
	_, n.Durations = sum(within)
	if all && !slices.ContainsFunc(within, func(in Interval) bool { return !in.Unguarded }) {
		n.Verdict = NothingToTell
	}
	return n
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ExitCode is what a verification comes to, for scripts: 0 all holds, 1 a claim is
// violated, 2 it cannot be proven, 3 the logs are not whole.
func (r *Result) ExitCode() int {
	switch {
	case len(r.Problems) > 0:
		return 3
	case slices.ContainsFunc(r.Claims, func(a Answer) bool { return a.Verdict == IsViolated }) && len(r.Newer) == 0:
		return 1
	case len(r.Newer) > 0, slices.ContainsFunc(r.Claims, func(a Answer) bool { return a.Verdict != Holds }):
		return 2
	}
	return 0
}
