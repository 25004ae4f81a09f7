package probe

import (
	"context"
	"net"
	"time"
)

const (
	connections    = 20
	connectTimeout = 2 * time.Second
)

// connects returns how long each of some connections took. It ends with the first that
// fails.
func connects(ctx context.Context, address string) ([]time.Duration, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	times := make([]time.Duration, 0, connections)
	for range connections {
		before := time.Now()
		c, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return times, err
		}
		times = append(times, time.Since(before))
		if err := c.Close(); err != nil {
			return times, err
		}
	}
	return times, nil
}
