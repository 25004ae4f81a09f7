//go:build !simulatedtime

package main

import (
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/observe"
)

// buildMark is the version of a build that must not be used but for tests.
const buildMark = ""

func newClock() (clock, error) {
	started := time.Now()
	return clock{
		now:   time.Now,
		since: func() time.Duration { return time.Since(started) },
		ticker: func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTicker(d)
			return t.C, t.Stop
		},
		quality: observe.KernelClock,
	}, nil
}
