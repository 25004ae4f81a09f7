//go:build simulatedtime

package main

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// This build takes the time from a file that a test writes, so that the real program lives through months in minutes.
// It is for tests alone, and has no flag: nothing that is released is built with the tag, and each start of it says in
// its evidence, by its version, that its times are made up.

const buildMark = record.SimulatedTime + ", for tests alone"

// clockVariable names the file.
const clockVariable = "MESHVAKT_SIMULATED_CLOCK"

// The words of the file, 64 bits each in the byte order of the machine. The test writes the first three. It sets the
// time first and then the turn; what has a ticker has had one whole turn at that time once its acknowledgement says the
// same turn.
const (
	wordTurn   = iota // counts what the test has set
	wordMono          // nanoseconds, never less than before
	wordOffset        // from there to nanoseconds since 1970
	wordError         // microseconds
	wordLoops         // how many tickers there are; the process counts them
	wordFirst         // acknowledgement of the first ticker
)

const (
	clockSize  = 4096
	turnsEvery = 2 * time.Millisecond
	// idleEvery is how soon a loop gets a turn though no time has passed: what it waits for may have come.
	idleEvery = 20 * time.Millisecond
	// diskPatience: the disk goes by the machine's time, in which minutes may be days here.
	diskPatience = 30 * time.Second
)

// simulation is the file, mapped. It is never unmapped: the process ends first.
type simulation []byte

func (s simulation) word(i int) *uint64 { return (*uint64)(unsafe.Pointer(&s[8*i])) }

func (s simulation) load(i int) int64 { return int64(atomic.LoadUint64(s.word(i))) } //nolint:gosec // as it was stored

func newClock() (clock, error) {
	name := os.Getenv(clockVariable)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return clock{}, fmt.Errorf("this build is for tests alone, and takes the time from the file that %s names: %w", clockVariable, err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, clockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return clock{}, fmt.Errorf("map the clock %s: %w", name, err)
	}
	s := simulation(mapped)
	started := s.load(wordMono)
	return clock{
		now:     func() time.Time { return time.Unix(0, s.load(wordMono)+s.load(wordOffset)) },
		since:   func() time.Duration { return time.Duration(s.load(wordMono) - started) },
		ticker:  s.ticker,
		quality: func() record.Clock { return record.Clock{MaxErrorMicros: atomic.LoadUint64(s.word(wordError))} },
		disk:    diskPatience,
	}, nil
}

// ticker gives a loop a turn whenever time has passed, however little or much.
func (s simulation) ticker(time.Duration) (<-chan time.Time, func()) {
	ticks, done := make(chan time.Time), make(chan struct{})
	mine := wordFirst + int(atomic.AddUint64(s.word(wordLoops), 1)) - 1
	give := func() bool {
		select {
		case ticks <- time.Time{}:
			return true
		case <-done:
			return false
		}
	}
	go func() {
		poll := time.NewTicker(turnsEvery)
		defer poll.Stop()
		last := time.Now()
		for {
			select {
			case <-done:
				return
			case <-poll.C:
			}
			turn := atomic.LoadUint64(s.word(wordTurn))
			switch {
			case turn != atomic.LoadUint64(s.word(mine)):
				// The second one is taken when the first has been acted upon.
				if !give() || !give() {
					return
				}
				atomic.StoreUint64(s.word(mine), turn)
			case time.Since(last) < idleEvery:
				continue
			case !give():
				return
			}
			last = time.Now()
		}
	}()
	return ticks, sync.OnceFunc(func() { close(done) })
}
