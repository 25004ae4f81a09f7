package spool

import (
	"errors"
	"io/fs"
)

// start makes the next segment with the given frames, which end at the given point, and
// makes it the active one. Its whole beginning is durable before it gets its name: a segment
// that is there supersedes lines of older ones, and must hold what is to stand in their place.
func (w *writer) start(b []byte, end point) error {
	if len(w.again) > 0 {
		b = append(w.again[:len(w.again):len(w.again)], b...)
	}
	w.ordinal++
	next := segment{w.ordinal, w.last}
	f, name, err := w.blank()
	if err != nil {
		return err
	}
	if err := w.fill(f, name, next, b); err != nil {
		_ = f.Close()           // it holds nothing that counts
		_ = w.disk.Remove(name) // or later: whoever needs the name removes what has it
		return err
	}
	if w.active != nil {
		w.trim()
		_ = w.active.Close() // all in it is durable
	}
	w.active, w.growing = f, name != spareName
	w.offset, w.last, w.again = headerSize+int64(len(b)), end, nil
	w.supersede(next)
	w.prepare()
	return nil
}

func (w *writer) fill(f file, name string, s segment, b []byte) error {
	if _, err := f.WriteAt(append(s.header(), b...), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := w.disk.Rename(name, s.name()); err != nil {
		return err
	}
	return w.disk.Sync()
}

// blank returns a file without content: the spare, or an empty one, which is as safe and
// slower, because every sync has to store its new size too. A segment that began so gives way
// as soon as there is a spare.
func (w *writer) blank() (file, string, error) {
	if w.hasSpare() {
		f := w.spare
		w.spare = nil
		return f, spareName, nil
	}
	f, err := w.create(temporaryName)
	return f, temporaryName, err
}

func (w *writer) hasSpare() bool {
	if w.preparing {
		select {
		case f := <-w.prepared:
			w.preparing, w.spare = false, f
		default:
		}
	}
	return w.spare != nil
}

// create makes a file in the place of one that a crash or a failure has left.
func (w *writer) create(name string) (file, error) {
	if err := w.disk.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return w.disk.Create(name)
}

// trim gives the space back that the active segment did not need. Where that fails it stays
// taken until the segment is released.
func (w *writer) trim() { _ = w.active.Truncate(w.offset) }

// abandon gives up a file that failed.
func (w *writer) abandon() {
	if w.active != nil {
		_ = w.active.Close() // it is the failed write or sync that counts
		w.active = nil
	}
}

// supersede removes the segments none of whose lines count any more, so that a disk that
// fails again and again does not fill up with them.
func (w *writer) supersede(next segment) {
	keep := []segment{next}
	for _, s := range w.old {
		if s.first() < next.first() {
			continue
		}
		if err := w.disk.Remove(s.name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			keep = append(keep, s)
		}
	}
	w.old = keep
}

// prepare makes the next spare while appends go on. Where that fails, there is none: it is
// the writing of lines that tells whether the disk is well.
func (w *writer) prepare() {
	if w.preparing || w.spare != nil || w.cause() != nil {
		return
	}
	w.preparing = true
	w.options.background(func() { w.prepared <- w.makeSpare() })
}

// makeSpare runs beside the writer, and touches nothing but the spare.
func (w *writer) makeSpare() file {
	f, err := w.create(spareName)
	if err != nil {
		return nil
	}
	// All the space first: it must not be the spare that takes what the reserve gives up.
	err = f.Allocate(w.options.SegmentSize)
	if err == nil {
		err = zero(f, w.options.SegmentSize, w.closing)
	}
	if err != nil {
		_ = f.Close()
		_ = w.disk.Remove(spareName) // or by the next who needs the name
		return nil
	}
	return f
}

// adoptSpare takes the spare of the last appender, if that ended well: one that was in use
// when it crashed may hold lines.
func (w *writer) adoptSpare() {
	if f, err := w.disk.Open(spareName, true); err == nil {
		if size, err := f.Size(); err == nil && size == w.options.SegmentSize && w.recovery.Clean {
			w.spare = f
			return
		}
		_ = f.Close() // makeSpare removes it
	}
}

func (w *writer) closeSpare() {
	if w.preparing {
		w.spare = <-w.prepared
	}
	if w.spare != nil {
		_ = w.spare.Close() // it holds zeros, and the next appender makes sure of its size
	}
}

// keepReserve makes the reserve where it is not there.
func (w *writer) keepReserve() error {
	if w.reserved {
		return nil
	}
	if f, err := w.disk.Open(reserveName, false); err == nil {
		size, err := f.Size()
		if err := errors.Join(err, f.Close()); err == nil && size >= w.options.ReserveSize {
			w.reserved = true
			return nil
		}
	}
	f, err := w.create(reserveName)
	if err != nil {
		return err
	}
	err = f.Allocate(w.options.ReserveSize)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		_ = w.disk.Remove(reserveName) // part of a reserve is of no use to us and may be to others
		return err
	}
	w.reserved = true
	return nil
}

// freeReserve also syncs, for some file systems give freed blocks out only after a commit.
func (w *writer) freeReserve() {
	if w.disk.Remove(reserveName) == nil {
		w.reserved = false
		_ = w.disk.Sync() // the write that follows tells whether it helped
	}
}

// writeMark tells readers of the lines that are durable. It is not synced, which would cost
// each group as much again; a mark that is lost or old only has more lines written again at
// the next Open.
func (w *writer) writeMark(clean bool) error {
	err := w.tryMark(clean)
	w.markDue = err != nil
	if err != nil {
		w.retry.Reset(w.options.Retry)
	}
	return err
}

func (w *writer) tryMark(clean bool) error {
	if w.mark == nil {
		f, err := w.disk.Open(markName, true)
		if errors.Is(err, fs.ErrNotExist) {
			f, err = w.disk.Create(markName)
		}
		if err != nil {
			return err
		}
		w.mark = f
	}
	if _, err := w.mark.WriteAt(mark{w.ordinal, w.last.seq, clean}.bytes(), 0); err != nil || !clean {
		return err
	}
	return w.mark.Sync()
}
