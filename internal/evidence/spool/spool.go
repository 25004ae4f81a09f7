package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Why an append was refused, or the spool not opened. Causes of the disk are wrapped as
// they come.
var (
	ErrLocked  = errors.New("another appender holds the directory")
	ErrClosed  = errors.New("the spool is closed")
	ErrBudget  = errors.New("the disk did not store the line within the budget")
	ErrStalled = errors.New("the disk has not answered for longer than the budget")
	ErrUnknown = errors.New("the spool ended before the disk told whether the line is stored")
)

// RefusedError says that a line is not in the log and never will be.
type RefusedError struct{ Cause error }

func (e *RefusedError) Error() string { return "the line is not in the log: " + e.Cause.Error() }
func (e *RefusedError) Unwrap() error { return e.Cause }

// UnsettledError says that the disk had the line when its caller's time was over, so that
// it may yet come to stand in the log.
type UnsettledError struct {
	Cause error
	entry *entry
}

func (e *UnsettledError) Error() string {
	return "the line may or may not be in the log: " + e.Cause.Error()
}
func (e *UnsettledError) Unwrap() error { return e.Cause }

// Outcome waits until it is known: no error is a line that is in the log, a *RefusedError one
// that is not, ErrUnknown one of which the next Open will tell. While the disk is failing it
// takes as long as that.
func (e *UnsettledError) Outcome(ctx context.Context) (seq uint64, hash [32]byte, err error) {
	select {
	case <-e.entry.settled:
		return e.entry.result()
	case <-ctx.Done():
		return 0, [32]byte{}, ctx.Err()
	}
}

// DamageError says that what was stored is not there any more, or not as it was. Nothing is
// appended to such a log: it must be moved away as it is, and looked at.
type DamageError struct{ File, Found string }

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s: found %s; must be as it was written; move the directory away and begin a new one", e.File, e.Found)
}

// Options are the limits of a spool; zero values stand for what is said here.
type Options struct {
	SegmentSize int64            // 64 MiB
	ReserveSize int64            // 16 MiB, given up when the disk is full
	MaxLine     int              // 16 KiB; at most the constant MaxLine
	Budget      time.Duration    // 500 ms, after which an append returns whatever the disk does
	Queue       int              // 1024 appends wait at most; others wait to wait
	Retry       time.Duration    // 1 s between attempts while the disk is failing
	Now         func() time.Time // time.Now

	// background runs what must not hold up appends; tests run it at once.
	background func(func())
}

func (o Options) filled() (Options, error) {
	o.SegmentSize = cmp.Or(o.SegmentSize, 64<<20)
	o.ReserveSize = cmp.Or(o.ReserveSize, 16<<20)
	o.MaxLine = cmp.Or(o.MaxLine, 16<<10)
	o.Budget = cmp.Or(o.Budget, 500*time.Millisecond)
	o.Queue = cmp.Or(o.Queue, 1024)
	o.Retry = cmp.Or(o.Retry, time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.background == nil {
		o.background = func(f func()) { go f() }
	}
	if o.MaxLine < 0 || o.MaxLine > MaxLine {
		return o, fmt.Errorf("MaxLine is %d; must be at most %d", o.MaxLine, MaxLine)
	}
	if o.SegmentSize < headerSize || o.ReserveSize < 0 || o.Budget < 0 || o.Queue < 0 || o.Retry < 0 {
		return o, errors.New("a limit is negative, or segments are smaller than their header")
	}
	return o, nil
}

// Make makes the bytes of the line with this number, after the line with this SHA-256 (zeros
// for the first). It runs on the one goroutine that writes, so it must neither wait nor call
// the spool; after a failure of the disk it may run again, and what it made before is void.
type Make func(seq uint64, prev [32]byte) ([]byte, error)

// Spool is the appender of one directory. Its methods may be called by many at once.
type Spool struct {
	options  Options
	queue    chan *entry
	closing  chan struct{} // closed by Close
	ended    chan struct{} // closed by the writer when it is done
	once     sync.Once
	recovery Recovery
	state    *state
	closed   error // why the clean stop failed; set before ended
}

// State is for metrics. Asked = Written + Refused + Open: no append is in two, none is lost.
type State struct {
	Healthy bool
	Cause   error     // where not healthy
	Since   time.Time // of the present health or cause

	Asked   uint64 // calls of Append
	Written uint64 // of these, in the log
	Refused uint64 // of these, not in the log
	Open    uint64 // of these, waiting, or unsettled
	Pending int64  // bytes that the disk has been given and has not stored
}

// state is shared between the writer and those who append.
type state struct {
	asked, written, refused atomic.Uint64
	pending                 atomic.Int64
	busy                    atomic.Int64 // since when the disk has been at work, in ns; 0 when it is not

	mu    sync.Mutex
	cause error
	since time.Time
}

func (s *state) set(cause error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() || (s.cause == nil) != (cause == nil) || (cause != nil && cause.Error() != s.cause.Error()) {
		s.since = now
	}
	s.cause = cause
}

// Open takes the directory, which must be there, and resumes its log. It fails where the
// directory is in use, damaged or unreadable. Where it can be read and not written, the spool
// is there, fails every append and goes on trying.
func Open(dir string, o Options) (*Spool, error) {
	d, err := openDirectory(dir)
	if err != nil {
		return nil, err
	}
	s, err := open(d, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open spool %q: %w", dir, err), d.Close())
	}
	return s, nil
}

// open leaves d open where it fails.
func open(d directory, o Options) (*Spool, error) {
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
	if err := d.Lock(); err != nil {
		return nil, err
	}
	found, err := recoverLog(d)
	if err != nil {
		return nil, err
	}
	s := &Spool{
		options: o, queue: make(chan *entry, o.Queue), closing: make(chan struct{}), ended: make(chan struct{}),
		recovery: found.Recovery, state: &state{},
	}
	w := newWriter(s, d, found)
	w.begin()
	go w.run()
	return s, nil
}

// Recovery tells what Open found.
func (s *Spool) Recovery() Recovery { return s.recovery }

// Append stores one line and returns its number and SHA-256 once it is durable. Any error
// comes within the budget, or with the end of ctx, and is one of two: *RefusedError or
// *UnsettledError.
func (s *Spool) Append(ctx context.Context, line Make) (seq uint64, hash [32]byte, err error) {
	return s.append(ctx, &entry{line: line, settled: make(chan struct{})})
}

// AppendVital stores a line on a full disk too, out of the reserve. It is for the few lines
// that say that others are missing.
func (s *Spool) AppendVital(ctx context.Context, line Make) (seq uint64, hash [32]byte, err error) {
	return s.append(ctx, &entry{line: line, vital: true, settled: make(chan struct{})})
}

func (s *Spool) append(ctx context.Context, e *entry) (uint64, [32]byte, error) {
	s.state.asked.Add(1)
	if err := ctx.Err(); err != nil {
		return s.refuse(err)
	}
	if since := s.state.busy.Load(); since != 0 && s.options.Now().UnixNano()-since > int64(s.options.Budget) {
		return s.refuse(ErrStalled)
	}
	budget := time.NewTimer(s.options.Budget)
	defer budget.Stop()
	select {
	case <-s.closing:
		return s.refuse(ErrClosed)
	default:
	}
	select {
	case s.queue <- e:
	case <-s.closing:
		return s.refuse(ErrClosed)
	case <-budget.C:
		return s.refuse(ErrBudget)
	case <-ctx.Done():
		return s.refuse(ctx.Err())
	}
	var cause error
	select {
	case <-e.settled:
		return e.result()
	case <-budget.C:
		cause = ErrBudget
	case <-ctx.Done():
		cause = ctx.Err()
	case <-s.ended:
		cause = ErrClosed
	}
	switch {
	case e.phase.CompareAndSwap(waiting, left):
		return s.refuse(cause)
	case e.phase.CompareAndSwap(taken, abandoned):
		return 0, [32]byte{}, &UnsettledError{cause, e}
	}
	<-e.settled
	return e.result()
}

func (s *Spool) refuse(cause error) (uint64, [32]byte, error) {
	s.state.refused.Add(1)
	return 0, [32]byte{}, &RefusedError{cause}
}

// State may be asked at any time, after Close too.
func (s *Spool) State() State {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	r := State{Cause: s.state.cause, Since: s.state.since, Pending: s.state.pending.Load()}
	if since := s.state.busy.Load(); r.Cause == nil && since != 0 && s.options.Now().UnixNano()-since > int64(s.options.Budget) {
		r.Cause, r.Since = ErrStalled, time.Unix(0, since)
	}
	r.Healthy = r.Cause == nil
	// Asked last: whoever is counted as written or refused has asked before.
	r.Written, r.Refused = s.state.written.Load(), s.state.refused.Load()
	r.Asked = s.state.asked.Load()
	r.Open = r.Asked - r.Written - r.Refused
	return r
}

// Close stores what waits, marks the stop as clean and gives the directory back. When ctx
// ends first, the writer goes on to that end by itself.
func (s *Spool) Close(ctx context.Context) error {
	s.once.Do(func() { close(s.closing) })
	select {
	case <-s.ended:
		return s.closed
	case <-ctx.Done():
		return fmt.Errorf("close spool: %w", ctx.Err())
	}
}
