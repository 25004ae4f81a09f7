package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/nodes"
)

// drain is a log that encodes and keeps nothing.
type drain struct {
	shard string
	key   record.Key
	bytes int
}

func (d *drain) Shard() string { return d.shard }

func (d *drain) Append(_ context.Context, _ string, build func(record.Pseudonymiser) (record.Body, error)) error {
	body, err := build(record.NewPseudonymiser(d.key))
	if err != nil {
		return err
	}
	line, err := record.Encode(record.Record{Head: record.Head{Time: time.Unix(1e9, 0).UTC(), Boot: "0123456789abcdef0123456789abcdef"}, Body: body})
	d.bytes += len(line) + 1
	return err
}

func (*drain) Counts() record.Counters         { return record.Counters{} }
func (*drain) Sealed() (uint64, time.Duration) { return 0, 0 }

// large is an Observer of n guarded namespaces, each with a policy, that has told of none.
func large(b *testing.B, n int) (*Observer, *drain) {
	b.Helper()
	scheme := kruntime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), cluster.AddToScheme(scheme)); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &setting{client: newFake(scheme)}
	s.sources = newSources(ctx)
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	source := cluster.New(cluster.Config{Cache: s.sources, Live: s.client, IstioNamespace: "istio-system", OwnNamespace: "meshvakt-system", Catalogue: catalogue, Log: log})
	s.sources.source = source
	s.set(defaultGuard())
	s.set(meshConfig(""))
	for i := range n {
		name := fmt.Sprintf("team-%d", i)
		s.set(namespaceNamed(name))
		s.set(policyOf(name, "default", "STRICT"))
	}
	filled := make(chan struct{})
	var once sync.Once
	source.OnChange(func(string) {
		if source.Synced() {
			once.Do(func() { close(filled) })
		}
	})
	var running sync.WaitGroup
	running.Go(func() {
		if err := source.Start(ctx); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(func() {
		cancel()
		running.Wait()
		s.sources.running.Wait()
	})
	<-filled
	d := &drain{shard: "2026q4"}
	begun := time.Now()
	o, err := New(Config{
		FailsOpen: func(_, entry string) bool { return entry == "everywhere.mesh.meshvakt.io" },
		Log:       d, Source: source, Cache: s.sources, Client: s.client, Canary: &canary{}, Pod: "meshvakt-0", Boot: "0123456789abcdef0123456789abcdef",
		Logger: log, Now: func() time.Time { return time.Now().UTC() }, Since: func() time.Duration { return time.Since(begun) },
	})
	if err != nil {
		b.Fatal(err)
	}
	o.shard, o.known.at = "2026q4", time.Unix(1e9, 0).UTC()
	return o, d
}

// BenchmarkSnapshot is what it takes to tell of a whole cluster, by the clock and in the log, and what is kept of it.
func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o, d := large(b, n)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.ReportAllocs()
			d.bytes = 0
			for b.Loop() {
				if err := o.snapshot(b.Context(), "boot"); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(d.bytes)/float64(b.N*n), "log-B/row")
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/float64(n), "kept-B/row")
			runtime.KeepAlive(o)
		})
	}
}

// BenchmarkRows is what a change costs: of one namespace, and of something that may concern all and does not.
func BenchmarkRows(b *testing.B) {
	const n = 10_000
	o, _ := large(b, n)
	if err := o.snapshot(b.Context(), "boot"); err != nil {
		b.Fatal(err)
	}
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			o.changed("team-77")
			if err := o.tellRows(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			o.changed("")
			o.passed = -passEvery
			if err := o.tellRows(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("hash", func(b *testing.B) {
		for b.Loop() {
			o.table.hash()
		}
	})
}
