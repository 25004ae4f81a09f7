//go:build !linux

package probe

import (
	"context"
	"errors"
	"time"
)

func cpuTime() time.Duration { return 0 }

func syncs(context.Context, string) ([]time.Duration, error) {
	return nil, errors.New("measured on Linux only")
}

func reads(context.Context, string) (float64, error) { return 0, errors.New("measured on Linux only") }
