package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Proven is a record that a checkpoint is known to be over.
type Proven struct {
	Origin string
	Seq    uint64
	Size   uint64 // of the log
	Root   string
}

// Prove makes a C2SP tlog-proof of one record, and returns its line too. Nothing of other
// records is in it but hashes.
func Prove(ctx context.Context, sources []*Source, trust *Trust, origin string, seq uint64) (proof, line []byte, err error) {
	for _, s := range sources {
		o, err := open(ctx, s)
		if err != nil {
			if o != nil && o.claimed.Origin != origin {
				continue
			}
			return nil, nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		if o.claimed.Origin != origin {
			continue
		}
		return o.prove(ctx, trust, seq)
	}
	return nil, nil, fmt.Errorf("log %s is not among those that are given", origin)
}

func (o *opened) prove(ctx context.Context, trust *Trust, seq uint64) (proof, line []byte, err error) {
	r := &reading{trust: trust}
	keys, _ := r.keysOf(o)
	c, _, _, err := trust.checkpoint(o.checkpoint, o.claimed.Origin, keys)
	if err != nil {
		return nil, nil, fmt.Errorf("log %s: the checkpoint is not signed as it must be: %w", o.claimed.Origin, err)
	}
	if seq >= uint64(c.N) {
		return nil, nil, fmt.Errorf("log %s has %d records, as of its checkpoint; the first is 0", c.Origin, c.N)
	}
	path, err := tlog.ProveRecord(c.N, int64(seq), tlog.TileHashReader(c.Tree, tileReader{ctx, o.source.files}))
	if err != nil {
		return nil, nil, fmt.Errorf("log %s: prove record %d: %w", c.Origin, seq, err)
	}
	if line, err = entry(ctx, o.source.files, c.N, int64(seq)); err != nil {
		return nil, nil, fmt.Errorf("log %s: read record %d: %w", c.Origin, seq, err)
	}
	if err := tlog.CheckRecord(path, c.N, c.Hash, int64(seq), tlog.RecordHash(line)); err != nil {
		return nil, nil, fmt.Errorf("log %s: record %d is not the one of the checkpoint: %w", c.Origin, seq, err)
	}
	return torchwood.FormatProof(int64(seq), path, o.checkpoint), line, nil
}

func entry(ctx context.Context, f files, n, seq int64) ([]byte, error) {
	first := seq / torchwood.TileWidth * torchwood.TileWidth
	t := tlog.Tile{H: torchwood.TileHeight, L: -1, N: first / torchwood.TileWidth, W: int(min(torchwood.TileWidth, n-first))}
	rest, err := tile(ctx, f, t, maxBundle)
	var line []byte
	for i := first; i <= seq && err == nil; i++ {
		line, rest, err = torchwood.ReadTileEntry(rest)
	}
	return line, err
}

// tileReader is for tlog, which checks what it reads against the tree.
type tileReader struct {
	ctx   context.Context
	files files
}

func (tileReader) Height() int { return torchwood.TileHeight }

func (t tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, want := range tiles {
		text, err := tile(t.ctx, t.files, want, torchwood.TileWidth*tlog.HashSize)
		if err != nil {
			return nil, err
		}
		if len(text) < want.W*tlog.HashSize {
			return nil, &damaged{-1, torchwood.TilePath(want) + " is too short"}
		}
		all = append(all, text[:want.W*tlog.HashSize])
	}
	return all, nil
}

func (tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// CheckProof verifies that a record, as one line, is in the log whose checkpoint is in proof. It
// shows that the record is there, and not what else is.
func CheckProof(trust *Trust, proof, line []byte) (Proven, error) {
	line = []byte(strings.TrimSuffix(string(line), "\n"))
	r, err := record.Parse(line)
	if err != nil {
		return Proven{}, fmt.Errorf("the record cannot be read: %w", err)
	}
	_, signed, ok := strings.Cut(string(proof), "\n\n")
	if !ok {
		return Proven{}, errors.New("the proof has no checkpoint; must be as meshvakt evidence prove writes it")
	}
	origin, _, _ := strings.Cut(signed, "\n")
	keys := trust.keys[origin]
	if len(keys) == 0 {
		return Proven{}, fmt.Errorf("the key of log %q is not known; give it with --policy or --key", origin)
	}
	c, key, _, err := trust.checkpoint([]byte(signed), origin, keys)
	if err != nil {
		return Proven{}, fmt.Errorf("the checkpoint of the proof is not signed as it must be: %w", err)
	}
	policy, err := trust.policyFor(key)
	if err != nil {
		return Proven{}, err
	}
	if err := torchwood.VerifyProof(policy, tlog.RecordHash(line), proof); err != nil {
		return Proven{}, fmt.Errorf("the record is not the one that the proof is of: %w", err)
	}
	if !strings.HasPrefix(string(proof), fmt.Sprintf("c2sp.org/tlog-proof@v1\nindex %d\n", r.Seq)) {
		return Proven{}, fmt.Errorf("the record says that it is number %d of its log, and the proof is of another", r.Seq)
	}
	return Proven{origin, r.Seq, uint64(c.N), c.Hash.String()}, nil
}
