package verify

import (
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// TestMoments: a violation that is too short for the error of the clock, or that nobody saw end, is one all the same if
// it lasted.
func TestMoments(t *testing.T) {
	const clock = 16 // seconds that the clock may be off
	type run struct {
		// At second 100 payments is seen to be weak, and at fixed to be strict again, after after.
		fixed, after int
		happens      func(*book)
	}
	for name, c := range map[string]struct {
		run
		from, to int // of the claim
		verdict  Verdict
		moments  int
		atLeast  time.Duration
	}{
		"it is seen to be weak for longer than the clock is off": {run{fixed: 190, after: 180}, 0, 400, IsViolated, 0, 0},
		"it lasts 12 seconds":                                {run{fixed: 130, after: 112}, 0, 400, IsViolated, 1, 12 * time.Second},
		"it lasts less than clocks can tell":                 {run{fixed: 110, after: 100}, 0, 400, NotProvable, 0, 0},
		"it may have ended at once":                          {run{fixed: 130, after: 90}, 0, 400, NotProvable, 0, 0},
		"it may have been before the time that is claimed":   {run{fixed: 130, after: 112}, 90, 400, NotProvable, 1, 12 * time.Second},
		"it may have been behind the time that is claimed":   {run{fixed: 130, after: 112}, 30, 120, NotProvable, 1, 12 * time.Second},
		"it lies in the time that is claimed and no further": {run{fixed: 130, after: 112}, 84, 128, IsViolated, 1, 12 * time.Second},
		"an exception is for all of it": {run{130, 112, func(b *book) {
			b.except(seconds(10), "payments", 350)
		}}, 0, 400, NotProvable, 0, 0},
		"an exception is for a part of it": {run{130, 112, func(b *book) {
			b.except(seconds(10), "payments", 110)
		}}, 0, 400, NotProvable, 0, 0},
		"a replica is missing": {run{130, 112, func(b *book) { b.ready = []record.Replica{{Pod: "meshvakt-7"}} }}, 0, 400, NotProvable, 0, 0},
	} {
		b := newBook("meshvakt-0", 1)
		b.clock.MaxErrorMicros = clock * 1e6
		b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
		b.start(0)
		b.snapshot(0, "boot", 0)
		b.beat(0)
		if c.happens != nil {
			c.happens(b)
		}
		b.beat(seconds(60))
		b.decide(seconds(95), "payments", 2)
		b.state(seconds(100), seconds(90), b.row("payments", "PERMISSIVE", 0, 2))
		next := 120
		for ; next < c.fixed; next += 60 {
			b.beat(seconds(next))
		}
		b.decide(seconds(c.fixed), "payments", 3)
		b.state(seconds(c.fixed), seconds(c.after), b.row("payments", "STRICT", 0, 3))
		for ; next < 500; next += 60 {
			b.beat(seconds(next))
		}
		r := verifyAll(t, Options{MaxClockError: time.Minute, Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", c.from, c.to)}}, b.sources()...)
		line := r.Namespaces[0]
		if len(r.Problems) > 0 || len(line.Moments) != c.moments || r.Claims[0].Verdict != c.verdict {
			t.Errorf("%s: %s, moments %+v, problems %v; must be %s with %d moments; intervals %+v", name, r.Claims[0].Verdict, line.Moments, r.Problems, c.verdict, c.moments, line.Intervals)
			continue
		}
		for _, m := range line.Moments {
			want := Moment{From: epoch().Add(seconds(100 - clock)), To: epoch().Add(seconds(c.after + clock)), AtLeast: c.atLeast, Why: "a port takes PERMISSIVE"}
			if m != want {
				t.Errorf("%s: %+v; must be %+v", name, m, want)
			}
			if line.KPI.Violations != 1 || line.KPI.LongestViolation != c.atLeast {
				t.Errorf("%s: the key figures are %+v", name, line.KPI)
			}
		}
	}
}

// TestMomentsOfTwoReplicas: what both saw is one, and what one did not see was not.
func TestMomentsOfTwoReplicas(t *testing.T) {
	for name, c := range map[string]struct {
		sees bool
		want int
	}{"both see it": {true, 1}, "one sees that it was not": {false, 0}} {
		var sources []*Source
		for i, replica := range []string{"meshvakt-0", "meshvakt-1"} {
			b := newBook(replica, byte(i))
			b.clock.MaxErrorMicros = 16e6
			b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
			b.start(0)
			b.snapshot(0, "boot", 0)
			b.beat(0)
			b.beat(seconds(60))
			if i == 0 || c.sees {
				b.state(seconds(100+i), seconds(90), b.row("payments", "PERMISSIVE", 0, 2))
				b.beat(seconds(120))
				b.state(seconds(130), seconds(112+i), b.row("payments", "STRICT", 0, 3))
			} else {
				b.beat(seconds(120))
			}
			for at := 180; at < 500; at += 60 {
				b.beat(seconds(at))
			}
			sources = append(sources, b.sources()...)
		}
		r := verifyAll(t, Options{MaxClockError: time.Minute}, sources...)
		if got := r.Namespaces[0].Moments; len(got) != c.want {
			t.Errorf("%s: %+v; must be %d", name, got, c.want)
		}
	}
}

// TestAQuietWatch: what came after the API server was last heard has not been seen.
func TestAQuietWatch(t *testing.T) {
	for name, c := range map[string]struct {
		quiet uint64 // seconds at the last beat
		want  Verdict
	}{"heard a moment ago": {0, Holds}, "heard before the time that is claimed ends": {31, NotProvable}, "heard since": {29, Holds}} {
		b := quiet("meshvakt-0", 4)
		b.beat(seconds(300), func(x *record.Beat) { x.Watches[0].QuietMillis = c.quiet * 1000 })
		r := verifyAll(t, Options{Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 10, 270)}}, b.sources()...)
		if r.Claims[0].Verdict != c.want {
			t.Errorf("%s: %s; must be %s: %+v", name, r.Claims[0].Verdict, c.want, r.Namespaces[0].Intervals)
		}
	}
}
