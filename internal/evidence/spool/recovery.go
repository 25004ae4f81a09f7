package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Recovery is what Open found.
type Recovery struct {
	FirstSeq uint64   // the oldest line that has not been released; 0 where there is none
	LastSeq  uint64   // 0 where the log is new
	LastHash [32]byte // of the line LastSeq
	// Clean: the last appender ended by Close, with everything stored.
	Clean bool
	// Torn is how many bytes of lines that never became whole were dropped.
	Torn int64
	// Rewritten is how many lines at the end may not have been durable, and are stored again.
	// They may be lines whose callers were never told that they are in the log.
	Rewritten int
}

type found struct {
	Recovery
	ordinal  uint64    // the highest there is
	segments []segment // oldest first
	base     point     // the last line that is surely durable
	again    []byte    // frames of the lines after base
	last     point
}

// listSegments returns what the names say, oldest first.
func listSegments(d directory) ([]segment, error) {
	names, err := d.List()
	if err != nil {
		return nil, err
	}
	var list []segment
	for _, name := range names {
		if s, is := parseName(name); is {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b segment) int {
		if a.ordinal < b.ordinal {
			return -1
		}
		return 1
	})
	return list, nil
}

// recoverLog reads where the log ends. It changes nothing: what is wrong with the end is
// made void by the next segment, which begins before it.
func recoverLog(d directory) (found, error) {
	r := found{}
	m, marked, err := loadMark(d)
	if err != nil {
		return r, err
	}
	if r.segments, err = listSegments(d); err != nil {
		return r, err
	}
	if len(r.segments) == 0 {
		if m.seq > 0 {
			return r, &DamageError{markName, fmt.Sprintf("line %d as stored, and no segment", m.seq)}
		}
		return r, nil
	}
	for i := 1; i < len(r.segments); i++ {
		if a, b := r.segments[i-1], r.segments[i]; a.ordinal == b.ordinal || a.first() > b.first() {
			return r, &DamageError{b.name(), "a segment that is out of order after " + a.name()}
		}
	}
	newest := r.segments[len(r.segments)-1]
	f, err := d.Open(newest.name(), false)
	if err != nil {
		return r, err
	}
	err = r.readEnd(f, newest, m)
	if err := errors.Join(err, f.Close()); err != nil {
		return r, err
	}
	r.ordinal = newest.ordinal
	r.LastSeq, r.LastHash = r.last.seq, r.last.hash
	if first := r.segments[0].first(); first <= r.LastSeq {
		r.FirstSeq = first
	}
	r.Clean = marked && m.clean && m.ordinal == newest.ordinal && m.seq == r.last.seq && r.Torn == 0
	return r, nil
}

// readEnd reads the newest segment. What the mark does not cover may be in the page cache
// alone, where a failed sync leaves it looking stored: it counts as not durable.
func (r *found) readEnd(f file, named segment, m mark) error {
	s, err := readHeader(f, named)
	if err != nil {
		return err
	}
	r.base, r.last = s.before, s.before
	in := linesOf(f, s.before, headerSize)
	for {
		before := in.last
		line, err := in.next()
		if errors.Is(err, errNoLine) || errors.Is(err, errTorn) {
			break
		}
		if err != nil {
			return err
		}
		r.last = in.last
		if in.last.seq <= m.seq {
			r.base = in.last
			continue
		}
		r.again, _ = appendFrame(r.again, before, line)
		r.Rewritten++
	}
	if m.seq > r.last.seq {
		return &DamageError{s.name(), fmt.Sprintf("line %d as the last; the mark says that line %d was stored", r.last.seq, m.seq)}
	}
	r.Torn, err = torn(f, in.offset)
	return err
}

// torn counts the bytes from offset to the last that is not zero.
func torn(f file, offset int64) (int64, error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	var n int64
	block := make([]byte, 64<<10)
	for at := offset; at < size; at += int64(len(block)) {
		b := block[:min(int64(len(block)), size-at)]
		if _, err := f.ReadAt(b, at); err != nil {
			return 0, fmt.Errorf("read the end: %w", err)
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] != 0 {
				n = at + int64(i) + 1 - offset
				break
			}
		}
	}
	return n, nil
}

func loadMark(d directory) (mark, bool, error) {
	f, err := d.Open(markName, false)
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, false, nil
	}
	if err != nil {
		return mark{}, false, err
	}
	m, ok := readMark(f)
	return m, ok, f.Close()
}
