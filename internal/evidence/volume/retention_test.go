package volume

import (
	"slices"
	"testing"
	"time"
)

func TestExpired(t *testing.T) {
	shards := []string{"2026q1", "2026q2", "2026q2-2", "2026q3", "current"}
	day := 24 * time.Hour
	at := func(y int, m time.Month, d, h int) time.Time { return time.Date(y, m, d, h, 0, 0, 0, time.UTC) }
	for name, c := range map[string]struct {
		now       time.Time
		retention time.Duration
		want      []string
	}{
		"no retention keeps all":   {at(2099, 1, 1, 0), 0, nil},
		"negative keeps all":       {at(2099, 1, 1, 0), -day, nil},
		"an hour before":           {at(2026, 7, 30, 23), 30 * day, []string{"2026q1"}},
		"to the instant":           {at(2026, 7, 31, 0), 30 * day, []string{"2026q1", "2026q2", "2026q2-2"}},
		"within the period itself": {at(2026, 3, 31, 23), time.Hour, nil},
		"all":                      {at(2099, 1, 1, 0), day, []string{"2026q1", "2026q2", "2026q2-2", "2026q3"}},
	} {
		if got := Expired(shards, c.now, c.retention); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q; must be %q", name, got, c.want)
		}
	}
}
