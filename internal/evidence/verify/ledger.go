package verify

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const (
	// jump is how far wall clock and monotonic clock may go apart from one record to the next,
	// beyond what the kernel says its clock may be wrong: a process can be held up between
	// looking at the one and at the other.
	jump = time.Second
	// unsynchronisedError is what the kernel's own bound ends at. A clock that nothing
	// disciplines any more is taken to be at least so wrong.
	unsynchronisedError = 16 * time.Second
)

// ledger follows the records of one replica, through all its shards, and keeps what intervals
// are made from. It keeps no records.
type ledger struct {
	cluster *cluster
	replica string
	options *Options

	log        *Log // the shard in hand
	pseudonyms string
	head       record.Head
	boot       *record.Boot
	run        *Run

	order   uint64 // counts records over all shards
	table   table
	history map[string][]told

	// seen is in the making, or nil; cuts are taken out of all of them at the end.
	seen *sight
	all  []*sight
	cuts []span
	last *lastBeat
	mark mark // of the last record, for the clocks
	// broken: what came since the last beat ends what was seen.
	broken bool
	// relisted is where a snapshot was complete that a watch which began anew has made necessary.
	relisted *place
	pending  []pendingStep
	errors   time.Duration // the largest error of the clock
	declared *Declaration  // what the operator says of it; nil where that is nothing, or not believed any more
	suspect  time.Duration // how far the clocks went apart at the last record, where that is too far
	crept    time.Duration // how far they did since the last beat, by what is not too far from one record to the next
	// foretoldIn is the last log of which a finding says that its times are later than a witness has signed.
	foretoldIn *Log

	ready    []roster
	spans    []bootSpan
	holes    []span // times of logs that are not here, between or before those that are
	decided  uint64 // decisions of this boot in the log
	admitted uint64
	unlogged uint64
	inexact  bool
	midway   bool      // the beginning of the run is in a shard that is not here
	rested   time.Time // when the start before has told its last
	hooks    map[string]record.Hook
	requests map[string]*record.ExceptionRequested // the last of each exception, by UID
	endings  map[string]ending                     // of exceptions that were not granted again, by UID
	silent   *span
	silences []span // when the API server did not ask, for all that this replica tried
	asked    []span // when it did
	beats    span   // from the first to the last
}

// told is a step in the history of a namespace, at its place in the log.
type told struct {
	order uint64
	step
}

// pendingStep is told already, and still to be widened by what the next beat says of the clock.
type pendingStep struct {
	namespace string
	index     int
	narrow    step
}

type place struct {
	order uint64
	at    time.Time
}

// sight is a time in which the replica saw all.
type sight struct {
	span
	begin, end uint64 // in the order of records: the table at begin is the first, what is told up to end belongs to it
}

type lastBeat struct {
	time    time.Time
	mono    time.Duration
	boot    string
	err     time.Duration
	quiet   time.Duration // how long the watch that was heard least recently has been silent
	watches map[string]uint64
	good    bool
}

type mark struct {
	time time.Time
	mono time.Duration
	boot string
}

// roster is who was ready from one beat to the next but one.
type roster struct {
	span
	named int64 // when the first beat says so
	ready []record.Replica
	more  uint64 // of whom only the number is known
}

// bootSpan is a start of the process, from its first record to its last.
type bootSpan struct {
	boot    string
	span    span
	stopped bool
	// lost: what came behind it was on a volume that is no more. The next log of the replica begins at until.
	lost  bool
	until int64
}

func newLedger(c *cluster, replica string, o *Options) *ledger {
	return &ledger{cluster: c, replica: replica, options: o, history: map[string][]told{}, hooks: map[string]record.Hook{}, requests: map[string]*record.ExceptionRequested{}, endings: map[string]ending{}}
}

// take follows one record. The error is a fault of the record, which proves nothing then.
func (l *ledger) take(r record.Record) error {
	l.order++
	l.head = r.Head
	if _, is := r.Body.(*record.Boot); !is {
		l.clocks()
	}
	if n := len(l.spans); n > 0 && !l.spans[n-1].lost {
		l.spans[n-1].span.to = max(l.spans[n-1].span.to, instant(r.Time))
	}
	if l.run != nil {
		l.run.Last = r.Time
	}
	if l.log.From.IsZero() {
		l.log.From = r.Time
	}
	l.log.To = r.Time
	l.cluster.spread(r.Time)
	switch b := r.Body.(type) {
	case *record.Genesis:
		l.pseudonyms = b.Pseudonyms
		if n := len(l.spans); n > 0 && l.spans[n-1].lost {
			l.spans[n-1].until = instant(r.Time)
		}
		if n := len(l.holes); n > 0 && l.holes[n-1].to == math.MaxInt64 {
			l.holes[n-1].to = instant(r.Time)
			l.broken = true // what it has may be between two beats of one start
		}
	case *record.Boot:
		l.begin(b)
	case *record.Stop:
		l.stop(b)
	case *record.Gap:
		l.gap(b)
	case *record.Snapshot:
		return l.snapshot(b)
	case *record.State:
		return l.state(b)
	case *record.Beat:
		return l.beat(b)
	case *record.ClockDeclared:
		l.declare(b)
	default:
		l.register(r.Body)
	}
	return nil
}

// skip notes that the log before the one that comes is not here. It ends where that one begins.
func (l *ledger) skip(g *record.Genesis) {
	hole := span{math.MinInt64, math.MaxInt64}
	_, cluster, replica, _, err := volume.SplitOrigin(g.PrevOrigin)
	switch {
	case l.mark.boot != "":
		hole.from = instant(l.mark.time)
	case err == nil && (cluster != g.Cluster || replica != g.Replica):
		return // it had another name then, by which others would name it
	}
	l.holes = append(l.holes, hole)
}

// clocks compares the two clocks since the last record of the same start.
func (l *ledger) clocks() {
	here := mark{l.head.Time, l.head.Mono, l.head.Boot}
	before := l.mark
	l.mark = here
	if before.boot != here.boot {
		return
	}
	apart := here.time.Sub(before.time) - (here.mono - before.mono)
	allowed := jump + 2*l.errors
	l.crept += apart
	from, between := before.time, "two records"
	switch {
	case l.parted(apart, allowed):
		l.crept = 0
		return
	case apart.Abs() > allowed:
	case l.crept.Abs() > allowed:
		apart, between = l.crept, "two beats, by less from each record to the next"
		if l.last != nil {
			from = l.last.time
		}
	default:
		return
	}
	l.log.Clock.Jumps++
	l.broken = true
	l.suspect, l.crept = apart, 0
	l.finding(FindingClock, "", from, here.time, fmt.Sprintf("the wall clock went %s away from the monotonic clock between %s", apart, between))
}

func (l *ledger) begin(b *record.Boot) {
	l.boot = b
	l.table.known, l.declared, l.suspect, l.crept = false, nil, 0, 0
	if b.Why == record.BootShard && l.run != nil && l.run.Boot == l.head.Boot {
		l.rested = time.Time{}
		return
	}
	l.endRun("crashed")
	l.rested = l.mark.time
	l.mark, l.last, l.errors = mark{l.head.Time, l.head.Mono, l.head.Boot}, nil, 0
	l.broken, l.relisted, l.pending = false, nil, nil
	l.close()
	l.decided, l.admitted, l.unlogged, l.inexact = 0, 0, 0, false
	l.midway = b.Why == record.BootShard
	l.spans = append(l.spans, bootSpan{boot: l.head.Boot, span: span{instant(l.head.Time), instant(l.head.Time)}})
	l.run = &Run{Cluster: l.cluster.uid, Replica: l.replica, Boot: l.head.Boot, Pod: b.Pod, Node: b.Node, Version: b.Version,
		Binary: b.Binary.String(), Policies: b.Policies.String(), Durability: b.Durability, Mode: b.Mode, Started: l.head.Time, Last: l.head.Time}
	if strings.Contains(b.Version, record.SimulatedTime) {
		l.finding(FindingClock, "", l.head.Time, l.head.Time, "this start is of a build for tests, whose times are made up")
	}
	if b.Durability == "memory" {
		l.finding(FindingMemory, "", l.head.Time, l.head.Time, "answers were given before their records were stored; what was not sealed at a crash has left no trace")
	}
}

func (l *ledger) endRun(how string) {
	if l.run == nil {
		return
	}
	if l.run.Ended == "" {
		l.run.Ended = how
	}
	l.cluster.runs = append(l.cluster.runs, *l.run)
	l.run = nil
}

func (l *ledger) stop(s *record.Stop) {
	if l.run != nil {
		l.run.Ended, l.run.Counts = s.Why, Counters(s.Counts)
	}
	if n := len(l.spans); n > 0 {
		l.spans[n-1].stopped = true
	}
	n := s.Counts
	if l.midway {
		return
	}
	switch {
	case n.Written > l.decided, n.Written < l.decided && (!l.inexact || l.decided > n.Written+l.unlogged):
		// What was not stored in time was counted as unlogged, and may be stored all the same; a gap says so.
		l.finding(FindingCounters, "", l.head.Time, l.head.Time, fmt.Sprintf("%d decisions were counted at the stop and %d are in the log", n.Written, l.decided))
	case n.Admitted != l.admitted:
		l.finding(FindingCounters, "", l.head.Time, l.head.Time, fmt.Sprintf("%d admitted workloads were counted at the stop and %d are in the log", n.Admitted, l.admitted))
	case n.Unlogged > l.unlogged || n.Unlogged < l.unlogged && !l.inexact:
		l.finding(FindingCounters, "", l.head.Time, l.head.Time, fmt.Sprintf("%d answers without a record were counted at the stop and gaps tell of %d", n.Unlogged, l.unlogged))
	case n.In != n.Written+n.Admitted+n.Unlogged:
		l.finding(FindingCounters, "", l.head.Time, l.head.Time, fmt.Sprintf("%d requests came and %d are accounted for", n.In, n.Written+n.Admitted+n.Unlogged))
	}
}

func (l *ledger) gap(g *record.Gap) {
	out := Gap{Cluster: l.cluster.uid, Log: l.log.Origin, Seq: int64(l.head.Seq), Of: g.Of, Cause: g.Cause, From: g.From, To: g.To, Exact: g.Exact, Others: g.Others, Counts: []GapCount{}}
	n := g.Others
	for _, c := range g.Counts {
		out.Counts = append(out.Counts, GapCount(c))
		n += c.N
	}
	l.cluster.gaps = append(l.cluster.gaps, out)
	if g.Of == "decisions" {
		l.log.Unlogged += n
		l.unlogged += n
		l.inexact = l.inexact || !g.Exact
		return
	}
	from, to := g.From, g.To
	if to.Before(from) { // the clock was set back in between
		from, to = to, from
	}
	e := int64(l.errors)
	l.cuts = append(l.cuts, span{instant(from) - e, instant(to) + e})
	l.broken = true
}

// finding is about the record in hand.
func (l *ledger) finding(code, namespace string, from, to time.Time, what string) {
	l.cluster.findings = append(l.cluster.findings, Finding{Code: code, Cluster: l.cluster.uid, Namespace: namespace, Log: l.log.Origin,
		Seq: int64(l.head.Seq), From: from, To: to, What: what})
}

// close ends what was seen, at the last beat.
func (l *ledger) close() {
	if l.seen == nil {
		return
	}
	l.seen.end = l.order
	l.all = append(l.all, l.seen)
	l.seen = nil
}

// finish ends the ledger, after the last record of the last shard.
func (l *ledger) finish() {
	if l.silent != nil {
		l.endSilence(l.silent.to)
	}
	l.order++
	l.close()
	l.endRun("")
}

// views tells what the replica saw of a namespace.
func (l *ledger) views(namespace string) []view {
	history := l.history[namespace]
	cuts := union(slices.Clone(l.cuts))
	var list []view
	for _, s := range l.all {
		behind := func(order uint64) int {
			return sort.Search(len(history), func(i int) bool { return history[i].order > order })
		}
		steps := []step{{}}
		first := behind(s.begin)
		if first > 0 {
			steps[0].standing = history[first-1].standing
		}
		for _, t := range history[first:max(first, behind(s.end))] {
			steps = append(steps, t.step)
		}
		for _, left := range s.span.without(cuts) {
			list = append(list, view{span: left, log: l.replica, steps: steps})
		}
	}
	return list
}

func (l *ledger) namespaces() []string { return slices.Sorted(maps.Keys(l.history)) }

func short(parts ...string) (h [12]byte) {
	d := sha256.New()
	for _, p := range parts {
		d.Write([]byte(p + "\x00"))
	}
	copy(h[:], d.Sum(nil))
	return h
}
