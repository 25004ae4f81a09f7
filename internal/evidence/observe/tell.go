package observe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// write stores a record that is made with the pseudonyms of the shard.
func (o *Observer) write(ctx context.Context, body record.Body) error {
	err := o.config.Log.Append(ctx, o.shard, func(record.Pseudonymiser) (record.Body, error) { return body, nil })
	if err != nil {
		return fmt.Errorf("record a %s: %w", body.Kind(), err)
	}
	return nil
}

var errLookedOnly = errors.New("only looked")

// pseudonymsOf asks for the pseudonyms of a shard, in the one place where they are given, and stores nothing.
func (o *Observer) pseudonymsOf(ctx context.Context, shard string) (p record.Pseudonymiser, err error) {
	err = o.config.Log.Append(ctx, shard, func(given record.Pseudonymiser) (record.Body, error) {
		p = given
		return nil, errLookedOnly
	})
	if errors.Is(err, errLookedOnly) {
		return p, nil
	}
	return p, fmt.Errorf("begin shard %s: %w", shard, err)
}

// tellGap tells what could not be told, and how all stands now.
func (o *Observer) tellGap(ctx context.Context, now time.Time) error {
	if o.lost == nil {
		return nil
	}
	if err := o.write(ctx, &record.Gap{Of: "observation", Cause: o.lost.cause, From: o.lost.from, To: now, Exact: true}); err != nil {
		return err
	}
	if err := o.snapshot(ctx, "changed"); err != nil {
		return err
	}
	o.exceptions.again()
	o.lost = nil
	return nil
}

// causeOf is the word of a gap for an error of the log.
func causeOf(err error) string {
	var knows interface{ Cause() string } // as the log does
	switch {
	case errors.As(err, &knows):
		return knows.Cause()
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "full"
	case errors.Is(err, unix.EROFS):
		return "readOnly"
	case errors.Is(err, errNoShard):
		return "notOpen"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "slow"
	}
	return "io"
}

// tellClock tells of a clock that was set: what the records around it say of time is not to be relied on.
func (o *Observer) tellClock(ctx context.Context, now time.Time, mono time.Duration) error {
	apart := now.Sub(o.lastWall) - (mono - o.lastMono)
	if apart.Abs() <= jump {
		o.lastWall, o.lastMono = now, mono
		return nil
	}
	if err := o.write(ctx, &record.Gap{Of: "clock", Cause: "clock", From: o.lastWall, To: now, Exact: true}); err != nil {
		return err
	}
	o.lastWall, o.lastMono = now, mono
	o.known.reset(now)
	return nil
}

// tellRelist begins anew when a watch had to, once it has: what came and went meanwhile has told nobody.
func (o *Observer) tellRelist(ctx context.Context) error {
	again := false
	for _, w := range o.watches() {
		if !w.Open {
			return nil
		}
		again = again || o.epochs[w.Kind] != w.Epoch
	}
	if !again {
		return nil
	}
	return o.snapshot(ctx, "relist")
}

// take returns the namespaces that may stand otherwise than told. Looking at all of them is put off where that was
// done a moment ago, and then wanted stays true.
func (o *Observer) take() (names []string, wanted bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all && o.config.Since()-o.passed < passEvery {
		wanted = true
	}
	if o.all && !wanted {
		o.passed = o.config.Since()
		o.all = false
		names = o.config.Source.Namespaces()
		for name := range o.table.rows { // perhaps gone
			names = append(names, name)
		}
	}
	names = append(names, slices.Collect(maps.Keys(o.dirty))...)
	clear(o.dirty)
	slices.Sort(names)
	return slices.Compact(names), wanted
}

// look says how a namespace stands.
func (o *Observer) look(name string) (difference, error) {
	v, err := o.config.Source.View(name)
	if err != nil {
		return difference{}, fmt.Errorf("look at namespace %q: %w", name, err)
	}
	return difference{name, standingOf(&v, o.outside.Count), v.Namespace != nil}, nil
}

// tellRows tells the rows that have changed.
func (o *Observer) tellRows(ctx context.Context) error {
	names, wanted := o.take()
	var changed []difference
	for _, name := range names {
		d, err := o.look(name)
		if err != nil {
			return err
		}
		if o.table.differs(&d) {
			changed = append(changed, d)
		}
	}
	if len(changed) > manyRows && len(changed) > len(o.table.rows)/2 {
		return o.snapshot(ctx, "changed")
	}
	w := newWriter(o.pseudonyms)
	for i := range changed {
		if err := o.tellRow(ctx, w, &changed[i]); err != nil {
			return err
		}
	}
	o.known.idle(!wanted, o.config.Since(), o.watches())
	return nil
}

func (o *Observer) tellRow(ctx context.Context, w *writer, d *difference) error {
	what, of := "set", d.now
	if of == nil {
		what, of = "gone", o.table.rows[d.namespace].standing
		if d.exists {
			what = "unguarded"
		}
	}
	row, err := w.row(of)
	if err != nil {
		return err
	}
	hash, err := record.HashRow(row)
	if err != nil {
		return fmt.Errorf("row of namespace %q: %w", d.namespace, err)
	}
	if err := o.write(ctx, &record.State{What: what, After: o.known.at, Row: row}); err != nil {
		return err
	}
	if d.now == nil {
		delete(o.table.rows, d.namespace)
	} else {
		o.table.rows[d.namespace] = told{of, hash}
	}
	return nil
}
