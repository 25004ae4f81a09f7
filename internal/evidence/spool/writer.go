package spool

import (
	"errors"
	"slices"
	"time"
)

// maxGroup is how many lines one sync stores at most; with their length it bounds the memory
// that the writer takes, and what a failure leaves unsettled.
const maxGroup = 256

// writer is the only goroutine that writes lines. None of its fields is shared.
type writer struct {
	*Spool
	disk  directory
	retry *time.Timer // runs while something is to be tried again

	active  file // nil after a failure, until a new segment is there
	growing bool // active was not made of zeros
	offset  int64
	ordinal uint64
	last    point     // the last line that is durable
	again   []byte    // lines of an earlier life, which the next segment begins with
	resume  point     // the last of these
	old     []segment // that the next segment may supersede

	limbo    []*entry // given to the disk, which failed: in the log or not
	reserved bool     // the reserve is there
	mark     file
	markDue  bool // the mark is older than last

	spare     file
	preparing bool
	prepared  chan file // nil is sent where there is none
}

func newWriter(s *Spool, d directory, f found) *writer {
	w := &writer{
		Spool: s, disk: d, retry: time.NewTimer(time.Hour), ordinal: f.ordinal, last: f.base,
		again: f.again, resume: f.last, old: f.segments, prepared: make(chan file, 1),
	}
	w.retry.Stop()
	s.state.set(nil, s.options.Now())
	return w
}

// begin makes the first segment, so that appends need not wait for it. What fails here is
// tried again by run.
func (w *writer) begin() {
	w.busy(true)
	defer w.busy(false)
	if err := w.keepReserve(); err != nil {
		w.failing(err)
	}
	w.adoptSpare()
	if err := w.start(nil, w.resume); err != nil {
		w.failing(err)
		return
	}
	_ = w.writeMark(false) // tried again by itself
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		select {
		case e := <-w.queue:
			w.serve(w.gather(e))
		case <-w.retry.C:
			w.heal()
		case <-w.closing:
			for more := true; more; {
				select {
				case e := <-w.queue:
					w.serve(w.gather(e))
				default:
					more = false
				}
			}
			w.closed = w.finish()
			return
		}
	}
}

// gather takes what waits already, and waits for no more: while one group is being synced
// the next one grows.
func (w *writer) gather(e *entry) []*entry {
	group := []*entry{e}
	for len(group) < maxGroup {
		select {
		case e := <-w.queue:
			group = append(group, e)
		default:
			return group
		}
	}
	return group
}

func (w *writer) serve(group []*entry) {
	cause := w.cause()
	var todo []*entry
	for _, e := range group {
		switch {
		case !e.phase.CompareAndSwap(waiting, taken): // its caller has left
		case cause != nil && !(e.vital && w.active != nil):
			w.refuseEntry(e, cause)
		default:
			todo = append(todo, e)
		}
	}
	if len(todo) == 0 {
		return
	}
	w.busy(true)
	defer w.busy(false)
	b, made, end := w.encode(todo, w.last)
	if len(made) == 0 {
		return
	}
	err := w.store(b, end)
	if err == nil {
		w.stored(made)
		return
	}
	w.limbo = append(w.limbo, made...)
	w.abandon()
	w.failing(err)
	w.restart() // at once: one fault of the disk should cost nobody an answer
}

// encode makes the lines after from. An entry whose line cannot be made is refused; the
// others close up.
func (w *writer) encode(group []*entry, from point) (b []byte, made []*entry, end point) {
	end = from
	for _, e := range group {
		line, err := e.line(end.seq+1, end.hash)
		if err == nil {
			err = checkLine(line, w.options.MaxLine)
		}
		if err != nil {
			w.refuseEntry(e, err)
			continue
		}
		b, end = appendFrame(b, end, line)
		e.at = end
		made = append(made, e)
	}
	return b, made, end
}

// store returns nil only when everything up to end is durable.
func (w *writer) store(b []byte, end point) error {
	w.state.pending.Store(int64(len(b)))
	defer w.state.pending.Store(0)
	full := w.offset > headerSize && w.offset+int64(len(b)) > w.options.SegmentSize
	if full || (w.growing && w.hasSpare()) {
		return w.start(b, end)
	}
	if _, err := w.active.WriteAt(b, w.offset); err != nil {
		return err
	}
	if err := w.active.Sync(); err != nil {
		return err
	}
	w.offset += int64(len(b))
	w.last = end
	return nil
}

// stored answers the callers, after the mark: what they know, the sealer can read.
func (w *writer) stored(made []*entry) {
	_ = w.writeMark(false) // tried again by itself
	w.busy(false)          // before anybody is told, who may come with the next line at once
	for _, e := range made {
		w.state.written.Add(1)
		e.settle(e.at, nil)
	}
}

func (w *writer) refuseEntry(e *entry, cause error) {
	w.state.refused.Add(1)
	e.settle(point{}, &RefusedError{cause})
}

// restart goes on after a failure in a new segment, never in the file that failed: after a
// failed sync the kernel holds pages for clean that were not stored. The new segment begins
// after the last durable line and so makes void whatever the old one holds beyond. Lines
// whose callers still wait are made again; the others are then known not to be in the log.
func (w *writer) restart() {
	if w.outOfSpace() && w.reserved {
		w.freeReserve()
	}
	var still, gone []*entry
	for _, e := range w.limbo {
		if e.phase.Load() == abandoned {
			gone = append(gone, e)
		} else {
			still = append(still, e)
		}
	}
	from := w.last
	if len(w.again) > 0 {
		from = w.resume
	}
	b, made, end := w.encode(still, from)
	w.limbo = slices.Concat(gone, made)
	if err := w.start(b, end); err != nil {
		w.failing(err)
		return
	}
	for _, e := range gone {
		w.refuseEntry(e, w.cause())
	}
	w.limbo = nil
	w.stored(made)
	if w.reserved {
		w.healthy()
	}
}

// heal runs from time to time while something is wrong.
func (w *writer) heal() {
	w.busy(true)
	defer w.busy(false)
	if w.markDue {
		_ = w.writeMark(false) // which also has it tried again
	}
	if w.cause() == nil {
		return
	}
	if w.active == nil {
		if w.restart(); w.active == nil {
			return
		}
	}
	// That the reserve fits again is the sign that there is space again.
	if err := w.keepReserve(); err != nil {
		w.failing(err)
		return
	}
	w.healthy()
}

// finish ends the log. Only when all of it is durable does the mark say so.
func (w *writer) finish() error {
	w.busy(true)
	defer w.busy(false)
	if w.active == nil {
		w.restart()
	}
	w.retry.Stop()
	for _, e := range w.limbo {
		e.settle(point{}, ErrUnknown)
	}
	err := w.cause()
	w.closeSpare()
	if w.active != nil {
		w.trim()
		err = w.writeMark(true)
		err = errors.Join(err, w.active.Close())
	}
	if w.mark != nil {
		err = errors.Join(err, w.mark.Close())
	}
	return errors.Join(err, w.disk.Close())
}

func (w *writer) busy(is bool) {
	if is {
		w.state.busy.Store(w.options.Now().UnixNano())
	} else {
		w.state.busy.Store(0)
	}
}

func (w *writer) cause() error {
	w.state.mu.Lock()
	defer w.state.mu.Unlock()
	return w.state.cause
}

func (w *writer) outOfSpace() bool { return outOfSpace(w.cause()) }

func (w *writer) healthy() {
	w.state.set(nil, w.options.Now())
	w.prepare()
}

// failing is told of every failure to write: the file that it came from is given up, except
// where only the reserve is missing.
func (w *writer) failing(cause error) {
	w.state.set(cause, w.options.Now())
	w.retry.Reset(w.options.Retry)
}
