package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// The words of the file from which a build with the tag simulatedtime takes the time, as cmd/meshvakt/clock_simulated.go
// reads them.
const (
	wordTurn = iota
	wordMono
	wordOffset
	wordError
	wordLoops
	wordFirst

	clockWords = 512
)

// clockErrorOfQuarter is what the simulated kernel says that its clock may be wrong.
const clockErrorOfQuarter = 10 * time.Millisecond

// timepiece is the clock of one replica and its sealer.
type timepiece struct {
	name string
	mem  []byte
	turn uint64
}

func newTimepiece(t testing.TB) *timepiece {
	t.Helper()
	c := &timepiece{name: filepath.Join(t.TempDir(), "clock")}
	must(t, os.WriteFile(c.name, make([]byte, 8*clockWords), 0o600))
	f, err := os.OpenFile(c.name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	c.mem, err = unix.Mmap(int(f.Fd()), 0, 8*clockWords, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(c.mem)) })
	c.store(wordError, uint64(clockErrorOfQuarter/time.Microsecond))
	return c
}

func (c *timepiece) word(i int) *uint64     { return (*uint64)(unsafe.Pointer(&c.mem[8*i])) }
func (c *timepiece) store(i int, to uint64) { atomic.StoreUint64(c.word(i), to) }
func (c *timepiece) environment() []string  { return []string{"MESHVAKT_SIMULATED_CLOCK=" + c.name} }

// set lets it be so long after the beginning, and so late.
func (c *timepiece) set(mono time.Duration, wall time.Time) {
	c.store(wordOffset, uint64(wall.UnixNano()-int64(mono)))
	c.store(wordMono, uint64(mono))
	c.turn++
	c.store(wordTurn, c.turn)
}

// forget is for a process that is no more: its tickers are not waited for.
func (c *timepiece) forget() { clear(c.mem[8*wordLoops : 8*clockWords]) }

// acted reports whether all loops of the process have had a whole turn since the time was set.
func (c *timepiece) acted(loops int) error {
	n := int(atomic.LoadUint64(c.word(wordLoops)))
	if n < loops {
		return fmt.Errorf("%d loops have a ticker; must be %d", n, loops)
	}
	for i := range n {
		if turn := atomic.LoadUint64(c.word(wordFirst + i)); turn != c.turn {
			return fmt.Errorf("loop %d is at turn %d of %d", i, turn, c.turn)
		}
	}
	return nil
}

// watcher is one replica of the quarter, with its volume, its clock and its sealer. The process may be there or not.
type watcher struct {
	q       *quarter
	name    string
	dir     string
	listen  string
	clock   *timepiece
	ahead   time.Duration // of the wall clock
	process *replica      // nil while there is none
	sealer  *exec.Cmd     // nil while there is none
	next    time.Duration // when it has to beat
	missed  time.Duration // the first beat that it could not store; 0 for none
	mute    bool          // nothing can be stored on its volume
	up      bool          // guarded by the mu of the quarter; it is behind the Service
	shard   string
	beat    *record.Beat // the last one

	reader  *spool.Reader
	records []record.Record
	chain   record.Chain
}

// wall is what its clock says.
func (w *watcher) wall() time.Time { return w.q.time().Add(w.ahead) }

// loops are those of a replica that have a ticker: journal and observer.
const loops = 2

// begin starts the process, and waits for its first beat.
func (w *watcher) begin() {
	w.q.t.Helper()
	w.clock.forget()
	w.clock.set(w.q.now, w.wall())
	args := append([]string{"--listen", w.listen, "--webhook-url", "https://" + w.q.address, "--leader-elect",
		"--certificates", "files", "--cert-file", w.q.certFile, "--key-file", w.q.keyFile, "--ca-file", w.q.certFile,
		"--evidence-beat", beatOfQuarter.String()}, evidenceOf(w.dir)...)
	n := len(w.records)
	w.process = startBuild(w.q.t, w.q.binary, w.clock.environment(), append(args, "--evidence-replica", w.name)...)
	w.process.ready(w.q.t.Context())
	w.shard = volume.Shard(volume.PeriodAt(w.wall()), 1)
	w.next = w.q.now + beatOfQuarter
	w.beaten(n)
}

// end kills the process, or lets it stop in order.
func (w *watcher) end(kill bool) {
	if kill {
		w.process.kill()
	} else {
		w.process.stop()
	}
	w.read() // what is sealed may be gone once another process begins
	w.process = nil
	w.clock.forget()
}

// seal starts the sealer.
func (w *watcher) seal() {
	w.q.t.Helper()
	cmd := exec.Command(w.q.binary, "evidence", "seal", "--dir", w.dir, "--checkpoint-interval", "1s", "--log-level", "error")
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), w.clock.environment()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(w.q.t, cmd.Start())
	w.q.t.Cleanup(func() { _ = cmd.Process.Kill() })
	w.sealer = cmd
}

// unseal ends it, after it has sealed what is there.
func (w *watcher) unseal() {
	w.q.t.Helper()
	must(w.q.t, w.sealer.Process.Signal(syscall.SIGTERM))
	must(w.q.t, w.sealer.Wait())
	w.sealer = nil
}

// read takes what the process has written since the last time. The chain must hold.
func (w *watcher) read() {
	w.q.t.Helper()
	if w.reader == nil {
		r, err := spool.OpenReader(volume.Dir(w.dir).Spool(), 1)
		must(w.q.t, err)
		w.reader = r
		w.q.t.Cleanup(func() { _ = r.Close() })
	}
	for line, err := range w.reader.Lines() {
		must(w.q.t, err)
		if _, begins := peek(line.Text).(*record.Genesis); begins {
			w.chain = record.Begin(w.chain.Last())
		}
		r, next, err := w.chain.Follow(line.Text)
		must(w.q.t, err)
		w.records, w.chain = append(w.records, r), next
	}
}

func peek(text []byte) record.Body {
	r, err := record.Parse(text)
	if err != nil {
		return nil
	}
	return r.Body
}

// found waits for a record from the n-th on.
func (w *watcher) found(n int, what string, is func(record.Record) bool) record.Record {
	w.q.t.Helper()
	var found record.Record
	eventually(w.q.t, 60*time.Second, func() error {
		w.read()
		for _, r := range w.records[min(n, len(w.records)):] {
			if is(r) {
				found = r
				return nil
			}
		}
		select {
		case <-w.process.exited:
			w.process.dump(60)
			w.q.t.Fatalf("%s has ended: %v", w.name, w.process.exitErr)
		default:
		}
		return fmt.Errorf("%s at %s: no %s", w.name, w.q.time().Format(time.RFC3339), what)
	})
	return found
}

// acts waits until the process has done what there is to do at this instant.
func (w *watcher) acts() {
	w.q.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for err := errors.New(""); err != nil; {
		if err = w.clock.acted(loops); err == nil {
			return
		}
		select {
		case <-w.process.exited:
			w.process.dump(60)
			w.q.t.Fatalf("%s has ended: %v", w.name, w.process.exitErr)
		default:
		}
		if time.Now().After(deadline) {
			w.q.t.Fatalf("%s at %s: %v", w.name, w.q.time().Format(time.RFC3339), err)
		}
		time.Sleep(time.Millisecond)
	}
}

// silence lets nothing be written to any file by the process any more, as on a volume that fails, or lets it again.
func (w *watcher) silence(is bool) {
	w.q.t.Helper()
	var limit unix.Rlimit
	must(w.q.t, unix.Prlimit(w.process.cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &limit))
	limit.Cur = limit.Max
	if is {
		limit.Cur = 0
	}
	must(w.q.t, unix.Prlimit(w.process.cmd.Process.Pid, unix.RLIMIT_FSIZE, &limit, nil))
	n := len(w.records)
	if w.mute = is; is {
		w.missed = time.Duration(1<<63 - 1)
		return
	}
	if w.next = w.missed + beatOfQuarter; w.next <= w.q.now {
		w.next = w.q.now + beatOfQuarter
	}
	w.beaten(n) // that it owes
}

// advance lets time pass for all, from beat to beat.
func (q *quarter) advance(to time.Duration) {
	q.t.Helper()
	for q.now < to {
		next := to
		for _, w := range q.watchers {
			if w.process != nil {
				next = min(next, w.next)
			}
		}
		// A beat that was late has gone past it.
		q.now = max(next, q.now)
		at, before := q.now, q.lengths()
		q.tick()
		for i, w := range q.watchers {
			if w.process != nil {
				q.due(w, at, before[i])
			}
		}
	}
}

func (q *quarter) lengths() (list []int) {
	for _, w := range q.watchers {
		list = append(list, len(w.records))
	}
	return list
}

// tick sets the clocks to now, and waits until all have acted on it.
func (q *quarter) tick() {
	q.t.Helper()
	for _, w := range q.watchers {
		w.clock.set(q.now, w.wall())
	}
	for _, w := range q.watchers {
		if w.process != nil {
			w.acts()
			w.read()
		}
	}
}

// due waits for what a replica has to write at an instant, which is now unless another was late.
func (q *quarter) due(w *watcher, at time.Duration, before int) {
	q.t.Helper()
	switch shard := volume.Shard(volume.PeriodAt(w.wall()), 1); {
	case w.mute && w.next <= at:
		w.missed = min(w.missed, w.next)
		w.next += beatOfQuarter
	case w.mute:
	case w.shard != shard:
		w.shard = shard
		w.found(before, "shard "+shard, func(r record.Record) bool { _, is := r.Body.(*record.Genesis); return is })
		w.next = at + beatOfQuarter
		w.beaten(before)
	case w.next <= at:
		w.next += beatOfQuarter
		w.beaten(before)
	}
}

// A beat waits for a watch to be opened again, and for rows to be told, a few seconds at most. The latter may take a
// second of ours, and so is tried first; the former happens by the machine's time.
const (
	patienceOfBeat = 5
	toldWithin     = 3 * time.Second
	reopenedWithin = 20 * time.Second
)

// beaten waits for a beat from the n-th record on.
func (w *watcher) beaten(n int) {
	w.q.t.Helper()
	patience := toldWithin
	for late := range patienceOfBeat + 1 {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			w.read()
			for _, r := range w.records[min(n, len(w.records)):] {
				if b, is := r.Body.(*record.Beat); is {
					w.beat = b
					return
				}
			}
		}
		w.q.t.Logf("%s at %s: no beat yet, %d s late", w.name, w.q.time().Format(time.DateTime), late)
		w.q.now += time.Second
		w.q.tick()
		patience = reopenedWithin
	}
	w.process.dump(60)
	w.q.t.Fatalf("%s at %s: no beat", w.name, w.q.time().Format(time.RFC3339))
}
