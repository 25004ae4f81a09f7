package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// script is some life of a spool: alone and together, over several segments. It goes on
// until the end whatever the disk does.
func script(t testing.TB, s *Spool, l *told, name string) {
	for round := range 6 {
		var all sync.WaitGroup
		for i := range 1 + 3*(round%2) {
			all.Go(func() { l.append(t, s, fmt.Sprintf("%s.%d.%d", name, round, i)) })
		}
		all.Wait()
	}
}

// schedules are ways of a disk to fail from its nth call on.
func schedules() map[string]func(n int, err error) func(int, string, string) error {
	return map[string]func(n int, err error) func(int, string, string) error{
		"once": func(n int, err error) func(int, string, string) error {
			return func(call int, _, _ string) error { return when(call == n, err) }
		},
		"three times": func(n int, err error) func(int, string, string) error {
			return func(call int, _, _ string) error { return when(call >= n && call < n+3, err) }
		},
		"every other time": func(n int, err error) func(int, string, string) error {
			return func(call int, _, _ string) error { return when(call >= n && (call-n)%2 == 0, err) }
		},
		"from then on": func(n int, err error) func(int, string, string) error {
			return func(call int, _, _ string) error { return when(call >= n, err) }
		},
		"slowly": func(n int, err error) func(int, string, string) error {
			return func(call int, op, _ string) error {
				if call >= n && call < n+4 && op == "sync" {
					time.Sleep(time.Second)
					return err
				}
				return nil
			}
		},
	}
}

func when(is bool, err error) error {
	if is {
		return err
	}
	return nil
}

// callsOf counts the calls of a life without faults.
func callsOf(t *testing.T) (n int) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		s := mustOpen(t, d, small())
		script(t, s, l, "a")
		mustClose(t, s)
		n = d.calls
	})
	if n < 40 {
		t.Fatalf("a life of %d calls is too short to tell anything", n)
	}
	return n
}

// Every call of a life fails, in each of some ways, and the disk is well again afterwards:
// no caller was told anything that does not hold, and the spool recovers by itself.
func TestEveryCallFailsAndTheDiskRecovers(t *testing.T) {
	calls := callsOf(t)
	for how, schedule := range schedules() {
		for _, fault := range []error{unix.ENOSPC, unix.EIO, unix.EROFS, io.ErrShortWrite} {
			t.Run(fmt.Sprintf("%s/%v", how, fault), func(t *testing.T) {
				for n := 1; n <= calls; n++ {
					synctest.Test(t, func(t *testing.T) { failAndRecover(t, schedule(n, fault), n) })
					if t.Failed() {
						t.Fatalf("with call %d failing", n)
					}
				}
			})
		}
	}
}

func failAndRecover(t *testing.T, fault func(int, string, string) error, n int) {
	d, l := newMemDisk(uint64(n)), newTold()
	d.fault = fault
	s := mustOpen(t, d, small())
	script(t, s, l, "a")
	time.Sleep(5 * time.Second) // attempts to recover, some of them in vain
	script(t, s, l, "b")
	time.Sleep(10 * time.Second) // what was slow ends
	d.mu.Lock()
	d.fault = nil
	d.mu.Unlock()
	time.Sleep(3 * time.Second)
	st := s.State()
	if !st.Healthy {
		t.Errorf("the disk is well again, and the state is %+v", st)
	}
	l.settle(t)
	l.append(t, s, "after")
	if _, acked := l.acked["after"]; !acked {
		t.Errorf("the disk is well again, and an append fails: %v %v", l.refused["after"], l.unsettled["after"])
	}
	if st := s.State(); st.Open != 0 || st.Asked != st.Written+st.Refused || int(st.Written) != len(l.acked) || int(st.Refused) != len(l.refused) {
		t.Errorf("state %+v; callers know of %d written, %d refused", st, len(l.acked), len(l.refused))
	}
	mustClose(t, s)
	in := l.check(t, d, 1)
	if len(in) != len(l.acked) {
		t.Errorf("%d lines in the log, %d acknowledged", len(in), len(l.acked))
	}
	if d.names[temporaryName] != nil {
		t.Error("a segment in the making is left behind")
	}
	s = mustOpen(t, d, small())
	if r := s.Recovery(); !r.Clean || int(r.LastSeq) != len(in) {
		t.Errorf("after a clean stop with %d lines: %+v", len(in), r)
	}
	mustClose(t, s)
}

// The process is killed, or the power lost, at every call, on a disk that is well or
// has been failing for some calls; then a second life, which ends in the same way.
func TestEveryCallIsTheLast(t *testing.T) {
	calls := callsOf(t)
	kill, power := (*memDisk).kill, (*memDisk).crash
	ends := map[string][]func(*memDisk) *memDisk{"kill": {kill, kill, kill}, "power": {power, power, power}, "both": {kill, power, kill}}
	for how, end := range ends {
		for _, failing := range []int{0, 1, 3, 6} {
			t.Run(fmt.Sprintf("%s/after %d faults", how, failing), func(t *testing.T) {
				for n := 1; n <= calls; n++ {
					for seed := range uint64(3) {
						synctest.Test(t, func(t *testing.T) { endAt(t, end, n, failing, seed) })
						if t.Failed() {
							t.Fatalf("with call %d, seed %d", n, seed)
						}
					}
				}
			})
		}
	}
}

func endAt(t *testing.T, ends []func(*memDisk) *memDisk, n, failing int, seed uint64) {
	d, l := newMemDisk(seed*1000+uint64(n)), newTold()
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	acked, sealed := uint64(0), map[uint64][32]byte{}
	for life, end := range ends {
		var next *memDisk
		d.fault = func(call int, _, _ string) error {
			switch {
			case call < n:
				return nil
			case call < n+failing:
				return when(rng.IntN(3) > 0, unix.EIO)
			case next == nil:
				// The state of the disk at this moment is what the next life finds. What
				// this one does from here on it does in vain.
				d.mu.Unlock()
				readAll(t, d, sealed)
				next = end(d)
				d.mu.Lock()
			}
			return unix.EIO
		}
		s := mustOpen(t, d, small())
		if r := s.Recovery(); r.LastSeq < acked {
			t.Errorf("life %d resumes at %d; %d were acknowledged", life, r.LastSeq, acked)
		}
		script(t, s, l, fmt.Sprintf("?%d", life))
		_ = s.Close(context.Background())
		if next == nil { // the end was not reached
			next = end(d)
		}
		l.settle(t)
		for _, at := range l.acked {
			acked = max(acked, at.seq)
		}
		d = next
	}
	s := mustOpen(t, d, small())
	l.append(t, s, "after")
	mustClose(t, s)
	// Lines whose callers died without an answer may be in the log; that is the prefix "?".
	if in := l.check(t, d, 1); len(in) < len(sealed) {
		t.Errorf("%d lines in the log; %d have been read before", len(in), len(sealed))
	}
	readAll(t, d, sealed)
}

// readAll reads as a sealer does: what it has read once must be there, the same, for ever.
func readAll(t *testing.T, d *memDisk, sealed map[uint64][32]byte) {
	have := uint64(0)
	for line, err := range newReader(d, 1).Lines() {
		if err != nil {
			t.Errorf("read: %v", err)
			return
		}
		if hash, known := sealed[line.Seq]; known && hash != line.Hash {
			t.Errorf("line %d has changed since it was read", line.Seq)
		}
		sealed[line.Seq] = line.Hash
		have = line.Seq
	}
	// A mark that the crash has taken back hides lines until the next life has begun.
	if mark, ok, _ := loadMark(d); ok && have != mark.seq {
		t.Errorf("read up to %d; the mark says %d", have, mark.seq)
	}
}

// A clean stop whose mark promises more than the disk has is damage, and said to be.
func TestDamageIsNotResumed(t *testing.T) {
	life := func(t *testing.T) *memDisk {
		d, l := newMemDisk(1), newTold()
		s := mustOpen(t, d, small())
		script(t, s, l, "a")
		mustClose(t, s)
		return d
	}
	newest := func(t *testing.T, d *memDisk) *memFile {
		list, err := listSegments(d)
		if err != nil {
			t.Fatal(err)
		}
		return d.names[list[len(list)-1].name()]
	}
	for what, harm := range map[string]func(*testing.T, *memDisk){
		"last line cut":    func(t *testing.T, d *memDisk) { f := newest(t, d); f.cache = f.cache[:len(f.cache)-3] },
		"bit in a line":    func(t *testing.T, d *memDisk) { f := newest(t, d); f.cache[len(f.cache)-5] ^= 1 },
		"bit in a header":  func(t *testing.T, d *memDisk) { newest(t, d).cache[40] ^= 1 },
		"segments removed": func(_ *testing.T, d *memDisk) { keep := d.names[markName]; clear(d.names); d.names[markName] = keep },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := life(t)
				harm(t, d)
				_, err := open(d, small())
				var damage *DamageError
				if !errors.As(err, &damage) {
					t.Errorf("open: %v; must be damage", err)
				}
			})
		})
	}
}

func TestTheReaderTellsDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := newMemDisk(1), newTold()
		s := mustOpen(t, d, small())
		script(t, s, l, "a")
		script(t, s, l, "b")
		mustClose(t, s)
		list, err := listSegments(d)
		if err != nil || len(list) < 3 {
			t.Fatalf("%d segments, %v; must be some", len(list), err)
		}
		for _, s := range list {
			f := d.names[s.name()]
			for at := range f.cache {
				f.cache[at] ^= 0x20
				var damage *DamageError
				n := 0
				for _, err := range newReader(d, 1).Lines() {
					if err == nil {
						n++
					} else if !errors.As(err, &damage) {
						t.Errorf("%s with a bit turned at byte %d: %v; must be damage", s.name(), at, err)
					}
				}
				if damage == nil {
					t.Errorf("%s with a bit turned at byte %d: %d lines read, no error", s.name(), at, n)
				}
				f.cache[at] ^= 0x20
			}
		}
	})
}

// A line is bound to its place: one that stands where another was is none.
func TestALineInAnothersPlaceIsDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDisk(1)
		s := mustOpen(t, d, small())
		for range 3 {
			if _, _, err := s.Append(t.Context(), func(uint64, [32]byte) ([]byte, error) { return []byte("the same"), nil }); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, s)
		list, err := listSegments(d)
		if err != nil {
			t.Fatal(err)
		}
		f := d.names[list[len(list)-1].name()]
		frame := frameStart + len("the same") + 1
		if len(f.cache) < headerSize+2*frame {
			t.Fatalf("the newest segment has %d bytes; must hold two lines", len(f.cache))
		}
		copy(f.cache[headerSize:], slices.Clone(f.cache[headerSize+frame:headerSize+2*frame]))
		var damage *DamageError
		for _, err := range newReader(d, 1).Lines() {
			if err != nil && !errors.As(err, &damage) {
				t.Errorf("read: %v; must be damage", err)
			}
		}
		if damage == nil {
			t.Error("the second line is read in the place of the first")
		}
	})
}
