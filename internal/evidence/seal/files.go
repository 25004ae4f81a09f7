package seal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// files are those of one log, as they lie on disk. Nothing of what they say is taken for true
// before it was compared with a checkpoint.
type files struct{ dir string }

// tile is torchwood's for a tree of whatever size that has it: where the wider tile is there
// already, partial ones may have been removed.
func (f files) tile(t tlog.Tile) ([]byte, error) {
	data, err := f.read(torchwood.TilePath(t))
	if errors.Is(err, fs.ErrNotExist) && t.W < torchwood.TileWidth {
		full := t
		full.W = torchwood.TileWidth
		data, err = f.read(torchwood.TilePath(full))
	}
	if err != nil {
		return nil, err
	}
	cut := t.W * tlog.HashSize
	if t.L == -1 {
		if cut, err = widthOf(data, t.W); err != nil {
			return nil, fmt.Errorf("read %s: %w", torchwood.TilePath(t), err)
		}
	}
	if len(data) < cut {
		return nil, fmt.Errorf("read %s: it has %d bytes; must have %d", torchwood.TilePath(t), len(data), cut)
	}
	return data[:cut], nil
}

// widthOf is how many bytes the first n entries of a bundle take.
func widthOf(bundle []byte, n int) (int, error) {
	at := 0
	for range n {
		if len(bundle)-at < 2 {
			return 0, errors.New("fewer entries than there must be")
		}
		at += 2 + int(binary.BigEndian.Uint16(bundle[at:]))
		if at > len(bundle) {
			return 0, errors.New("an entry is cut off")
		}
	}
	return at, nil
}

func (f files) read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(f.dir, filepath.FromSlash(name)))
}

// ReadTiles, SaveTiles and ReadEndpoint are torchwood.TileReader.
func (f files) ReadTiles(_ context.Context, tiles []tlog.Tile) ([][]byte, error) {
	list := make([][]byte, 0, len(tiles))
	for _, t := range tiles {
		data, err := f.tile(t)
		if err != nil {
			return nil, err
		}
		list = append(list, data)
	}
	return list, nil
}

// SaveTiles has nothing to do.
func (files) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadEndpoint reads other files of the log.
func (f files) ReadEndpoint(_ context.Context, name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fmt.Errorf("path is %q; must be one within the log", name)
	}
	return f.read(name)
}

// hashes reads from the tiles of a tree of that size, without checking them.
func (f files) hashes(size int64) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		list := make([]tlog.Hash, 0, len(indexes))
		for _, i := range indexes {
			t := tlog.TileForIndex(torchwood.TileHeight, i)
			t.W = int(min(torchwood.TileWidth, size>>(torchwood.TileHeight*t.L)-t.N*torchwood.TileWidth))
			data, err := f.tile(t)
			if err != nil {
				return nil, err
			}
			h, err := tlog.HashFromTile(t, data, i)
			if err != nil {
				return nil, err
			}
			list = append(list, h)
		}
		return list, nil
	})
}

// entry is the record at an index, in a tree of that size.
func (f files) entry(index, size int64) ([]byte, error) {
	t := tlog.Tile{H: torchwood.TileHeight, L: -1, N: index / torchwood.TileWidth}
	t.W = int(min(torchwood.TileWidth, size-t.N*torchwood.TileWidth))
	data, err := f.tile(t)
	if err != nil {
		return nil, fmt.Errorf("read record %d of the log: %w", index, err)
	}
	start, err := widthOf(data, int(index%torchwood.TileWidth))
	if err != nil {
		return nil, fmt.Errorf("read record %d of the log: %w", index, err)
	}
	e, _, err := torchwood.ReadTileEntry(data[start:])
	if err != nil {
		return nil, fmt.Errorf("read record %d of the log: %w", index, err)
	}
	return e, nil
}

// checkpoint is one that was read, and whose signature by the log holds.
type checkpoint struct {
	signed []byte
	origin string
	tree   tlog.Tree
}

// checkpoint returns none, and no error, where there is no file.
func (f files) checkpoint(verifier string) (*checkpoint, error) {
	signed, err := f.read("checkpoint")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a checkpoint: %w", err)
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		return nil, fmt.Errorf("read a checkpoint: %w", err)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("open checkpoint of %s: %w", v.Name(), err)
	}
	c, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil {
		return nil, fmt.Errorf("read checkpoint of %s: %w", v.Name(), err)
	}
	if c.Origin != v.Name() {
		return nil, fmt.Errorf("checkpoint is of %q; must be of %q", c.Origin, v.Name())
	}
	return &checkpoint{signed: signed, origin: c.Origin, tree: c.Tree}, nil
}

// tilesOf lists what a tree of that size is made of, entries included, in the order of their names.
func tilesOf(size int64) []tlog.Tile {
	var list []tlog.Tile
	for _, t := range tlog.NewTiles(torchwood.TileHeight, 0, size) {
		list = append(list, t)
		if t.L == 0 {
			t.L = -1
			list = append(list, t)
		}
	}
	slices.SortFunc(list, func(a, b tlog.Tile) int { return strings.Compare(torchwood.TilePath(a), torchwood.TilePath(b)) })
	return list
}

// removeStale removes what Tessera was writing when a process ended or the disk was full: files
// that are named like one of its own with a random number behind.
func (f files) removeStale() (removed int, err error) {
	known := []string{"checkpoint", ".state/treeState", ".state/gcState", ".state/version"}
	err = filepath.WalkDir(f.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		relative, err := filepath.Rel(f.dir, name)
		if err != nil {
			return err
		}
		relative = filepath.ToSlash(relative)
		stale := false
		for _, k := range known {
			rest, is := strings.CutPrefix(relative, k)
			stale = stale || is && rest != "" && digits(rest)
		}
		if strings.HasPrefix(relative, "tile/") {
			_, err := torchwood.ParseTilePath(relative)
			stale = err != nil && digits(strings.TrimPrefix(path.Base(relative), "x"))
		}
		if !stale {
			return nil
		}
		removed++
		return os.Remove(name)
	})
	if err != nil {
		return removed, fmt.Errorf("remove files that were not finished: %w", err)
	}
	return removed, nil
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }
