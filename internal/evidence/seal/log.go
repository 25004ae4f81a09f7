package seal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// never keeps Tessera from doing by its own clock what is done here in an order.
const never = time.Duration(math.MaxInt64)

// sweep is how often Tessera removes partial tiles that are full ones by now.
const sweep = time.Minute

// errStalled says that the disk has not answered. What was asked of it may still be under way, so
// nothing but the end of the process makes sure that it is over.
var errStalled = errors.New("the disk has not answered")

// shardLog is the log of one shard, to which this process alone adds.
type shardLog struct {
	files
	shard   string
	key     volume.LogKey
	signer  note.Signer
	driver  tessera.Driver
	reader  tessera.LogReader
	witness *Witnesses // nil where there are none
	stop    context.CancelFunc
	stall   time.Duration

	size      int64     // records in the tree
	published tlog.Tree // of the checkpoint that is there; zero where there is none
	signedAt  time.Time // by this process; zero before
	witnessed int64     // records in a checkpoint that satisfies the policy
	closed    bool      // no record will follow
	before    int64     // lines of the spool before its first
}

// openLog opens a log, or makes it where there is none.
func openLog(dir string, shard string, key volume.LogKey, w *Witnesses, stall time.Duration) (*shardLog, error) {
	l := &shardLog{files: files{dir}, shard: shard, key: key, witness: w, stall: stall}
	var err error
	if l.signer, err = note.NewSigner(key.Signer); err != nil {
		return nil, fmt.Errorf("log key of shard %s: %w", shard, err)
	}
	found, err := l.checkpoint(key.Verifier)
	if err != nil {
		return nil, err
	}
	// Without the size of its tree Tessera would begin a new log in the place of this one.
	if _, err := os.Stat(filepath.Join(dir, ".state", "treeState")); found != nil && found.tree.N > 0 && err != nil {
		return nil, fmt.Errorf("log of shard %s has a checkpoint of %d records and no .state/treeState: %w", shard, found.tree.N, err)
	}
	if l.driver, err = posix.New(context.Background(), posix.Config{Path: dir}); err != nil {
		return nil, fmt.Errorf("open log of shard %s: %w", shard, err)
	}
	// To this appender nothing is added: it sweeps, and knows the size.
	ctx, stop := context.WithCancel(context.Background())
	if _, _, l.reader, err = tessera.NewAppender(ctx, l.driver, l.options(1).WithGarbageCollectionInterval(sweep)); err != nil {
		stop()
		return nil, fmt.Errorf("open log of shard %s: %w", shard, err)
	}
	l.stop = stop
	if err := errors.Join(l.look(found), l.name()); err != nil {
		stop()
		return nil, err
	}
	return l, nil
}

// name signs an empty log that has no checkpoint. Tessera does so as it makes one, unless it was
// interrupted; and a log must say whose it is before it has a record.
func (l *shardLog) name() error {
	if l.size > 0 || exists(filepath.Join(l.dir, "checkpoint")) {
		return nil
	}
	signed, err := l.options(1).CheckpointPublisher(l.reader, l.witness.client())(context.Background(), 0, nil)
	if err != nil {
		return fmt.Errorf("sign the empty log of shard %s: %w", l.shard, err)
	}
	if err := writeFile(filepath.Join(l.dir, "checkpoint"), signed); err != nil {
		return fmt.Errorf("store the checkpoint of the empty log of shard %s: %w", l.shard, err)
	}
	return nil
}

// look takes over what is on disk.
func (l *shardLog) look(c *checkpoint) error {
	size, err := l.reader.IntegratedSize(context.Background())
	if err != nil {
		return fmt.Errorf("read the size of the log of shard %s: %w", l.shard, err)
	}
	l.size = int64(min(size, math.MaxInt64))
	if c == nil {
		return nil
	}
	if c.tree.N > l.size {
		return fmt.Errorf("log of shard %s has %d records; its checkpoint says %d", l.shard, l.size, c.tree.N)
	}
	l.published = c.tree
	if l.witness.satisfied(c.signed) {
		l.witnessed = c.tree.N
	}
	return nil
}

func (l *shardLog) options(batch uint) *tessera.AppendOptions {
	return tessera.NewAppendOptions().
		WithCheckpointSigner(l.signer).
		WithCheckpointInterval(never).
		WithCheckpointRepublishInterval(0).
		WithGarbageCollectionInterval(0).
		WithBatching(batch, never)
}

// add appends records as one batch. After an error nobody but the disk knows what is in the tree.
func (l *shardLog) add(lines [][]byte) error {
	// An appender of its own for each batch is what makes Tessera flush it as one and at once. The
	// end of the process must not end it half way.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.flush(ctx, lines) }()
	patience := time.NewTimer(l.stall)
	defer patience.Stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("add %d records to the log of shard %s: %w", len(lines), l.shard, err)
		}
		l.size += int64(len(lines))
		return nil
	case <-patience.C:
		return fmt.Errorf("add %d records to the log of shard %s: %w for %s", len(lines), l.shard, errStalled, l.stall)
	}
}

func (l *shardLog) flush(ctx context.Context, lines [][]byte) error {
	a, _, _, err := tessera.NewAppender(ctx, l.driver, l.options(uint(len(lines))))
	if err != nil {
		return err
	}
	futures := make([]tessera.IndexFuture, 0, len(lines))
	for _, line := range lines {
		futures = append(futures, a.Add(ctx, tessera.NewEntry(line)))
	}
	for i, f := range futures {
		at, err := f()
		if err != nil {
			return err
		}
		if at.Index != uint64(l.size)+uint64(i) {
			return &PartedError{fmt.Sprintf("log of shard %s has put record %d at %d", l.shard, l.size+int64(i), at.Index)}
		}
	}
	return nil
}

// due reports whether a checkpoint is to be made.
func (l *shardLog) due(now time.Time) bool {
	if l.published.N < l.size {
		return true
	}
	return l.size > 0 && l.witness != nil && (l.witnessed < l.size || now.Sub(l.signedAt) >= l.witness.Again)
}

// finished: the log is all in a checkpoint, witnessed where it must be.
func (l *shardLog) finished() bool {
	return l.closed && l.size > 0 && l.published.N == l.size && (l.witness == nil || l.witnessed == l.size)
}

// publish signs the tree as it is on disk.
func (l *shardLog) publish(ctx context.Context, now time.Time) error {
	hashes := l.hashes(l.size)
	root, err := tlog.TreeHash(l.size, hashes)
	if err != nil {
		return fmt.Errorf("reckon the root of shard %s: %w", l.shard, err)
	}
	if l.published.N > 0 {
		proof, err := tlog.ProveTree(l.size, l.published.N, hashes)
		if err == nil {
			err = tlog.CheckTree(proof, l.size, root, l.published.N, l.published.Hash)
		}
		if err != nil {
			return &PartedError{fmt.Sprintf("log of shard %s with %d records does not extend the %d records that were signed: %v", l.shard, l.size, l.published.N, err)}
		}
	}
	sign := l.options(1)
	if l.witness != nil {
		sign.WithWitnesses(l.witness.group, &tessera.WitnessOptions{Timeout: l.witness.Timeout, FailOpen: !l.witness.Required})
	}
	signed, err := sign.CheckpointPublisher(l.reader, l.witness.client())(ctx, uint64(l.size), root[:])
	if err != nil {
		return fmt.Errorf("sign a checkpoint of shard %s: %w", l.shard, err)
	}
	if err := writeFile(filepath.Join(l.dir, "checkpoint"), signed); err != nil {
		return fmt.Errorf("store a checkpoint of shard %s: %w", l.shard, err)
	}
	l.published, l.signedAt = tlog.Tree{N: l.size, Hash: root}, now
	if l.witness.satisfied(signed) {
		l.witnessed = l.size
	}
	return nil
}

// Witnesses are who cosigns checkpoints.
type Witnesses struct {
	// Timeout is for all of them together, in one attempt.
	Timeout time.Duration
	// Required: without them no checkpoint is published. Otherwise it is, as the log has signed it,
	// and the spool keeps what has not been witnessed.
	Required bool
	// Again is how often they sign an unchanged log anew, which dates it.
	Again time.Duration

	group tessera.WitnessGroup
	http  *http.Client
}

// ParseWitnesses reads a policy file (C2SP tlog-policy).
func ParseWitnesses(policy []byte) (*Witnesses, error) {
	group, err := tessera.NewWitnessGroupFromPolicy(policy)
	if err != nil {
		return nil, fmt.Errorf("read the policy of witnesses: %w", err)
	}
	if group.N == 0 {
		return nil, errors.New("read the policy of witnesses: its quorum is none; must name a witness or a group")
	}
	return &Witnesses{Timeout: tessera.DefaultWitnessTimeout, Again: 10 * time.Minute, group: group, http: &http.Client{}}, nil
}

// satisfied: without witnesses everything is.
func (w *Witnesses) satisfied(signed []byte) bool { return w == nil || w.group.Satisfied(signed) }

func (w *Witnesses) client() *http.Client {
	if w == nil {
		return &http.Client{}
	}
	return w.http
}

// writeFile stores a file whole or not at all, by a name next to it that is its own.
func writeFile(name string, data []byte) error {
	temporary := name + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	if err := os.Rename(temporary, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// remove is no error for what is not there.
func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
