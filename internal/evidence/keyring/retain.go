package keyring

import (
	"context"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// retainEvery is how often the leader looks for keys whose time is over, retainAgain how soon again where an end could not
// be recorded, as before the log is open.
const (
	retainEvery = time.Hour
	retainAgain = time.Minute
)

// Log is where it is recorded that a key is gone.
type Log interface {
	Shard() string
	Append(ctx context.Context, shard string, build func(record.Pseudonymiser) (record.Body, error)) error
}

// Retainer destroys keys at the end of retention, and records which keys are gone. It runs on the leader.
type Retainer struct {
	Keys *Keyring
	Log  Log
	// Origin is that of this replica's shard of a period.
	Origin func(context.Context, volume.Period) (string, error)
	// Retention is how long keys are kept after the end of their period; 0: for ever.
	Retention time.Duration
	Logger    *slog.Logger
	Now       func() time.Time
	// Ticker is as time.NewTicker: what comes, and how to end it.
	Ticker func(time.Duration) (ticks <-chan time.Time, stop func())
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (r *Retainer) NeedLeaderElection() bool { return true }

// Start implements manager.Runnable.
func (r *Retainer) Start(ctx context.Context) error {
	ticks, stop := r.Ticker(retainAgain)
	defer stop()
	done := false
	for last := (time.Time{}); ; {
		if now := r.Now(); !done || now.Sub(last).Abs() >= retainEvery {
			done = r.Retain(ctx)
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
		}
	}
}

// Retain is one turn of Start, and reports whether each end that it has found is recorded. What could not be is the next
// time, by whoever leads then.
func (r *Retainer) Retain(ctx context.Context) bool {
	now, err := r.agreed(ctx)
	var gone []Destroyed
	if err == nil {
		gone, err = r.Keys.Expire(ctx, now, r.Retention)
	}
	if err != nil {
		r.Logger.ErrorContext(ctx, "evidence: keys of pseudonyms could not be destroyed, and are tried again", "err", err.Error())
	}
	for _, d := range gone {
		if err := r.tell(ctx, d); err != nil {
			r.Logger.ErrorContext(ctx, "evidence: the destruction of a key could not be recorded yet", "period", d.Period, "id", d.ID, "err", err.Error())
			return false
		}
		r.Logger.InfoContext(ctx, "evidence: a key of pseudonyms was destroyed", "period", d.Period, "id", d.ID, "early", d.Early)
	}
	return true
}

// agreed is the earlier one of what the clocks of this replica and of an API server say: a key that was destroyed because
// one of them was wrong cannot be made again.
func (r *Retainer) agreed(ctx context.Context) (time.Time, error) {
	now := r.Now()
	server, err := r.Keys.ServerTime(ctx)
	if apierrors.IsForbidden(err) { // in a cluster that has taken the right to ask from everybody
		return now, nil
	}
	if err != nil || server.IsZero() || !server.Before(now) {
		return now, err
	}
	return server, nil
}

func (r *Retainer) tell(ctx context.Context, d Destroyed) error {
	origin, err := r.Origin(ctx, d.Period)
	if err != nil {
		return err
	}
	why, by := "retention", ""
	if d.Early {
		why = "request" // by whom and why is known to the audit log of the API server, and to whoever did it
	} else if by, err = r.Keys.User(ctx); err != nil {
		return err
	}
	if err := r.Log.Append(ctx, r.Log.Shard(), func(p record.Pseudonymiser) (record.Body, error) {
		return &record.KeyDestroyed{ID: d.ID, Origin: origin, Why: why, By: p.Subject(by)}, nil
	}); err != nil {
		return err
	}
	return r.Keys.Told(ctx, d)
}
