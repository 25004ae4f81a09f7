package spool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// small makes segments change every few lines.
func small() Options {
	return Options{SegmentSize: 1200, ReserveSize: 4096, background: func(f func()) { f() }}
}

// named makes a line that says its number, what it follows and who wants it.
func named(id string) Make {
	return func(seq uint64, prev [32]byte) ([]byte, error) {
		return fmt.Appendf(nil, "%d %x %s", seq, prev, id), nil
	}
}

// told is what callers know of their lines.
type told struct {
	mu        sync.Mutex
	acked     map[string]point
	refused   map[string]error
	unsettled map[string]*UnsettledError
}

func newTold() *told {
	return &told{acked: map[string]point{}, refused: map[string]error{}, unsettled: map[string]*UnsettledError{}}
}

func (l *told) append(t testing.TB, s *Spool, id string) {
	seq, hash, err := s.Append(context.Background(), named(id))
	l.note(t, id, point{seq, hash}, err)
}

func (l *told) note(t testing.TB, id string, at point, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var refused *RefusedError
	var unsettled *UnsettledError
	switch {
	case err == nil:
		l.acked[id] = at
	case errors.As(err, &refused):
		l.refused[id] = err
	case errors.As(err, &unsettled):
		l.unsettled[id] = unsettled
	default:
		t.Errorf("append %s: %v; must be nil, refused or unsettled", id, err)
	}
}

// settle asks for the outcome of what was unsettled. What stays unknown stays in there.
func (l *told) settle(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for id, u := range l.unsettled {
		seq, hash, err := u.Outcome(ctx)
		if errors.Is(err, ErrUnknown) {
			continue
		}
		delete(l.unsettled, id)
		l.note(t, id, point{seq, hash}, err)
	}
}

// check reads the whole log and holds it against what callers were told.
func (l *told) check(t testing.TB, d directory, from uint64) map[string]point {
	t.Helper()
	in := map[string]point{}
	last := point{seq: from - 1}
	r := newReader(d, from)
	defer r.drop()
	for line, err := range r.Lines() {
		if err != nil {
			t.Errorf("read: %v", err)
			break
		}
		var seq uint64
		var prev, id string
		if _, err := fmt.Sscanf(string(line.Text), "%d %s %s", &seq, &prev, &id); err != nil {
			t.Errorf("line %d is %q", line.Seq, line.Text)
		}
		if seq != line.Seq || seq != last.seq+1 || (last.seq >= from && prev != hex.EncodeToString(last.hash[:])) {
			t.Errorf("line %q stands at %d after %d %x", line.Text, line.Seq, last.seq, last.hash)
		}
		if _, twice := in[id]; twice {
			t.Errorf("%s is in the log twice", id)
		}
		last = point{line.Seq, line.Hash}
		in[id] = last
	}
	for id, at := range l.acked {
		if in[id] != at {
			t.Errorf("%s was acknowledged as %d; in the log it is %d", id, at.seq, in[id].seq)
		}
	}
	for id, err := range l.refused {
		if at, is := in[id]; is {
			t.Errorf("%s is in the log as %d; its caller was told: %v", id, at.seq, err)
		}
	}
	for id := range in {
		if _, acked := l.acked[id]; !acked && l.unsettled[id] == nil && !strings.HasPrefix(id, "?") {
			t.Errorf("%s is in the log, and its caller knows nothing of it", id)
		}
	}
	return in
}

func mustOpen(t testing.TB, d directory, o Options) *Spool {
	t.Helper()
	s, err := open(d, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func mustClose(t testing.TB, s *Spool) {
	t.Helper()
	if err := s.Close(context.Background()); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func TestLinesAreChainedAcrossSegmentsAndLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		for life := range 3 {
			s := mustOpen(t, d, small())
			if r := s.Recovery(); r.LastSeq != uint64(20*life) || r.Clean != (life > 0) || r.Rewritten != 0 || r.Torn != 0 {
				t.Errorf("life %d resumes with %+v", life, r)
			}
			for i := range 20 {
				l.append(t, s, fmt.Sprintf("%d.%d", life, i))
			}
			if st := s.State(); !st.Healthy || st.Asked != 20 || st.Written != 20 || st.Refused != 0 || st.Open != 0 {
				t.Errorf("life %d: state %+v", life, st)
			}
			mustClose(t, s)
		}
		if in := l.check(t, d, 1); len(in) != 60 {
			t.Errorf("%d lines in the log; must be 60", len(in))
		}
	})
}

func TestOneGroupForThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		o := small()
		o.SegmentSize = 1 << 20
		s := mustOpen(t, d, o)
		syncs := 0
		d.fault = func(_ int, op, _ string) error {
			if op == "sync" {
				syncs++
				time.Sleep(10 * time.Millisecond) // of the bubble's clock: all others come to wait
			}
			return nil
		}
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() { l.append(t, s, fmt.Sprint(i)) })
		}
		all.Wait()
		if syncs > 3 {
			t.Errorf("%d syncs for 50 appends at once; must be a few", syncs)
		}
		mustClose(t, s)
		if in := l.check(t, d, 1); len(in) != 50 {
			t.Errorf("%d lines in the log; must be 50", len(in))
		}
	})
}

func TestALineThatCannotBeMadeLeavesNoHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		s := mustOpen(t, d, small())
		boom := errors.New("no salt")
		for what, line := range map[string][]byte{
			"empty": {}, "line feed": []byte("a\nb"), "zero byte": []byte("a\x00b"), "too long": make([]byte, 16<<10+1),
		} {
			_, _, err := s.Append(t.Context(), func(uint64, [32]byte) ([]byte, error) { return line, nil })
			var refused *RefusedError
			if !errors.As(err, &refused) {
				t.Errorf("%s: %v; must be refused", what, err)
			}
		}
		if _, _, err := s.Append(t.Context(), func(uint64, [32]byte) ([]byte, error) { return nil, boom }); !errors.Is(err, boom) {
			t.Errorf("append returns %v; must wrap %v", err, boom)
		}
		l.append(t, s, "first")
		if l.acked["first"].seq != 1 {
			t.Errorf("the first line that can be made is %d; must be 1", l.acked["first"].seq)
		}
		mustClose(t, s)
		l.check(t, d, 1)
	})
}

func TestASlowDiskCostsNoMoreThanTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		s := mustOpen(t, d, small())
		d.fault = func(_ int, op, _ string) error {
			if op == "sync" {
				time.Sleep(10 * time.Second)
			}
			return nil
		}
		before := time.Now()
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() { l.append(t, s, fmt.Sprint(i)) })
		}
		all.Wait()
		if took := time.Since(before); took != 500*time.Millisecond {
			t.Errorf("appends took %v; must take the budget", took)
		}
		before = time.Now()
		time.Sleep(time.Millisecond)
		if _, _, err := s.Append(t.Context(), named("late")); !errors.Is(err, ErrStalled) || time.Since(before) > time.Millisecond {
			t.Errorf("append on a stalled disk: %v after %v; must be refused at once", err, time.Since(before))
		}
		if st := s.State(); st.Healthy || !errors.Is(st.Cause, ErrStalled) {
			t.Errorf("state is %+v; must be stalled", st)
		}
		synctest.Wait()
		if len(l.refused)+len(l.unsettled) != 20 || len(l.unsettled) == 0 {
			t.Errorf("%d refused, %d unsettled; must be 20 together and some of the latter", len(l.refused), len(l.unsettled))
		}
		l.settle(t)
		if len(l.acked) == 0 {
			t.Error("none of the unsettled lines was stored when the disk went on")
		}
		d.mu.Lock()
		d.fault = nil
		d.mu.Unlock()
		l.append(t, s, "after")
		if _, ok := l.acked["after"]; !ok {
			t.Error("the disk is well again and appends fail")
		}
		if st := s.State(); !st.Healthy || st.Asked != st.Written+st.Refused {
			t.Errorf("state is %+v; must be healthy, with nothing open", st)
		}
		mustClose(t, s)
		l.check(t, d, 1)
	})
}

func TestTheEndOfTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDisk(1)
		s := mustOpen(t, d, small())
		d.fault = func(int, string, string) error { time.Sleep(100 * time.Millisecond); return nil }
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, _, err := s.Append(ctx, named("a"))
		var unsettled *UnsettledError
		if !errors.As(err, &unsettled) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("append returns %v; must be unsettled by the end of the context", err)
		}
		if seq, _, err := unsettled.Outcome(t.Context()); seq != 1 || err != nil {
			t.Errorf("outcome %d, %v; must be line 1", seq, err)
		}
		if _, _, err := s.Append(ctx, named("b")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("append with an ended context: %v", err)
		}
		mustClose(t, s)
		if _, _, err := s.Append(t.Context(), named("c")); !errors.Is(err, ErrClosed) {
			t.Errorf("append after Close: %v", err)
		}
	})
}

func TestOneAppenderPerDirectory(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{SegmentSize: 1 << 16, ReserveSize: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open in this process: %v; must be %v", err, ErrLocked)
	}
	mustClose(t, s)
	s, err = Open(dir, Options{SegmentSize: 1 << 16, ReserveSize: 1 << 16})
	if err != nil {
		t.Fatalf("open after Close: %v", err)
	}
	mustClose(t, s)
}

func TestAFullDiskKeepsSpaceForWhatIsVital(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		d.capacity = 16 << 10
		s := mustOpen(t, d, small())
		n := 0
		for ; len(l.refused) == 0; n++ {
			l.append(t, s, fmt.Sprint(n))
		}
		if n < 30 {
			t.Errorf("full after %d lines", n)
		}
		if st := s.State(); st.Healthy || !errors.Is(st.Cause, unix.ENOSPC) {
			t.Errorf("state is %+v; must be ENOSPC", st)
		}
		for i := range 5 {
			id := fmt.Sprintf("vital%d", i)
			seq, hash, err := s.AppendVital(t.Context(), named(id))
			l.note(t, id, point{seq, hash}, err)
			if err != nil {
				t.Errorf("a vital line is refused: %v", err)
			}
		}
		time.Sleep(3 * time.Second) // still full
		if st := s.State(); st.Healthy {
			t.Error("the spool is healthy on a full disk")
		}
		l.check(t, d, 1)
		if err := newReader(d, 1).Release(l.acked["vital4"].seq); err != nil {
			t.Fatalf("release: %v", err)
		}
		time.Sleep(2 * time.Second)
		l.append(t, s, "after")
		if _, ok := l.acked["after"]; !ok {
			t.Errorf("there is space again: %v", l.refused["after"])
		}
		mustClose(t, s)
		for line, err := range newReader(d, 1).Lines() {
			if !errors.Is(err, ErrReleased) {
				t.Errorf("reading a released line gives %d, %v; must be %v", line.Seq, err, ErrReleased)
			}
		}
	})
}

// Whoever resumes the log goes on from its last line, so that stays, though a new segment without
// a line has been made after it.
func TestTheLastLineIsNotReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		for life := range 3 {
			s := mustOpen(t, d, small())
			if first := s.Recovery().FirstSeq; (first == 0) != (life == 0) {
				t.Errorf("life %d: the oldest line is %d", life, first)
			}
			for i := range 40 {
				l.append(t, s, fmt.Sprintf("life%d-%d", life, i))
			}
			mustClose(t, s)
			s = mustOpen(t, d, small())
			last := s.Recovery().LastSeq
			if err := newReader(d, 1).Release(last); err != nil {
				t.Fatal(err)
			}
			mustClose(t, s)
			s = mustOpen(t, d, small())
			r := s.Recovery()
			if r.LastSeq != last || r.FirstSeq == 0 || r.FirstSeq == 1 {
				t.Errorf("after release: lines %d to %d; must end with %d, and not begin with 1", r.FirstSeq, r.LastSeq, last)
			}
			var seen Line
			for line, err := range newReader(d, r.FirstSeq).Lines() {
				if err != nil {
					t.Fatal(err)
				}
				seen = line
			}
			if seen.Seq != last || seen.Hash != r.LastHash {
				t.Errorf("the last line that can be read is %d; must be %d", seen.Seq, last)
			}
			mustClose(t, s)
		}
	})
}

func TestExtent(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenReader(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	extent := func() Extent {
		t.Helper()
		e, err := r.Extent()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := extent(); e != (Extent{First: 1}) {
		t.Errorf("without a log: %+v", e)
	}
	s, err := Open(dir, Options{SegmentSize: headerSize + 200, ReserveSize: 1 << 10, Budget: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	l := newTold()
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		l.append(t, s, id)
	}
	if e := extent(); e != (Extent{First: 1, Last: 5}) {
		t.Errorf("of five lines: %+v", e)
	}
	if err := r.Release(3); err != nil {
		t.Fatal(err)
	}
	e := extent()
	if e.First < 2 || e.First > 4 || e.Last != 5 {
		t.Fatalf("with lines up to 3 released: %+v", e)
	}
	for _, at := range l.acked {
		if at.seq == e.First-1 && at.hash != e.Before {
			t.Errorf("the line before %d has hash %x; the extent says %x", e.First, at.hash, e.Before)
		}
	}
	mustClose(t, s)
}

// halfWritten is a disk whose mark is seen, the first time, with the end that it had before.
type halfWritten struct {
	*memDisk
	before mark
}

func (d *halfWritten) Open(name string, write bool) (file, error) {
	f, err := d.memDisk.Open(name, write)
	if err != nil || name != markName {
		return f, err
	}
	b := d.before.bytes()
	return &halfWrittenFile{file: f, end: b[len(b)-9:]}, nil // its checksum
}

type halfWrittenFile struct {
	file
	end []byte
}

func (f *halfWrittenFile) ReadAt(b []byte, at int64) (int, error) {
	n, err := f.file.ReadAt(b, at)
	copy(b[len(b)-len(f.end):], f.end)
	f.end = nil
	return n, err
}

// Whoever reads while a line is stored must not take the log for empty: a sealer would find that it has lost what is sealed.
func TestAMarkThatIsJustBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		s := mustOpen(t, d, small())
		for _, id := range []string{"a", "b", "c"} {
			l.append(t, s, id)
		}
		now, is, err := loadMark(d)
		if err != nil || !is {
			t.Fatalf("the mark is %+v, %v", now, err)
		}
		torn := &halfWritten{d, mark{now.ordinal, now.seq - 1, false}}
		if e, err := newReader(torn, 1).Extent(); err != nil || e.Last != 3 {
			t.Errorf("the log has the lines %d to %d, %v; must be up to 3", e.First, e.Last, err)
		}
		if in := l.check(t, torn, 1); len(in) != 3 {
			t.Errorf("%d lines can be read; must be 3", len(in))
		}
		mustClose(t, s)
	})
}
