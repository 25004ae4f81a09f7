package journal

import (
	"context"
	"fmt"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// reserve names the shard after one and has that noted, so that no other volume of this replica ever begins a log of that
// name. Nothing of the shard is written before.
func (j *Journal) reserve(ctx context.Context, after string, period volume.Period) (string, error) {
	p, number, err := volume.ParseShard(after)
	if err != nil {
		return "", err
	}
	name := volume.Shard(period, 1)
	if p == period {
		name = volume.Shard(period, number+1)
	}
	if j.config.Book == nil {
		return name, nil
	}
	if err := j.config.Book.Note(ctx, j.config.Replica, name); err != nil {
		return "", fmt.Errorf("note that shard %s begins: %w", name, err)
	}
	return name, nil
}

// note notes a shard that has begun before anybody noted that.
func (j *Journal) note(ctx context.Context, shard string) {
	if j.config.Book == nil {
		return
	}
	if err := j.config.Book.Note(ctx, j.config.Replica, shard); err != nil {
		j.config.Log.WarnContext(ctx, "evidence: it is not noted which log is written to; if its volume is lost, the next one may begin a log of the same name", "shard", shard, "err", err.Error())
	}
}

// beginAnew begins the first log of a volume. Where there has been one of this replica on another volume, or there are logs
// and no spool that they came from, its name is the next that was never used: another log cannot go on in the place of one.
func (j *Journal) beginAnew(ctx context.Context, l *logbook, cluster string, now time.Time) error {
	name, err := j.first(ctx, cluster, now)
	if err != nil {
		return err
	}
	return j.begin(ctx, l, tail{}, cluster, name)
}

func (j *Journal) first(ctx context.Context, cluster string, now time.Time) (string, error) {
	period, number, last := volume.PeriodAt(now), 1, ""
	if j.config.Book != nil {
		var err error
		if last, err = j.config.Book.Last(ctx, j.config.Replica); err != nil {
			return "", fmt.Errorf("ask which log was the last of this replica: %w", err)
		}
	}
	if last != "" {
		p, n, err := volume.ParseShard(last)
		if err != nil {
			return "", fmt.Errorf("which log was the last of this replica: %w", err)
		}
		// A clock that is set back does not bring back an earlier period, of which nobody knows all logs.
		if period = max(period, p); period == p {
			number = n + 1
		}
		if begun, err := j.config.Dir.Begun(last); err != nil {
			return "", err
		} else if begun {
			return last, nil // it was noted by this volume, which did not come to begin it
		}
	}
	for ; ; number++ {
		name := volume.Shard(period, number)
		there, err := j.config.Dir.Has(name)
		switch {
		case err != nil:
			return "", err
		case there:
			continue
		}
		if j.config.Book == nil {
			return name, nil
		}
		// The key says on this volume that it is the one that has noted the name.
		if _, err := j.config.Dir.LogKey(name, volume.Origin(j.config.Name, cluster, j.config.Replica, name), j.config.Random); err != nil {
			return "", err
		}
		if err := j.config.Book.Note(ctx, j.config.Replica, name); err != nil {
			return "", fmt.Errorf("note that shard %s begins: %w", name, err)
		}
		if last != "" {
			j.config.Log.WarnContext(ctx, "evidence: this volume is new, and there was a log of this replica on another one; it goes on in a log of another name, and what the other had is missing", "before", last, "now", name)
		}
		return name, nil
	}
}
