package seal

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"filippo.io/torchwood"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

func openZip(t *testing.T, data []byte) *zip.Reader {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// A bundle holds all of its log and nothing else, for torchwood's reader of zips and of archives alike.
func TestBundles(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q3")
	b.fill(t, 700)
	b.end(t, "2026q4")
	b.begin(t, "2026q4")
	b.fill(t, 5)
	c := b.config()
	c.Batch = 7 // so that there are partial tiles of sizes long past
	s := openSealer(t, c)
	if err := s.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustPass(t, s)
	if err := s.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.dir.Bundle("2026q4")); err == nil {
		t.Error("there is a bundle of a shard that is open")
	}
	data, err := os.ReadFile(b.dir.Bundle("2026q3"))
	if err != nil {
		t.Fatal(err)
	}
	z := openZip(t, data)
	tiles, err := torchwood.NewTileFS(z)
	if err != nil {
		t.Fatal(err)
	}
	tree := mustHold(t, tiles, b.verifier(t, "2026q3"), b.lines["2026q3"], true)
	archive := torchwood.NewTileArchiveFS(fstest.MapFS{"000.zip": {Data: data}})
	if tiles, err = torchwood.NewTileFS(archive); err != nil {
		t.Fatal(err)
	}
	mustHold(t, tiles, b.verifier(t, "2026q3"), b.lines["2026q3"], true)
	checkManifest(t, z, b, tree.N)

	var again bytes.Buffer
	if _, err := WriteBundle(t.Context(), &again, b.dir, "2026q3"); err != nil || !bytes.Equal(again.Bytes(), data) {
		t.Errorf("made again it is another bundle, %v", err)
	}
	var open bytes.Buffer
	m, err := WriteBundle(t.Context(), &open, b.dir, "2026q4")
	if err != nil || m.Closed || m.Size != 7 || m.Previous == nil || m.Previous.Size != 703 || m.Previous.Last != record.HashOf(b.lines["2026q3"][702]).String() {
		t.Errorf("the bundle of an open shard is %+v, %v", m, err)
	}
	tiles, err = torchwood.NewTileFS(openZip(t, open.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, tiles, b.verifier(t, "2026q4"), b.lines["2026q4"], true)
	if _, err := WriteBundle(t.Context(), &open, b.dir, "2026q1"); err == nil {
		t.Error("a bundle of a shard that is not here was made")
	}
}

// A log that is being begun, as each is for a moment, is none that is over and cannot be bundled.
func TestKeepWhileALogBegins(t *testing.T) {
	b := newBook(t, t.TempDir())
	s := openSealer(t, b.config())
	b.begin(t, "2026q4")
	key, err := b.dir.LogKey("2026q4", b.origin, nil)
	if err != nil {
		t.Fatal(err)
	}
	log, err := openLog(b.dir.Log("2026q4"), "2026q4", key, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	log.stop()
	s.setOpen(nil)
	if err := s.Keep(t.Context()); err != nil {
		t.Error(err)
	}
	mustPass(t, s)
	b.mustBeSealed(t)
}

func checkManifest(t *testing.T, z *zip.Reader, b *book, size int64) {
	t.Helper()
	text, err := fs.ReadFile(z, "manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	if m.Format != 1 || m.Shard != "2026q3" || m.Replica != "meshvakt-0" || m.Cluster != testCluster || m.Size != size || !m.Closed || m.Previous != nil || m.Kinds["gap"] != 700 {
		t.Errorf("the manifest is %s", text[:600])
	}
	if m.Period.From != time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC) || m.Period.To != time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC) {
		t.Errorf("the period is %+v", m.Period)
	}
	var names []string
	for _, f := range m.Files {
		data, err := fs.ReadFile(z, f.Name)
		if sum := sha256.Sum256(data); err != nil || int64(len(data)) != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s is not as the manifest says: %v", f.Name, err)
		}
		names = append(names, f.Name)
	}
	if want := []string{
		"checkpoint", "keys",
		"tile/0/000", "tile/0/001", "tile/0/002.p/191", "tile/1/000.p/2",
		"tile/entries/000", "tile/entries/001", "tile/entries/002.p/191",
	}; !slices.Equal(names, want) {
		t.Errorf("the bundle has %q; must have %q", names, want)
	}
	if len(z.File) != len(names)+1 {
		t.Errorf("%d files; must be those of the manifest, and it", len(z.File))
	}
	for _, f := range z.File {
		if f.Modified.UTC() != m.Period.From {
			t.Errorf("%s has time %s", f.Name, f.Modified)
		}
	}
	keys, err := fs.ReadFile(z, "keys")
	if err != nil || string(keys) != b.verifier(t, "2026q3")+"\n" {
		t.Errorf("keys are %q, %v", keys, err)
	}
}

// What is damaged is not bundled, nor is it buried.
func TestADamagedLogIsNotBundled(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q3")
	b.fill(t, 300)
	b.end(t, "2026q4")
	b.begin(t, "2026q4")
	s := openSealer(t, b.config())
	mustPass(t, s)
	name := b.dir.Log("2026q3") + "/tile/entries/000"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	text[1000] ^= 1
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Keep(t.Context()); err == nil {
		t.Error("a damaged log is taken")
	}
	if left, err := os.ReadDir(b.dir.Bundles()); err != nil || len(left) != 0 {
		t.Errorf("there are bundles: %v, %v", left, err)
	}
}

func TestRetention(t *testing.T) {
	b := newBook(t, t.TempDir())
	for i, shard := range []string{"2025q4", "2026q1", "2026q2"} {
		b.begin(t, shard)
		b.fill(t, 10+i)
		if i < 2 {
			b.end(t, []string{"2026q1", "2026q2"}[i])
		}
	}
	now, hold := testTime(), ""
	c := b.config()
	c.Now = func() time.Time { return now }
	c.Hold = func() (string, error) { return hold, nil }
	c.Retention = 365 * 24 * time.Hour
	s := openSealer(t, c)
	mustPass(t, s)
	here := func() (list []string) {
		t.Helper()
		if err := s.Keep(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := shardsIn(b.dir.Logs())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := here(); len(got) != 3 {
		t.Fatalf("within its time: %q are here", got)
	}
	signed, err := os.ReadFile(b.dir.Log("2025q4") + "/checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	verifier := b.verifier(t, "2025q4")
	now, hold = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), "case 17"
	if got := here(); len(got) != 3 {
		t.Errorf("on hold: %q are here", got)
	}
	hold = ""
	if got := here(); !slices.Equal(got, []string{"2026q1", "2026q2"}) {
		t.Errorf("after its time: %q are here", got)
	}
	text, err := os.ReadFile(b.dir.Tombstone("2025q4"))
	if err != nil {
		t.Fatal(err)
	}
	var stone Tombstone
	if err := json.Unmarshal(text, &stone); err != nil {
		t.Fatal(err)
	}
	if stone.Size != 13 || stone.Checkpoint != string(signed) || stone.Key != verifier || stone.Kinds["gap"] != 10 || stone.Kinds["close"] != 1 || !stone.Removed.Equal(now) {
		t.Errorf("the tombstone is %s", text)
	}
	for _, name := range []string{b.dir.Bundle("2025q4"), b.dir.LogKeyFile("2025q4"), b.dir.Log("2025q4")} {
		if exists(name) {
			t.Errorf("%s is here", name)
		}
	}

	// A removal that was interrupted goes on, and sealing too.
	if err := os.WriteFile(b.dir.Tombstone("2026q1"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := here(); !slices.Equal(got, []string{"2026q2"}) {
		t.Errorf("after an interrupted removal: %q are here", got)
	}
	now = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	b.end(t, "")
	mustPass(t, s)
	if got := here(); !slices.Equal(got, []string{"2026q2"}) {
		t.Errorf("the last shard must stay; %q are here", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustPass(t, openSealer(t, c))
}
