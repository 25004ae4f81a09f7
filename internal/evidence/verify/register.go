package verify

import (
	"fmt"
	"maps"
	"slices"
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
		c.remediations = append(c.remediations, Remediation{Cluster: c.uid, Log: l.log.Origin, Seq: int64(l.head.Seq), What: b.What,
			GVK: b.Object.GVK, Namespace: b.Object.Namespace, Name: b.Object.Name, Outcome: b.Outcome, Tries: b.Tries, After: b.After, Found: b.Found, Done: b.Done})
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
	if d.BreakGlass {
		l.finding(FindingBreakGlass, d.Object.Namespace, l.head.Time, l.head.Time, "a "+d.Operation+" of a "+d.Object.GVK+" was allowed to the break-glass group while no record could be made")
	}
	if d.Verdict == "allow" {
		if judged(d.Object.GVK) {
			c.allow(allowed{objectKey(&d.Object), digestKey(d.Object.Digest, d.Operation == "DELETE"), instant(l.head.Time)})
		}
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
	c := l.cluster
	c.changes = append(c.changes, Change{Cluster: c.uid, Log: l.log.Origin, Seq: int64(l.head.Seq), At: l.head.Time, GVK: g.GVK, Namespace: g.Namespace,
		Name: g.Name, What: g.What, Weaker: g.Weaker, By: g.By.ID, Request: g.Request, Reason: g.Reason})
	if g.Weaker {
		l.finding(FindingWeakened, "", l.head.Time, l.head.Time, g.GVK+" "+g.Name+" was "+g.What+", and less is enforced than before")
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
	l.ready = append(l.ready, roster{span{from, at}, b.Ready, more})
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
	if at := instant(l.head.Time); !b.Enforcing {
		if l.silent == nil {
			l.silent = &span{at, at}
		}
		l.silent.to = max(l.silent.to, at)
	} else if l.silent != nil {
		l.silent.to = max(l.silent.to, at)
		l.notAsked()
	}
	l.hook(b.Hooks)
}

func (l *ledger) notAsked() {
	from, to := timeOf(l.silent.from), timeOf(l.silent.to)
	l.silent = nil
	l.finding(FindingNotAsked, "", from, to, "the API server was not seen to ask the webhook")
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
		if first(&e.Requested, at) {
			e.Rules, e.RulesN, e.Approval, e.Reason, e.Reference, e.By = slices.Clone(b.Rules), b.RulesN, b.Approval, b.Reason, b.Reference, b.By.ID
		}
		e.until(b.Until)
	case *record.ExceptionGranted:
		e := l.cluster.exception(&b.Object)
		if first(&e.Granted, at) {
			e.Approver, e.self = b.By.ID, b.By == b.For && b.By.ID != ""
			e.log, e.seq, e.requester = l.log.Origin, int64(l.head.Seq), b.For.ID
			e.sure = instant(at) + int64(l.errors)
		}
		e.until(b.Until)
	case *record.ExceptionUsed:
		e := l.cluster.exception(&b.Object)
		if b.How == "standing" {
			e.Standing = max(e.Standing, b.N)
		} else {
			e.Used += b.N
		}
	case *record.ExceptionRevoked:
		e := l.cluster.exception(&b.Object)
		e.end(b.Until, b.How, b.By.ID)
	case *record.ExceptionExpired:
		l.cluster.exception(&b.Object).end(b.Until, "expired", "")
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
