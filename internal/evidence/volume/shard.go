package volume

import (
	"fmt"
	"strings"
	"time"
)

// Period is a quarter of a year in UTC, as in "2026q4": what shares a key of pseudonyms.
type Period string

// PeriodAt is the period that t lies in.
func PeriodAt(t time.Time) Period {
	t = t.UTC()
	return Period(fmt.Sprintf("%04dq%d", t.Year(), (int(t.Month())+2)/3))
}

// Bounds returns the first instant of the period, and of the next.
func (p Period) Bounds() (from, to time.Time, err error) {
	var year, quarter int
	if _, err := fmt.Sscanf(string(p), "%4dq%1d", &year, &quarter); err != nil || quarter < 1 || quarter > 4 || PeriodAt(start(year, quarter)) != p {
		return time.Time{}, time.Time{}, fmt.Errorf("period is %q; must be a quarter, as in 2026q4", string(p))
	}
	from = start(year, quarter)
	return from, from.AddDate(0, 3, 0), nil
}

func start(year, quarter int) time.Time {
	return time.Date(year, time.Month(3*quarter-2), 1, 0, 0, 0, 0, time.UTC)
}

// Next is the period that follows.
func (p Period) Next() (Period, error) {
	_, to, err := p.Bounds()
	return PeriodAt(to), err
}

// Shard names one log: its period, and from the second log of one period on, its number, as
// in "2026q4-2".
func Shard(p Period, number int) string {
	if number <= 1 {
		return string(p)
	}
	return fmt.Sprintf("%s-%d", p, number)
}

// ParseShard is the inverse of Shard.
func ParseShard(shard string) (Period, int, error) {
	period, rest, numbered := strings.Cut(shard, "-")
	number := 1
	if numbered {
		if _, err := fmt.Sscanf(rest, "%d", &number); err != nil {
			number = 0
		}
	}
	if _, _, err := Period(period).Bounds(); err != nil || Shard(Period(period), number) != shard {
		return "", 0, fmt.Errorf("shard is %q; must be as in 2026q4 or 2026q4-2", shard)
	}
	return Period(period), number, nil
}

// Origin names the log of one shard of one replica, in its checkpoints and for its key: the
// name that the operator has given, the UID of the cluster, the replica and the shard.
func Origin(name, cluster, replica, shard string) string {
	return strings.Join([]string{name, cluster, replica, shard}, "/")
}

// SplitOrigin is the inverse of Origin.
func SplitOrigin(origin string) (name, cluster, replica, shard string, err error) {
	parts := strings.Split(origin, "/")
	if len(parts) < 4 {
		return "", "", "", "", fmt.Errorf("origin is %q; must be NAME/CLUSTER/REPLICA/SHARD", origin)
	}
	n := len(parts)
	if _, _, err := ParseShard(parts[n-1]); err != nil {
		return "", "", "", "", fmt.Errorf("origin is %q: %w", origin, err)
	}
	return strings.Join(parts[:n-3], "/"), parts[n-3], parts[n-2], parts[n-1], nil
}
