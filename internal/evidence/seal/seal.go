package seal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// ErrLocked says that another sealer is at work.
var ErrLocked = errors.New("another sealer holds the directory")

// PartedError says that the logs and the spool do not belong together, or that the chain of
// records is broken. Nothing is sealed over it, and nothing is repaired.
type PartedError struct{ Found string }

func (e *PartedError) Error() string {
	return e.Found + "; nothing was changed; keep the directory as it is and find out what was restored, copied or removed"
}

// Config is what a Sealer needs. Zero values of limits stand for what is said here.
type Config struct {
	Dir volume.Dir
	// Interval is from one checkpoint to the next: 10 s.
	Interval time.Duration
	// Batch is how many records are added at once: 4096.
	Batch int
	// Stall is how long the disk may take for one batch before Run gives up: 60 s.
	Stall time.Duration
	// Witnesses may be nil.
	Witnesses *Witnesses
	// Retention is how long a closed shard is kept after the end of its period; 0: for ever.
	Retention time.Duration
	// Hold reports whether nothing may be removed now, and why; nil: never.
	Hold func() (reason string, err error)
	// Mirror may be nil.
	Mirror *Mirror
	Now    func() time.Time
	Random io.Reader
	Log    *slog.Logger
}

// Sealer seals the evidence of one replica.
type Sealer struct {
	config Config
	lock   *os.File
	place  *place // nil before it is known

	stats stats
	// wake tells the goroutine that keeps bundles that there is a new checkpoint.
	wake chan struct{}

	mu    sync.Mutex
	found bool     // it is known where sealing goes on
	open  []string // shards with something to seal or sign
}

// place is how far sealing has come.
type place struct {
	reader *spool.Reader
	next   uint64 // line to seal next
	chain  record.Chain
	end    end
	total  int64       // records in the logs that were found
	logs   []*shardLog // not finished, oldest first; the last one is that of end, unless it is finished
}

// end is the end of the last log.
type end struct {
	shard, origin string // empty where there is none
	size          int64
	hash          record.Hash
}

// Open takes the directory. Where another sealer has it, the error is ErrLocked.
func Open(c Config) (*Sealer, error) {
	if c.Dir == "" || c.Now == nil || c.Random == nil {
		return nil, errors.New("seal evidence: directory, clock and randomness must be set")
	}
	c.Interval = cmp.Or(c.Interval, 10*time.Second)
	c.Batch = cmp.Or(c.Batch, 4096)
	c.Stall = cmp.Or(c.Stall, time.Minute)
	c.Log = cmp.Or(c.Log, slog.Default())
	lock, err := os.Open(string(c.Dir))
	if err != nil {
		return nil, fmt.Errorf("open the evidence directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w %s", ErrLocked, c.Dir)
		}
		return nil, errors.Join(fmt.Errorf("lock the evidence directory: %w", err), lock.Close())
	}
	if err := c.Dir.Create(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Sealer{config: c, lock: lock, wake: make(chan struct{}, 1)}
	s.stats.started, s.stats.pass = c.Now(), c.Now()
	return s, nil
}

// Close gives the directory back. It is for after Run.
func (s *Sealer) Close() error {
	return errors.Join(s.forget(), s.lock.Close())
}

// forget drops what is known, so that the next pass reads it from the disk.
func (s *Sealer) forget() error {
	if s.place == nil {
		return nil
	}
	p := s.place
	s.place = nil
	for _, l := range p.logs {
		l.stop()
	}
	return p.reader.Close()
}

// Run seals until ctx ends, and then what is there. What passes by itself, as a full disk or
// a witness that does not answer, is logged and tried again; any other error is returned.
func (s *Sealer) Run(ctx context.Context) error {
	if s.config.Retention <= 0 {
		s.config.Log.WarnContext(ctx, "no retention is set: evidence, which has pseudonyms of people, is kept for ever until somebody removes it")
	}
	whole := ctx
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.keepOn(ctx) })
	if s.config.Mirror != nil {
		group.Go(func() error { return s.mirrorOn(ctx) })
	}
	group.Go(func() error {
		ticker := time.NewTicker(s.config.Interval)
		defer ticker.Stop()
		for {
			if err := s.tryPass(ctx); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				// What the webhook has written as it ended, too.
				final, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Stall)
				defer cancel()
				return s.tryPass(final)
			case <-ticker.C:
			}
		}
	})
	err := group.Wait()
	if err == nil && s.config.Mirror != nil {
		s.mirrorLast(whole)
	}
	return err
}

// tryPass returns the errors that another attempt does not heal.
func (s *Sealer) tryPass(ctx context.Context) error {
	err := s.Pass(ctx)
	parted, damaged := (*PartedError)(nil), (*spool.DamageError)(nil)
	if err == nil || ctx.Err() != nil && !errors.As(err, &parted) {
		return nil
	}
	s.stats.failed()
	if errors.As(err, &parted) || errors.As(err, &damaged) || errors.Is(err, spool.ErrReleased) || errors.Is(err, errStalled) {
		return err
	}
	s.config.Log.ErrorContext(ctx, "evidence is not sealed; it will be tried again", "err", err.Error())
	return nil
}

// Pass seals what is durable now, and signs it. It is one turn of Run.
func (s *Sealer) Pass(ctx context.Context) error {
	err := s.pass(ctx)
	s.stats.passed(s.config.Now())
	if err != nil {
		// How far it has come is on the disk.
		err = errors.Join(err, s.forget())
	}
	return err
}

func (s *Sealer) pass(ctx context.Context) error {
	if s.place == nil {
		p, err := s.resume()
		if err != nil || p == nil {
			return err
		}
		s.place = p
	}
	signed := s.config.Now()
	for {
		n, err := s.batch()
		if err != nil {
			// What stands before it is in order, and is signed.
			return errors.Join(err, s.publish(ctx))
		}
		if n == 0 {
			break
		}
		if s.config.Now().Sub(signed) >= s.config.Interval {
			if err := s.publish(ctx); err != nil {
				return err
			}
			signed = s.config.Now()
		}
		if ctx.Err() != nil {
			break
		}
	}
	return s.publish(ctx)
}

// batch adds the next lines, of one shard, and returns how many.
func (s *Sealer) batch() (int, error) {
	p := s.place
	var lines [][]byte
	var broken error
	chain, current := p.chain, p.current()
	for line, err := range p.reader.Lines() {
		if err != nil {
			broken = err
			break
		}
		if current == nil {
			if current, chain, broken = s.begin(line); broken != nil {
				break
			}
		}
		_, next, err := chain.Follow(line.Text)
		if err != nil && !errors.Is(err, record.ErrUnknownKind) {
			broken = &PartedError{fmt.Sprintf("line %d of the spool does not follow the records of shard %s: %v", line.Seq, current.shard, err)}
			break
		}
		chain = next
		lines = append(lines, slices.Clone(line.Text))
		if len(lines) == s.config.Batch || chain.Closed() {
			break
		}
	}
	if len(lines) == 0 {
		return 0, broken
	}
	if err := current.add(lines); err != nil {
		return 0, err
	}
	current.closed = chain.Closed()
	p.chain = chain
	p.next += uint64(len(lines))
	p.end = end{shard: current.shard, origin: current.signer.Name(), size: current.size, hash: chain.Last()}
	s.stats.added(len(lines))
	return len(lines), broken
}

// current is the log that the next line belongs to; nil where that begins another.
func (p *place) current() *shardLog {
	if p.end.shard == "" || p.chain.Closed() || len(p.logs) == 0 {
		return nil
	}
	if last := p.logs[len(p.logs)-1]; last.shard == p.end.shard && !last.closed {
		return last
	}
	return nil
}

// publish signs what there is to sign, tells how far it has come and lets go of the spool.
func (s *Sealer) publish(ctx context.Context) error {
	p := s.place
	var failed error
	for _, l := range p.logs {
		now := s.config.Now()
		if !l.due(now) {
			continue
		}
		if err := l.publish(ctx, now); err != nil {
			failed = errors.Join(failed, err)
		}
		if l.witness != nil && l.witnessed < l.size {
			s.stats.unwitnessed()
			s.config.Log.WarnContext(ctx, "evidence is not witnessed; the spool keeps it until it is", "shard", l.shard, "records", l.size, "witnessed", l.witnessed, "published", l.published.N)
		}
	}
	signed, witnessed := p.covered()
	p.logs = slices.DeleteFunc(p.logs, func(l *shardLog) bool {
		if l.finished() {
			l.stop()
			return true
		}
		return false
	})
	s.setOpen(p.logs)
	extent, err := p.reader.Extent()
	if err != nil {
		return errors.Join(failed, err)
	}
	if s.stats.covered(s.config.Now(), signed, witnessed, extent.Last, failed == nil) {
		if err := s.config.Dir.WriteSealed(volume.Sealed{Line: signed, At: s.config.Now()}); err != nil {
			failed = errors.Join(failed, err)
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	if err := p.reader.Release(witnessed); err != nil {
		failed = errors.Join(failed, err)
	}
	return failed
}

// covered is the last line that is in a checkpoint with all before it, and in one that is
// witnessed where it must be.
func (p *place) covered() (signed, witnessed uint64) {
	signed, witnessed = p.next-1, p.next-1
	for _, l := range slices.Backward(p.logs) {
		if l.published.N < l.size {
			signed = uint64(max(l.before+l.published.N, 0))
		}
		if sure := min(l.published.N, l.size); l.witness != nil && l.witnessed < l.size {
			witnessed = uint64(max(l.before+min(sure, l.witnessed), 0))
		}
	}
	return signed, min(signed, witnessed)
}

func (s *Sealer) setOpen(logs []*shardLog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found, s.open = true, s.open[:0]
	for _, l := range logs {
		s.open = append(s.open, l.shard)
	}
}

// inWork reports whether a shard is not to be taken for finished: before the place is found,
// that is none.
func (s *Sealer) inWork(shard string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.found || slices.Contains(s.open, shard)
}
