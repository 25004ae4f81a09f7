package seal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// keepInterval is how often shards are looked at that nothing is added to any more.
const keepInterval = time.Minute

// Tombstone is what remains of a shard after its time: that there was a log, how long, and the
// root that was signed, so that copies elsewhere can still be checked against it.
type Tombstone struct {
	Format     int               `json:"format"`
	Origin     string            `json:"origin"`
	Shard      string            `json:"shard"`
	Period     Span              `json:"period"`
	Size       int64             `json:"size"`
	Root       tlog.Hash         `json:"root"` // base64, as in the checkpoint
	Kinds      map[string]uint64 `json:"kinds"`
	Key        string            `json:"key"`        // of the log's signatures, for whoever verifies them
	Checkpoint string            `json:"checkpoint"` // with all its signatures
	Removed    time.Time         `json:"removed"`
	Why        string            `json:"why"`
}

// keepOn makes bundles and ends retention until ctx ends. What fails is tried again.
func (s *Sealer) keepOn(ctx context.Context) error {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for {
		if err := s.Keep(ctx); err != nil && ctx.Err() == nil {
			s.stats.failed()
			s.config.Log.ErrorContext(ctx, "shards that are over are not kept as they must be; it will be tried again", "err", err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-ticker.C:
		}
	}
}

// Keep makes the bundles of shards that are finished, and removes shards whose time is over. It
// is one turn of what Run does beside sealing.
func (s *Sealer) Keep(ctx context.Context) error {
	shards, err := shardsIn(s.config.Dir.Logs())
	if err != nil {
		return err
	}
	var failed error
	for i, shard := range shards {
		if s.inWork(shard) {
			continue
		}
		if err := s.keepBundle(ctx, shard, i == len(shards)-1); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return errors.Join(failed, s.retain(ctx, shards))
}

func (s *Sealer) keepBundle(ctx context.Context, shard string, last bool) error {
	dir := s.config.Dir
	if exists(dir.Bundle(shard)) || exists(dir.Tombstone(shard)) {
		return nil
	}
	survey, err := inspect(ctx, dir, shard)
	if errors.Is(err, errNoLog) || last && errors.Is(err, errUnsealed) { // it is being begun
		return nil
	}
	if err != nil {
		return err
	}
	if last && !survey.closed || !s.config.Witnesses.satisfied(survey.checkpoint.signed) {
		return nil
	}
	m, err := storeBundle(dir, shard, survey)
	if err != nil {
		return err
	}
	s.config.Log.InfoContext(ctx, "a shard is over and bundled", "shard", shard, "records", m.Size, "root", m.Root.String())
	return nil
}

// retain removes what is over its time.
func (s *Sealer) retain(ctx context.Context, shards []string) error {
	dir, now := s.config.Dir, s.config.Now()
	if len(shards) == 0 {
		return nil
	}
	var over []string
	// The last one stays: where sealing goes on is known from it alone.
	for _, shard := range shards[:len(shards)-1] {
		if exists(dir.Tombstone(shard)) {
			if err := removeShard(dir, shard); err != nil { // was interrupted
				return err
			}
			continue
		}
		if exists(dir.Bundle(shard)) { // and so it was finished
			over = append(over, shard)
		}
	}
	over = volume.Expired(over, now, s.config.Retention)
	if len(over) == 0 {
		return nil
	}
	if s.config.Hold != nil {
		why, err := s.config.Hold()
		if err != nil {
			return fmt.Errorf("ask for a legal hold, without which nothing is removed: %w", err)
		}
		if why != "" {
			s.config.Log.InfoContext(ctx, "shards are over their time and stay, for a legal hold", "shards", over, "hold", why)
			return nil
		}
	}
	for _, shard := range over {
		if err := s.bury(ctx, shard, now); err != nil {
			return err
		}
	}
	return nil
}

// bury verifies a log once more before it leaves a tombstone in its place: what it says must be
// true, as nobody can check it afterwards.
func (s *Sealer) bury(ctx context.Context, shard string, now time.Time) error {
	dir := s.config.Dir
	survey, err := inspect(ctx, dir, shard)
	if err != nil {
		return fmt.Errorf("end the retention of shard %s: %w", shard, err)
	}
	span, err := spanOf(shard)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(&Tombstone{
		Format: bundleFormat, Origin: survey.checkpoint.origin, Shard: shard, Period: span,
		Size: survey.checkpoint.tree.N, Root: survey.checkpoint.tree.Hash, Kinds: survey.kinds,
		Key: survey.key.Verifier, Checkpoint: string(survey.checkpoint.signed),
		Removed: now.UTC(), Why: fmt.Sprintf("its period ended %s or longer ago", s.config.Retention),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the tombstone of shard %s: %w", shard, err)
	}
	if err := writeFile(dir.Tombstone(shard), append(text, '\n')); err != nil {
		return fmt.Errorf("write the tombstone of shard %s: %w", shard, err)
	}
	if err := removeShard(dir, shard); err != nil {
		return err
	}
	s.config.Log.InfoContext(ctx, "a shard was removed after its time; its tombstone stays", "shard", shard, "records", survey.checkpoint.tree.N)
	return nil
}

// removeShard removes the directory of the log last: as long as it is there, it is tried again.
func removeShard(dir volume.Dir, shard string) error {
	for _, err := range []error{remove(dir.Bundle(shard)), remove(dir.LogKeyFile(shard)), syncDir(dir.Bundles()), syncDir(dir.Keys())} {
		if err != nil {
			return fmt.Errorf("remove shard %s: %w", shard, err)
		}
	}
	if err := errors.Join(os.RemoveAll(dir.Log(shard)), syncDir(dir.Logs())); err != nil {
		return fmt.Errorf("remove shard %s: %w", shard, err)
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
