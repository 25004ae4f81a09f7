package verify

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

const (
	// explainBefore is how long before a change the request may lie that has made it, beyond
	// when the state before was last known to hold: the API server stores after it has asked.
	explainBefore = 5 * time.Minute
	// explainAfter is how far the clocks of two nodes may be apart for it.
	explainAfter = time.Minute
	// goneWithin is how long the end of a namespace may take. What is in it goes first, and the webhook is not asked.
	goneWithin = 15 * time.Minute
)

// cluster is what the logs of all replicas of one cluster tell.
type cluster struct {
	uid     string
	span    span
	ledgers []*ledger
	audit   *Audit // nil without one

	// withheld are times of logs that are not here, by what the API server was told of their records.
	withheld []absence

	findings      []Finding
	gaps          []Gap
	runs          []Run
	changes       map[changeKey]Change
	remediations  []Remediation
	keys          []Key
	exceptions    map[string]*exception
	refused       uint64
	refusalErrors uint64
	refusedIn     map[string]uint64
	refusals      map[RefusalCount]uint64
	refusalList   []Refusal

	// allowed is in pieces, each sorted once it is full: one list of millions would be copied again and again.
	allowed [][]allowed
	inputs  map[inputChange][]inputSeen
	// gone are the times at which a namespace was seen to be no more.
	gone map[string][]int64
}

// exception is one in the making.
type exception struct {
	Exception
	self      bool
	sure      int64 // when it was granted for certain
	requester string
	log       string
	seq       int64
	uses      map[useKey][]used
	asked     time.Time // when it was asked for last
	pauses    []span    // between that a guard took it no more and that one took it again
}

// ending is what a replica tells of the end of an exception. It is none if the replica goes on to tell that it was granted.
type ending struct {
	at      time.Time
	how, by string
}

// allowed is a request that was: of which object, to what, and when.
type allowed struct {
	object, digest [12]byte
	at             int64
}

// inputChange is that of an object which modes are computed from.
type inputChange struct {
	object, digest [12]byte
	namespace      string
}

type inputSeen struct {
	span
	name [12]byte // the object for a request that could not know its UID yet
	what string   // for people
	log  string
	seq  int64
	keys bool     // the digests before and behind were made with different keys
	by   []string // the replicas that tell of it
}

func newCluster(uid string) *cluster {
	return &cluster{uid: uid, exceptions: map[string]*exception{}, refusedIn: map[string]uint64{}, refusals: map[RefusalCount]uint64{},
		changes: map[changeKey]Change{}, inputs: map[inputChange][]inputSeen{}, gone: map[string][]int64{}}
}

func (c *cluster) spread(t time.Time) {
	at := instant(t)
	if c.span == (span{}) {
		c.span = span{at, at}
	}
	c.span.from, c.span.to = min(c.span.from, at), max(c.span.to, at)
}

func (c *cluster) trimRefusals() {
	slices.SortFunc(c.refusalList, compareRefusals)
	c.refusalList = c.refusalList[:min(len(c.refusalList), MaxRefusals)]
}

func compareRefusals(a, b Refusal) int {
	return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Log, b.Log), cmp.Compare(a.Seq, b.Seq))
}

func (c *cluster) exception(o *record.Object) *exception {
	e := c.exceptions[o.UID]
	if e == nil {
		e = &exception{Exception: Exception{Cluster: c.uid, UID: o.UID, Namespace: o.Namespace, Rules: []string{}, Uses: []Use{}}, uses: map[useKey][]used{}}
		c.exceptions[o.UID] = e
	}
	if e.Name == "" { // one that was met in a decision has none yet
		e.Name = o.Name
	}
	return e
}

// terms takes over what was asked for.
func (e *exception) terms(b *record.ExceptionRequested) {
	e.Rules, e.RulesN, e.Approval, e.Reason, e.Reference, e.By = slices.Clone(b.Rules), b.RulesN, b.Approval, b.Reason, b.Reference, b.By.ID
	e.Until = b.Until
}

// paused reports whether what a replica tells as an end is one that another has told to be over.
func (e *exception) paused(x *ending) bool {
	at := instant(x.at)
	return x.how == "revoked" && slices.ContainsFunc(e.pauses, func(p span) bool { return p.from-int64(explainAfter) <= at && at <= p.to })
}

// endExceptions takes what all replicas tell of the ends of exceptions together.
func (c *cluster) endExceptions() {
	for _, l := range c.ledgers {
		for uid, x := range l.endings {
			if e := c.exceptions[uid]; !e.paused(&x) {
				e.end(x.at, x.how, x.by)
			}
		}
	}
	for _, e := range c.exceptions {
		if e.End.IsZero() {
			e.End = e.Until
		}
	}
}

// end takes the earliest end that anybody tells of.
func (e *exception) end(t time.Time, how, by string) {
	if e.Ended == "" || t.Before(e.End) {
		e.Ended, e.EndedBy = how, by
	}
	if e.End.IsZero() || t.Before(e.End) {
		e.End = t
	}
}

// covers tells what of a namespace's weakness the exception is for. Which modes it is for is in the rows. Which of the
// pods outside of the mesh it selects is not in the records, so it is taken to be those that were found.
func (e *exception) covers() []exemption {
	x := exemption{uid: e.UID}
	for _, r := range e.Rules {
		policy, _, _ := strings.Cut(r, "/")
		x.mode = x.mode || policy == "strict-mtls"
		x.membership = x.membership || policy == "mesh-membership"
	}
	var list []exemption
	for _, x.span = range (span{e.sure, instant(e.End)}).without(union(e.pauses)) {
		list = append(list, x)
	}
	return list
}

// judged tells whether a change of objects of the kind needs a request that explains it.
func judged(gvk string) bool {
	return strings.HasPrefix(gvk, "security.istio.io/") && strings.HasSuffix(gvk, "/PeerAuthentication")
}

// objectKey is the same in a decision and in a row. A request to create may not know the UID.
func objectKey(o *record.Object) [12]byte {
	if o.UID == "" {
		return nameKey(o)
	}
	return short("uid", o.UID)
}

func nameKey(o *record.Object) [12]byte { return short("name", o.Namespace, o.Name) }

func digestKey(digest string, deleted bool) [12]byte {
	if deleted {
		return short("deleted")
	}
	return short("digest", digest)
}

// explain notes each object that is another in a row than in the one before. By the first snapshot of a start it may
// be so since the start before told its last.
func (l *ledger) explain(_ string, was, now tableRow, after time.Time, stays bool) {
	e := int64(l.errors)
	if !l.table.known && !l.rested.IsZero() {
		after = earliest(after, l.rested)
	}
	seen := inputSeen{span: span{instant(after) - e, instant(l.head.Time) + e}, log: l.log.Origin, seq: int64(l.head.Seq), keys: was.key != now.key, by: []string{l.replica}}
	note := func(o *record.Object, deleted bool) {
		key := inputChange{objectKey(o), digestKey(o.Digest, deleted), o.Namespace}
		seen.what, seen.name = "a "+o.GVK+" changed", nameKey(o)
		l.cluster.changed(key, seen)
	}
	for i := range now.inputs {
		o := &now.inputs[i].Object
		if !judged(o.GVK) {
			continue
		}
		old := slices.IndexFunc(was.inputs, func(in record.Input) bool { return in.Object.UID == o.UID })
		switch {
		case old < 0:
			note(o, false)
		case was.key == now.key && was.inputs[old].Object.Digest != o.Digest:
			note(o, false)
		case was.key != now.key && was.inputs[old].Object.Generation != o.Generation:
			note(o, false)
		}
	}
	if !stays { // the namespace left the table; its policies may be where they were
		return
	}
	for i := range was.inputs {
		o := &was.inputs[i].Object
		if judged(o.GVK) && !slices.ContainsFunc(now.inputs, func(in record.Input) bool { return in.Object.UID == o.UID }) {
			note(o, true)
		}
	}
}

// changed notes what must have a request, as the replica tells that has seen it first. The same may happen again: what
// one replica tells twice has been twice, and what another tells is the same if it may have been at the same time.
func (c *cluster) changed(key inputChange, seen inputSeen) {
	list := c.inputs[key]
	for i := range list {
		old := &list[i]
		if slices.Contains(old.by, seen.by[0]) || seen.to+int64(explainAfter) < old.from || old.to+int64(explainAfter) < seen.from {
			continue
		}
		by := append(slices.Clone(old.by), seen.by...)
		if seen.to < old.to {
			*old = seen
		}
		old.by = by
		return
	}
	c.inputs[key] = append(list, seen)
}

// A namespace that is guarded no longer has been changed, or some MeshGuard has.
func unguards() [12]byte { return short("unguarded") }
func anyGuard() [12]byte { return short("guards") }

// unguarded notes that no guard selects a namespace any more.
func (l *ledger) unguarded(r *record.Row, after time.Time) {
	e := int64(l.errors)
	l.cluster.changed(inputChange{short("uid", r.UID), unguards(), r.Namespace}, inputSeen{
		span: span{instant(after) - e, instant(l.head.Time) + e}, name: anyGuard(), what: "the namespace is guarded no longer", log: l.log.Origin, seq: int64(l.head.Seq), by: []string{l.replica},
	})
}

// unexplained are changes that no allowed request accounts for: they went past the webhook.
func (c *cluster) unexplained() []Finding {
	if n := len(c.allowed); n > 0 {
		sortAllowed(c.allowed[n-1])
	}
	var list []Finding
	for key, all := range c.inputs {
		for i := range all {
			seen := &all[i]
			if c.explained(key.object, key.digest, seen) || c.explained(seen.name, key.digest, seen) || c.endedWith(&key, seen) {
				continue
			}
			list = append(list, Finding{Code: FindingUnexplained, Cluster: c.uid, Namespace: key.namespace, Log: seen.log, Seq: seen.seq,
				From: timeOf(seen.from), To: timeOf(seen.to), What: seen.what + ", and no request that was allowed accounts for it"})
		}
	}
	return list
}

func (c *cluster) explained(object, digest [12]byte, seen *inputSeen) bool {
	from, to := seen.from-int64(explainBefore), seen.to+int64(explainAfter)
	for _, piece := range c.allowed {
		first := allowed{object: object, at: from}
		i, _ := slices.BinarySearchFunc(piece, first, compareAllowed)
		for ; i < len(piece) && piece[i].object == object && piece[i].at <= to; i++ {
			if piece[i].digest == digest || seen.keys {
				return true
			}
		}
	}
	return false
}

// endedWith reports whether an object went because its namespace did.
func (c *cluster) endedWith(key *inputChange, seen *inputSeen) bool {
	return key.digest == digestKey("", true) && slices.ContainsFunc(c.gone[key.namespace], func(at int64) bool {
		return seen.from <= at && at <= seen.to+int64(goneWithin)
	})
}

// pieceOf is how many allowed requests are kept in one piece.
const pieceOf = 1 << 15

func (c *cluster) allow(a allowed) {
	n := len(c.allowed)
	if n == 0 || len(c.allowed[n-1]) == pieceOf {
		if n > 0 {
			sortAllowed(c.allowed[n-1])
		}
		c.allowed, n = append(c.allowed, make([]allowed, 0, pieceOf)), n+1
	}
	c.allowed[n-1] = append(c.allowed[n-1], a)
}

func sortAllowed(list []allowed) {
	slices.SortFunc(list, compareAllowed)
}

func compareAllowed(a, b allowed) int {
	return cmp.Or(bytes.Compare(a.object[:], b.object[:]), cmp.Compare(a.at, b.at))
}
