package seal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const (
	testName    = "evidence.example.org"
	testCluster = "9a7ab2d8-1bb9-4f4c-9a3e-0f4c4b1d2e3f"
)

func testTime() time.Time { return time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC) }

// book writes shards into the spool of a volume, as the webhook does.
type book struct {
	dir     volume.Dir
	replica string
	spool   *spool.Spool
	boot    string
	chain   record.Chain
	origin  string
	shards  []string
	lines   map[string][][]byte // of each shard, in order
}

func spoolOptions() spool.Options {
	return spool.Options{SegmentSize: 64 << 10, ReserveSize: 64 << 10, Budget: time.Minute}
}

func newBook(t testing.TB, dir string) *book {
	t.Helper()
	b := &book{dir: volume.Dir(dir), replica: "meshvakt-0", boot: "0123456789abcdef0123456789abcdef", lines: map[string][][]byte{}}
	if err := b.dir.Create(); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	return b
}

func (b *book) reopen(t testing.TB) {
	t.Helper()
	var err error
	if b.spool, err = spool.Open(b.dir.Spool(), spoolOptions()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.spool.Close(context.Background()) })
}

func (b *book) shard() string { return b.shards[len(b.shards)-1] }

// add stores one record, and waits until it is durable.
func (b *book) add(t testing.TB, body record.Body) {
	t.Helper()
	_, _, err := b.spool.Append(context.Background(), func(uint64, [32]byte) ([]byte, error) {
		link, next, err := b.chain.Next(body, b.boot, testTime(), time.Second, rand.Reader)
		if err != nil {
			return nil, err
		}
		b.chain = next
		b.lines[b.shard()] = append(b.lines[b.shard()], link.Line)
		return link.Line, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *book) begin(t testing.TB, shard string) {
	t.Helper()
	origin := volume.Origin(testName, testCluster, b.replica, shard)
	key, err := b.dir.LogKey(shard, origin, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	genesis := &record.Genesis{
		Origin: origin, Cluster: testCluster, Replica: b.replica, Shard: shard, PrevOrigin: b.origin, PrevSize: b.chain.Size(),
		Keys: []string{key.Verifier}, Pseudonyms: "k:40b9d4d4066ec8c39685a29114be62cd",
	}
	b.chain, b.origin = record.Begin(b.chain.Last()), origin
	b.shards = append(b.shards, shard)
	b.add(t, genesis)
	b.add(t, &record.Boot{
		Why: record.BootStart, Pod: "pod", Node: "node", Version: "v1", Durability: "spool", Mode: "required", BeatSeconds: 60,
	})
}

// fill adds records of a kind that has few fields.
func (b *book) fill(t testing.TB, n int) {
	t.Helper()
	for range n {
		b.add(t, gapOf())
	}
}

func gapOf() record.Body {
	return &record.Gap{Of: "clock", Cause: "clock", From: testTime(), To: testTime(), Exact: true}
}

// zeros is randomness that is none.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (b *book) end(t testing.TB, next string) {
	t.Helper()
	why := "period"
	if next != "" {
		next = volume.Origin(testName, testCluster, b.replica, next)
	} else {
		why = "end"
	}
	b.add(t, &record.Close{Why: why, Next: next})
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (b *book) config() Config {
	return Config{Dir: b.dir, Now: testTime, Random: rand.Reader, Log: quiet()}
}

func openSealer(t testing.TB, c Config) *Sealer {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustPass(t testing.TB, s *Sealer) {
	t.Helper()
	if err := s.Pass(t.Context()); err != nil {
		t.Fatalf("pass: %v", err)
	}
}

// mustHold checks a log against its checkpoint with x/mod and torchwood alone: its records
// are the lines given, all of them where whole.
func mustHold(t testing.TB, tiles torchwood.TileReader, verifier string, lines [][]byte, whole bool) tlog.Tree {
	t.Helper()
	tree, entries, err := verifyLog(tiles, verifier)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if whole && len(entries) != len(lines) || len(entries) > len(lines) {
		t.Fatalf("the log has %d records; %d were written", len(entries), len(lines))
	}
	for i, e := range entries {
		if string(e) != string(lines[i]) {
			t.Fatalf("record %d is %s; must be %s", i, e, lines[i])
		}
	}
	return tree
}

func verifyLog(tiles torchwood.TileReader, verifier string) (tlog.Tree, [][]byte, error) {
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return tlog.Tree{}, nil, err
	}
	signed, err := tiles.ReadEndpoint(context.Background(), "checkpoint")
	if err != nil {
		return tlog.Tree{}, nil, err
	}
	c, _, err := torchwood.VerifyCheckpoint(signed, torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(v.Name()), torchwood.SingleVerifierPolicy(v)))
	if err != nil {
		return tlog.Tree{}, nil, err
	}
	client, err := torchwood.NewClient(tiles)
	if err != nil {
		return tlog.Tree{}, nil, err
	}
	var entries [][]byte
	for i, e := range client.AllEntries(context.Background(), c.Tree, 0) {
		if i != int64(len(entries)) {
			return tlog.Tree{}, nil, fmt.Errorf("record %d after %d records", i, len(entries))
		}
		entries = append(entries, append([]byte(nil), e...))
	}
	if err := client.Err(); err != nil {
		return tlog.Tree{}, nil, err
	}
	if int64(len(entries)) != c.N {
		return tlog.Tree{}, nil, errors.New("fewer records than the checkpoint says")
	}
	return c.Tree, entries, nil
}

func (b *book) verifier(t testing.TB, shard string) string {
	t.Helper()
	key, err := b.dir.LogKey(shard, volume.Origin(testName, testCluster, b.replica, shard), nil)
	if err != nil {
		t.Fatal(err)
	}
	return key.Verifier
}
