package seal

import (
	"context"
	"time"
)

// Mirror is where copies of logs go.
type Mirror interface {
	// Has reports whether there is an object of that name and size.
	Put(ctx context.Context, name string, data []byte) error
}

func (s *Sealer) keepOn(ctx context.Context, wake <-chan struct{}) error {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-ticker.C:
		}
	}
}

func (s *Sealer) mirrorOn(ctx context.Context, wake <-chan struct{}) error { <-ctx.Done(); return nil }
