package verify

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

const (
	testCluster = "9a7ab2d8-1bb9-4f4c-9a3e-0f4c4b1d2e3f"
	testName    = "evidence.example.org"
	paGVK       = "security.istio.io/v1/PeerAuthentication"
)

func epoch() time.Time { return time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// signer is a key of a log.
type signer struct{ secret, public string }

func newSigner(name string, seed byte) signer {
	secret, public, err := note.GenerateKey(rand.NewChaCha8([32]byte{seed, byte(len(name))}), name)
	if err != nil {
		panic(err)
	}
	return signer{secret, public}
}

// hashes are the stored hashes of a tree, in memory.
type hashes []tlog.Hash

func (h hashes) ReadHashes(list []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, 0, len(list))
	for _, i := range list {
		out = append(out, h[i])
	}
	return out, nil
}

// logFiles lays lines out as C2SP tlog-tiles, signed by key.
func logFiles(origin string, key signer, lines [][]byte) fstest.MapFS {
	files := fstest.MapFS{}
	var stored hashes
	for i, l := range lines {
		stored = append(stored, must(tlog.StoredHashes(int64(i), l, stored))...)
	}
	n := int64(len(lines))
	for _, t := range tlog.NewTiles(torchwood.TileHeight, 0, n) {
		files[torchwood.TilePath(t)] = &fstest.MapFile{Data: must(tlog.ReadTileData(t, stored))}
		if t.L != 0 {
			continue
		}
		var bundle []byte
		for i := range t.W {
			bundle = must(torchwood.AppendTileEntry(bundle, lines[t.N*torchwood.TileWidth+int64(i)]))
		}
		t.L = -1
		files[torchwood.TilePath(t)] = &fstest.MapFile{Data: bundle}
	}
	root := must(tlog.TreeHash(n, stored))
	files["checkpoint"] = &fstest.MapFile{Data: sign(torchwood.Checkpoint{Origin: origin, Tree: tlog.Tree{N: n, Hash: root}}, key)}
	files["keys"] = &fstest.MapFile{Data: []byte(key.public + "\n")}
	return files
}

func sign(c torchwood.Checkpoint, keys ...signer) []byte {
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, must(note.NewSigner(k.secret)))
	}
	return must(note.Sign(&note.Note{Text: c.String()}, signers...))
}

// withManifest adds what the bundle of a log says of it.
func withManifest(files fstest.MapFS, origin, replica, shard string, lines [][]byte) fstest.MapFS {
	m := map[string]any{}
	text := string(files["checkpoint"].Data)
	c := must(torchwood.ParseCheckpoint(text[:bytes.Index([]byte(text), []byte("\n\n"))+1]))
	kinds, closed := map[string]int{}, false
	for _, l := range lines {
		r := must(record.Parse(l))
		kinds[string(r.Body.Kind())]++
		closed = r.Body.Kind() == record.KindClose
	}
	var list []map[string]any
	for _, name := range sortedNames(files) {
		sum := sha256.Sum256(files[name].Data)
		list = append(list, map[string]any{"name": name, "size": len(files[name].Data), "sha256": hex.EncodeToString(sum[:])})
	}
	m["format"], m["origin"], m["cluster"], m["replica"], m["shard"] = 1, origin, testCluster, replica, shard
	m["size"], m["root"], m["closed"], m["kinds"], m["files"] = c.N, c.Hash.String(), closed, kinds, list
	files["manifest.json"] = &fstest.MapFile{Data: must(json.Marshal(m))}
	return files
}

func sortedNames(files fstest.MapFS) []string {
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func sourceOf(name string, files fs.FS) *Source { return &Source{Name: name, files: tree{files}} }

func writeZip(t testing.TB, path string, files fstest.MapFS) {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range sortedNames(files) {
		if _, err := must(z.CreateHeader(&zip.FileHeader{Name: name})).Write(files[name].Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// shard is one log in the making.
type shard struct {
	origin, name string
	key          signer
	lines        [][]byte
}

// book writes what a replica would: into one shard after the other.
type book struct {
	cluster    string
	replica    string
	pseudonyms record.Pseudonymiser
	keyID      string
	chain      record.Chain
	shards     []*shard
	random     *rand.ChaCha8
	boot       string
	started    time.Duration // since epoch
	rows       map[string]record.Row
	counts     record.Counters
	epochs     uint64
	ready      []record.Replica
	clock      record.Clock
	wall       time.Duration // how far the wall clock is off
	at         time.Duration // of the last record
}

func newBook(replica string, seed byte) *book {
	key := must(record.NewKey(bytes.NewReader(bytes.Repeat([]byte("k"), 32))))
	b := &book{cluster: testCluster, replica: replica, pseudonyms: record.NewPseudonymiser(key), keyID: key.ID(), random: rand.NewChaCha8([32]byte{seed}), rows: map[string]record.Row{}, epochs: 1}
	b.clock = record.Clock{MaxErrorMicros: 0}
	return b
}

func (b *book) origin(shard string) string {
	return volume.Origin(testName, b.cluster, b.replica, shard)
}

func (b *book) now() *shard { return b.shards[len(b.shards)-1] }

func (b *book) add(at time.Duration, body record.Body) uint64 {
	link, next, err := b.chain.Next(body, b.boot, epoch().Add(at+b.wall), at-b.started, b.random)
	if err != nil {
		panic(fmt.Sprintf("%s at %s: %v", body.Kind(), at, err))
	}
	b.chain, b.at = next, at
	b.now().lines = append(b.now().lines, link.Line)
	return link.Seq
}

// start begins the process, and the first shard where there is none.
func (b *book) start(at time.Duration) {
	b.boot, b.started = must(record.NewBoot(b.random)), at
	b.counts = record.Counters{}
	if len(b.shards) == 0 {
		b.openShard(at, "2026q4", nil)
	}
	b.add(at, b.bootRecord(record.BootStart))
}

func (b *book) bootRecord(why string) *record.Boot {
	return &record.Boot{Why: why, Pod: "uid-" + b.replica, Node: "node-a", Version: "v0.2.0", Durability: "spool", Mode: "bestEffort", BeatSeconds: 60}
}

func (b *book) openShard(at time.Duration, name string, before *shard) {
	origin := b.origin(name)
	s := &shard{origin: origin, name: name, key: newSigner(origin, byte(len(b.shards)))}
	g := &record.Genesis{Origin: origin, Cluster: b.cluster, Replica: b.replica, Shard: name, Keys: []string{s.key.public}, Pseudonyms: b.keyID}
	last := record.Hash{}
	if before != nil {
		g.PrevOrigin, g.PrevSize, last = before.origin, uint64(len(before.lines)), b.chain.Last()
	}
	b.chain = record.Begin(last)
	b.shards = append(b.shards, s)
	b.add(at, g)
}

// turn closes the shard and goes on in the next.
func (b *book) turn(at time.Duration, name string) {
	before := b.now()
	next := newSigner(b.origin(name), byte(len(b.shards)))
	b.add(at, &record.KeyCreated{For: "log", VerifierKey: next.public})
	b.add(at, &record.Close{Why: "period", Next: b.origin(name)})
	b.openShard(at, name, before)
	b.add(at, b.bootRecord(record.BootShard))
	b.snapshot(at, "shard", at)
}

func (b *book) snapshot(at time.Duration, why string, after time.Duration) {
	var rows []record.Row
	for _, r := range b.rows {
		rows = append(rows, r)
	}
	for _, part := range must(record.Snapshots(why, epoch().Add(after+b.wall), rows)) {
		b.add(at, part)
	}
}

func (b *book) state(at, after time.Duration, row record.Row) {
	b.rows[row.Namespace] = row
	b.add(at, &record.State{What: "set", After: epoch().Add(after + b.wall), Row: row})
}

// stop ends the process, and another begins.
func (b *book) stop(at time.Duration, counts record.Counters) {
	b.add(at, &record.Stop{Why: "terminated", Counts: counts})
	b.start(at)
	b.snapshot(at, "boot", at)
}

// leave takes the row of a namespace out of the table.
func (b *book) leave(at, after time.Duration, what, ns string) {
	row := b.rows[ns]
	delete(b.rows, ns)
	b.add(at, &record.State{What: what, After: epoch().Add(after + b.wall), Row: row})
}

func (b *book) beat(at time.Duration, change ...func(*record.Beat)) {
	var hashes []record.Hash
	var names []string
	for ns := range b.rows {
		names = append(names, ns)
	}
	slices.Sort(names)
	for _, ns := range names {
		hashes = append(hashes, must(record.HashRow(b.rows[ns])))
	}
	beat := &record.Beat{Table: record.HashTable(hashes), RowsN: uint64(len(hashes)), Guards: b.pseudonyms.Digest([]byte("guards")),
		Watches:   []record.Watch{{GVK: paGVK, ResourceVersion: "1", Epoch: b.epochs, Healthy: true}},
		Hooks:     []record.Hook{{GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Name: "meshvakt", UID: "h", ResourceVersion: "1", Digest: b.pseudonyms.Digest([]byte("hook")), Failure: "Fail"}},
		Enforcing: true, Ready: b.ready, ReadyN: uint64(len(b.ready)), Counts: b.counts, Clock: b.clock}
	for _, c := range change {
		c(beat)
	}
	b.add(at, beat)
}

// row is how a namespace stands by one policy, in its n-th version.
func (b *book) row(ns, least string, outside, n uint64) record.Row {
	in := []record.Input{{Object: b.policy(ns, n), ResourceVersion: fmt.Sprint(1000 + n)}}
	var excused []record.Excuse
	if least != "STRICT" {
		excused = []record.Excuse{{Mode: least, Exceptions: []string{"exception"}}}
	}
	return record.Row{Unexcused: "STRICT", Excused: excused, Namespace: ns, UID: "uid-" + ns, Guards: []string{"default"}, GuardsN: 1, Mode: "STRICT", Least: least, Outside: outside,
		Authorization: "none", Inputs: in, InputsN: 1, InputsHash: must(record.HashInputs(in))}
}

func (b *book) policy(ns string, n uint64) record.Object {
	return record.Object{GVK: paGVK, Namespace: ns, Name: b.pseudonyms.Object(paGVK, ns, "default"), UID: "pa-" + ns, Generation: n,
		Digest: b.pseudonyms.Digest(fmt.Appendf(nil, "version %d", n))}
}

// decide is an allowed change of the policy.
func (b *book) decide(at time.Duration, ns string, n uint64) {
	b.allow(at, "UPDATE", b.policy(ns, n))
}

func (b *book) allow(at time.Duration, operation string, o record.Object) {
	b.counts.In++
	b.counts.Written++
	b.add(at, &record.Decision{Request: fmt.Sprintf("r-%d-%s", o.Generation, b.replica), Operation: operation, Object: o, By: b.pseudonyms.Subject("ola@example.org"),
		Guards: b.pseudonyms.Digest([]byte("guards")), Verdict: "allow"})
}

func (b *book) sources() []*Source {
	var list []*Source
	for _, s := range b.shards {
		list = append(list, sourceOf(s.name, logFiles(s.origin, s.key, s.lines)))
	}
	return list
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

func verifyAll(t testing.TB, o Options, sources ...*Source) *Result {
	t.Helper()
	if o.Trust == nil {
		o.Trust = must(NewTrust(nil, nil, true))
	}
	if o.MaxClockError == 0 {
		o.MaxClockError = time.Second
	}
	r, err := Verify(context.Background(), sources, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func claimOf(t testing.TB, text string, from, to int) Claim {
	t.Helper()
	return must(ParseClaim(text, epoch().Add(seconds(from)), epoch().Add(seconds(to)), false))
}

func witnessKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte("w"), 32)) }

// witness signs at a time of the test's, and not of the machine.
type witness struct {
	*torchwood.CosignatureSigner
	at time.Time
}

func witnessAt(at time.Duration) witness {
	return witness{must(torchwood.NewCosignatureSigner("witness.example.org", witnessKey())), epoch().Add(at)}
}

func (w witness) Sign(msg []byte) ([]byte, error) {
	at := uint64(w.at.Unix())
	return append(binary.BigEndian.AppendUint64(nil, at), ed25519.Sign(witnessKey(), fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, msg))...), nil
}

// cosign adds the signature of a witness to a checkpoint.
func cosign(signed []byte, key signer, w note.Signer) []byte {
	n := must(note.Open(signed, note.VerifierList(must(note.NewVerifier(key.public)))))
	return must(note.Sign(n, w))
}
