package observe

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

const (
	// enforcing is how long ago the API server may have been seen to ask.
	enforcing = time.Minute
	// reopening is how long a beat waits for a watch that was closed to be opened again, as happens every few minutes.
	reopening = 5 * time.Second
	maxHooks  = 8
	maxReady  = 32
)

// KernelClock is what the kernel says about its clock. Where it says nothing, nothing is known of it.
func KernelClock() record.Clock {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return record.Clock{Unsynchronised: true}
	}
	return record.Clock{MaxErrorMicros: uint64(max(t.Maxerror, 0)), Unsynchronised: t.Status&unix.STA_UNSYNC != 0}
}

// declareClock tells what the operator says about the clock, in each shard before the first beat that goes by it.
func (o *Observer) declareClock(ctx context.Context) error {
	if o.config.Declared == nil {
		return nil
	}
	return o.write(ctx, o.config.Declared)
}

// tellBeat tells that the replica is there, if it is time to.
func (o *Observer) tellBeat(ctx context.Context) error {
	mono := o.config.Since()
	if mono < o.nextBeat {
		return nil
	}
	o.mu.Lock()
	untold := o.all || len(o.dirty) > 0
	o.mu.Unlock()
	watches := o.watches()
	for _, w := range watches {
		untold = untold || !w.Open
	}
	if untold && mono < o.nextBeat+reopening || mono < o.nextBeat+o.beatHold() && o.own.holding() {
		return nil
	}
	guards, err := canonical.Guards(o.config.Source.Guards())
	if err != nil {
		return err
	}
	o.roster.refresh(ctx, o)
	b := &record.Beat{
		Table: o.table.hash(), RowsN: uint64(len(o.table.rows)), Guards: o.pseudonyms.Digest(guards),
		Hooks: o.own.hooks(o.pseudonyms), Ready: o.roster.ready, ReadyN: o.roster.readyN,
		Counts: o.config.Log.Counts(), Clock: o.config.Clock(),
	}
	b.Made = o.config.Since() // first: what passes until now is counted twice rather than not at all
	names, now := watched(), o.config.Now()
	for _, w := range watches {
		b.Watches = append(b.Watches, record.Watch{
			GVK: names[w.Kind], ResourceVersion: w.ResourceVersion, Epoch: w.Epoch, Healthy: w.Open, QuietMillis: millis(now.Sub(w.Heard)),
		})
	}
	if age, ok := o.config.Canary.Age(); ok {
		b.Enforcing, b.CanaryMillis = age <= enforcing, millis(age)
	}
	unsealed, lag := o.config.Log.Sealed()
	b.Unsealed, b.LagMillis = unsealed, millis(lag)
	if err := o.write(ctx, b); err != nil {
		return fmt.Errorf("tell a beat: %w", err)
	}
	// From the last one and not from now, so that their number says how long it was.
	o.nextBeat += o.config.Beat
	if o.nextBeat <= mono {
		o.nextBeat = mono + o.config.Beat
	}
	return nil
}

func millis(d time.Duration) uint64 { return uint64(max(d.Milliseconds(), 0)) }
