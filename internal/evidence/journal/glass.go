package journal

import (
	"context"
	"errors"
	"sync"

	"github.com/meshvakt/meshvakt/internal/evidence/spool"
)

// maxGlass is how many such decisions are kept to be recorded later; more are counted alone.
const maxGlass = 64

// brokenGlass are changes that were let through although they could not be recorded at the time.
// The gap counts them; when it is over they get their records after all, marked as such.
type brokenGlass struct {
	mu   sync.Mutex
	kept []*observed
}

func (b *brokenGlass) keep(o *observed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.kept) < maxGlass {
		b.kept = append(b.kept, o)
	}
}

// tellGlass writes as many as the log takes.
func (j *Journal) tellGlass(ctx context.Context) {
	j.glass.mu.Lock()
	kept := j.glass.kept
	j.glass.kept = nil
	j.glass.mu.Unlock()
	for i, o := range kept {
		if _, err := j.append(ctx, o.build); err != nil {
			j.glass.mu.Lock()
			j.glass.kept = append(kept[i:], j.glass.kept...)
			j.glass.kept = j.glass.kept[:min(len(j.glass.kept), maxGlass)]
			j.glass.mu.Unlock()
			return
		}
	}
}

// uncertain reports whether what failed may be in the log nevertheless.
func uncertain(err error) bool {
	var unsettled *spool.UnsettledError
	return errors.As(err, &unsettled)
}
