package spool

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// bare is the least that a durable append costs: the same group commit, of the same bytes,
// into a file of zeros, and nothing else.
type bare struct {
	queue chan bareLine
	file  file
}

type bareLine struct {
	text []byte
	done chan error
}

func (b *bare) run() {
	offset := int64(0)
	for first := range b.queue {
		group := []bareLine{first}
		for more := true; more && len(group) < maxGroup; {
			select {
			case l := <-b.queue:
				group = append(group, l)
			default:
				more = false
			}
		}
		var text []byte
		for _, l := range group {
			text = append(text, l.text...)
		}
		if offset+int64(len(text)) > benchSize {
			offset = 0
		}
		_, err := b.file.WriteAt(text, offset)
		if err == nil {
			err = b.file.Sync()
		}
		offset += int64(len(text))
		for _, l := range group {
			l.done <- err
		}
	}
}

const benchSize = 16 << 20

// BenchmarkAppend compares, in one run and turn by turn, the median latency of an append
// with that of the bare one: "ratio" is what the spool costs.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			line := make([]byte, 1000)
			for i := range line {
				line[i] = 'x'
			}
			s, err := Open(b.TempDir(), Options{SegmentSize: benchSize, ReserveSize: 1 << 20, Budget: time.Minute})
			if err != nil {
				b.Fatal(err)
			}
			d, err := openDirectory(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			f, err := d.Create("bare")
			if err == nil {
				err = zero(f, benchSize, nil)
			}
			if err != nil {
				b.Fatal(err)
			}
			limit := &bare{make(chan bareLine, 1024), f}
			go limit.run()
			var spool, least []time.Duration
			for range max(b.N/callers, 1) {
				least = append(least, atOnce(b, callers, func() error {
					done := make(chan error, 1)
					limit.queue <- bareLine{line, done}
					return <-done
				})...)
				spool = append(spool, atOnce(b, callers, func() error {
					_, _, err := s.Append(context.Background(), func(uint64, [32]byte) ([]byte, error) { return line, nil })
					return err
				})...)
			}
			b.ReportMetric(float64(median(spool).Microseconds()), "µs/append")
			b.ReportMetric(float64(median(least).Microseconds()), "µs/bare")
			b.ReportMetric(float64(median(spool))/float64(median(least)), "ratio")
			close(limit.queue)
			if err := s.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func atOnce(b *testing.B, callers int, once func() error) []time.Duration {
	took := make([]time.Duration, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			before := time.Now()
			if err := once(); err != nil {
				b.Error(err)
			}
			took[i] = time.Since(before)
		})
	}
	all.Wait()
	return took
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
