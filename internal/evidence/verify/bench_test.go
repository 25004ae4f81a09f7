package verify

import (
	"archive/zip"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// millionRecords writes a bundle of n records: a beat a minute, the rest decisions.
func millionRecords(b *testing.B, path string, n int) {
	b.Helper()
	w := newBook("meshvakt-0", 1)
	for i := range 40 {
		ns := fmt.Sprintf("ns-%02d", i)
		w.rows[ns] = w.row(ns, "STRICT", 0, 1)
	}
	w.start(0)
	w.snapshot(0, "boot", 0)
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	z := zip.NewWriter(f)
	put := func(name string, data []byte) {
		out, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = out.Write(data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	var stored hashes
	var bundle []byte
	s := w.now()
	count := 0
	flush := func(width int) {
		put(torchwood.TilePath(tlog.Tile{H: torchwood.TileHeight, L: -1, N: int64((count - 1) / torchwood.TileWidth), W: width}), bundle)
		bundle = bundle[:0]
	}
	for at := time.Duration(0); count < n; at += 4 * time.Second {
		if at%time.Minute == 0 {
			w.beat(at)
		} else {
			w.decide(at, fmt.Sprintf("ns-%02d", count%40), uint64(count))
		}
		for _, line := range s.lines {
			if count == n {
				break
			}
			stored = append(stored, must(tlog.StoredHashes(int64(count), line, stored))...)
			bundle = must(torchwood.AppendTileEntry(bundle, line))
			if count++; count%torchwood.TileWidth == 0 {
				flush(torchwood.TileWidth)
			}
		}
		s.lines = s.lines[:0]
	}
	if count%torchwood.TileWidth > 0 {
		flush(count % torchwood.TileWidth)
	}
	for _, t := range tlog.NewTiles(torchwood.TileHeight, 0, int64(n)) {
		put(torchwood.TilePath(t), must(tlog.ReadTileData(t, stored)))
	}
	put("checkpoint", sign(torchwood.Checkpoint{Origin: s.origin, Tree: tlog.Tree{N: int64(n), Hash: must(tlog.TreeHash(int64(n), stored))}}, s.key))
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkVerifyAMillionRecords(b *testing.B) {
	path := filepath.Join(b.TempDir(), "million.zip")
	millionRecords(b, path, 1_000_000)
	runtime.GC()
	for b.Loop() {
		sources := must(Open(path, nil))
		r := verifyAll(b, Options{Claims: []Claim{must(ParseClaim("mtls=STRICT,namespace=*", epoch().Add(time.Minute), epoch().Add(40*24*time.Hour), false))}}, sources...)
		if r.ExitCode() != 0 {
			b.Fatalf("exit %d: %v %+v", r.ExitCode(), r.Problems, r.Claims)
		}
		if err := sources[0].Close(); err != nil {
			b.Fatal(err)
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapSys)/(1<<20), "MiB-heap")
}

func BenchmarkIntervals(b *testing.B) {
	s := scene{span: span{0, 1 << 50}}
	v := view{span: s.span, log: "meshvakt-0", steps: []step{{}}}
	for i := range int64(1000) {
		v.steps = append(v.steps, step{from: i << 30, certain: i<<30 + 1000, standing: standing{guarded: true, least: "STRICT", inputs: inputs{hash: record.Hash{byte(i)}}}})
	}
	s.views = []view{v}
	for b.Loop() {
		s.intervals()
	}
}
