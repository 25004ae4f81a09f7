package seal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/torchwood"

	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// logOf reads a log with torchwood's own reader of directories.
func logOf(t testing.TB, dir volume.Dir, shard string) torchwood.TileReader {
	t.Helper()
	tiles, err := torchwood.NewTileFS(os.DirFS(dir.Log(shard)))
	if err != nil {
		t.Fatal(err)
	}
	return tiles
}

func (b *book) mustBeSealed(t testing.TB) {
	t.Helper()
	for _, shard := range b.shards {
		mustHold(t, logOf(t, b.dir, shard), b.verifier(t, shard), b.lines[shard], true)
	}
}

func (b *book) total() (n uint64) {
	for _, l := range b.lines {
		n += uint64(len(l))
	}
	return n
}

// Shards of all sizes around those of tiles, in several segments of the spool.
func TestEveryRecordIsSealedInItsPlace(t *testing.T) {
	b := newBook(t, t.TempDir())
	for _, shard := range []struct {
		name, next string
		more       int
	}{
		{"2026q1", "2026q2", 0}, {"2026q2", "2026q2-2", 252}, {"2026q2-2", "2026q3", 253}, {"2026q3", "2026q4", 254}, {"2026q4", "", 900},
	} {
		b.begin(t, shard.name)
		b.fill(t, shard.more)
		b.end(t, shard.next)
	}
	c := b.config()
	c.Batch = 100
	s := openSealer(t, c)
	mustPass(t, s)
	b.mustBeSealed(t)
	sealed, err := b.dir.ReadSealed()
	if err != nil || sealed.Line != b.total() || !sealed.At.Equal(testTime()) {
		t.Errorf("sealed is %+v, %v; must be line %d", sealed, err, b.total())
	}
	r, err := spool.OpenReader(b.dir.Spool(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if e, err := r.Extent(); err != nil || e.First == 1 || e.Last != b.total() {
		t.Errorf("the spool has %+v, %v; must have let go of what is sealed", e, err)
	}
}

func TestALogThatGrows(t *testing.T) {
	b := newBook(t, t.TempDir())
	s := openSealer(t, b.config())
	mustPass(t, s) // nothing is there yet
	b.begin(t, "2026q4")
	var before int64
	for _, n := range []int{0, 1, 253, 1, 1, 300} {
		b.fill(t, n)
		mustPass(t, s)
		tree := mustHold(t, logOf(t, b.dir, "2026q4"), b.verifier(t, "2026q4"), b.lines["2026q4"], true)
		if tree.N <= before {
			t.Errorf("%d records after %d", tree.N, before)
		}
		before = tree.N
	}
}

func TestResumes(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q3")
	b.fill(t, 200)
	life := func(change func()) {
		t.Helper()
		if change != nil {
			change()
		}
		s := openSealer(t, b.config())
		mustPass(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		b.mustBeSealed(t)
	}
	life(nil)
	life(func() { b.fill(t, 300) })
	life(nil)
	life(func() { b.end(t, "2026q4") })
	life(nil) // between a close and the genesis behind it
	life(func() { b.begin(t, "2026q4"); b.fill(t, 10) })
	life(func() {
		if err := os.Truncate(filepath.Join(string(b.dir), "sealed"), 0); err != nil {
			t.Fatal(err)
		}
		b.fill(t, 10)
	})
	life(func() {
		if err := b.dir.WriteSealed(volume.Sealed{Line: 1 << 40, At: testTime()}); err != nil {
			t.Fatal(err)
		}
		b.fill(t, 10)
	})
	life(func() {
		// What Tessera leaves behind when it is killed, or the disk is full.
		for _, name := range []string{"tile/0/0001804289383", "tile/entries/000.p/2171804289383", "checkpoint123", ".state/treeState77"} {
			path := filepath.Join(b.dir.Log("2026q4"), name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("half"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b.fill(t, 10)
	})
	if n, err := (files{b.dir.Log("2026q4")}).removeStale(); n != 0 || err != nil {
		t.Errorf("%d unfinished files were still there, %v", n, err)
	}
	if sealed, err := b.dir.ReadSealed(); err != nil || sealed.Line != b.total() {
		t.Errorf("sealed is %+v, %v; must be line %d", sealed, err, b.total())
	}
}

func TestOneSealerAlone(t *testing.T) {
	b := newBook(t, t.TempDir())
	openSealer(t, b.config())
	if _, err := Open(b.config()); !errors.Is(err, ErrLocked) {
		t.Errorf("a second sealer: %v; must be ErrLocked", err)
	}
}

// Killed as it makes a log, Tessera leaves one without a checkpoint; killed again with records in
// it, nothing would say whose they are.
func TestALogThatWasBeingMade(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	key, err := b.dir.LogKey("2026q4", b.origin, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLog(b.dir.Log("2026q4"), "2026q4", key, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	l.stop()
	if err := os.Remove(filepath.Join(b.dir.Log("2026q4"), "checkpoint")); err != nil {
		t.Fatal(err)
	}
	s := openSealer(t, b.config())
	if s.place, err = s.resume(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.batch(); n != 2 || err != nil {
		t.Fatalf("%d records, %v", n, err)
	}
	if err := s.Close(); err != nil { // before anything is signed
		t.Fatal(err)
	}
	mustPass(t, openSealer(t, b.config()))
	b.mustBeSealed(t)
}
