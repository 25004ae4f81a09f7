package observe

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Log is where records go. It is called from one goroutine.
type Log interface {
	// Shard names the shard that is open, empty while there is none. Another one begins with a snapshot.
	Shard() string
	// Append stores what build makes, in that shard. It fails if another is open by now, and if none can be written.
	Append(ctx context.Context, shard string, build func(record.Pseudonymiser) (record.Body, error)) error
	Counts() record.Counters
	Sealed() (unsealed uint64, lag time.Duration)
}

// Canary says how long ago the API server was last seen to ask, false where that is not known.
type Canary interface {
	Age() (time.Duration, bool)
}

// Config is what an Observer needs. All of it is required, but for what says otherwise.
type Config struct {
	Log    Log
	Source *cluster.Source
	// Cache has exceptions and guards; Client reads and watches what no cache holds, and writes the Lease.
	Cache  cache.Cache
	Client client.WithWatch
	Canary Canary
	// FailsOpen reports whether an entry of a webhook configuration lets pass what nobody answers because it is
	// meant to.
	FailsOpen func(configuration, entry string) bool
	// Namespace is that of Meshvakt, Service the name of its Service there, Pod that of this replica. PodUID may be
	// empty; with it, the Lease goes with the pod.
	Namespace, Service, Pod, PodUID string
	// Own are further objects that Meshvakt is made of, of which changes are told. There must be the right to list and
	// watch each of them.
	Own []OwnObject
	// User is who Meshvakt itself is to the API server; nil where nobody knows.
	User func(context.Context) (string, error)
	// Boot is the ID of this start of the process.
	Boot string
	// Beat is the time from one beat to the next; a minute by default.
	Beat   time.Duration
	Logger *slog.Logger
	// Now is the wall clock, Since the time since the start of the process, which nobody sets.
	Now   func() time.Time
	Since func() time.Duration
	// Ticker is as time.NewTicker, which it is by default: what comes, and how to end it.
	Ticker func(time.Duration) (ticks <-chan time.Time, stop func())
	// Clock is what the kernel says about its own; KernelClock by default.
	Clock func() record.Clock
	// Declared is what the operator says of it, nil where that is nothing.
	Declared *record.ClockDeclared
}

// The pace of the Observer.
const (
	// tick is how often it looks after what no watch tells of.
	tick = time.Second
	// settled is how long what a watch has said may take to be in the table.
	settled = 5 * time.Second
	// snapshotAfter is how old the last snapshot may become.
	snapshotAfter = 24 * time.Hour
	// manyRows is how many rows are told one by one, whatever the size of the table.
	manyRows = 16
	// passEvery is how soon all rows are looked at again.
	passEvery = time.Second
	// jump is how far the clocks may go apart from one look to the next.
	jump = time.Second
)

// Observer is made by New, and run by a manager on every replica.
type Observer struct {
	config     Config
	outside    *outside
	exceptions *exceptions
	uses       uses
	own        *own
	remedies   remedies
	wake       chan struct{}

	mu    sync.Mutex
	dirty map[string]bool // guarded by mu; namespaces that may stand otherwise
	all   bool            // guarded by mu; all of them may

	// What follows belongs to the goroutine of Start.

	shard      string
	pseudonyms record.Pseudonymiser
	table      *table
	lost       *loss
	known      known
	epochs     map[string]uint64 // as of the last snapshot
	lastWall   time.Time
	lastMono   time.Duration
	nextBeat   time.Duration
	snapshotAt time.Duration
	passed     time.Duration // when all rows were looked at last
	roster     roster
}

// loss is what could not be told: that the table is not what the log has, since then.
type loss struct {
	from  time.Time
	cause string
}

// New makes an Observer.
func New(c Config) (*Observer, error) {
	if c.Log == nil || c.Source == nil || c.Cache == nil || c.Client == nil || c.Canary == nil || c.FailsOpen == nil || c.Pod == "" || c.Boot == "" || c.Logger == nil || c.Now == nil || c.Since == nil {
		return nil, errors.New("evidence observer: log, source, cache, client, canary, entries that fail open, pod, boot ID, logger and clocks must be set")
	}
	if c.Beat == 0 {
		c.Beat = time.Minute
	}
	if c.Clock == nil {
		c.Clock = KernelClock
	}
	if c.Ticker == nil {
		c.Ticker = machineTicker
	}
	o := &Observer{config: c, wake: make(chan struct{}, 1), dirty: map[string]bool{}, table: newTable(), epochs: map[string]uint64{}}
	o.remedies.tries = map[string]uint64{}
	o.uses.found = map[types.UID]*use{}
	o.outside = newOutside(c.Client, c.Logger, c.Now, o.changed)
	o.exceptions = newExceptions(o.rouse)
	o.own = newOwn(&c, o.rouse)
	return o, nil
}

func machineTicker(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(d)
	return t.C, t.Stop
}

// NeedLeaderElection is false: what one replica does not see, another does.
func (o *Observer) NeedLeaderElection() bool { return false }

// changed notes that a namespace may stand otherwise than before, "" for all.
func (o *Observer) changed(namespace string) {
	o.mu.Lock()
	if namespace == "" {
		o.all = true
	} else {
		o.dirty[namespace] = true
	}
	o.mu.Unlock()
	o.rouse()
}

func (o *Observer) rouse() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Start observes until ctx ends.
func (o *Observer) Start(ctx context.Context) error {
	o.config.Source.OnChange(o.changed)
	ticks, stop := o.config.Ticker(tick)
	defer stop()
	for !o.config.Source.Synced() { // by then there are definitions of all that is watched
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
		}
	}
	if err := o.exceptions.watch(ctx, o.config.Cache); err != nil {
		return err
	}
	if err := o.own.watchGuards(ctx, o.config.Cache); err != nil {
		return err
	}
	var followers sync.WaitGroup
	defer followers.Wait()
	for _, f := range append(o.own.followers(), o.outside.follower) {
		followers.Go(func() { f.run(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-ticks:
		}
		if o.ready() {
			o.step(ctx)
		}
	}
}

// ready reports whether all has been seen once. Before that, nothing is known of any namespace.
func (o *Observer) ready() bool {
	return o.config.Source.Synced() && isClosed(o.outside.ready) && o.own.ready() && o.exceptions.ready()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// step tells what there is to tell.
func (o *Observer) step(ctx context.Context) {
	// One after the other: what is written between looking at the one and at the other would look like a clock that is
	// set.
	now, mono := o.config.Now(), o.config.Since()
	if o.shard == "" && o.config.Log.Shard() == "" {
		return // nothing was ever told
	}
	before := o.config.Log.Shard()
	err := o.tell(ctx, now, mono)
	switch shard := o.config.Log.Shard(); {
	case err == nil, ctx.Err() != nil:
	case shard != "" && shard != before:
		o.rouse() // nothing is lost: the new shard begins with all there is
	case shard != "" && shard != o.shard: // nor here, where it takes nothing yet: the next tick tries again
	default:
		o.lose(err)
	}
}

// lose notes that what the log has is not how things stand any more.
func (o *Observer) lose(err error) {
	if o.lost != nil {
		return
	}
	o.lost = &loss{from: o.known.at, cause: causeOf(err)}
	o.config.Logger.Warn("evidence: what is observed cannot be recorded, a gap will tell", "since", o.lost.from, "error", err)
}

// tell writes what is due, in the one order. Whatever fails, all behind it waits: a beat must not come before the rows
// that it counts.
func (o *Observer) tell(ctx context.Context, now time.Time, mono time.Duration) error {
	if err := o.tellShard(ctx, now, mono); err != nil {
		return err
	}
	if err := o.tellGap(ctx, now); err != nil {
		return err
	}
	if err := o.tellClock(ctx, now, mono); err != nil {
		return err
	}
	if err := o.tellRelist(ctx); err != nil {
		return err
	}
	if err := o.tellRows(ctx); err != nil {
		return err
	}
	if err := o.tellExceptions(ctx, now); err != nil {
		return err
	}
	if err := o.tellUses(ctx); err != nil {
		return err
	}
	if err := o.tellOwn(ctx); err != nil {
		return err
	}
	if err := o.tellRemedies(ctx); err != nil {
		return err
	}
	if mono := o.config.Since(); mono-o.snapshotAt >= snapshotAfter {
		if err := o.snapshot(ctx, "periodic"); err != nil {
			return err
		}
	}
	return o.tellBeat(ctx)
}

var errNoShard = errors.New("no shard is open")

// tellShard begins a shard that is new.
func (o *Observer) tellShard(ctx context.Context, now time.Time, mono time.Duration) error {
	shard := o.config.Log.Shard()
	switch {
	case shard == "":
		return errNoShard
	case shard == o.shard:
		return nil
	}
	p, err := o.pseudonymsOf(ctx, shard)
	if err != nil {
		return err
	}
	why := "shard"
	if o.shard == "" {
		why = "boot"
		o.known.begin(now, o.watches())
		o.lastWall, o.lastMono = now, mono
	}
	before, was := o.shard, o.pseudonyms
	o.shard, o.pseudonyms = shard, p
	err = o.declareClock(ctx)
	if err == nil {
		err = o.snapshot(ctx, why)
	}
	if err != nil {
		o.shard, o.pseudonyms = before, was
		return err
	}
	o.exceptions.again()
	o.uses.again()
	if why == "boot" {
		o.own.settle()
	}
	o.nextBeat = o.config.Since()
	return nil
}
