package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// logbook is a spool whose lines are records.
type logbook struct {
	spool  *spool.Spool
	boot   string
	now    func() time.Time
	since  func() time.Duration
	random io.Reader
	size   *atomic.Uint64
	booted bool // this start of the process has its Boot

	// The ends that the chain has had lately, touched by the goroutine of the spool alone: a line
	// may be made and then come to nothing, and the next one follows the last that has come to
	// something.
	ends  map[record.Hash]record.Chain
	order [remembered]record.Hash
	next  int
}

// remembered is more than the spool has in hand at once.
const remembered = 1024

// store appends one record.
func (l *logbook) store(ctx context.Context, body record.Body, vital bool) (record.Link, error) {
	link, _, err := l.add(ctx, body, vital)
	return link, err
}

// add returns the chain behind the record too.
func (l *logbook) add(ctx context.Context, body record.Body, vital bool) (record.Link, record.Chain, error) {
	var link record.Link
	var chain record.Chain
	line := func(number uint64, prev [32]byte) ([]byte, error) {
		before, known := l.ends[record.Hash(prev)]
		if _, begins := body.(*record.Genesis); begins {
			before, known = record.Begin(prev), true
		}
		if !known {
			return nil, fmt.Errorf("line %d follows one that is not remembered", number)
		}
		now, since, content := l.now(), l.since(), body
		if b, ok := body.(*record.Beat); ok {
			content = b.Stored(since)
		}
		added, next, err := before.Next(content, l.boot, now, since, l.random)
		if err != nil {
			return nil, err
		}
		l.remember(next)
		l.size.Store(number)
		link, chain = added, next
		return added.Line, nil
	}
	to := l.spool.Append
	if vital {
		to = l.spool.AppendVital
	}
	if _, _, err := to(ctx, line); err != nil {
		return record.Link{}, record.Chain{}, unavailable(err) // what was made is the spool's still
	}
	return link, chain, nil
}

func (l *logbook) remember(chain record.Chain) {
	delete(l.ends, l.order[l.next])
	l.order[l.next] = chain.Last()
	l.ends[chain.Last()] = chain
	l.next = (l.next + 1) % remembered
}

// tail is the end of what is in the log.
type tail struct {
	chain record.Chain
	shard volume.Current // that the chain belongs to
	last  record.Body    // nil where there is none, or one of a newer Meshvakt
	when  time.Time
	boot  string
}

// openLogbook opens the spool and finds its end.
func (j *Journal) openLogbook() (*logbook, tail, error) {
	dir := j.config.Dir
	if err := dir.Create(); err != nil {
		return nil, tail{}, err
	}
	s, err := spool.Open(dir.Spool(), j.config.Spool)
	if err != nil {
		return nil, tail{}, err
	}
	l := &logbook{
		spool: s, boot: j.boot, now: j.config.Now, since: j.config.Since, random: j.config.Random, size: &j.size,
		ends: make(map[record.Hash]record.Chain, remembered),
	}
	j.size.Store(s.Recovery().LastSeq)
	at, err := readTail(dir, s.Recovery())
	if err != nil {
		return l, tail{}, err
	}
	if s.Recovery().LastSeq > 0 {
		l.remember(at.chain) // the spool has nothing to make yet
		l.booted = at.boot == j.boot
	}
	return l, at, nil
}

// readTail reads what is still in the spool, to find the last line and the shard it belongs to.
func readTail(dir volume.Dir, recovered spool.Recovery) (t tail, err error) {
	if recovered.LastSeq == 0 {
		return tail{}, nil
	}
	if t.shard, err = dir.ReadCurrent(); err != nil {
		return tail{}, err
	}
	r, err := spool.OpenReader(dir.Spool(), recovered.FirstSeq)
	if err != nil {
		return tail{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	last, seq := []byte(nil), uint64(0)
	for line, err := range r.Lines() {
		if err != nil {
			return tail{}, err
		}
		last, seq = append(last[:0], line.Text...), line.Seq
		// A genesis that is still here is later than what the file says, or the same.
		if genesis, err := record.Parse(line.Text); err == nil && genesis.Body.Kind() == record.KindGenesis {
			body := genesis.Body.(*record.Genesis)
			t.shard = volume.Current{Shard: body.Shard, Origin: body.Origin, Pseudonyms: body.Pseudonyms}
		}
	}
	if seq != recovered.LastSeq {
		return tail{}, fmt.Errorf("line %d is the last that can be read; must be %d", seq, recovered.LastSeq)
	}
	if t.chain, err = record.Resume(last); err != nil {
		return tail{}, err
	}
	end, err := record.Parse(last)
	if err != nil && !errors.Is(err, record.ErrUnknownKind) {
		return tail{}, err
	}
	t.last, t.when, t.boot = end.Body, end.Time, end.Boot
	if t.shard.Origin == "" {
		return tail{}, errors.New("neither the spool nor file current says which shard it is in; move the directory away and begin a new one")
	}
	return t, nil
}
