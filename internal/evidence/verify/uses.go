package verify

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

const (
	// sameRequest is how far the decisions about one request may lie apart: the API server asks two entries of the webhook
	// about some, of any replica, and each entry has a UID of its own for it.
	sameRequest = int64(10 * time.Second)
	// lateUse is how long after the end of an exception a replica may still let something pass by it: until its watch has told it.
	lateUse = int64(time.Minute)
)

// useKey is what uses are counted by.
type useKey struct{ by, gvk string }

// used is one decision that rests on an exception. Millions of them are kept in 40 bytes each.
type used struct {
	what [12]byte // operation and object, the same in all decisions about one request
	at   int64
	log  *Log
	seq  uint64
}

// relies notes what an allowed decision rests on.
func (l *ledger) relies(d *record.Decision) {
	if len(d.Exceptions) == 0 {
		return
	}
	key := useKey{d.By.ID, d.Object.GVK}
	what := short("use", d.Operation, d.Subresource, d.Object.Name, d.Object.UID, d.Object.Digest)
	for _, uid := range d.Exceptions {
		e := l.cluster.exception(&record.Object{UID: uid, Namespace: d.Object.Namespace})
		e.uses[key] = append(e.uses[key], used{what, instant(l.head.Time), l.log, l.head.Seq})
	}
}

// stands notes what a scan has found standing.
func (e *exception) stands(b *record.ExceptionUsed) {
	e.Standing = max(e.Standing, b.N)
	if e.StandingFrom.IsZero() || b.From.Before(e.StandingFrom) {
		e.StandingFrom = b.From
	}
	if b.To.After(e.StandingTo) {
		e.StandingTo = b.To
	}
}

// sumUses counts what an exception has let pass, each request once, and finds what it should not have.
func (c *cluster) sumUses(e *exception) {
	var late *Use
	for key, list := range e.uses {
		slices.SortFunc(list, func(a, b used) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.log.Origin, b.log.Origin), cmp.Compare(a.seq, b.seq))
		})
		u := Use{By: key.by, GVK: key.gvk, First: timeOf(list[0].at), Last: timeOf(list[len(list)-1].at), Log: list[0].log.Origin, Seq: int64(list[0].seq)}
		begun := map[[12]byte]int64{}
		for i := range list {
			x := &list[i]
			if at, known := begun[x.what]; !known || x.at-at > sameRequest {
				begun[x.what] = x.at
				u.N++
			}
			if e.Granted.IsZero() || x.at > instant(e.End)+lateUse || slices.ContainsFunc(e.pauses, func(p span) bool { return p.from+lateUse < x.at && x.at+lateUse < p.to }) {
				late = earlierUse(late, &Use{First: timeOf(x.at), Log: x.log.Origin, Seq: int64(x.seq)})
			}
		}
		e.Used += u.N
		if e.FirstUsed.IsZero() || u.First.Before(e.FirstUsed) {
			e.FirstUsed = u.First
		}
		if u.Last.After(e.LastUsed) {
			e.LastUsed = u.Last
		}
		e.Uses = append(e.Uses, u)
	}
	e.uses = nil
	slices.SortFunc(e.Uses, func(a, b Use) int {
		return cmp.Or(cmp.Compare(b.N, a.N), a.First.Compare(b.First), cmp.Compare(a.By, b.By), cmp.Compare(a.GVK, b.GVK))
	})
	e.UsesN = len(e.Uses)
	e.Uses = e.Uses[:min(len(e.Uses), MaxUses)]
	if late == nil {
		return
	}
	what := fmt.Sprintf("exception %s let a request pass after its end", e.UID)
	if e.Granted.IsZero() {
		what = fmt.Sprintf("exception %s let a request pass, and in these logs nobody grants it", e.UID)
	}
	c.findings = append(c.findings, Finding{Code: FindingNotInForce, Cluster: c.uid, Namespace: e.Namespace, Log: late.Log, Seq: late.Seq, From: late.First, To: e.LastUsed, What: what})
}

func earlierUse(a, b *Use) *Use {
	if a == nil || cmp.Or(b.First.Compare(a.First), cmp.Compare(b.Log, a.Log), cmp.Compare(b.Seq, a.Seq)) < 0 {
		return b
	}
	return a
}
