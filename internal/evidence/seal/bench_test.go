package seal

import (
	"context"
	"crypto/rand"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// newWriter is the writer of TestKilledUnderLoad, in this process and with one shard.
func newWriter(b *testing.B) *writer {
	b.Helper()
	w := &writer{dir: volume.Dir(b.TempDir()), boot: "0123456789abcdef0123456789abcdef"}
	if err := w.dir.Create(); err != nil {
		b.Fatal(err)
	}
	var err error
	if w.spool, err = spool.Open(w.dir.Spool(), spool.Options{Budget: time.Minute}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = w.spool.Close(context.Background()) })
	if err := w.turn(); err != nil {
		b.Fatal(err)
	}
	return w
}

func (w *writer) load(b *testing.B, n int) {
	b.Helper()
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for range n / 64 {
				if _, _, err := w.add(gapOf()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

// How fast a backlog is sealed, and what it takes on disk.
func BenchmarkBacklog(b *testing.B) {
	const n = 64 * 800
	for b.Loop() {
		b.StopTimer()
		w := newWriter(b)
		w.load(b, n)
		s := openSealer(b, Config{Dir: w.dir, Now: time.Now, Random: rand.Reader, Log: quiet()})
		b.StartTimer()
		start := time.Now()
		mustPass(b, s)
		took := time.Since(start)
		b.StopTimer()
		var bytes int64
		_ = filepath.WalkDir(w.dir.Logs(), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				if i, err := d.Info(); err == nil {
					bytes += i.Size()
				}
			}
			return err
		})
		b.ReportMetric(float64(bytes)/float64(s.Stats().Records), "disk-B/record")
		b.ReportMetric(float64(s.Stats().Records)/took.Seconds(), "records/s")
		b.StartTimer()
	}
}

// How long a record, of 100 in a second, waits until a checkpoint has it.
func BenchmarkLag(b *testing.B) {
	const interval, n = time.Second, 400
	w := newWriter(b)
	s := openSealer(b, Config{Dir: w.dir, Interval: interval, Now: time.Now, Random: rand.Reader, Log: quiet()})
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var lags []time.Duration
	acked := map[uint64]time.Time{}
	next := uint64(3)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for b.Loop() {
		for len(lags) < n {
			<-tick.C
			seq, _, err := w.add(gapOf())
			if err != nil {
				b.Fatal(err)
			}
			acked[seq] = time.Now()
			for ; next <= s.Stats().Sealed; next++ {
				lags = append(lags, time.Since(acked[next]))
			}
		}
	}
	stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	slices.Sort(lags)
	b.ReportMetric(float64(lags[len(lags)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(lags[len(lags)*99/100].Milliseconds()), "p99-ms")
}
