package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// maxBundle is 256 entries, the longest there are, with their lengths.
const maxBundle = torchwood.TileWidth * (record.MaxLine + 2)

// damaged is what is wrong with the bytes of a log, as opposed to reading them having failed.
type damaged struct {
	seq  int64 // -1 where it is not about one record
	what string
}

func (d *damaged) Error() string { return d.what }

// tile reads the tile, or where the log has grown meanwhile the first part of the wider one.
func tile(ctx context.Context, f files, t tlog.Tile, most int) ([]byte, error) {
	text, err := f.read(ctx, torchwood.TilePath(t), most)
	if errors.Is(err, fs.ErrNotExist) && t.W < torchwood.TileWidth {
		t.W = torchwood.TileWidth
		text, err = f.read(ctx, torchwood.TilePath(t), most)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &damaged{-1, torchwood.TilePath(t) + " is missing"}
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", torchwood.TilePath(t), err)
	}
	return text, nil
}

// entries calls each with all entries of a log of size n, in their order, and returns the
// root over them. It holds one bundle at a time. The tiles of hashes must be what the entries
// make them: proofs are taken from them.
//
// It returns the roots at smaller sizes too. All are of what was read once: whoever serves a log may answer otherwise
// when asked again.
func entries(ctx context.Context, f files, n int64, sizes []int64, each func(seq int64, entry []byte) error) (tlog.Hash, map[int64]tlog.Hash, error) {
	e := edge{compared: f}
	roots := map[int64]tlog.Hash{}
	if err := e.read(ctx, f, n, func(seq int64, entry []byte) error {
		if slices.Contains(sizes, seq+1) {
			root, err := (&edge{levels: e.levels}).root(ctx)
			if err != nil {
				return err
			}
			roots[seq+1] = root
		}
		return each(seq, entry)
	}); err != nil {
		return tlog.Hash{}, nil, err
	}
	root, err := e.root(ctx)
	return root, roots, err
}

// read adds the entries of a log of size n.
func (e *edge) read(ctx context.Context, f files, n int64, each func(seq int64, entry []byte) error) error {
	for first := int64(0); first < n; first += torchwood.TileWidth {
		if err := ctx.Err(); err != nil {
			return err
		}
		w := int(min(torchwood.TileWidth, n-first))
		t := tlog.Tile{H: torchwood.TileHeight, L: -1, N: first / torchwood.TileWidth, W: w}
		rest, err := tile(ctx, f, t, maxBundle)
		if err != nil {
			return err
		}
		for i := range w {
			var entry []byte
			if entry, rest, err = torchwood.ReadTileEntry(rest); err != nil {
				return &damaged{first + int64(i), torchwood.TilePath(t) + " does not hold the entry: " + err.Error()}
			}
			if err := e.add(ctx, tlog.RecordHash(entry)); err != nil {
				return err
			}
			if err := each(first+int64(i), entry); err != nil {
				return err
			}
		}
		if len(rest) > 0 && w == torchwood.TileWidth {
			return &damaged{-1, torchwood.TilePath(t) + " holds more than 256 entries"}
		}
	}
	return nil
}

// edge is what is needed of a tree to make it longer: of each level of tiles, the hashes of
// the one that is not full yet.
type edge struct {
	levels [][]tlog.Hash
	full   []int64 // how many tiles of the level are behind
	// compared has the tiles of hashes that must say the same; nil if none are asked.
	compared files
}

func (e *edge) add(ctx context.Context, h tlog.Hash) error {
	for level := 0; ; level++ {
		if level == len(e.levels) {
			e.levels, e.full = append(e.levels, nil), append(e.full, 0)
		}
		e.levels[level] = append(e.levels[level], h)
		if len(e.levels[level]) < torchwood.TileWidth {
			return nil
		}
		if err := e.compare(ctx, level); err != nil {
			return err
		}
		h = treeHash(e.levels[level])
		e.levels[level] = e.levels[level][:0]
		e.full[level]++
	}
}

// compare reads the tile in hand.
func (e *edge) compare(ctx context.Context, level int) error {
	if e.compared == nil {
		return nil
	}
	hashes := e.levels[level]
	t := tlog.Tile{H: torchwood.TileHeight, L: level, N: e.full[level], W: len(hashes)}
	text, err := tile(ctx, e.compared, t, torchwood.TileWidth*tlog.HashSize)
	if err != nil {
		return err
	}
	want := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		want = append(want, h[:]...)
	}
	if !bytes.HasPrefix(text, want) {
		return &damaged{-1, torchwood.TilePath(t) + " has other hashes than those of the entries"}
	}
	return nil
}

func (e *edge) root(ctx context.Context) (tlog.Hash, error) {
	var root *tlog.Hash
	for level, hashes := range e.levels {
		if len(hashes) == 0 {
			continue
		}
		if err := e.compare(ctx, level); err != nil {
			return tlog.Hash{}, err
		}
		// What is below is the last and smallest subtree of this level, so it is joined with
		// what is left of it by the same rule of largest powers of two.
		if root != nil {
			joined := joinEdge(hashes, *root)
			root = &joined
			continue
		}
		h := treeHash(hashes)
		root = &h
	}
	if root == nil {
		return tlog.TreeHash(0, nil)
	}
	return *root, nil
}

// treeHash is the root over hashes of complete subtrees of one size.
func treeHash(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	k := 1
	for k*2 < len(hashes) {
		k *= 2
	}
	return tlog.NodeHash(treeHash(hashes[:k]), treeHash(hashes[k:]))
}

// joinEdge is the root over hashes of complete subtrees with one smaller subtree behind.
func joinEdge(hashes []tlog.Hash, last tlog.Hash) tlog.Hash {
	if len(hashes) == 0 {
		return last
	}
	k := 1
	for k*2 <= len(hashes) {
		k *= 2
	}
	return tlog.NodeHash(treeHash(hashes[:k]), joinEdge(hashes[k:], last))
}
