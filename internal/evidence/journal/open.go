package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// The loop of Start looks this often whether there is something to open, to change or to tell.
const interval = time.Second

// openPatience is for the API server and the disk together, in one attempt to open.
const openPatience = 10 * time.Second

// Start opens the log and keeps it open, changes shards, and writes what is counted, until ctx
// ends; then it writes the rest. While Start is not running, no record can be written.
func (j *Journal) Start(ctx context.Context) error {
	ticks, stop := j.config.Ticker(interval)
	defer stop()
	for {
		j.Tend(ctx)
		select {
		case <-ctx.Done():
			return j.stop(context.WithoutCancel(ctx))
		case <-ticks:
		}
	}
}

// Tend is one turn of Start.
func (j *Journal) Tend(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	now := j.config.Now()
	if own, err := j.config.Keeper.User(ctx); err == nil {
		j.own.Store(&own)
	}
	if j.open == nil { // only this goroutine changes it
		j.tell(j.openFirst(ctx, now))
	} else if j.over(now) {
		j.flush(ctx, now, true) // while the shard is still the one that was counted in
		j.tell(j.openNext(ctx, now))
	}
	j.once.Do(func() { close(j.opened) })
	j.flush(ctx, now, false)
	j.announce()
}

// announce tells, once for each, that the log has become unavailable and that it is back.
func (j *Journal) announce() {
	err := j.health()
	available := err == nil
	if j.announced != nil && *j.announced == available {
		return
	}
	j.announced = &available
	if available {
		j.config.Log.Info("evidence: records can be written", "shard", j.Shard())
		j.config.Event(false, "EvidenceAvailable", "Records are written to the evidence log of this replica.")
		return
	}
	j.config.Log.Error("evidence: no record can be written; answers go by what docs/evidence.md says of that", "cause", cause(err), "err", err.Error())
	j.config.Event(true, Reason, "No record can be written to the evidence log of this replica: "+whatFails(err)+". Changes of the mesh and what needs an exception are refused; all else is let through, and counted.")
}

// tell says once what has become of an attempt.
func (j *Journal) tell(err error) {
	j.mu.Lock()
	before := j.cause
	if err != nil {
		err = fmt.Errorf("%w: %w", errNotOpen, err)
	}
	if j.open == nil {
		j.cause = err
	}
	j.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		j.config.Log.Error("evidence: the log cannot be opened, and is tried again", "err", err.Error())
	}
}

// over reports whether the shard that is open has come to its end. A clock that is set back
// does not bring back an earlier one.
func (j *Journal) over(now time.Time) bool {
	return volume.PeriodAt(now) > j.open.period || j.size.Load()-j.open.before >= j.config.MaxRecords
}

// openFirst opens the log where nothing is open: each step that is missing may be the first that
// an earlier life, or attempt, did not come to. Nobody else can append meanwhile.
func (j *Journal) openFirst(ctx context.Context, now time.Time) error {
	l, at, err := j.openLogbook()
	if err == nil {
		err = j.goOn(ctx, l, at, now)
	}
	if err != nil && l != nil {
		err = errors.Join(err, l.spool.Close(ctx))
	}
	return err
}

func (j *Journal) goOn(ctx context.Context, l *logbook, at tail, now time.Time) error {
	cluster, err := j.config.Keeper.Cluster(ctx)
	if err != nil {
		return fmt.Errorf("read the cluster's UID: %w", err)
	}
	if l.spool.Recovery().LastSeq == 0 {
		return j.beginAnew(ctx, l, cluster, now)
	}
	// Before anything is added: once it is, the sealer may let go of the genesis.
	if err := j.config.Dir.WriteCurrent(at.shard); err != nil {
		return err
	}
	_, genesis := at.last.(*record.Genesis)
	if !at.chain.Closed() && (genesis || at.boot != j.boot) {
		if at.chain, err = j.reboot(ctx, l, at, genesis); err != nil {
			return err
		}
	}
	if j.crash != nil {
		if _, at.chain, err = l.add(ctx, j.crash, true); err != nil {
			return err
		}
		j.crash = nil
	}
	period, _, err := volume.ParseShard(at.shard.Shard)
	if err != nil {
		return err
	}
	expected := volume.Origin(j.config.Name, cluster, j.config.Replica, at.shard.Shard)
	switch {
	case at.chain.Closed():
		name, err := j.reserve(ctx, at.shard.Shard, max(period, volume.PeriodAt(now)))
		if err != nil {
			return err
		}
		return j.begin(ctx, l, at, cluster, name)
	case at.shard.Origin == expected && period >= volume.PeriodAt(now) && at.chain.Size() < j.config.MaxRecords:
		key, err := j.config.Keeper.Key(ctx, period)
		if err != nil {
			return fmt.Errorf("read the key of pseudonyms of %s: %w", period, err)
		}
		if key.ID() != at.shard.Pseudonyms {
			// Somebody has taken the key away. Who is who in one shard must not depend on when it was written.
			j.config.Log.ErrorContext(ctx, "evidence: the key of pseudonyms is another than the one the shard was begun with, so another shard begins", "shard", at.shard.Shard, "was", at.shard.Pseudonyms, "is", key.ID())
			break
		}
		j.note(ctx, at.shard.Shard)
		return j.adopt(l, at.shard, period, key, l.spool.Recovery().LastSeq-min(at.chain.Size(), l.spool.Recovery().LastSeq))
	}
	name, err := j.reserve(ctx, at.shard.Shard, max(period, volume.PeriodAt(now)))
	if err != nil {
		return err
	}
	if at.chain, err = j.end(ctx, l, at.shard, cluster, name); err != nil {
		return err
	}
	return j.begin(ctx, l, at, cluster, name)
}

// reboot is the first record of this start of the process in a shard of an earlier one.
func (j *Journal) reboot(ctx context.Context, l *logbook, at tail, genesis bool) (record.Chain, error) {
	if _, stopped := at.last.(*record.Stop); !genesis && !stopped {
		// What had been counted in memory when the process died is lost, and nobody knows how much.
		j.crash = &record.Gap{Of: "decisions", Cause: "crash", From: at.when, To: j.config.Now(), Exact: false}
	}
	boot := j.config.Boot
	boot.Why, boot.Torn = record.BootStart, uint64(max(l.spool.Recovery().Torn, 0))
	if genesis {
		boot.Why = record.BootShard
	}
	// On a full disk too: what is answered then can be told at the end only in a log that is open.
	_, chain, err := l.add(ctx, &boot, true)
	l.booted = err == nil
	return chain, err
}

// openNext ends the shard that is open and begins the next. Who appends meanwhile waits; what takes
// longer than the disk is done before.
func (j *Journal) openNext(ctx context.Context, now time.Time) error {
	was := j.open
	cluster, err := j.config.Keeper.Cluster(ctx)
	if err != nil {
		return fmt.Errorf("read the cluster's UID: %w", err)
	}
	period := max(was.period, volume.PeriodAt(now))
	if _, err := j.config.Keeper.Key(ctx, period); err != nil {
		return fmt.Errorf("read the key of pseudonyms of %s: %w", period, err)
	}
	name, err := j.reserve(ctx, was.name, period)
	if err != nil {
		return err
	}
	// The disk may take longer over a new file than over a line, whose time is bounded.
	if _, err := j.config.Dir.LogKey(name, volume.Origin(j.config.Name, cluster, j.config.Replica, name), j.config.Random); err != nil {
		return err
	}
	if err := j.change(ctx, was, cluster, name); err != nil {
		// How far it has come will be read from the disk. Nobody waits for that: it may be the disk that hangs.
		return errors.Join(err, was.log.spool.Close(ctx))
	}
	return nil
}

// change goes from the shard that is open to another. Where it fails, none is open.
func (j *Journal) change(ctx context.Context, was *openShard, cluster, name string) (err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open, j.cause = nil, errNotOpen
	at := tail{shard: volume.Current{Shard: was.name, Origin: was.origin, Pseudonyms: was.key}}
	if at.chain, err = j.end(ctx, was.log, at.shard, cluster, name); err != nil {
		return err
	}
	next, err := j.beginning(ctx, was.log, at, cluster, name)
	if err != nil {
		return err
	}
	j.open, j.cause = next, nil
	return nil
}

// end closes a shard, after the key that will sign the next one has been announced in it.
func (j *Journal) end(ctx context.Context, l *logbook, shard volume.Current, cluster, name string) (record.Chain, error) {
	period, _, err := volume.ParseShard(name)
	if err != nil {
		return record.Chain{}, err
	}
	origin := volume.Origin(j.config.Name, cluster, j.config.Replica, name)
	key, err := j.config.Dir.LogKey(name, origin, j.config.Random)
	if err != nil {
		return record.Chain{}, err
	}
	if _, err := l.store(ctx, &record.KeyCreated{For: "log", VerifierKey: key.Verifier}, false); err != nil {
		return record.Chain{}, err
	}
	why := "period"
	if p, _, err := volume.ParseShard(shard.Shard); err == nil && p == period {
		why = "size"
	}
	if volume.Origin(j.config.Name, cluster, j.config.Replica, shard.Shard) != shard.Origin {
		why = "moved"
	} else if key, err := j.config.Keeper.Key(ctx, period); err == nil && why == "size" && key.ID() != shard.Pseudonyms {
		why = "key"
	}
	_, chain, err := l.add(ctx, &record.Close{Why: why, Next: origin}, false)
	return chain, err
}

// begin begins a shard where none is open. Whoever asks meanwhile is told so, and does not wait for the disk.
func (j *Journal) begin(ctx context.Context, l *logbook, before tail, cluster, name string) error {
	s, err := j.beginning(ctx, l, before, cluster, name)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open, j.cause = s, nil
	return nil
}

// beginning writes the first records of a shard.
func (j *Journal) beginning(ctx context.Context, l *logbook, before tail, cluster, name string) (*openShard, error) {
	period, _, err := volume.ParseShard(name)
	if err != nil {
		return nil, err
	}
	pseudonyms, err := j.config.Keeper.Key(ctx, period)
	if err != nil {
		return nil, fmt.Errorf("read the key of pseudonyms of %s: %w", period, err)
	}
	origin := volume.Origin(j.config.Name, cluster, j.config.Replica, name)
	key, err := j.config.Dir.LogKey(name, origin, j.config.Random)
	if err != nil {
		return nil, err
	}
	genesis := &record.Genesis{
		Origin: origin, Cluster: cluster, Replica: j.config.Replica, Shard: name,
		PrevOrigin: before.shard.Origin, PrevSize: before.chain.Size(),
		Keys: []string{key.Verifier}, Pseudonyms: pseudonyms.ID(),
	}
	boot := j.config.Boot
	boot.Why = record.BootShard
	if !l.booted {
		boot.Why = record.BootStart
	}
	start := j.size.Load()
	for i, body := range []record.Body{genesis, &boot, &record.KeyCreated{For: "pseudonyms", ID: pseudonyms.ID()}} {
		if _, err := l.store(ctx, body, false); err != nil {
			return nil, err
		}
		if i > 0 {
			continue
		}
		if err := j.config.Dir.WriteCurrent(volume.Current{Shard: name, Origin: origin, Pseudonyms: pseudonyms.ID()}); err != nil {
			return nil, err
		}
	}
	l.booted = true
	return &openShard{log: l, origin: origin, name: name, period: period, key: pseudonyms.ID(), pseudonyms: record.NewPseudonymiser(pseudonyms), before: start}, nil
}

// adopt goes on with a shard that an earlier start of the process has begun.
func (j *Journal) adopt(l *logbook, shard volume.Current, period volume.Period, key record.Key, before uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open = &openShard{log: l, origin: shard.Origin, name: shard.Shard, period: period, key: key.ID(), pseudonyms: record.NewPseudonymiser(key), before: before}
	j.cause = nil
	return nil
}

// stop writes what is counted and the end, and gives the directory back.
func (j *Journal) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	j.flush(ctx, j.config.Now(), true)
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.tellUntold()
	if j.open == nil {
		return nil
	}
	l := j.open.log
	j.open, j.cause = nil, errNotOpen
	err := j.tellGap(ctx, l)
	if err == nil {
		// Not behind a gap that is untold: without it the next start says that answers may be missing, as after a crash.
		_, err = l.store(ctx, &record.Stop{Why: "terminated", Counts: j.Counts()}, true)
	}
	if err := errors.Join(err, l.spool.Close(ctx)); err != nil {
		return fmt.Errorf("end the evidence log: %w", err)
	}
	return nil
}

// tellUntold says in the log of the process what the log of evidence does not take any more.
func (j *Journal) tellUntold() {
	if !j.gap.pending.Load() {
		return
	}
	body := j.gap.take()
	n := body.Others
	for _, c := range body.Counts {
		n += c.N
	}
	j.config.Log.Error("evidence: the process ends, and no record tells how many answers went unrecorded",
		"cause", body.Cause, "from", body.From, "to", body.To, "answers", n, "exact", body.Exact)
}
