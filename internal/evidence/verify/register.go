package verify

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// register keeps what registers are made from.
func (l *ledger) register(body record.Body) {
	c := l.cluster
	switch b := body.(type) {
	case *record.Decision:
		l.decision(b)
	case *record.Admitted:
		l.admitted += b.N
	case *record.Remediation:
		if b.Outcome == "done" && judged(b.Object.GVK) {
			// What Meshvakt has done itself, the API server may not have asked about: it may be put right while the
			// webhook is not registered. The record says what it was changed to.
			c.allow(allowed{objectKey(&b.Object), digestKey(b.Object.Digest, false), instant(b.Done)})
		}
		c.remediations = append(c.remediations, Remediation{Cluster: c.uid, Log: l.log.Origin, Seq: int64(l.head.Seq), What: b.What,
			GVK: b.Object.GVK, Namespace: b.Object.Namespace, Name: b.Object.Name, Outcome: b.Outcome, Tries: b.Tries, After: knownTime(b.After), Found: b.Found, Done: b.Done})
	case *record.ConfigChanged:
		l.configChanged(b)
	case *record.KeyCreated:
		l.key(Key{What: "created", For: b.For, ID: b.ID + b.VerifierKey, Origin: l.log.Origin})
	case *record.KeyDestroyed:
		l.key(Key{What: "destroyed", For: "pseudonyms", ID: b.ID, Origin: b.Origin, By: b.By.ID, Why: b.Why})
	case *record.KeyUsed:
		l.key(Key{What: "used", For: "pseudonyms", ID: b.ID, Origin: b.Origin, By: b.By.ID, Why: b.Reason, N: b.N})
	case *record.Close:
		l.log.Closed, l.log.Next = true, b.Next
	default:
		l.exception(body)
	}
}

func (l *ledger) key(k Key) {
	k.Cluster, k.Log, k.Seq, k.At = l.cluster.uid, l.log.Origin, int64(l.head.Seq), l.head.Time
	l.cluster.keys = append(l.cluster.keys, k)
}

func (l *ledger) decision(d *record.Decision) {
	l.decided++
	c := l.cluster
	if c.audit != nil && d.Verdict != "error" { // which is no answer that the API server could note
		c.audit.decided(l.log.Origin, l.head.Seq, l.head.Time)
	}
	if d.BreakGlass {
		l.finding(FindingBreakGlass, d.Object.Namespace, l.head.Time, l.head.Time, "a "+d.Operation+" of a "+d.Object.GVK+" was allowed to the break-glass group while no record could be made")
	}
	if d.Verdict == "allow" {
		at := instant(l.head.Time)
		switch {
		case judged(d.Object.GVK):
			c.allow(allowed{objectKey(&d.Object), digestKey(d.Object.Digest, d.Operation == "DELETE"), at})
		case d.Object.GVK == "v1/Namespace":
			c.allow(allowed{objectKey(&d.Object), unguards(), at})
		case strings.HasSuffix(d.Object.GVK, "/MeshGuard"):
			c.allow(allowed{anyGuard(), unguards(), at})
		}
		l.relies(d)
		return
	}
	r := Refusal{Cluster: c.uid, Log: l.log.Origin, Seq: int64(l.head.Seq), At: l.head.Time, Operation: d.Operation, GVK: d.Object.GVK,
		Namespace: d.Object.Namespace, Name: d.Object.Name, By: d.By.ID, Rules: []string{}, Verdict: d.Verdict}
	if d.Verdict == "error" {
		c.refusalErrors++
	}
	c.refused++
	c.refusedIn[d.Object.Namespace]++
	for _, rule := range d.Rules {
		if rule.Action == "deny" {
			r.Rules = append(r.Rules, rule.Code)
		}
	}
	for _, rule := range slices.Compact(slices.Clone(r.Rules)) {
		c.refusals[RefusalCount{Cluster: c.uid, Namespace: d.Object.Namespace, Rule: rule}]++
	}
	c.refusalList = append(c.refusalList, r)
	if len(c.refusalList) >= 4*MaxRefusals {
		c.trimRefusals()
	}
}

func (l *ledger) configChanged(g *record.ConfigChanged) {
	at := g.Found
	if at.After(l.head.Time) { // the clock was set back before it was written
		at = l.head.Time
	}
	l.cluster.change(g, Change{Cluster: l.cluster.uid, Log: l.log.Origin, Seq: int64(l.head.Seq), At: at, GVK: g.GVK, Namespace: g.Namespace,
		Name: g.Name, What: g.What, Weaker: g.Weaker, By: g.By.ID, Request: g.Request, Reason: g.Reason, Seen: 1})
	if g.Weaker {
		l.finding(FindingWeakened, "", at, at, g.GVK+" "+g.Name+" was "+g.What+", and less is enforced than before")
	}
	// What beats say of it from now on is explained.
	delete(l.hooks, g.GVK+" "+g.Name)
}

// names keeps who was ready.
func (l *ledger) names(b *record.Beat) {
	at := instant(l.head.Time)
	from := at
	if l.last != nil {
		from = instant(l.last.time)
	}
	more := b.ReadyN - uint64(len(b.Ready))
	if n := len(l.ready); n > 0 && l.last != nil {
		l.ready[n-1].to = max(l.ready[n-1].to, at)
		if l.ready[n-1].more == more && slices.Equal(l.ready[n-1].ready, b.Ready) {
			return
		}
	}
	l.ready = append(l.ready, roster{span{from, at}, at, b.Ready, more})
}

// count checks what a beat says about the control itself.
func (l *ledger) count(b *record.Beat) {
	if l.run != nil {
		l.run.Counts = Counters(b.Counts)
	}
	// What was counted had been stored before; what was stored may be counted a moment later.
	if b.Counts.Written > l.decided && !l.midway {
		l.finding(FindingCounters, "", l.head.Time, l.head.Time, fmt.Sprintf("%d decisions were counted and %d are in the log", b.Counts.Written, l.decided))
	}
	if b.Counts.In < b.Counts.Written+b.Counts.Admitted+b.Counts.Unlogged {
		l.finding(FindingCounters, "", l.head.Time, l.head.Time, "more requests were answered than came")
	}
	l.askedBy(b)
	l.hook(b.Hooks)
}

// enforcing is how long ago the API server may have asked for a beat to say that it does.
const enforcing = int64(time.Minute)

// askedBy keeps when the API server was seen to ask, and when a replica that tried saw that it
// did not. A replica that does not lead does not try, and its beats say neither.
func (l *ledger) askedBy(b *record.Beat) {
	at := instant(l.head.Time)
	if l.beats.from == 0 {
		l.beats.from = at
	}
	l.beats.to = max(l.beats.to, at)
	switch {
	case b.Enforcing:
		s := span{at - enforcing, at + int64(l.patience())}
		if n := len(l.asked); n > 0 && l.asked[n-1].to >= s.from {
			l.asked[n-1].to = max(l.asked[n-1].to, s.to)
		} else {
			l.asked = append(l.asked, s)
		}
	case b.CanaryMillis > 0:
		if l.silent == nil {
			l.silent = &span{at, at}
		}
		l.silent.to = max(l.silent.to, at)
		return
	}
	l.endSilence(at)
}

func (l *ledger) endSilence(at int64) {
	if l.silent == nil {
		return
	}
	l.silences = append(l.silences, span{l.silent.from, max(l.silent.to, at)})
	l.silent = nil
}

// notAsked finds when the API server did not ask, by any of the replicas, and when none of them knew.
func (c *cluster) notAsked() {
	var known, asked []span
	watched := span{math.MaxInt64, math.MinInt64}
	for _, l := range c.ledgers {
		known, asked = append(known, l.silences...), append(asked, l.asked...)
		if l.beats.from < l.beats.to {
			watched.from, watched.to = min(watched.from, l.beats.from), max(watched.to, l.beats.to)
		}
	}
	for i := range known {
		known[i].to = max(known[i].to, known[i].from+1)
	}
	known = union(known)
	find := func(list []span, what string) {
		for _, s := range list {
			c.findings = append(c.findings, Finding{Code: FindingNotAsked, Cluster: c.uid, Seq: -1, From: timeOf(s.from), To: timeOf(s.to), What: what})
		}
	}
	find(known, "the API server was not seen to ask the webhook")
	if watched.from < watched.to {
		find(watched.without(union(append(asked, known...))), "no replica says whether the API server asked the webhook")
	}
}

// hook compares the webhook configurations with those of the last beat. What has changed must
// have been told by a record of its own.
func (l *ledger) hook(hooks []record.Hook) {
	now := map[string]record.Hook{}
	for _, h := range hooks {
		key := h.GVK + " " + h.Name
		now[key] = h
		was, known := l.hooks[key]
		if known && (was.UID != h.UID || was.Digest != h.Digest) && was.ResourceVersion != h.ResourceVersion {
			l.finding(FindingHook, "", l.head.Time, l.head.Time, key+" is another than at the last beat, and no record tells of the change")
		}
		if h.Failure == "Ignore" && (!known || was.Failure != h.Failure) {
			l.finding(FindingHook, "", l.head.Time, l.head.Time, key+" lets pass what nobody answers")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(l.hooks)) {
		if _, there := now[key]; !there {
			l.finding(FindingHook, "", l.head.Time, l.head.Time, key+" is gone, and no record tells of it")
		}
	}
	if len(hooks) == 0 && (l.last == nil || len(l.hooks) > 0) {
		l.finding(FindingHook, "", l.head.Time, l.head.Time, "there is no webhook configuration")
	}
	l.hooks = now
}

// exception merges what replicas tell of one: each of them tells it, and the first one counts.
func (l *ledger) exception(body record.Body) {
	at := l.head.Time
	switch b := body.(type) {
	case *record.ExceptionRequested:
		e := l.cluster.exception(&b.Object)
		first(&e.Requested, at)
		l.requests[e.UID] = b
		if e.Granted.IsZero() && !at.Before(e.asked) {
			e.asked = at
			e.terms(b)
		}
	case *record.ExceptionGranted:
		e := l.cluster.exception(&b.Object)
		if first(&e.Granted, at) {
			e.Approver, e.self = b.By.ID, b.By == b.For && b.By.ID != ""
			e.log, e.seq, e.requester = l.log.Origin, int64(l.head.Seq), b.For.ID
			e.sure = instant(at) + int64(l.errors)
			// Until it is approved, what is asked for may change; what it was then counts, whatever is told later.
			if asked := l.requests[e.UID]; asked != nil {
				e.terms(asked)
			}
			e.Until = b.Until
		}
		if x, is := l.endings[e.UID]; is {
			e.pauses = append(e.pauses, span{instant(x.at), instant(at) + int64(l.errors)})
			delete(l.endings, e.UID)
		}
	case *record.ExceptionUsed:
		if b.How == "standing" { // what was admitted is counted by decisions
			l.cluster.exception(&b.Object).stands(b)
		}
	case *record.ExceptionRevoked:
		if b.How == "shortened" {
			l.cluster.exception(&b.Object).end(b.Until, b.How, b.By.ID)
			return
		}
		l.ends(&b.Object, ending{b.Until, b.How, b.By.ID})
	case *record.ExceptionExpired:
		l.ends(&b.Object, ending{b.Until, "expired", ""})
	}
}

// ends keeps the first end that is told since the exception was granted last.
func (l *ledger) ends(o *record.Object, x ending) {
	e := l.cluster.exception(o)
	if was, is := l.endings[e.UID]; !is || x.at.Before(was.at) {
		l.endings[e.UID] = x
	}
}

// first takes over at if it is earlier than what is known.
func first(known *time.Time, at time.Time) bool {
	if !known.IsZero() && !at.Before(*known) {
		return false
	}
	*known = at
	return true
}

// knownTime is zero for the time by which a record says that it is not known.
func knownTime(t time.Time) time.Time {
	if t.Equal(time.Unix(0, 0)) {
		return time.Time{}
	}
	return t
}
