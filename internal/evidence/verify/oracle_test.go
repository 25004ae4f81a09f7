package verify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// happening is one line of a script: what one replica did or was told, at a second.
type happening struct {
	at, wall int // by a clock that is right, and by the replica's
	what     string
	after    int // of a state, or the beginning of a gap; by the replica's clock
	least    string
	outside  bool
	version  uint64
	healthy  bool
	epoch    uint64
}

// script makes up what happens to one namespace, and what each of some replicas sees of it.
type script struct {
	replicas [][]happening
	missing  int // the replica whose log is not given, or -1
	clock    int // the error of all clocks
	granted  [2]int
}

const scriptSeconds = 1800

func newScript(r *rand.Rand) *script {
	s := &script{missing: -1, clock: r.IntN(3)}
	type truth struct {
		at      int
		least   string
		outside bool
		version uint64
	}
	truths := []truth{{0, "STRICT", false, 1}}
	for at := 100 + r.IntN(400); at < scriptSeconds-100; at += 60 + r.IntN(500) {
		next := truths[len(truths)-1]
		next.at, next.version = at, next.version+1
		switch r.IntN(4) {
		case 0:
			next.least = "PERMISSIVE"
		case 1:
			next.outside = !next.outside
		default:
			next.least = "STRICT"
		}
		truths = append(truths, next)
	}
	if r.IntN(2) == 0 {
		s.granted[0] = 100 + r.IntN(800)
		s.granted[1] = s.granted[0] + 100 + r.IntN(600)
	}
	n := 1 + r.IntN(3)
	for range n {
		var list []happening
		wall, epoch, up, told := 0, uint64(1), false, 0
		nextBeat := 0
		tell := func(at int, what string, of truth, after int) {
			list = append(list, happening{at: at, wall: at + wall, what: what, after: after + wall, least: of.least, outside: of.outside, version: of.version})
		}
		current := func(at int) int {
			i := 0
			for i+1 < len(truths) && truths[i+1].at <= at {
				i++
			}
			return i
		}
		for at := 0; at < scriptSeconds; at += 5 {
			if !up {
				if at > 0 && r.IntN(20) > 0 {
					continue
				}
				up, told, nextBeat = true, current(at), at
				list = append(list, happening{at: at, wall: at + wall, what: "start"})
				tell(at, "boot", truths[told], at)
				continue
			}
			switch r.IntN(150) {
			case 0:
				up = false
				continue
			case 1:
				epoch++
				if told = current(at); r.IntN(2) == 0 {
					tell(at, "relist", truths[told], at-r.IntN(30))
				} else {
					tell(at, "changed", truths[told], at-r.IntN(30))
				}
			case 2:
				list = append(list, happening{at: at, wall: at + wall, what: "gap", after: at + wall - r.IntN(100)})
				told = current(at)
				tell(at, "changed", truths[told], at-100)
			case 3:
				wall += 30 - 60*r.IntN(2)
				list = append(list, happening{at: at, wall: at + wall, what: "jump"})
			case 4:
				nextBeat = at + r.IntN(300)
			}
			if now := current(at); now != told && r.IntN(3) == 0 {
				told++
				tell(at, "state", truths[told], truths[told].at-r.IntN(20))
			}
			if at >= nextBeat {
				list = append(list, happening{at: at, wall: at + wall, what: "beat", healthy: r.IntN(30) > 0, epoch: epoch})
				nextBeat = at + 60
			}
		}
		s.replicas = append(s.replicas, list)
	}
	if n > 1 && r.IntN(4) == 0 {
		s.missing = n - 1
	}
	return s
}

// books writes the script down as the replicas would.
func (s *script) books() []*book {
	var ready []record.Replica
	for i := range s.replicas {
		ready = append(ready, record.Replica{Pod: fmt.Sprintf("meshvakt-%d", i)})
	}
	var list []*book
	for i, replica := range s.replicas {
		b := newBook(fmt.Sprintf("meshvakt-%d", i), byte(i))
		b.ready, b.clock = ready, record.Clock{MaxErrorMicros: uint64(s.clock) * 1e6}
		granted := s.granted[1] == 0 || i > 0
		for _, h := range replica {
			if !granted && h.at >= s.granted[0] && b.boot != "" && h.what != "start" && h.what != "jump" {
				granted = true
				b.except(seconds(h.at), "payments", h.wall+600)
				s.granted = [2]int{h.wall, h.wall + 600}
			}
			b.wall = seconds(h.wall - h.at)
			b.happens(&h)
		}
		if !granted {
			s.granted = [2]int{}
		}
		list = append(list, b)
	}
	return list
}

func (b *book) happens(h *happening) {
	at, after := seconds(h.at), seconds(h.after-(h.wall-h.at))
	row := b.row("payments", h.least, 0, h.version)
	if h.outside {
		row = b.row("payments", h.least, 1, h.version)
	}
	switch h.what {
	case "start":
		b.start(at)
	case "boot", "relist", "changed":
		b.rows["payments"] = row
		b.snapshot(at, h.what, after)
	case "state":
		b.state(at, after, row)
	case "gap":
		b.add(at, &record.Gap{Of: "observation", Cause: "slow", From: epoch().Add(seconds(h.after)), To: epoch().Add(seconds(h.wall)), Exact: true})
	case "jump":
		b.add(at, &record.Admitted{Namespace: "payments", OwnerGVK: "apps/v1/ReplicaSet", Guards: b.pseudonyms.Digest([]byte("guards")), From: epoch(), To: epoch(), N: 1})
	case "beat":
		b.epochs = h.epoch
		b.beat(at, func(beat *record.Beat) { beat.Watches[0].Healthy = h.healthy })
	}
}

// except lets what is weaker pass, in a namespace, until a second.
func (b *book) except(at time.Duration, ns string, until int) {
	o := record.Object{GVK: "meshvakt.io/v1alpha1/GuardException", Namespace: ns, Name: b.pseudonyms.Object("e", ns, "e"), UID: "exception", Generation: 1}
	end := epoch().Add(seconds(until))
	b.add(at, &record.ExceptionRequested{Object: o, By: b.pseudonyms.Subject("ola"), Rules: []string{"strict-mtls"}, RulesN: 1, Selector: b.pseudonyms.Digest(nil),
		Approval: "TwoPerson", Reason: "upgrade", Reference: "CHG-1", Until: end})
	b.add(at, &record.ExceptionGranted{Object: o, By: b.pseudonyms.Subject("kari"), For: b.pseudonyms.Subject("ola"), Until: end})
}

// The oracle asks of each second, and of each second alone, what was known of it.
type oracle struct {
	*script
	runs   [][]oracleRun
	errors int
}

type oracleRun struct {
	from, to    int
	begin, upTo int // indices of the script
}

func newOracle(s *script) *oracle {
	o := &oracle{script: s}
	for i, list := range s.replicas {
		if i == s.missing {
			o.runs = append(o.runs, nil)
			continue
		}
		o.runs = append(o.runs, runsOf(list))
	}
	return o
}

// runsOf looks at each pair of beats that follow each other.
func runsOf(list []happening) []oracleRun {
	var runs []oracleRun
	last, relist := -1, -1
	open, broken := false, false
	for i, h := range list {
		switch h.what {
		case "start":
			if open {
				runs[len(runs)-1].upTo = i
			}
			last, relist, open, broken = -1, -1, false, false
		case "gap", "jump":
			broken = true
		case "relist":
			relist = i
		case "beat":
			near := last >= 0 && list[last].healthy && h.healthy && !broken && h.at-list[last].at <= 150 && h.wall > list[last].wall
			switch {
			case near && list[last].epoch == h.epoch && open:
				runs[len(runs)-1].to, runs[len(runs)-1].upTo = h.wall, len(list)
			default:
				if open {
					runs[len(runs)-1].upTo = i
				}
				if open = h.healthy; open {
					runs = append(runs, oracleRun{h.wall, h.wall, i, len(list)})
					if near && relist >= 0 {
						runs[len(runs)-1].from, runs[len(runs)-1].begin = list[relist].wall, relist
					}
				}
			}
			last, relist, broken = i, -1, false
		}
	}
	return runs
}

// sights are what one replica's runs over x hold for possible.
func (o *oracle) sights(replica, x int) [][]happening {
	list := o.replicas[replica]
	for _, h := range list {
		if h.what == "gap" && h.after-o.clock <= x && x < h.wall+o.clock {
			return nil
		}
	}
	var all [][]happening
	for _, r := range o.runs[replica] {
		if x < r.from+o.clock || x >= r.to-o.clock {
			continue
		}
		var told []happening
		for i, h := range list {
			if h.version == 0 || i > r.upTo {
				continue
			}
			if i <= r.begin {
				told = []happening{h}
				told[0].after = -1 << 30
			} else if h.version != told[len(told)-1].version || h.outside != told[len(told)-1].outside {
				told = append(told, h)
			}
		}
		var possible []happening
		for i, h := range told {
			begun := min(h.after, h.wall)-o.clock <= x
			over := i+1 < len(told) && told[i+1].wall+o.clock <= x
			if (i == 0 || begun) && !over {
				possible = append(possible, h)
			}
		}
		all = append(all, possible)
	}
	return all
}

func looksAlike(a, b happening) bool { return a.least == b.least && a.outside == b.outside }

func (o *oracle) grade(x int) Grade {
	if o.absent(x) {
		return Unknown
	}
	var possible []happening
	seen := false
	for i := range o.replicas {
		for _, mine := range o.sights(i, x) {
			if !seen {
				possible, seen = mine, true
				continue
			}
			possible = slices.DeleteFunc(slices.Clone(possible), func(a happening) bool {
				return !slices.ContainsFunc(mine, func(b happening) bool { return looksAlike(a, b) })
			})
		}
	}
	if !seen {
		return o.inferred(x)
	}
	if len(possible) == 0 {
		return Unknown
	}
	g := o.judge(x, possible[0])
	for _, p := range possible {
		if o.judge(x, p) != g {
			return Unknown
		}
	}
	return g
}

func (o *oracle) judge(x int, h happening) Grade {
	excepted := o.granted[0]+o.errors <= x && x < o.granted[1]
	switch {
	case h.least == "STRICT" && !h.outside:
		return Observed
	case excepted && !h.outside:
		return Excepted
	}
	return Violated
}

// certain is what was certain at x, of each replica that saw it.
func (o *oracle) certain(x int) []happening {
	var list []happening
	for i := range o.replicas {
		for _, possible := range o.sights(i, x) {
			if len(possible) == 1 {
				list = append(list, possible[0])
			}
		}
	}
	return list
}

func (o *oracle) inferred(x int) Grade {
	covered := func(x int) bool {
		for i := range o.replicas {
			if len(o.sights(i, x)) > 0 {
				return true
			}
		}
		return false
	}
	before, behind := x, x
	for before >= -100 && !covered(before) {
		before--
	}
	for behind <= scriptSeconds+100 && !covered(behind) {
		behind++
	}
	if before < -100 || behind > scriptSeconds+100 {
		return Unknown
	}
	for _, b := range o.certain(before) {
		for _, a := range o.certain(behind) {
			if looksAlike(a, b) && a.version == b.version {
				if g := o.judge(x, b); g != Observed {
					return g
				}
				return Inferred
			}
		}
	}
	return Unknown
}

// absent tells whether at x some replica was named whose log does not go so far.
func (o *oracle) absent(x int) bool {
	for i, list := range o.replicas {
		if i == o.missing {
			continue
		}
		first, last := -1, -1
		check := func() bool {
			if first < 0 {
				return false
			}
			for j := range o.replicas {
				from, to := first, last
				if j != o.missing {
					end := 0
					for _, h := range o.replicas[j] {
						end = max(end, h.wall)
					}
					if end+150 >= to {
						continue
					}
					from = max(from, end)
				}
				if from <= x && (x < to || x == from) {
					return true
				}
			}
			return false
		}
		for _, h := range list {
			switch h.what {
			case "start":
				if check() {
					return true
				}
				first, last = -1, -1
			case "beat":
				if first < 0 {
					first, last = h.wall, h.wall
				}
				last = max(last, h.wall)
			}
		}
		if check() {
			return true
		}
	}
	return false
}

// The calculus goes from edge to edge and the oracle from second to second; they must agree on all.
func TestIntervalsAgreeWithAnOracleOnEverySecond(t *testing.T) {
	seen := map[Grade]int{}
	for seed := range uint64(30) {
		s := newScript(rand.New(rand.NewPCG(seed, 7)))
		var sources []*Source
		for i, b := range s.books() {
			if i != s.missing {
				sources = append(sources, b.sources()...)
			}
		}
		r := verifyAll(t, Options{MaxClockError: 10 * time.Second}, sources...)
		if len(r.Problems) > 0 || len(r.Namespaces) != 1 {
			t.Fatalf("script %d: problems %v", seed, r.Problems)
		}
		o := newOracle(s)
		for i := range r.Exceptions {
			o.errors = int(r.Exceptions[i].Granted.Sub(epoch())/time.Second) - o.granted[0] + s.clock
		}
		list := r.Namespaces[0].Intervals
		wrong := 0
		for x := int(list[0].From.Sub(epoch()) / time.Second); x < int(list[len(list)-1].To.Sub(epoch())/time.Second); x++ {
			at := epoch().Add(seconds(x))
			i := slices.IndexFunc(list, func(in Interval) bool { return !at.Before(in.From) && at.Before(in.To) })
			want := o.grade(x)
			seen[want]++
			if list[i].Grade != want && wrong < 3 {
				wrong++
				t.Errorf("script %d, second %d: %s (%s); the oracle says %s", seed, x, list[i].Grade, list[i].Why, want)
			}
		}
	}
	for _, g := range Grades() {
		if seen[g] == 0 && g != ObservedByAudit {
			t.Errorf("no script comes to %s", g)
		}
	}
	t.Logf("seconds by grade: %v", seen)
}
