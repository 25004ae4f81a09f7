package record

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// follow reads lines as a shard and returns the chain behind them.
func follow(lines [][]byte) (Chain, error) {
	c := Begin(Hash{})
	for _, l := range lines {
		_, next, err := c.Follow(l)
		if err != nil {
			return c, err
		}
		c = next
	}
	return c, nil
}

func lines(links []Link) [][]byte {
	list := make([][]byte, len(links))
	for i, l := range links {
		list[i] = l.Line
	}
	return list
}

func TestChainIsFollowed(t *testing.T) {
	links := chained(examples())
	c, err := follow(lines(links))
	if err != nil {
		t.Fatal(err)
	}
	last := links[len(links)-1]
	if c.Size() != uint64(len(links)) || c.Last() != last.Hash || last.Hash != HashOf(last.Line) || !c.Closed() {
		t.Errorf("at its end the chain is %+v", c)
	}
}

func TestNoRecordIsDroppedSwappedOrAltered(t *testing.T) {
	all := lines(chained(examples()))
	for i := range len(all) - 1 {
		if _, err := follow(slices.Delete(slices.Clone(all), i, i+1)); !errors.Is(err, ErrBroken) {
			t.Errorf("without record %d: %v", i, err)
		}
		twice := slices.Insert(slices.Clone(all), i, all[i])
		if _, err := follow(twice); !errors.Is(err, ErrBroken) {
			t.Errorf("with record %d twice: %v", i, err)
		}
		swapped := slices.Clone(all)
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
		if _, err := follow(swapped); !errors.Is(err, ErrBroken) {
			t.Errorf("with records %d and %d swapped: %v", i, i+1, err)
		}
		altered := slices.Clone(all)
		// The salt is the one thing in which nothing but the chain can see a change.
		altered[i] = bytes.Replace(all[i], []byte(`"salt":"`), []byte(`"salt":"0`), 1)
		at := bytes.Index(all[i], []byte(`,"t":`)) - 1
		altered[i] = slices.Delete(altered[i], at, at+1)
		if bytes.Equal(altered[i], all[i]) {
			t.Fatalf("record %d was not altered", i)
		}
		if _, err := follow(altered); !errors.Is(err, ErrBroken) {
			t.Errorf("with record %d altered: %v", i, err)
		}
	}
}

// An altered byte of any record but the last is noticed, whichever it is.
func TestNoByteIsAltered(t *testing.T) {
	all := lines(chained(examples()[:4]))
	for i, line := range all[:3] {
		for at := range line {
			altered := slices.Clone(all)
			altered[i] = bytes.Clone(line)
			altered[i][at] ^= 1
			if _, err := follow(altered); err == nil {
				t.Fatalf("byte %d of record %d: not noticed", at, i)
			}
		}
	}
}

func TestRecordsOfAnotherShardDoNotFit(t *testing.T) {
	ours := chained(examples())
	random, c := randomness(), Begin(ours[len(ours)-1].Hash)
	next := &Genesis{Origin: "o/2026q4", Cluster: uid, Replica: "meshvakt-0", Shard: "2026q4", PrevOrigin: "o/2026q3",
		PrevSize: uint64(len(ours)), Pseudonyms: testKey().ID()}
	first, c, err := c.Next(next, firstRun, clock(), time.Hour, random)
	if err != nil {
		t.Fatal(err)
	}
	boot := *examples()[1].(*Boot)
	boot.Why = BootShard
	second, _, err := c.Next(&boot, firstRun, clock(), time.Hour, random)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := follow([][]byte{first.Line}); !errors.Is(err, ErrBroken) {
		t.Errorf("a second shard passes for a first: %v", err)
	}
	if _, err := follow([][]byte{ours[0].Line, second.Line}); !errors.Is(err, ErrBroken) {
		t.Errorf("a record of another shard: %v", err)
	}
	behind := Begin(ours[len(ours)-1].Hash)
	if _, behind, err = behind.Follow(first.Line); err != nil {
		t.Fatalf("the second shard behind the first: %v", err)
	}
	if _, _, err = behind.Follow(second.Line); err != nil {
		t.Errorf("the second shard behind the first: %v", err)
	}
}

func TestChainGoesOnAfterAStart(t *testing.T) {
	links := chained(examples()[:5])
	c, err := Resume(links[4].Line)
	if err != nil {
		t.Fatal(err)
	}
	random := randomness()
	beat, boot := examples()[3], examples()[1]
	if _, _, err := c.Next(beat, nextRun, clock(), 0, random); !errors.Is(err, ErrBroken) {
		t.Errorf("a start without a boot: %v", err)
	}
	if _, _, err := c.Next(boot, firstRun, clock(), time.Minute, random); !errors.Is(err, ErrBroken) {
		t.Errorf("a second boot of one start: %v", err)
	}
	sixth, next, err := c.Next(boot, nextRun, clock().Add(-time.Hour), 0, random)
	if err != nil {
		t.Fatal(err)
	}
	seventh, _, err := next.Next(beat, nextRun, clock(), time.Second, random)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := follow(append(lines(links), sixth.Line, seventh.Line)); err != nil {
		t.Errorf("the whole chain: %v", err)
	}
	if _, err := Resume(links[4].Line[:100]); err == nil {
		t.Error("resumed from half a record")
	}
}

func TestWhatMayComeNext(t *testing.T) {
	random, all := randomness(), examples()
	genesis, boot, beat, end := all[0], all[1], all[3], all[len(all)-1]
	run := func(bodies ...Body) error {
		c := Begin(Hash{})
		for i, b := range bodies {
			_, next, err := c.Next(b, firstRun, clock(), time.Duration(i)*time.Second, random)
			if err != nil {
				if next != c {
					t.Errorf("the chain went on without a record")
				}
				return err
			}
			c = next
		}
		return nil
	}
	for what, bodies := range map[string][]Body{
		"no genesis":         {boot},
		"a second genesis":   {genesis, boot, genesis},
		"a second shard":     {genesis, boot, &Genesis{Origin: "o", Cluster: uid, Replica: "r", Shard: "s", PrevOrigin: "p", PrevSize: 2, Pseudonyms: testKey().ID()}},
		"no boot":            {genesis, beat},
		"a second boot":      {genesis, boot, boot},
		"behind the end":     {genesis, boot, end, beat},
		"a shard without":    {&Genesis{Origin: "o", Cluster: uid, Replica: "r", Shard: "s", PrevOrigin: "p", PrevSize: 1, Pseudonyms: testKey().ID()}},
		"two ends":           {genesis, boot, end, end},
		"genesis at the end": {genesis, boot, end, genesis},
	} {
		if err := run(bodies...); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := run(genesis, boot, beat, beat, end); err != nil {
		t.Error(err)
	}
	if err := run(nil); err == nil {
		t.Error("added nothing")
	}
}

// The monotonic clock cannot go back in a chain, though two callers may come in another order than they looked at it.
func TestClocksInAChain(t *testing.T) {
	random, all := randomness(), examples()
	c, _ := follow(lines(chained(all[:3])))
	early, next, err := c.Next(all[3], firstRun, clock().Add(-time.Hour), 1234567, random)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := c.Follow(early.Line)
	if err != nil || r.Mono != 3*time.Second || !r.Time.Equal(clock().Add(-time.Hour)) {
		t.Errorf("got %v at %v, %v; want the mono of the record before and the time as it was", r.Mono, r.Time, err)
	}
	late, _, err := next.Next(all[3], firstRun, clock(), 5*time.Second+999, random)
	if err != nil {
		t.Fatal(err)
	}
	back := bytes.Replace(late.Line, []byte(`"mono":5000000`), []byte(`"mono":2999999`), 1)
	if _, _, err := next.Follow(back); !errors.Is(err, ErrBroken) {
		t.Errorf("a mono that goes back: %v", err)
	}
}

// A verifier goes on over records that it does not know, and notices when they are touched.
func TestChainGoesOverNewerRecords(t *testing.T) {
	links := chained(examples()[:4])
	c, _ := follow(lines(links[:3]))
	newer := bytes.Replace(links[3].Line, []byte(`"kind":"beat"`), []byte(`"kind":"pulse","x":[]`), 1)
	newer = bytes.Replace(newer, []byte(`,"x":[]`), nil, 1)
	r, next, err := c.Follow(newer)
	if !errors.Is(err, ErrUnknownKind) || r.Seq != 3 || next.Last() != HashOf(newer) || next.Size() != 4 {
		t.Fatalf("got %+v, %+v, %v", r, next, err)
	}
	if resumed, err := Resume(newer); err != nil || resumed != next {
		t.Errorf("resumed %+v, %v; want %+v", resumed, err, next)
	}
	stranger := bytes.Replace(newer, []byte(`"seq":3`), []byte(`"seq":4`), 1)
	if _, _, err := c.Follow(stranger); !errors.Is(err, ErrBroken) {
		t.Errorf("another sequence number: %v", err)
	}
}

func TestEverySaltIsAnother(t *testing.T) {
	seen := map[Salt]bool{}
	for _, l := range chained(examples()) {
		r, err := Parse(l.Line)
		if err != nil || seen[r.Salt] {
			t.Errorf("salt %x is there twice, or %v", r.Salt, err)
		}
		seen[r.Salt] = true
	}
	c := Begin(Hash{})
	if _, _, err := c.Next(examples()[0], firstRun, clock(), 0, strings.NewReader("too short")); err == nil {
		t.Error("made a record without a salt")
	}
}
