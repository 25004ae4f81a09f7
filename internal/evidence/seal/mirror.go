package seal

import "context"

// Mirror is where copies of logs go.
type Mirror interface {
	Put(ctx context.Context, name string, data []byte) error
}

func (s *Sealer) mirrorOn(ctx context.Context, _ <-chan struct{}) error {
	<-ctx.Done()
	return nil
}
