package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// pair are two replicas that know of each other, over two shards, with one of most kinds of records.
func pair() []*book {
	var list []*book
	for i := range 2 {
		b := newBook(fmt.Sprintf("meshvakt-%d", i), byte(10+i))
		b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
		list = append(list, b)
		b.start(0)
	}
	ready := []record.Replica{{Pod: "meshvakt-0", Boot: list[0].boot}, {Pod: "meshvakt-1", Boot: list[1].boot}}
	for _, b := range list {
		b.ready = ready
		b.snapshot(0, "boot", 0)
		for m := range 12 {
			b.beat(seconds(60 * m))
			if m == 3 {
				b.decide(seconds(190), "payments", 2)
				b.state(seconds(195), seconds(192), b.row("payments", "STRICT", 0, 2))
			}
			if m == 6 {
				b.turn(seconds(380), "2026q4-2")
			}
		}
		b.add(seconds(670), &record.Stop{Why: "terminated", Counts: b.counts})
	}
	return list
}

func pairOptions(t testing.TB, books []*book) Options {
	var keys []string
	for _, b := range books {
		keys = append(keys, b.shards[0].key.public)
	}
	return Options{Trust: must(NewTrust(nil, keys, false)), Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 0, 660)}}
}

func allSources(books []*book) []*Source {
	var list []*Source
	for _, b := range books {
		list = append(list, b.sources()...)
	}
	return list
}

func TestThePairHolds(t *testing.T) {
	books := pair()
	r := verifyAll(t, pairOptions(t, books), allSources(books)...)
	if r.ExitCode() != 0 || len(r.Findings) > 0 {
		t.Fatalf("exit %d, problems %v, findings %v, claims %+v", r.ExitCode(), r.Problems, r.Findings, r.Claims)
	}
	for _, l := range r.Logs {
		if want := map[string]string{"2026q4": TrustGiven, "2026q4-2": TrustChained}[l.Shard]; l.Trust != want {
			t.Errorf("%s is trusted as %s; must be %s", l.Origin, l.Trust, want)
		}
	}
}

// An attacker without the log's key changes what is stored, and makes all hashes right again.
func TestEveryChangeOfEveryRecordIsSeen(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	for bi, b := range books {
		for si, s := range b.shards {
			for i := range s.lines {
				for name, lines := range changed(s.lines, i, books[1-bi].shards[si].lines) {
					files := logFiles(s.origin, s.key, lines)
					// The checkpoint is the one that the log's key has signed.
					files["checkpoint"] = logFiles(s.origin, s.key, s.lines)["checkpoint"]
					sources := allSources(books)
					sources[bi*2+si] = sourceOf("changed", files)
					if code := verifyAll(t, o, sources...).ExitCode(); code != 3 {
						t.Errorf("%s record %d of %s: exit %d; must be 3", name, i, s.origin, code)
					}
				}
			}
		}
	}
}

// Who has the log's key can sign anything that the format allows, but not what does not fit
// together: chain, table and links.
func TestEveryChangeThatIsSignedAgainIsSeen(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	for bi, b := range books {
		for si, s := range b.shards {
			for i := range s.lines {
				for name, lines := range changed(s.lines, i, books[1-bi].shards[si].lines) {
					if name == "cut off" && si == 1 {
						continue // an older state of the log: see below
					}
					if name == "flip" && si == 1 && i == len(s.lines)-1 {
						continue // nothing has committed to the last record yet but a witness
					}
					sources := allSources(books)
					sources[bi*2+si] = sourceOf("changed", logFiles(s.origin, s.key, lines))
					if code := verifyAll(t, o, sources...).ExitCode(); code != 3 {
						t.Errorf("%s record %d of %s: exit %d; must be 3", name, i, s.origin, code)
					}
				}
			}
		}
	}
}

// changed are the ways to change record i of lines.
func changed(lines [][]byte, i int, other [][]byte) map[string][][]byte {
	flipped := slices.Clone(lines)
	flipped[i] = bytes.Clone(lines[i])
	flipped[i][len(flipped[i])/2] ^= 1
	swapped := slices.Clone(lines)
	swapped[i] = other[i%len(other)]
	all := map[string][][]byte{
		"flip":      flipped,
		"drop":      slices.Delete(slices.Clone(lines), i, i+1),
		"duplicate": slices.Insert(slices.Clone(lines), i, lines[i]),
		"swap":      swapped,
		"cut off":   lines[:i:i],
	}
	if i == len(lines)-1 {
		delete(all, "drop") // the same as to cut off
		return all
	}
	reordered := slices.Clone(lines)
	reordered[i], reordered[i+1] = lines[i+1], lines[i]
	all["reorder"] = reordered
	return all
}

// A log that was true once proves nothing of the time behind its end.
func TestAnOlderStateOfALogProvesNoMore(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	s := books[1].shards[1]
	for n := 1; n < len(s.lines); n++ {
		sources := allSources(books)
		sources[3] = sourceOf("older", logFiles(s.origin, s.key, s.lines[:n]))
		r := verifyAll(t, o, sources...)
		last := must(record.Parse(s.lines[n-1])).Time
		want := 2
		if epoch().Add(seconds(660)).Sub(last) <= 150*time.Second {
			want = 0 // as from a replica that is to say something again in a moment; the other saw all
		}
		if code := r.ExitCode(); code != want {
			t.Errorf("with %d of %d records: exit %d; must be %d: %+v", n, len(s.lines), code, want, r.Claims)
		}
	}
}

func TestAReplicaWhoseLogIsMissing(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	for i := range books {
		r := verifyAll(t, o, books[i].sources()...)
		if r.ExitCode() != 2 || !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Code == FindingMissingLog }) {
			t.Errorf("without the log of meshvakt-%d: exit %d, findings %v", 1-i, r.ExitCode(), r.Findings)
		}
	}
}

// A new shard is signed before it has records.
func TestALogWithoutRecords(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	s := books[1].shards[1]
	empty := sourceOf("empty", fstest.MapFS{"checkpoint": &fstest.MapFile{Data: sign(torchwood.Checkpoint{Origin: s.origin}, s.key)}})
	sources := allSources(books)
	if code := verifyAll(t, o, append(slices.Clone(sources), empty)...).ExitCode(); code != 0 {
		t.Errorf("beside a later state of it: exit %d; must be 0", code)
	}
	sources[3] = empty
	if code := verifyAll(t, o, sources...).ExitCode(); code != 2 {
		t.Errorf("instead of its records: exit %d; must be 2", code)
	}
}

func TestAShardThatIsMissing(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	for i := range 4 {
		sources := slices.Delete(allSources(books), i, i+1)
		// Without the first shard, nobody has announced the key of the second.
		want := map[int]int{0: 3, 1: 2, 2: 3, 3: 2}[i]
		if code := verifyAll(t, o, sources...).ExitCode(); code != want {
			t.Errorf("without shard %d: exit %d; must be %d", i, code, want)
		}
	}
}

func TestFilesOfOtherLogs(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	a, b := books[0].shards[0], books[1].shards[0]
	mine, others := logFiles(a.origin, a.key, a.lines), logFiles(b.origin, b.key, b.lines)
	for name := range mine {
		if name == "keys" {
			continue // for people
		}
		files := maps.Clone(mine)
		files[name] = others[name]
		if name != "checkpoint" && files[name] == nil {
			delete(files, name)
		}
		sources := allSources(books)
		sources[0] = sourceOf("mixed", files)
		if code := verifyAll(t, o, sources...).ExitCode(); code != 3 {
			t.Errorf("with %s of another log: exit %d; must be 3", name, code)
		}
		delete(files, name)
		if code := verifyAll(t, o, sources...).ExitCode(); code != 3 {
			t.Errorf("without %s: exit %d; must be 3", name, code)
		}
	}
}

func TestTheKeyOfAnotherLog(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	a := books[0].shards[0]
	for name, key := range map[string]signer{"another of its name": newSigner(a.origin, 99), "another log's": books[1].shards[0].key} {
		sources := allSources(books)
		sources[0] = sourceOf("resigned", logFiles(a.origin, key, a.lines))
		if code := verifyAll(t, o, sources...).ExitCode(); code != 3 {
			t.Errorf("signed by %s key: exit %d; must be 3", name, code)
		}
	}
}

// Two checkpoints that the log's key has signed, neither of which is the beginning of the other.
func TestTwoHistoriesOfOneLog(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	s := books[0].shards[0]
	lines := slices.Clone(s.lines[:10])
	fork := newBook("meshvakt-0", 77)
	fork.rows["payments"] = fork.row("payments", "STRICT", 0, 1)
	fork.start(0)
	fork.snapshot(0, "boot", 0)
	for m := range 8 {
		fork.beat(seconds(60 * m))
	}
	sources := append(allSources(books), sourceOf("fork", logFiles(s.origin, s.key, fork.shards[0].lines)))
	if code := verifyAll(t, o, sources...).ExitCode(); code != 3 {
		t.Errorf("a forked log: exit %d; must be 3", code)
	}
	sources = append(allSources(books), sourceOf("older", logFiles(s.origin, s.key, lines)))
	if r := verifyAll(t, o, sources...); r.ExitCode() != 0 || len(r.Logs) != 4 {
		t.Errorf("an older state of a log beside it: exit %d, %d logs, %v", r.ExitCode(), len(r.Logs), r.Problems)
	}
}

// The key of a later shard is known only once the one before it has been read.
func TestTwoHistoriesOfALaterShard(t *testing.T) {
	books := pair()
	o := pairOptions(t, books) // has the keys of the first shards
	s := books[0].shards[1]
	n := len(s.lines)
	fork := pair()[0]
	fork.chain = must(record.Resume(s.lines[n-3]))
	fork.shards[1].lines = slices.Clone(s.lines[:n-2])
	for range 3 {
		fork.beat(seconds(670))
	}
	forked := fork.shards[1].lines
	for name, c := range map[string]struct {
		key   signer
		lines [][]byte
		want  int
	}{
		"shorter":                    {s.key, forked[:n-1], 3},
		"of the same length":         {s.key, forked[:n], 3},
		"longer":                     {s.key, forked, 3},
		"an older state":             {s.key, s.lines[:n-2], 0},
		"a copy":                     {s.key, s.lines, 0},
		"a copy that is signed anew": {newSigner(s.origin, 99), s.lines[:n-1], 3},
	} {
		for _, first := range []bool{false, true} {
			sources := allSources(books)
			other := sourceOf("other", logFiles(s.origin, c.key, c.lines))
			if first {
				sources = slices.Insert(sources, 0, other)
			} else {
				sources = append(sources, other)
			}
			if r := verifyAll(t, o, sources...); r.ExitCode() != c.want || len(r.Logs) != 4 {
				t.Errorf("%s: exit %d; must be %d: %d logs, problems %v", name, r.ExitCode(), c.want, len(r.Logs), r.Problems)
			}
		}
	}
}

// A replica's directory has the log of a shard that is closed, and its bundle.
func TestALogThatIsNotAsItsBundle(t *testing.T) {
	books := pair()
	s := books[0].shards[0]
	fork := pair()[0]
	n := len(s.lines)
	fork.chain = must(record.Resume(s.lines[n-3]))
	fork.shards = fork.shards[:1]
	fork.shards[0].lines = slices.Clone(s.lines[:n-2])
	fork.beat(seconds(380))
	for name, c := range map[string]struct {
		lines [][]byte
		want  int
	}{"the same": {s.lines, 0}, "another": {fork.shards[0].lines, 3}} {
		dir := volume.Dir(t.TempDir())
		if err := dir.Create(); err != nil {
			t.Fatal(err)
		}
		for i, s := range books[0].shards {
			for file, f := range logFiles(s.origin, s.key, s.lines) {
				path := filepath.Join(dir.Log(s.name), filepath.FromSlash(file))
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, f.Data, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if i == 0 {
				writeZip(t, dir.Bundle(s.name), logFiles(s.origin, s.key, c.lines))
			}
		}
		sources := append(must(Open(string(dir), nil)), books[1].sources()...)
		if r := verifyAll(t, pairOptions(t, books), sources...); r.ExitCode() != c.want {
			t.Errorf("%s: exit %d; must be %d: %v", name, r.ExitCode(), c.want, r.Problems)
		}
		for _, s := range sources {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// fickle answers the first times with the entries of one log, and with those of another when it is asked again.
type fickle struct {
	first, later fstest.MapFS
	times        int
	asked        map[string]int
}

func (f fickle) read(ctx context.Context, name string, most int) ([]byte, error) {
	f.asked[name]++
	if strings.HasPrefix(name, "tile/entries/") && f.asked[name] <= f.times {
		return tree{f.first}.read(ctx, name, most)
	}
	return tree{f.later}.read(ctx, name, most)
}

// Who serves a log by its URL knows what was asked before. A log that is read is one, or proves nothing.
func TestALogThatIsServedInTwoWays(t *testing.T) {
	books := pair()
	s := books[1].shards[1]
	whole := logFiles(s.origin, s.key, s.lines)

	// A first record that follows none, so that the shard before it, which is withheld, is not missed.
	r := must(record.Parse(s.lines[0]))
	g := *r.Body.(*record.Genesis)
	g.PrevOrigin, g.PrevSize = "", 0
	r.Body = &g
	alone := logFiles(s.origin, s.key, append([][]byte{must(record.Encode(r))}, s.lines[1:]...))

	// The log that somebody has kept a copy of, before it was rewritten.
	fork := pair()[1]
	n := len(s.lines)
	fork.chain = must(record.Resume(s.lines[n-3]))
	fork.shards[1].lines = slices.Clone(s.lines[:n-2])
	fork.beat(seconds(669))
	kept := fork.shards[1].lines
	fork.beat(seconds(670))
	forked := logFiles(s.origin, s.key, fork.shards[1].lines)

	for times := range 5 {
		served := func(first fstest.MapFS) *Source {
			return &Source{Name: "URL", files: fickle{first, whole, times, map[string]int{}}}
		}
		r := verifyAll(t, withAllKeys(t, books, 10, 300), append(books[0].sources(), served(alone))...)
		if want := map[bool]int{true: 3, false: 2}[times > 0]; r.ExitCode() != want {
			t.Errorf("a first record that follows none, %d times: exit %d; must be %d", times, r.ExitCode(), want)
		}
		sources := slices.Concat(allSources(books)[:3], []*Source{served(forked), sourceOf("kept", logFiles(s.origin, s.key, kept))})
		if r := verifyAll(t, withAllKeys(t, books, 10, 300), sources...); r.ExitCode() != 3 {
			t.Errorf("a log that was rewritten, and as it was %d times: exit %d; must be 3", times, r.ExitCode())
		}
	}
}

func TestRecordsOfANewerMeshvakt(t *testing.T) {
	books := pair()
	o := pairOptions(t, books)
	s := books[1].shards[1]
	for name, edit := range map[string]func([]byte) []byte{
		"kind":    func(l []byte) []byte { return bytes.Replace(l, []byte(`"kind":"stop"`), []byte(`"kind":"newer"`), 1) },
		"version": func(l []byte) []byte { return bytes.Replace(l, []byte(`"v":1`), []byte(`"v":2`), 1) },
	} {
		lines := slices.Clone(s.lines)
		lines[len(lines)-1] = edit(lines[len(lines)-1])
		sources := allSources(books)
		sources[3] = sourceOf("newer", logFiles(s.origin, s.key, lines))
		if r := verifyAll(t, o, sources...); r.ExitCode() != 2 || len(r.Newer) != 1 {
			t.Errorf("a %s that is not known: exit %d, %v, problems %v", name, r.ExitCode(), r.Newer, r.Problems)
		}
	}
}

func TestWitnessesThatMustHaveSigned(t *testing.T) {
	b := quiet("meshvakt-0", 5)
	s := b.shards[0]
	w := witnessAt(seconds(301))
	policy := fmt.Sprintf("log %s\nwitness w %s\nquorum w\n", s.key.public, w.Verifier())
	o := Options{Trust: must(NewTrust([]byte(policy), nil, false))}
	files := logFiles(s.origin, s.key, s.lines)
	if code := verifyAll(t, o, sourceOf("bare", files)).ExitCode(); code != 3 {
		t.Errorf("without the witness: exit %d; must be 3", code)
	}
	files["checkpoint"] = &fstest.MapFile{Data: cosign(files["checkpoint"].Data, s.key, w)}
	r := verifyAll(t, o, sourceOf("witnessed", files))
	if r.ExitCode() != 0 || len(r.Logs[0].Cosignatures) != 1 || r.Logs[0].Cosignatures[0].Witness != "witness.example.org" {
		t.Errorf("with the witness: exit %d, %v, %v", r.ExitCode(), r.Problems, r.Logs[0].Cosignatures)
	}
}

// Whoever has all keys can still not leave a change of state out: the table of each beat has it in.
func TestAStateThatWasLeftOut(t *testing.T) {
	b := newBook("meshvakt-0", 1)
	b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
	b.start(0)
	b.snapshot(0, "boot", 0)
	b.beat(0)
	b.rows["payments"] = b.row("payments", "PERMISSIVE", 0, 2) // and no record tells
	b.beat(seconds(60))
	if r := verifyAll(t, Options{}, b.sources()...); r.ExitCode() != 3 {
		t.Errorf("exit %d; must be 3", r.ExitCode())
	}
}

func TestProofs(t *testing.T) {
	books := pair()
	s := books[0].shards[0]
	trust := must(NewTrust(nil, []string{s.key.public}, false))
	for seq := range s.lines {
		proof, line, err := Prove(context.Background(), allSources(books), trust, s.origin, uint64(seq))
		if err != nil || !bytes.Equal(line, s.lines[seq]) {
			t.Fatalf("prove record %d: %v", seq, err)
		}
		p, err := CheckProof(trust, proof, append(bytes.Clone(line), '\n'))
		if err != nil || p.Seq != uint64(seq) || p.Origin != s.origin {
			t.Errorf("check the proof of record %d: %+v, %v", seq, p, err)
		}
		other := s.lines[(seq+1)%len(s.lines)]
		if _, err := CheckProof(trust, proof, other); err == nil {
			t.Errorf("the proof of record %d is taken for another record", seq)
		}
		if _, err := CheckProof(must(NewTrust(nil, []string{books[1].shards[0].key.public}, false)), proof, line); err == nil {
			t.Errorf("the proof of record %d is believed for the key of another log", seq)
		}
	}
}

// failing is a disk that breaks.
type failing struct{}

func (failing) read(context.Context, string, int) ([]byte, error) { return nil, errors.New("broken") }

func TestWhatCannotBeReadProvesNothing(t *testing.T) {
	if code := verifyAll(t, Options{}, &Source{Name: "x", files: failing{}}).ExitCode(); code != 3 {
		t.Errorf("exit %d; must be 3", code)
	}
}

func TestRootsOfAllSizes(t *testing.T) {
	var lines [][]byte
	for i := range 700 {
		lines = append(lines, fmt.Appendf(nil, "line %d", i))
	}
	key := newSigner("x", 1)
	for _, n := range []int{1, 2, 3, 255, 256, 257, 511, 512, 513, 700} {
		files := logFiles("x", key, lines[:n])
		root, _, err := entries(context.Background(), tree{files}, int64(n), nil, func(int64, []byte) error { return nil })
		c, _, _, cerr := must(NewTrust(nil, []string{key.public}, false)).checkpoint(files["checkpoint"].Data, "x", []string{key.public})
		if err != nil || cerr != nil || root != c.Hash || root == (tlog.Hash{}) {
			t.Errorf("root of %d entries: %v, %v, %v", n, root, err, cerr)
		}
	}
}
