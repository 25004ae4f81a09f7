package seal

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/journal"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

type keeper struct{}

func (keeper) Cluster(context.Context) (string, error) { return testCluster, nil }

func (keeper) Key(_ context.Context, p volume.Period) (record.Key, error) {
	return record.Key(record.HashOf([]byte(p))), nil
}

func (keeper) User(context.Context) (string, error) {
	return "system:serviceaccount:meshvakt-system:meshvakt", nil
}

// What the journal writes over several starts and quarters is sealed, and it knows how far.
func TestWhatTheJournalWrites(t *testing.T) {
	dir := volume.Dir(t.TempDir())
	var mu sync.Mutex
	now := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	s := openSealer(t, Config{Dir: dir, Now: clock, Random: rand.Reader, Log: quiet()})
	records := 0
	life := func(at time.Time, n int) {
		t.Helper()
		mu.Lock()
		now = at
		mu.Unlock()
		j, err := journal.New(journal.Config{
			Dir: dir, Name: testName, Replica: "meshvakt-0", Keeper: keeper{},
			Boot:  record.Boot{Pod: "pod", Node: "node", Version: "v1", BeatSeconds: 60},
			Spool: spool.Options{SegmentSize: 64 << 10, ReserveSize: 64 << 10, Budget: time.Minute},
			Now:   clock, Since: func() time.Duration { return time.Second }, Random: rand.Reader, Log: quiet(),
		})
		if err != nil {
			t.Fatal(err)
		}
		j.Tend(t.Context())
		for range n {
			if err := j.Append(t.Context(), j.Shard(), func(record.Pseudonymiser) (record.Body, error) { return gapOf(), nil }); err != nil {
				t.Fatal(err)
			}
			records++
		}
		mustPass(t, s)
		if unsealed, lag := j.Sealed(); unsealed != 0 || lag != 0 {
			t.Errorf("the journal takes %d lines for unsealed, for %s", unsealed, lag)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if err := j.Start(ended); err != nil {
			t.Fatal(err)
		}
	}
	life(now, 300)
	life(now, 10)
	life(time.Date(2026, 10, 2, 0, 0, 0, 0, time.UTC), 700)
	life(time.Date(2027, 4, 1, 0, 0, 0, 0, time.UTC), 1)
	mustPass(t, s)
	if err := s.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	shards, err := shardsIn(dir.Logs())
	if err != nil || len(shards) != 3 {
		t.Fatalf("shards are %q, %v; must be three", shards, err)
	}
	gaps := uint64(0)
	for i, shard := range shards {
		found, err := inspect(t.Context(), dir, shard)
		if err != nil {
			t.Fatalf("%s: %v", shard, err)
		}
		gaps += found.kinds["gap"]
		if closed := i < 2; found.closed != closed || exists(dir.Bundle(shard)) != closed {
			t.Errorf("%s: closed is %v, bundled %v; both must be %v", shard, found.closed, exists(dir.Bundle(shard)), closed)
		}
	}
	if gaps != uint64(records) {
		t.Errorf("%d of the records are in the logs; must be %d", gaps, records)
	}
}
