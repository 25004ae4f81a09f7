package spool

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

const (
	// headerSize is one sector: a header is there or it is not.
	headerSize  = 512
	headerStart = "meshvakt spool v1 "
	frameStart  = 9 // checksum and blank in front of each line

	// MaxLine is the longest line that any spool takes, which is less than what an entry of a
	// transparency log may have.
	MaxLine = 60 << 10

	segmentSuffix = ".spool"
	temporaryName = "segment.tmp"
	spareName     = "spare"
	reserveName   = "reserve"
	markName      = "mark"
)

// errNoLine and errTorn end a segment: zeros follow, or something that is not the next line.
var (
	errNoLine = errors.New("no further line")
	errTorn   = errors.New("not the next line")
)

// point is a place in the chain: a line, by its number and the SHA-256 of its bytes.
type point struct {
	seq  uint64
	hash [32]byte
}

// segment is what name and header of a file say. ordinal grows with every file; before is
// the line that precedes its first.
type segment struct {
	ordinal uint64
	before  point
}

func (s segment) first() uint64 { return s.before.seq + 1 }

func (s segment) name() string {
	return fmt.Sprintf("%020d-%020d%s", s.ordinal, s.first(), segmentSuffix)
}

// parseName knows all of a segment but the hash. Other files are not of ours.
func parseName(name string) (segment, bool) {
	rest, is := strings.CutSuffix(name, segmentSuffix)
	ordinal, first, both := strings.Cut(rest, "-")
	if !is || !both || len(ordinal) != 20 || len(first) != 20 {
		return segment{}, false
	}
	o, err1 := strconv.ParseUint(ordinal, 10, 64)
	f, err2 := strconv.ParseUint(first, 10, 64)
	if err1 != nil || err2 != nil || f == 0 {
		return segment{}, false
	}
	return segment{ordinal: o, before: point{seq: f - 1}}, true
}

func (s segment) header() []byte {
	text := fmt.Sprintf("%sordinal %d first %d prev %x ", headerStart, s.ordinal, s.first(), s.before.hash)
	b := make([]byte, headerSize)
	copy(b, fmt.Sprintf("%s%08x\n", text, checksum([]byte(text))))
	return b
}

// readHeader completes what the name of a file has told.
func readHeader(f file, named segment) (segment, error) {
	b := make([]byte, headerSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return segment{}, fmt.Errorf("read header of %s: %w", named.name(), err)
	}
	const at = "prev "
	if i := bytes.Index(b, []byte(at)); i >= 0 && len(b) >= i+len(at)+64 {
		if _, err := hex.Decode(named.before.hash[:], b[i+len(at):i+len(at)+64]); err == nil && bytes.Equal(b, named.header()) {
			return named, nil
		}
	}
	return segment{}, &DamageError{File: named.name(), Found: "a header that is not that of version 1 with this name"}
}

func checksum(parts ...[]byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	var sum uint32
	for _, p := range parts {
		sum = crc32.Update(sum, table, p)
	}
	return sum
}

// frameSum binds a line to its place, so that a line left over at some other place is none.
func frameSum(before point, line []byte) uint32 {
	var place [40]byte
	binary.BigEndian.PutUint64(place[:], before.seq+1)
	copy(place[8:], before.hash[:])
	return checksum(place[:], line)
}

// appendFrame adds a line to what is to be written, and returns its point.
func appendFrame(b []byte, before point, line []byte) ([]byte, point) {
	b = fmt.Appendf(b, "%08x ", frameSum(before, line))
	b = append(append(b, line...), '\n')
	return b, point{before.seq + 1, sha256.Sum256(line)}
}

// checkLine keeps out what could not be told from the end of a line or of a segment.
func checkLine(line []byte, most int) error {
	switch {
	case len(line) == 0:
		return errors.New("the line is empty")
	case len(line) > most:
		return fmt.Errorf("the line has %d bytes; must have at most %d", len(line), most)
	case bytes.ContainsAny(line, "\n\x00"):
		return errors.New("the line holds a line feed or a zero byte")
	}
	return nil
}

// lines reads one segment from a place on.
type lines struct {
	in     *bufio.Reader
	last   point
	offset int64 // where the line after last begins
}

func linesOf(f file, before point, offset int64) *lines {
	const most = 1 << 62
	return &lines{bufio.NewReaderSize(io.NewSectionReader(f, offset, most), MaxLine+frameStart+1), before, offset}
}

// next returns the bytes of the next line, which are good until it is called again.
func (l *lines) next() ([]byte, error) {
	frame, err := l.in.ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(frame) == 0 || frame[0] == 0 {
		return nil, errNoLine
	}
	if err != nil || len(frame) <= frameStart+1 {
		return nil, errTorn
	}
	line := frame[frameStart : len(frame)-1]
	if string(frame[:frameStart]) != fmt.Sprintf("%08x ", frameSum(l.last, line)) {
		return nil, errTorn
	}
	l.last = point{l.last.seq + 1, sha256.Sum256(line)}
	l.offset += int64(len(frame))
	return line, nil
}

// mark tells readers how far the log is durable. It is written after every group and synced
// only at a clean stop: what it says is true however old it is.
type mark struct {
	ordinal, seq uint64
	clean        bool
}

func (m mark) bytes() []byte {
	text := fmt.Sprintf("mark v1 ordinal %020d seq %020d clean %-5t ", m.ordinal, m.seq, m.clean)
	return fmt.Appendf(nil, "%s%08x\n", text, checksum([]byte(text)))
}

// readMark returns false where there is none. Nothing keeps who writes it and who reads it apart, so that one may be seen as it
// is just being written; what is no mark is read again until it is the same twice.
func readMark(f file) (mark, bool) {
	var before []byte
	for {
		b := make([]byte, len(mark{}.bytes()))
		if _, err := f.ReadAt(b, 0); err != nil {
			return mark{}, false
		}
		if m, ok := parseMark(b); ok || bytes.Equal(b, before) {
			return m, ok
		}
		before = b
	}
}

func parseMark(b []byte) (mark, bool) {
	var m mark
	if _, err := fmt.Sscanf(string(b), "mark v1 ordinal %d seq %d clean %t", &m.ordinal, &m.seq, &m.clean); err != nil {
		return mark{}, false
	}
	if !bytes.Equal(b, m.bytes()) {
		return mark{}, false // not what the half of it that can be read says
	}
	return m, true
}

// zero writes real zeros: blocks that are only reserved would have to be converted at the
// first write to each, which costs a commit of the file system's journal.
func zero(f file, size int64, stop <-chan struct{}) error {
	const step = 4 << 20
	block := make([]byte, min(step, size))
	for at := int64(0); at < size; at += step {
		select {
		case <-stop:
			return ErrClosed
		default:
		}
		if _, err := f.WriteAt(block[:min(step, size-at)], at); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}
