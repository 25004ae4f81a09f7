package volume

import "time"

// Expired returns those of the shards whose period ended that long ago, or longer. Without a
// retention, and where a name is not that of a shard, there is none.
func Expired(shards []string, now time.Time, retention time.Duration) []string {
	var expired []string
	for _, shard := range shards {
		period, _, err := ParseShard(shard)
		if err != nil || retention <= 0 {
			continue
		}
		if _, to, err := period.Bounds(); err == nil && !now.Before(to.Add(retention)) {
			expired = append(expired, shard)
		}
	}
	return expired
}
