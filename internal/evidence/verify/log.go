package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// opened is a log of which nothing is believed yet.
type opened struct {
	source     *Source
	checkpoint []byte
	claimed    torchwood.Checkpoint // unsigned
	genesis    record.Genesis
	first      record.Hash // of the record that the genesis is
	before     record.Hash // of the last record of the shard before, as the genesis has it
	// others are of the same log, and not longer: they must be its beginning.
	others []*opened
}

// errEmpty says that a log has no records yet. The sealer signs that too.
var errEmpty = errors.New("the log has no records yet")

// open reads the checkpoint and the first record, which say where the log belongs.
func open(ctx context.Context, s *Source) (*opened, error) {
	signed, err := s.files.read(ctx, "checkpoint", maxCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint: %w", err)
	}
	text, _, _ := strings.Cut(string(signed), "\n\n")
	claimed, err := torchwood.ParseCheckpoint(text + "\n")
	if err != nil {
		return nil, fmt.Errorf("the checkpoint is no checkpoint: %w", err)
	}
	o := &opened{source: s, checkpoint: signed, claimed: claimed}
	if claimed.N < 1 {
		return o, errEmpty
	}
	bundle, err := tile(ctx, s.files, tlog.Tile{H: torchwood.TileHeight, L: -1, W: int(min(claimed.N, torchwood.TileWidth))}, maxBundle)
	if err != nil {
		return o, err
	}
	line, _, err := torchwood.ReadTileEntry(bundle)
	if err != nil {
		return o, fmt.Errorf("the first entry cannot be read: %w", err)
	}
	r, err := record.Parse(line)
	if err != nil {
		return o, fmt.Errorf("the first record cannot be read: %w", err)
	}
	g, is := r.Body.(*record.Genesis)
	if !is {
		return o, fmt.Errorf("the first record is of kind %s; must be genesis", r.Body.Kind())
	}
	o.genesis, o.first, o.before = *g, record.HashOf(line), r.Prev
	_, cluster, replica, shard, err := volume.SplitOrigin(claimed.Origin)
	switch {
	case g.Origin != claimed.Origin:
		return o, fmt.Errorf("the first record is of log %q and the checkpoint of %q", g.Origin, claimed.Origin)
	case err != nil:
		return o, err
	case g.Cluster != cluster || g.Replica != replica || g.Shard != shard:
		return o, fmt.Errorf("the first record is of cluster %q, replica %q and shard %q; its origin is %q", g.Cluster, g.Replica, g.Shard, g.Origin)
	}
	return o, nil
}

// arrange puts the shards of each replica behind each other.
func arrange(list []*opened) {
	slices.SortStableFunc(list, func(a, b *opened) int {
		pa, na, _ := volume.ParseShard(a.genesis.Shard) // both were read without an error
		pb, nb, _ := volume.ParseShard(b.genesis.Shard)
		return cmp.Or(cmp.Compare(a.genesis.Cluster, b.genesis.Cluster), cmp.Compare(a.genesis.Replica, b.genesis.Replica),
			cmp.Compare(pa, pb), cmp.Compare(na, nb), cmp.Compare(a.claimed.Origin, b.claimed.Origin), cmp.Compare(b.claimed.N, a.claimed.N))
	})
}

// reading is what verifying logs has come to.
type reading struct {
	trust    *Trust
	audit    *Audit              // nil without one
	announce map[string][]string // keys of logs that verified logs have announced, by origin
	trusted  map[string]string   // how far: TrustChained or TrustOwn
	problems []Problem
	newer    []Problem
}

func (r *reading) problem(log string, seq int64, what string) {
	r.problems = append(r.problems, Problem{log, seq, what})
}

// keysOf are those that may sign the log, and where they are known from.
func (r *reading) keysOf(o *opened) ([]string, string) {
	origin := o.claimed.Origin
	if keys := r.trust.keys[origin]; len(keys) > 0 {
		return keys, TrustGiven
	}
	if keys := r.announce[origin]; len(keys) > 0 {
		return keys, r.trusted[origin]
	}
	if r.trust.given() {
		return nil, ""
	}
	return o.genesis.Keys, TrustOwn
}

// tail is where a verified log ends, for the shard behind it.
type tail struct {
	origin string
	size   uint64
	last   record.Hash
	closed bool
	next   string
}

// verify believes a log, or says why not. It calls take with each record that stands in its place. A
// log with a problem is returned as well, as far as it was read.
func (r *reading) verify(ctx context.Context, o *opened, before *tail, take func(*Log, record.Record) error) (*Log, *tail, error) {
	origin := o.claimed.Origin
	log := &Log{Origin: origin, Cluster: o.genesis.Cluster, Replica: o.genesis.Replica, Shard: o.genesis.Shard, Checkpoint: string(o.checkpoint),
		PrevOrigin: o.genesis.PrevOrigin, PrevSize: o.genesis.PrevSize, Pseudonyms: o.genesis.Pseudonyms, Cosignatures: []Cosignature{}, Boots: []string{}, Kinds: []KindCount{}, Clock: Clock{Declarations: []Declaration{}}}
	c, believed := r.believe(o, log)
	if !believed || !r.links(o, before) {
		return log, nil, nil
	}
	f := follower{reading: r, log: log, first: o.first, chain: record.Begin(o.before), take: take, kinds: map[string]uint64{}, boots: map[string]bool{}}
	var sizes []int64
	for _, other := range o.others {
		sizes = append(sizes, other.claimed.N)
	}
	root, roots, err := entries(ctx, o.source.files, c.N, sizes, f.entry)
	if err != nil {
		if ctx.Err() != nil {
			return log, nil, ctx.Err()
		}
		var d *damaged
		seq := int64(-1)
		if errors.As(err, &d) {
			seq = d.seq
		}
		r.problem(origin, seq, err.Error())
		return log, nil, nil
	}
	if root != c.Hash {
		r.problem(origin, -1, fmt.Sprintf("the entries make the root %s and the checkpoint says %s", root, c.Hash))
		return log, nil, nil
	}
	r.compare(o, roots)
	f.finish()
	if err := r.manifest(ctx, o, log); err != nil {
		r.problem(origin, -1, err.Error())
	}
	return log, &tail{origin, uint64(c.N), f.chain.Last(), log.Closed, log.Next}, nil
}

// believe takes the checkpoint over into log if it is signed as it must be.
func (r *reading) believe(o *opened, log *Log) (torchwood.Checkpoint, bool) {
	keys, trust := r.keysOf(o)
	c, key, cosignatures, err := r.trust.checkpoint(o.checkpoint, log.Origin, keys)
	if err != nil {
		r.problem(log.Origin, -1, "the checkpoint is not signed as it must be: "+err.Error())
		return c, false
	}
	log.Size, log.Root, log.Key, log.Trust, log.Cosignatures = uint64(c.N), c.Hash.String(), key, trust, cosignatures
	return c, true
}

// links tells whether the log goes on where the one before it, if it is here, has ended.
func (r *reading) links(o *opened, before *tail) bool {
	g := &o.genesis
	if before == nil || g.PrevOrigin != before.origin {
		return true
	}
	switch {
	case g.PrevSize != before.size:
		r.problem(g.Origin, 0, fmt.Sprintf("it follows %d records of %s, of which %d are here", g.PrevSize, before.origin, before.size))
	case o.before != before.last:
		r.problem(g.Origin, 0, "it follows another last record of "+before.origin)
	case !before.closed || before.next != g.Origin:
		r.problem(g.Origin, 0, before.origin+" was not closed in favour of it")
	default:
		return true
	}
	return false
}

// follower follows the records of one log.
type follower struct {
	*reading
	log    *Log
	first  record.Hash // of the first record, as the log was opened by
	chain  record.Chain
	take   func(*Log, record.Record) error
	kinds  map[string]uint64
	boots  map[string]bool
	newerN int
	halted bool
}

// entry never fails, so that the root is over all entries whatever they are.
func (f *follower) entry(seq int64, line []byte) error {
	if f.halted {
		return nil
	}
	if seq == 0 && record.HashOf(line) != f.first {
		f.halted = true
		f.problem(f.log.Origin, seq, "the first record is another than a moment ago")
		return nil
	}
	r, next, err := f.chain.Follow(line)
	switch {
	case errors.Is(err, record.ErrUnknownKind):
		f.chain = next
		if f.newerN++; f.newerN == 1 {
			f.newer = append(f.newer, Problem{f.log.Origin, seq, "a record of a kind that this version does not know; a newer Meshvakt is needed"})
		}
		return nil
	case errors.Is(err, record.ErrUnknownVersion):
		f.halted = true
		f.newer = append(f.newer, Problem{f.log.Origin, seq, "a record of a format that this version does not know; a newer Meshvakt is needed"})
		return nil
	case err != nil:
		f.halted = true
		f.problem(f.log.Origin, seq, err.Error())
		return nil
	}
	f.chain = next
	if f.audit != nil {
		if err := f.audit.agrees(f.log.Origin, r.Seq, next.Last()); err != nil {
			f.problem(f.log.Origin, seq, err.Error())
		}
	}
	f.kinds[string(r.Body.Kind())]++
	if !f.boots[r.Boot] {
		f.boots[r.Boot] = true
		f.log.Boots = append(f.log.Boots, r.Boot)
	}
	if k, is := r.Body.(*record.KeyCreated); is && k.For == "log" {
		f.announced(k.VerifierKey)
	}
	if err := f.take(f.log, r); err != nil {
		f.halted = true
		f.problem(f.log.Origin, seq, err.Error())
	}
	return nil
}

// announced keeps the key of a log to come. It is believed no further than the log that it stands in.
func (f *follower) announced(key string) {
	name, _, _ := strings.Cut(key, "+")
	_, cluster, replica, _, err := volume.SplitOrigin(name)
	if name == f.log.Origin || err != nil || cluster != f.log.Cluster || replica != f.log.Replica {
		return // a log speaks for the next one of its replica, and for no others
	}
	trust := TrustOwn
	if f.log.Trust != TrustOwn {
		trust = TrustChained
	}
	f.announce[name] = append(f.announce[name], key)
	f.trusted[name] = trust
}

func (f *follower) finish() {
	for _, k := range record.Kinds() {
		if n := f.kinds[string(k)]; n > 0 {
			f.log.Kinds = append(f.log.Kinds, KindCount{string(k), n})
		}
	}
}

// once drops logs that are here more than once for the longest of each. List is arranged.
func once(list []*opened) []*opened {
	var kept []*opened
	for _, o := range list {
		if n := len(kept); n > 0 && kept[n-1].claimed.Origin == o.claimed.Origin {
			kept[n-1].others = append(kept[n-1].others, o)
			continue
		}
		kept = append(kept, o)
	}
	return kept
}

// compare looks whether the other states of a log that are here are the beginning of this one, by the roots of what was read of
// it. It does so when the log is verified, and not before: its keys may be known only then, from the log before it.
func (r *reading) compare(o *opened, roots map[int64]tlog.Hash) {
	for _, other := range o.others {
		keys, _ := r.keysOf(other)
		if _, _, _, err := r.trust.checkpoint(other.checkpoint, other.claimed.Origin, keys); err != nil {
			r.problem(o.claimed.Origin, -1, "one of two checkpoints of the log is not signed as it must be: "+err.Error())
			continue
		}
		if roots[other.claimed.N] != other.claimed.Hash {
			r.problem(o.claimed.Origin, -1, fmt.Sprintf("two checkpoints of the log, of %d and of %d records, contradict each other: the log was rewritten", other.claimed.N, o.claimed.N))
		}
	}
}
