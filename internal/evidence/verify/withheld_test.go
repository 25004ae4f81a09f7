package verify

import (
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// withAllKeys are the options of somebody who was given the keys of all shards.
func withAllKeys(t *testing.T, books []*book, from, to int) Options {
	t.Helper()
	var keys []string
	for _, b := range books {
		for _, s := range b.shards {
			keys = append(keys, s.key.public)
		}
	}
	return Options{Trust: must(NewTrust(nil, keys, false)), Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", from, to)}}
}

// TestAnEarlierShardThatIsWithheld: the later shard of a replica does not speak for the time of the one before it, also
// where its key is known without that.
func TestAnEarlierShardThatIsWithheld(t *testing.T) {
	books := pair() // both turn to another shard at 380
	for name, c := range map[string]struct {
		without, from, to int
		want              Verdict
	}{
		"of one replica, the time that the other alone tells of": {2, 10, 300, NotProvable},
		"of the other":                              {0, 10, 300, NotProvable},
		"the time after it, of which both tell":     {2, 390, 650, Holds},
		"the later one, the time that it is not of": {3, 10, 300, Holds},
	} {
		r := verifyAll(t, withAllKeys(t, books, c.from, c.to), slices.Delete(allSources(books), c.without, c.without+1)...)
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want || !slices.Contains(codes(r), FindingMissingShard) {
			t.Errorf("%s: %s, must be %s; problems %v, findings %+v", name, r.Claims[0].Verdict, c.want, r.Problems, r.Findings)
		}
	}
}

// TestMoreThanOneShardThatIsWithheld: that one part of a time is missing is not all there is to say of it.
func TestMoreThanOneShardThatIsWithheld(t *testing.T) {
	books := pair()
	s := books[1].shards[1]
	cut := sourceOf("cut", logFiles(s.origin, s.key, s.lines[:5]))
	for name, c := range map[string]struct {
		from, to int
		want     Verdict
	}{"the shard that is withheld": {10, 300, NotProvable}, "what is there of the next": {385, 410, Holds}, "what was cut off": {560, 650, NotProvable}} {
		r := verifyAll(t, withAllKeys(t, books, c.from, c.to), append(books[0].sources(), cut)...)
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want {
			t.Errorf("%s: %s, must be %s: problems %v, %+v", name, r.Claims[0].Verdict, c.want, r.Problems, r.Namespaces[0].Intervals)
		}
	}
}

// TestAShardBetweenTwoBeats: a shard may be shorter than the time from one beat to the next, and have something weaker.
func TestAShardBetweenTwoBeats(t *testing.T) {
	b := quiet("meshvakt-0", 2)
	b.turn(seconds(125), "2026q4-2")
	b.decide(seconds(130), "payments", 2)
	b.state(seconds(130), seconds(129), b.row("payments", "PERMISSIVE", 0, 2))
	b.decide(seconds(150), "payments", 3)
	b.state(seconds(150), seconds(149), b.row("payments", "STRICT", 0, 3))
	b.turn(seconds(155), "2026q4-3")
	for m := range 4 {
		b.beat(seconds(180 + 60*m))
	}
	whole := b.sources()
	for name, c := range map[string]struct {
		sources  []*Source
		from, to int
		want     Verdict
	}{
		"given":                     {whole, 10, 300, IsViolated},
		"withheld":                  {slices.Delete(slices.Clone(whole), 1, 2), 10, 300, NotProvable},
		"withheld, the time before": {slices.Delete(slices.Clone(whole), 1, 2), 10, 120, Holds},
		"withheld, the time behind": {slices.Delete(slices.Clone(whole), 1, 2), 180, 300, Holds},
	} {
		r := verifyAll(t, withAllKeys(t, []*book{b}, c.from, c.to), c.sources...)
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want {
			t.Errorf("%s: %s, must be %s; problems %v, %+v", name, r.Claims[0].Verdict, c.want, r.Problems, r.Namespaces[0].Intervals)
		}
	}
}

// TestAReplicaWhoseStartIsNotKnown is named by its pod alone, as while the Lease is missing that says which start it is.
func TestAReplicaWhoseStartIsNotKnown(t *testing.T) {
	for name, c := range map[string]struct {
		begins, stops int // of the log that is given; 0: it does not stop
		named         [2]int
		want          Verdict
	}{
		"named while its log tells":                  {0, 0, [2]int{0, 1200}, Holds},
		"named before its log begins":                {600, 0, [2]int{0, 1200}, NotProvable},
		"named a moment before its log begins":       {600, 0, [2]int{480, 1200}, Holds},
		"named until a moment after an orderly stop": {0, 600, [2]int{0, 660}, Holds},
		"named long after it, so it has begun again": {0, 600, [2]int{0, 1200}, NotProvable},
		"not named any more after it":                {0, 600, [2]int{0, 600}, Holds},
	} {
		a, b := newBook("meshvakt-0", 1), newBook("meshvakt-1", 2)
		for _, w := range []*book{a, b} {
			w.rows["payments"] = w.row("payments", "STRICT", 0, 1)
		}
		a.start(0)
		a.snapshot(0, "boot", 0)
		for at := 0; at <= 1200; at += 60 {
			a.ready = []record.Replica{{Pod: "meshvakt-0", Boot: a.boot}}
			if c.named[0] <= at && at <= c.named[1] {
				a.ready = append(a.ready, record.Replica{Pod: "meshvakt-1"})
			}
			a.beat(seconds(at))
		}
		b.start(seconds(c.begins))
		b.snapshot(seconds(c.begins), "boot", seconds(c.begins))
		for at := c.begins; at <= 1200 && (c.stops == 0 || at < c.stops); at += 60 {
			b.beat(seconds(at))
		}
		if c.stops > 0 {
			b.add(seconds(c.stops)-time.Second, &record.Stop{Why: "terminated", Counts: b.counts})
		}
		r := verifyAll(t, withAllKeys(t, []*book{a, b}, 10, 1190), append(a.sources(), b.sources()...)...)
		if len(r.Problems) > 0 || r.Claims[0].Verdict != c.want {
			t.Errorf("%s: %s, must be %s; problems %v, findings %+v", name, r.Claims[0].Verdict, c.want, r.Problems, r.Findings)
		}
	}
}
