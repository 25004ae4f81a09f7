package journal

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const benchSize = 16 << 20

// groupCommit is the least that many durable appends cost: what waits is written together into a
// file of zeros, and synced.
type groupCommit struct {
	file  *os.File
	queue chan chan error
	line  []byte
}

func (g *groupCommit) run() {
	offset := int64(0)
	for first := range g.queue {
		waiting := []chan error{first}
		text := slices.Clone(g.line)
		for len(g.queue) > 0 && len(waiting) < 256 {
			waiting = append(waiting, <-g.queue)
			text = append(text, g.line...)
		}
		if offset+int64(len(text)) > benchSize {
			offset = 0
		}
		_, err := g.file.WriteAt(text, offset)
		if err == nil {
			err = unix.Fdatasync(int(g.file.Fd()))
		}
		offset += int64(len(text))
		for _, w := range waiting {
			w <- err
		}
	}
}

// BenchmarkDecided compares, turn by turn in one run, the median time that a refusal waits for its
// record with that of a bare group commit of as many bytes: "ratio" is what evidence costs beyond
// the disk.
func BenchmarkDecided(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			start := time.Now()
			j, err := New(Config{
				Dir: volume.Dir(b.TempDir()), Name: "evidence.example.org", Replica: "meshvakt-0", Keeper: &keeper{},
				Boot:  record.Boot{Pod: "pod-uid", Node: "node-a", Version: "v0.2.0", BeatSeconds: 60},
				Spool: spool.Options{SegmentSize: benchSize, ReserveSize: 1 << 20, Budget: time.Minute},
				Now:   time.Now, Since: func() time.Duration { return time.Since(start) }, Random: rand.Reader,
				Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			j.Tend(b.Context())
			file, err := os.Create(filepath.Join(b.TempDir(), "bare"))
			if err == nil {
				_, err = file.Write(make([]byte, benchSize))
			}
			if err == nil {
				err = file.Sync()
			}
			if err != nil {
				b.Fatal(err)
			}
			r := peerAuthentication("default", "platform")
			line, err := record.Encode(sample(b, j))
			if err != nil {
				b.Fatal(err)
			}
			bare := &groupCommit{file, make(chan chan error, 1024), line}
			go bare.run()
			var decided, least []time.Duration
			for range max(b.N/callers, 1) {
				least = append(least, atOnce(b, callers, func() error {
					done := make(chan error, 1)
					bare.queue <- done
					return <-done
				})...)
				decided = append(decided, atOnce(b, callers, func() error {
					if receipt, err := j.Decided(b.Context(), r, deny(), 0); err != nil || receipt == Missing {
						return fmt.Errorf("receipt %q, %w", receipt, err)
					}
					return nil
				})...)
			}
			b.ReportMetric(float64(median(decided).Microseconds()), "µs/record")
			b.ReportMetric(float64(median(least).Microseconds()), "µs/bare")
			b.ReportMetric(float64(median(decided))/float64(median(least)), "ratio")
			b.ReportMetric(float64(len(line)), "bytes")
			close(bare.queue)
			if err := j.stop(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// sample is a record of the kind that is measured.
func sample(b *testing.B, j *Journal) record.Record {
	b.Helper()
	body, err := j.observe(peerAuthentication("default", "platform"), deny(), "deny", time.Millisecond).build(j.open)
	if err != nil {
		b.Fatal(err)
	}
	return record.Record{Head: record.Head{Seq: 1000, Boot: j.boot, Time: time.Now().UTC(), Mono: time.Hour}, Body: body}
}

func atOnce(b *testing.B, callers int, once func() error) []time.Duration {
	took := make([]time.Duration, callers)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			before := time.Now()
			if err := once(); err != nil {
				b.Error(err)
			}
			took[i] = time.Since(before)
		})
	}
	group.Wait()
	return took
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
