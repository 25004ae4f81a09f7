package journal

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
)

// maxGapCounts is how many different ones a record of a gap takes.
const maxGapCounts = 32

// patience is how long one waits for somebody else who tells a gap, unless it is said how long for the disk: as long as that.
const patience = 500 * time.Millisecond

// gap counts what was answered without a record since the last time that could be told.
type gap struct {
	pending atomic.Bool
	telling chan struct{} // holds one token while somebody tells it

	mu       sync.Mutex
	cause    string
	from, to time.Time
	inexact  bool
	counts   map[unlogged]uint64
	others   uint64
}

type unlogged struct{ verdict, gvk string }

func (g *gap) note(verdict, gvk, cause string, exact bool, n uint64, from, to time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counts == nil {
		g.counts = map[unlogged]uint64{}
		g.cause, g.from = cause, from
	}
	if from.Before(g.from) {
		g.from = from
	}
	g.to = to
	g.inexact = g.inexact || !exact
	key := unlogged{verdict, gvk}
	if _, known := g.counts[key]; known || len(g.counts) < maxGapCounts {
		g.counts[key] += n
	} else {
		g.others += n
	}
	g.pending.Store(true)
}

// take returns the record of it, and empties it.
func (g *gap) take() *record.Gap {
	g.mu.Lock()
	defer g.mu.Unlock()
	body := &record.Gap{Of: "decisions", Cause: g.cause, From: g.from, To: g.to, Exact: !g.inexact, Others: g.others}
	for key, n := range g.counts {
		body.Counts = append(body.Counts, record.GapCount{Verdict: key.verdict, GVK: key.gvk, N: n})
	}
	slices.SortFunc(body.Counts, func(a, b record.GapCount) int {
		return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.GVK, b.GVK))
	})
	g.counts, g.others, g.inexact = nil, 0, false
	g.pending.Store(false)
	return body
}

// putBack is for a record that could not be written. Whether it was, is not known if uncertain:
// then what it counts may be told twice, and is not exact any more.
func (g *gap) putBack(body *record.Gap, uncertain bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	later := g.counts
	g.counts = map[unlogged]uint64{}
	for _, c := range body.Counts {
		g.counts[unlogged{c.Verdict, c.GVK}] = c.N
	}
	g.others += body.Others
	for _, key := range slices.SortedFunc(maps.Keys(later), func(a, b unlogged) int {
		return cmp.Or(cmp.Compare(a.verdict, b.verdict), cmp.Compare(a.gvk, b.gvk))
	}) {
		if _, known := g.counts[key]; known || len(g.counts) < maxGapCounts {
			g.counts[key] += later[key]
		} else {
			g.others += later[key]
		}
	}
	if later == nil {
		g.to = body.To
	}
	g.cause, g.from = body.Cause, body.From
	g.inexact = g.inexact || !body.Exact || uncertain
	g.pending.Store(true)
}

// tellGap writes what is untold, so that it is the first record after. Who comes meanwhile waits:
// if they went on without a record instead, they would make the next gap.
func (j *Journal) tellGap(ctx context.Context, log *logbook) error {
	if !j.gap.pending.Load() {
		return nil
	}
	timer := time.NewTimer(cmp.Or(j.config.Spool.Budget, patience))
	defer timer.Stop()
	select {
	case j.gap.telling <- struct{}{}:
	case <-timer.C:
		return unavailable(spool.ErrBudget)
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
	defer func() { <-j.gap.telling }()
	if !j.gap.pending.Load() {
		return nil
	}
	body := j.gap.take()
	if _, err := log.store(ctx, body, true); err != nil {
		j.gap.putBack(body, uncertain(err))
		return err
	}
	j.config.Log.WarnContext(ctx, "evidence: answers went unrecorded, which is told in the log now",
		"cause", body.Cause, "from", body.From, "to", body.To, "exact", body.Exact)
	return nil
}

// Causes are the words for why no record can be written.
func Causes() []string { return []string{"full", "readOnly", "io", "slow", "notOpen"} }

// cause is the word of a gap for an error.
func cause(err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "full"
	case errors.Is(err, unix.EROFS):
		return "readOnly"
	case errors.Is(err, errNotOpen):
		return "notOpen"
	case errors.Is(err, spool.ErrBudget), errors.Is(err, spool.ErrStalled),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "slow"
	}
	return "io"
}
