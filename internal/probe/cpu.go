package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// stat is the first line of /proc/stat: clock ticks of all CPUs since boot.
type stat struct{ total, steal uint64 }

func readStat() (stat, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(text))
}

// parseStat reads the line "cpu user nice system idle iowait irq softirq steal guest
// guest_nice". The last two are counted in user and nice already (proc_stat(5)).
func parseStat(text string) (stat, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	const steal = 8
	if len(fields) <= steal || fields[0] != "cpu" {
		return stat{}, fmt.Errorf("/proc/stat begins with %q; must be the sum of all CPUs with steal", line)
	}
	var s stat
	for i, f := range fields[1 : steal+1] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return stat{}, fmt.Errorf("/proc/stat: %w", err)
		}
		s.total += n
		if i+1 == steal {
			s.steal = n
		}
	}
	return s, nil
}

// stealSince is the share of time that was stolen, in percent.
func (s stat) stealSince(before stat) float64 {
	if s.total <= before.total || s.steal < before.steal {
		return 0
	}
	return 100 * float64(s.steal-before.steal) / float64(s.total-before.total)
}

// wakeUps sleeps for one nap after the other, and returns how much longer each took.
func wakeUps(ctx context.Context, window, nap time.Duration) ([]time.Duration, error) {
	late := make([]time.Duration, 0, window/nap)
	timer := time.NewTimer(nap)
	defer timer.Stop()
	for end := time.Now().Add(window); time.Now().Before(end); {
		before := time.Now()
		timer.Reset(nap)
		select {
		case <-ctx.Done():
			return nil, errors.Join(errors.New("probe interrupted"), ctx.Err())
		case <-timer.C:
			late = append(late, time.Since(before)-nap)
		}
	}
	return late, nil
}
