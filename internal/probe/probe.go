// Package probe measures what a node does to a proxy and to etcd: CPU that the
// hypervisor takes away, how late threads wake up, how long the disk takes to store and
// to find something, and how far away others are.
//
// Its own load is bounded: a thousand wake-ups a second, or as Options.Nap says, for the
// length of the window; 500 small writes; 2,000 reads of 4 KiB from a file of 64 MiB;
// twenty connections to each target. Result.Cost says what it came to.
package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// Options say what is measured.
type Options struct {
	// Window is for how long CPU is watched, at least a second.
	Window time.Duration
	// Nap is how long the thread sleeps whose wake-ups are timed; zero means a
	// millisecond. Ten times as long costs a tenth.
	Nap time.Duration
	// Dir is a directory on the disk that is measured; empty leaves the disk out.
	Dir string
	// Targets are addresses, host:port, to which connections are made.
	Targets []string
}

// Result is what was measured. What could not be is in Errors, and zero.
type Result struct {
	WindowSeconds float64 `json:"windowSeconds"`
	// StealPercent is the share of CPU time that the hypervisor gave to others while
	// this node wanted it, of all CPUs.
	StealPercent float64 `json:"stealPercent"`
	// StealMeasured tells a steal of nothing from one that could not be measured.
	StealMeasured bool `json:"-"`
	// WakeUp is how much later than asked for a sleeping thread goes on.
	WakeUp Latency `json:"wakeUp"`
	// Sync is how long fdatasync takes after a write of 2,300 bytes, as etcd does it.
	Sync Latency `json:"sync"`
	// ReadsPerSecond are random reads of 4 KiB, one at a time, past the page cache.
	ReadsPerSecond float64 `json:"readsPerSecond"`
	// DiskMeasuredAt is when Sync and ReadsPerSecond were measured, where that was before
	// this window; they have been carried over then. Run itself leaves it nil.
	DiskMeasuredAt *time.Time `json:"diskMeasuredAt,omitempty"`
	Targets        []Target   `json:"targets"`
	// Cost is the CPU time that the measurement itself took.
	Cost   Cost     `json:"cost"`
	Errors []string `json:"errors"`
}

// Latency is the distribution of a duration, in microseconds.
type Latency struct {
	Samples int   `json:"samples"`
	P50     int64 `json:"p50Microseconds"`
	P99     int64 `json:"p99Microseconds"`
	Max     int64 `json:"maxMicroseconds"`
}

// Target is how long a TCP connection to an address takes.
type Target struct {
	Address string  `json:"address"`
	Connect Latency `json:"connect"`
}

// Cost is what measuring took.
type Cost struct {
	CPUSeconds float64 `json:"cpuSeconds"`
	// Percent of one CPU over the window.
	Percent float64 `json:"percent"`
}

// Run measures. It returns an error when the options make no sense or ctx ends; what
// the node cannot tell is in the result.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Window < time.Second {
		return nil, fmt.Errorf("window of %s; must be at least 1s", o.Window)
	}
	r := &Result{WindowSeconds: o.Window.Seconds(), Targets: []Target{}, Errors: []string{}}
	started, cpu := time.Now(), cpuTime()
	before, errBefore := readStat()
	wakeUp, err := wakeUps(ctx, o.Window, cmp.Or(o.Nap, time.Millisecond))
	if err != nil {
		return nil, err
	}
	r.WakeUp = latencyOf(wakeUp)
	after, errAfter := readStat()
	if err := errors.Join(errBefore, errAfter); err != nil {
		r.failed("CPU steal", err)
	} else {
		r.StealPercent, r.StealMeasured = after.stealSince(before), true
	}
	if o.Dir != "" {
		r.disk(ctx, o.Dir)
	}
	for _, address := range o.Targets {
		times, err := connects(ctx, address)
		if err != nil {
			r.failed("connections to "+address, err)
		}
		r.Targets = append(r.Targets, Target{Address: address, Connect: latencyOf(times)})
	}
	spent := (cpuTime() - cpu).Seconds()
	r.Cost = Cost{CPUSeconds: spent, Percent: 100 * spent / time.Since(started).Seconds()}
	return r, ctx.Err()
}

func (r *Result) failed(what string, err error) {
	r.Errors = append(r.Errors, fmt.Sprintf("%s: %v", what, err))
}

// disk measures in a directory of its own, of which nothing stays behind.
func (r *Result) disk(ctx context.Context, dir string) {
	own, err := os.MkdirTemp(dir, "meshvakt-probe-")
	if err != nil {
		r.failed("disk", err)
		return
	}
	defer func() {
		if err := os.RemoveAll(own); err != nil {
			r.failed("clean up", err)
		}
	}()
	times, err := syncs(ctx, own)
	if err != nil {
		r.failed("fdatasync", err)
	}
	r.Sync = latencyOf(times)
	if r.ReadsPerSecond, err = reads(ctx, own); err != nil {
		r.failed("random reads", err)
	}
}

// latencyOf sorts the times. Percentiles are by nearest rank: the p99 of n times is
// the smallest that at least 99 % of them do not exceed.
func latencyOf(times []time.Duration) Latency {
	if len(times) == 0 {
		return Latency{}
	}
	slices.Sort(times)
	rank := func(percent int) int64 {
		return times[max(0, (len(times)*percent+99)/100-1)].Microseconds()
	}
	return Latency{Samples: len(times), P50: rank(50), P99: rank(99), Max: times[len(times)-1].Microseconds()}
}
