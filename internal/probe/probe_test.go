package probe

import (
	"context"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	before, err := parseStat("cpu  100 0 100 700 0 0 0 100 50 0\ncpu0 1 2\n")
	if err != nil || before != (stat{total: 1000, steal: 100}) {
		t.Fatalf("%+v, %v: guest time is in user time already", before, err)
	}
	after, err := parseStat("cpu  130 0 120 820 0 0 0 130 90 0")
	if err != nil {
		t.Fatal(err)
	}
	if got := after.stealSince(before); got != 15 {
		t.Errorf("steal %v %%, want 15: 30 of 200 ticks", got)
	}
	if got := before.stealSince(after); got != 0 {
		t.Errorf("counters that go backwards: %v %%", got)
	}
	for _, text := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu a 2 3 4 5 6 7 8", "intr 1 2 3 4 5 6 7 8 9"} {
		if s, err := parseStat(text); err == nil {
			t.Errorf("%q: %+v", text, s)
		}
	}
}

func TestLatencyOf(t *testing.T) {
	var times []time.Duration
	for i := 100; i > 0; i-- {
		times = append(times, time.Duration(i)*time.Millisecond)
	}
	for name, c := range map[string]struct {
		times []time.Duration
		want  Latency
	}{
		"none":    {nil, Latency{}},
		"one":     {[]time.Duration{time.Microsecond}, Latency{1, 1, 1, 1}},
		"three":   {[]time.Duration{3000, 1000, 2000}, Latency{3, 2, 3, 3}},
		"hundred": {times, Latency{100, 50_000, 99_000, 100_000}},
	} {
		if got := latencyOf(c.times); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// On a real machine nothing can be said about the figures but that they are there, and
// that nothing is left behind.
func TestRun(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	// At port 0 nobody can listen. One that was free a moment ago somebody else may have taken.
	const nobody = "127.0.0.1:0"
	dir := t.TempDir()
	r, err := Run(t.Context(), Options{Window: time.Second, Dir: dir, Targets: []string{listener.Addr().String(), nobody}})
	if err != nil {
		t.Fatal(err)
	}
	if r.WakeUp.Samples == 0 || r.WakeUp.P99 < r.WakeUp.P50 || r.StealPercent < 0 || r.StealPercent > 100 {
		t.Errorf("CPU: %+v, steal %v", r.WakeUp, r.StealPercent)
	}
	if r.Sync.Samples == 0 || r.ReadsPerSecond <= 0 {
		t.Errorf("disk: %+v, %v reads a second", r.Sync, r.ReadsPerSecond)
	}
	if len(r.Targets) != 2 || r.Targets[0].Connect.Samples != connections || r.Targets[1].Connect.Samples != 0 {
		t.Errorf("targets: %+v", r.Targets)
	}
	if len(r.Errors) != 1 || !strings.Contains(r.Errors[0], nobody) {
		t.Errorf("errors %q, want one of the address where nobody listens", r.Errors)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if r.Cost.CPUSeconds <= 0 {
		t.Errorf("cost %+v", r.Cost)
	}
}

func TestRunRefuses(t *testing.T) {
	if r, err := Run(t.Context(), Options{Window: time.Millisecond}); err == nil {
		t.Errorf("a window of a millisecond: %+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Run(ctx, Options{Window: time.Minute}); err == nil {
		t.Errorf("interrupted: %+v", r)
	}
	r, err := Run(t.Context(), Options{Window: time.Second, Dir: t.TempDir() + "/absent"})
	if err != nil || len(r.Errors) != 1 || r.ReadsPerSecond != 0 || !reflect.DeepEqual(r.Sync, Latency{}) {
		t.Errorf("a directory that is not there: %+v, %v", r, err)
	}
}
