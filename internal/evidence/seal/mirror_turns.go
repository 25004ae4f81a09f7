package seal

import (
	"context"
	"math/rand/v2"
	"time"
)

// mirrorOn copies after each checkpoint until ctx ends. What fails is tried again, ever less often.
func (s *Sealer) mirrorOn(ctx context.Context) error {
	failures := 0
	for {
		err := s.config.Mirror.Turn(ctx)
		select {
		case <-ctx.Done(): // which is what err is of
			return nil
		default:
		}
		s.stats.mirror(s.config.Now(), err)
		pause := s.config.Interval
		failures++
		if err == nil {
			failures = 0
		} else {
			pause = backoff(failures, s.config.Interval, rand.Float64())
			s.config.Log.WarnContext(ctx, "the mirror does not have all that is sealed; it will be tried again", "err", err.Error(), "after", pause.String())
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// mirrorLast copies what the last pass has sealed, where the store answers soon.
func (s *Sealer) mirrorLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mirrorEnd)
	defer cancel()
	err := s.config.Mirror.Turn(ctx)
	s.stats.mirror(s.config.Now(), err)
	if err != nil {
		s.config.Log.WarnContext(ctx, "the mirror does not have all that is sealed; the next start goes on", "err", err.Error())
	}
}

const (
	// mirrorEnd is how long the end of the process is put off for the mirror.
	mirrorEnd = 10 * time.Second
	// mirrorRest is the longest pause between two turns.
	mirrorRest = 5 * time.Minute
)

// backoff is the pause after that many turns that failed in a row: twice as long each time, and
// spread by a random number from 0 to 1, so that a fleet does not come back all at once.
func backoff(failures int, interval time.Duration, random float64) time.Duration {
	pause := interval << min(failures-1, 10)
	if pause > mirrorRest || pause <= 0 {
		pause = max(mirrorRest, interval)
	}
	return pause/2 + time.Duration(random*float64(pause))
}
