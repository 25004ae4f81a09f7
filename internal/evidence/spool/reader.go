package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
)

// ErrReleased says that a line was asked for that is not in the spool any more.
var ErrReleased = errors.New("the line has been released")

// Line is one line of the log. Text is good until the next one is read.
type Line struct {
	Seq  uint64
	Hash [32]byte
	Text []byte
}

// Reader reads the log of a directory, in whatever process, while another appends to it. It
// takes no lock, sees durable lines only, and is not for more than one goroutine.
type Reader struct {
	disk directory
	next uint64

	file  file // nil, or a segment that holds next if the log goes that far
	at    segment
	upTo  uint64 // the last line that counts in it, as of ordinal seen
	seen  uint64
	place lines
}

// OpenReader begins with the line from; 1 is the first of a log.
func OpenReader(dir string, from uint64) (*Reader, error) {
	d, err := openDirectory(dir)
	if err != nil {
		return nil, err
	}
	return newReader(d, from), nil
}

func newReader(d directory, from uint64) *Reader { return &Reader{disk: d, next: max(from, 1)} }

// Lines yields what is durable now, and ends; called again it goes on from there. After an
// error it may be called again as well, and begins with the line that was not read.
func (r *Reader) Lines() iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		m, _, err := loadMark(r.disk)
		if err != nil {
			yield(Line{}, fmt.Errorf("read mark: %w", err))
			return
		}
		// What was read ahead last time may have been the zeros in front of today's lines.
		if r.file != nil {
			r.place = *linesOf(r.file, r.place.last, r.place.offset)
		}
		for r.next <= m.seq {
			line, err := r.line(m)
			if errors.Is(err, fs.ErrNotExist) {
				return // released or superseded between listing and opening; the next call knows
			}
			if err != nil {
				_ = r.drop() // the error in hand says more
				yield(Line{}, fmt.Errorf("read line %d: %w", r.next, err))
				return
			}
			r.next++
			if !yield(line, nil) {
				return
			}
		}
	}
}

func (r *Reader) line(m mark) (Line, error) {
	if r.file == nil || r.seen != m.ordinal || r.next > r.upTo {
		if err := r.locate(m); err != nil {
			return Line{}, err
		}
	}
	text, err := r.place.next()
	if errors.Is(err, errNoLine) || errors.Is(err, errTorn) {
		return Line{}, &DamageError{r.at.name(), fmt.Sprintf("%v at byte %d; the mark says that line %d was stored", err, r.place.offset, m.seq)}
	}
	if err != nil {
		return Line{}, err
	}
	return Line{r.place.last.seq, r.place.last.hash, text}, nil
}

// locate finds the segment that holds the next line: of those that begin no later the one
// that was made last, for it supersedes the others.
func (r *Reader) locate(m mark) error {
	list, err := listSegments(r.disk)
	if err != nil {
		return err
	}
	chosen := -1
	for i, s := range list {
		if s.ordinal <= m.ordinal && s.first() <= r.next {
			chosen = i
		}
	}
	if chosen < 0 {
		if len(list) == 0 {
			return fs.ErrNotExist
		}
		return ErrReleased
	}
	r.upTo, r.seen = math.MaxUint64, m.ordinal
	if chosen+1 < len(list) && list[chosen+1].ordinal <= m.ordinal {
		r.upTo = list[chosen+1].before.seq
	}
	if r.file != nil && r.at.ordinal == list[chosen].ordinal {
		return nil
	}
	return r.open(list[chosen])
}

func (r *Reader) open(named segment) error {
	// The hash that the last segment ended with must be the one that this one begins after.
	joined, last := r.file != nil && r.place.last.seq == named.before.seq, r.place.last
	if err := r.drop(); err != nil {
		return err
	}
	f, err := r.disk.Open(named.name(), false)
	if err != nil {
		return err
	}
	s, err := readHeader(f, named)
	if err == nil && joined && s.before != last {
		err = &DamageError{s.name(), fmt.Sprintf("a header that follows another line %d than the one before it", last.seq)}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.file, r.at, r.place = f, s, *linesOf(f, s.before, headerSize)
	for r.place.last.seq+1 < r.next {
		if _, err := r.place.next(); err != nil {
			return &DamageError{s.name(), fmt.Sprintf("%v at byte %d, before line %d", err, r.place.offset, r.next)}
		}
	}
	return nil
}

func (r *Reader) drop() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	r.file = nil
	return f.Close()
}

// Release removes the segments whose lines all have numbers up to upTo, oldest first, so
// that what remains has no hole. The newest segment always stays, and the last line: whoever
// resumes the log goes on from there. The appender may be at work.
func (r *Reader) Release(upTo uint64) error {
	m, _, err := loadMark(r.disk)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	list, err := listSegments(r.disk)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	removed := false
	for i := 0; i+1 < len(list) && list[i+1].ordinal <= m.ordinal && list[i+1].before.seq <= upTo && list[i+1].before.seq < m.seq; i++ {
		if err := r.disk.Remove(list[i].name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release: %w", err)
		}
		removed = true
	}
	if !removed {
		return nil
	}
	return r.disk.Sync()
}

// Extent is what the log holds now: its lines First to Last, without a hole. Where there is none,
// First is Last+1. Before is the SHA-256 of the line before First, whether that was released or
// never was (zeros).
type Extent struct {
	First, Last uint64
	Before      [32]byte
}

// Extent looks without reading on.
func (r *Reader) Extent() (Extent, error) {
	m, _, err := loadMark(r.disk)
	if err != nil {
		return Extent{}, fmt.Errorf("read mark: %w", err)
	}
	list, err := listSegments(r.disk)
	if err != nil {
		return Extent{}, fmt.Errorf("list segments: %w", err)
	}
	if len(list) == 0 || list[0].ordinal > m.ordinal {
		return Extent{First: 1}, nil
	}
	f, err := r.disk.Open(list[0].name(), false)
	if err != nil {
		return Extent{}, fmt.Errorf("open the oldest segment: %w", err)
	}
	s, err := readHeader(f, list[0])
	if err = errors.Join(err, f.Close()); err != nil {
		return Extent{}, err
	}
	return Extent{First: s.first(), Last: m.seq, Before: s.before.hash}, nil
}

// Close ends the reader; the log stays as it is.
func (r *Reader) Close() error { return errors.Join(r.drop(), r.disk.Close()) }
