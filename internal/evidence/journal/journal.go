package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// Errors of Append.
var (
	// ErrShard says that another shard is open than the one that a record was meant for.
	ErrShard = errors.New("another shard of the evidence is open")
	// ErrUnavailable says that no record can be written now. The cause is wrapped too.
	ErrUnavailable = errors.New("the evidence log is not available")

	errNotOpen = errors.New("it is not open yet")
)

// Keeper gives what replicas of one cluster have in common. What it has once answered it
// answers again without asking anybody.
type Keeper interface {
	// Cluster is the UID of namespace kube-system.
	Cluster(context.Context) (string, error)
	// Key is the key of pseudonyms of a period; it is made where there is none.
	Key(context.Context, volume.Period) (record.Key, error)
	// User is who Meshvakt itself is to the API server.
	User(context.Context) (string, error)
}

// Book remembers, for longer than a volume lasts, which logs there have been. A volume that is new would begin another log of
// the same name with another key, which witnesses and verifiers could but take for a forgery.
type Book interface {
	// Last is the last shard that a replica has begun; empty where none is known.
	Last(ctx context.Context, replica string) (shard string, err error)
	// Note notes that a replica begins a shard. It never goes back to an earlier one.
	Note(ctx context.Context, replica, shard string) error
}

// Config is what a Journal needs.
type Config struct {
	Dir volume.Dir
	// Name is the first part of the origin of the logs, Replica the name of the pod.
	Name, Replica string
	Keeper        Keeper
	// Book may be nil: then a new volume begins with the first log of the quarter.
	Book Book
	// Boot says what is running; Why, Torn, Mode and Durability are filled in here.
	Boot record.Boot
	// Required: nothing is admitted without a record.
	Required bool
	// BreakGlass are the groups that may change the mesh while no record can be written.
	BreakGlass []string
	// MaxRecords is how many records a shard has at most, give or take those under way; 0: 5,000,000.
	MaxRecords uint64
	Spool      spool.Options
	// Now is the clock, Since the time that has passed since the process started, which no clock
	// that is set back changes.
	Now   func() time.Time
	Since func() time.Duration
	// Ticker is as time.NewTicker, which it is by default: what comes, and how to end it.
	Ticker func(time.Duration) (ticks <-chan time.Time, stop func())
	Random io.Reader
	Log    *slog.Logger
	// Event tells people that watch the cluster; nil: nobody.
	Event func(warning bool, reason, text string)
}

// Journal is the evidence of one replica. Its methods may be called by many at once, before Start too.
type Journal struct {
	config Config
	boot   string

	// mu is held for reading by who appends, for writing while what is open changes.
	mu    sync.RWMutex
	open  *openShard // nil while there is none
	cause error      // why there is none

	size     atomic.Uint64 // lines in the spool
	counts   counters
	gap      gap
	admitted admitted
	glass    brokenGlass
	guards   guardsMemo
	own      atomic.Pointer[string] // nil until it is known
	opened   chan struct{}          // closed once opening has been tried for the first time
	once     sync.Once              // for opened

	announced *bool       // whether records can be written, as was told last; of the goroutine of Start
	crash     *record.Gap // what an earlier life has left untold, until it is told; of the goroutine of Start
}

// openShard is what records go to.
type openShard struct {
	log        *logbook
	origin     string
	name       string
	period     volume.Period
	key        string // ID of the key of pseudonyms
	pseudonyms record.Pseudonymiser
	before     uint64 // lines in the spool before its first
}

// counters are those of record.Counters.
type counters struct{ in, written, admitted, unlogged atomic.Uint64 }

// Receipt is where a record stands.
type Receipt struct {
	Origin string
	Seq    uint64
	Hash   record.Hash
}

// String is the form in audit annotations.
func (r Receipt) String() string { return fmt.Sprintf("%s#%d %s", r.Origin, r.Seq, r.Hash) }

// New makes a Journal, which opens its log in Start.
func New(c Config) (*Journal, error) {
	if c.Dir == "" || c.Name == "" || c.Replica == "" || c.Keeper == nil || c.Now == nil || c.Since == nil || c.Random == nil {
		return nil, errors.New("evidence journal: directory, name, replica, keeper, clocks and randomness must be set")
	}
	boot, err := record.NewBoot(c.Random)
	if err != nil {
		return nil, fmt.Errorf("evidence journal: %w", err)
	}
	c.MaxRecords = cmp.Or(c.MaxRecords, 5_000_000)
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Ticker == nil {
		c.Ticker = machineTicker
	}
	if c.Event == nil {
		c.Event = func(bool, string, string) {}
	}
	c.Boot.Durability = "spool"
	c.Boot.Mode = "bestEffort"
	if c.Required {
		c.Boot.Mode = "required"
	}
	return &Journal{config: c, boot: boot, cause: errNotOpen, gap: gap{telling: make(chan struct{}, 1)}, opened: make(chan struct{})}, nil
}

func machineTicker(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(d)
	return t.C, t.Stop
}

func (j *Journal) ownUser() string {
	if own := j.own.Load(); own != nil {
		return *own
	}
	return ""
}

// BootID is that of this start of the process.
func (j *Journal) BootID() string { return j.boot }

// Ready is no error once opening the log has been tried: whether it has worked is no reason to
// send reviews elsewhere.
func (j *Journal) Ready() error {
	select {
	case <-j.opened:
		return nil
	default:
		return errors.New("the evidence log has not been opened yet")
	}
}

// Shard names the shard that is open; empty where there is none.
func (j *Journal) Shard() string {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if j.open == nil {
		return ""
	}
	return j.open.name
}

// Counts are for beats.
func (j *Journal) Counts() record.Counters {
	// In is read last: what is in another has been in it before.
	c := record.Counters{Written: j.counts.written.Load(), Admitted: j.counts.admitted.Load(), Unlogged: j.counts.unlogged.Load()}
	c.In = j.counts.in.Load()
	return c
}

// Sealed says how many lines are not sealed yet, and how long the sealer has said nothing while
// there are any. Without a sealer it grows from the start of the process.
func (j *Journal) Sealed() (unsealed uint64, lag time.Duration) {
	last := j.size.Load()
	done, err := j.config.Dir.ReadSealed()
	if err != nil || done.Line >= last {
		return 0, 0
	}
	if done.At.IsZero() {
		return last, j.config.Since()
	}
	return last - done.Line, max(j.config.Now().Sub(done.At), 0)
}

// State is for metrics.
type State struct {
	Available bool
	Cause     string // where not available
	Counts    record.Counters
	Records   uint64 // lines in the spool since its beginning
	Pending   int64  // bytes that the disk was given and has not stored
}

// State may be asked at any time.
func (j *Journal) State() State {
	s := State{Counts: j.Counts(), Records: j.size.Load()}
	err := j.health()
	if s.Available = err == nil; err != nil {
		s.Cause = cause(err)
	}
	j.mu.RLock()
	defer j.mu.RUnlock()
	if j.open != nil {
		s.Pending = j.open.log.spool.State().Pending
	}
	return s
}

// health is why no record could be written now, as far as is known without trying.
func (j *Journal) health() error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if j.open == nil {
		return unavailable(j.cause)
	}
	if s := j.open.log.spool.State(); !s.Healthy {
		return unavailable(s.Cause)
	}
	return nil
}

func unavailable(cause error) error { return &unavailableError{cause} }

// unavailableError is an ErrUnavailable that knows the word of a gap for its cause.
type unavailableError struct{ cause error }

func (e *unavailableError) Error() string   { return ErrUnavailable.Error() + ": " + e.cause.Error() }
func (e *unavailableError) Unwrap() []error { return []error{ErrUnavailable, e.cause} }
func (e *unavailableError) Cause() string   { return cause(e.cause) }

// Append stores what build makes, in the shard of that name. It fails with ErrShard if another is
// open by now, with ErrUnavailable if the log does not take it.
func (j *Journal) Append(ctx context.Context, shard string, build func(record.Pseudonymiser) (record.Body, error)) error {
	_, err := j.append(ctx, func(s *openShard) (record.Body, error) {
		if s.name != shard {
			return nil, fmt.Errorf("%w: it is %s and not %s", ErrShard, s.name, shard)
		}
		return build(s.pseudonyms)
	})
	return err
}

func (j *Journal) append(ctx context.Context, build func(*openShard) (record.Body, error)) (Receipt, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	s := j.open
	if s == nil {
		return Receipt{}, unavailable(j.cause)
	}
	if now := s.log.spool.State(); !now.Healthy && j.gap.pending.Load() {
		// The gap would have to be told first. There may be room for it, but one for each answer would use up the reserve,
		// and nothing would be left for the end.
		return Receipt{}, unavailable(now.Cause)
	}
	if err := j.tellGap(ctx, s.log); err != nil {
		return Receipt{}, err
	}
	body, err := build(s)
	if err != nil {
		return Receipt{}, fmt.Errorf("make a record: %w", err)
	}
	stored, err := s.log.store(ctx, body, false)
	return Receipt{s.origin, stored.Seq, stored.Hash}, err
}
