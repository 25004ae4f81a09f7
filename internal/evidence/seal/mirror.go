package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"

	"github.com/meshvakt/meshvakt/internal/evidence/store"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// Store is where a Mirror puts files, as package store has it. A file that is not there is
// fs.ErrNotExist; one that is to be written once and is there, fs.ErrExist.
type Store interface {
	Read(ctx context.Context, name string, most int64) ([]byte, error)
	Size(ctx context.Context, name string) (int64, error)
	Write(ctx context.Context, f *store.File) error
	Remove(ctx context.Context, name string) error
}

// Mirror copies logs to a store: tiles first, then the checkpoint that needs them; and bundles and
// tombstones. They lie as on the volume, under the name of the log without its shard, so that one
// store takes the logs of a fleet:
//
//	NAME/CLUSTER/REPLICA/logs/SHARD/checkpoint, tile/…, keys
//	NAME/CLUSTER/REPLICA/bundles/SHARD.zip
//	NAME/CLUSTER/REPLICA/tombstones/SHARD
//
// Nothing is removed there but partial tiles whose full one is there. What the store says is not
// trusted: it is compared with the log, and where it has another, nothing is put.
type Mirror struct {
	Store Store
	Dir   volume.Dir
	// LockFor is how long after the end of its period a full tile and a bundle are locked; 0: not.
	LockFor time.Duration
	Log     *slog.Logger

	shards map[string]*mirrored
	kept   map[string]bool // bundles and tombstones that are there
	unkept bool            // the store has refused to remove something
}

// mirrored is what this process knows of the copy of one log.
type mirrored struct {
	checkpoint
	put     map[string]bool // of what the checkpoint does not cover yet; a turn may take several tries
	partial []tlog.Tile     // that are there, and are not full ones yet
}

const (
	// maxCheckpoint is how much of an answer is read.
	maxCheckpoint = 1 << 20
	// maxTile has room for 256 of the largest entries that C2SP tlog-tiles allows.
	maxTile = 256 * (2 + 1<<16)
	// mirrorCalls are under way at once, each with a tile in memory.
	mirrorCalls = 4

	immutable = "public, max-age=31536000, immutable"
)

// Turn copies what is new of all that is here.
func (m *Mirror) Turn(ctx context.Context) error {
	shards, err := shardsIn(m.Dir.Logs())
	if err != nil {
		return err
	}
	var failed error
	for _, shard := range shards {
		if exists(m.Dir.Tombstone(shard)) {
			continue
		}
		err := m.log(ctx, shard)
		if err == nil {
			err = m.bundle(ctx, shard)
		}
		if errors.Is(err, errNoLog) || errors.Is(err, fs.ErrNotExist) && !exists(m.Dir.Log(shard)) {
			continue
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("mirror shard %s: %w", shard, err))
		}
	}
	return errors.Join(failed, m.tombstones(ctx))
}

// placeOf is where all of a log's replica lies.
func placeOf(origin string) (base, shard string, err error) {
	name, cluster, replica, shard, err := volume.SplitOrigin(origin)
	return path.Join(name, cluster, replica), shard, err
}

func (m *Mirror) log(ctx context.Context, shard string) error {
	key, err := existingKey(m.Dir, shard)
	if err != nil {
		return err
	}
	log := files{m.Dir.Log(shard)}
	here, err := log.checkpoint(key.Verifier)
	if err != nil || here == nil || here.tree.N == 0 {
		return err
	}
	base, _, err := placeOf(here.origin)
	if err != nil {
		return err
	}
	base = path.Join(base, "logs", shard)
	there := m.shards[shard]
	if there == nil {
		if there, err = m.there(ctx, base, key, here.tree, log); err != nil {
			return err
		}
		if m.shards == nil {
			m.shards = map[string]*mirrored{}
		}
		m.shards[shard] = there
	}
	if bytes.Equal(there.signed, here.signed) {
		return nil // a witness may sign an unchanged tree anew
	}
	lock, err := m.lock(shard)
	if err != nil {
		return err
	}
	if err := m.tiles(ctx, base, log, there, here.tree.N, lock); err != nil {
		return err
	}
	if err := m.write(ctx, &store.File{Name: base + "/keys", Type: "text/plain; charset=utf-8", Cache: "no-cache"}, []byte(key.Verifier+"\n")); err != nil {
		return err
	}
	if err := m.write(ctx, &store.File{Name: base + "/checkpoint", Type: "text/plain; charset=utf-8", Cache: "no-cache"}, here.signed); err != nil {
		return err
	}
	there.checkpoint = *here
	clear(there.put)
	return m.sweep(ctx, base, there)
}

// lock is until when what never changes of a shard is locked.
func (m *Mirror) lock(shard string) (time.Time, error) {
	if m.LockFor <= 0 {
		return time.Time{}, nil
	}
	span, err := spanOf(shard)
	return span.To.Add(m.LockFor), err
}

// tiles puts those that a tree of that size needs and the one that is there does not have, entries
// before hashes.
func (m *Mirror) tiles(ctx context.Context, base string, log files, there *mirrored, size int64, lock time.Time) error {
	var failed error
	for _, list := range tilesBetween(there.tree.N, size) {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(mirrorCalls)
		results := make([]bool, len(list))
		for i, t := range list {
			if there.put[torchwood.TilePath(t)] {
				continue
			}
			group.Go(func() error {
				data, err := log.tile(t)
				if err == nil {
					f := &store.File{Name: base + "/" + torchwood.TilePath(t), Type: "application/octet-stream", Cache: immutable, Once: true}
					if t.W == torchwood.TileWidth {
						f.Until = lock
					}
					err = m.once(ctx, f, data)
				}
				results[i] = err == nil
				return err
			})
		}
		failed = group.Wait()
		for i, t := range list {
			if !results[i] {
				continue
			}
			there.put[torchwood.TilePath(t)] = true
			if t.W < torchwood.TileWidth {
				there.partial = append(there.partial, t)
			}
		}
		if failed != nil {
			return failed
		}
	}
	return nil
}

// once writes what never changes. What is there already, as from a turn that was interrupted, must
// be the same.
func (m *Mirror) once(ctx context.Context, f *store.File, data []byte) error {
	err := m.write(ctx, f, data)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	has, err := m.Store.Read(ctx, f.Name, maxTile)
	if err != nil {
		return err
	}
	if !bytes.Equal(has, data) {
		return fmt.Errorf("the mirror has another %s, of %d bytes; must have that of this log; it was left alone: find out who has written or changed it", f.Name, len(has))
	}
	return nil
}

func (m *Mirror) write(ctx context.Context, f *store.File, data []byte) error {
	f.Data, f.Size = bytes.NewReader(data), int64(len(data))
	return m.Store.Write(ctx, f)
}

// sweep removes partial tiles whose full one is there, as C2SP tlog-tiles lets a log do; otherwise
// they would come to many times the size of the log.
func (m *Mirror) sweep(ctx context.Context, base string, there *mirrored) error {
	var left []tlog.Tile
	for _, t := range there.partial {
		level := max(t.L, 0)
		full := there.tree.N>>(torchwood.TileHeight*level) >= (t.N+1)*torchwood.TileWidth
		if !full || m.unkept {
			if !full {
				left = append(left, t)
			}
			continue
		}
		if err := m.Store.Remove(ctx, base+"/"+torchwood.TilePath(t)); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// A store that lets nobody remove anything is a good one.
			m.unkept = true
			m.Log.InfoContext(ctx, "the mirror keeps partial tiles whose full one is there; this process does not ask again", "err", err.Error())
		}
	}
	there.partial = left
	return nil
}

// there is what the mirror has of a log, which must be a part of the one that is here.
func (m *Mirror) there(ctx context.Context, base string, key volume.LogKey, here tlog.Tree, log files) (*mirrored, error) {
	none := &mirrored{put: map[string]bool{}}
	body, err := m.Store.Read(ctx, base+"/checkpoint", maxCheckpoint)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(key.Verifier)
	if err != nil {
		return nil, err
	}
	c, _, err := torchwood.VerifyCheckpoint(body, torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(v.Name()), torchwood.SingleVerifierPolicy(v)))
	if err != nil {
		return nil, fmt.Errorf("the mirror has a checkpoint that is not of this log: %w", err)
	}
	if c.N > here.N {
		return nil, fmt.Errorf("the mirror has %d records, here are %d; the log was set back", c.N, here.N)
	}
	if c.N == 0 {
		return none, nil
	}
	proof, err := tlog.ProveTree(here.N, c.N, log.hashes(here.N))
	if err == nil {
		err = tlog.CheckTree(proof, here.N, here.Hash, c.N, c.Hash)
	}
	if err != nil {
		return nil, fmt.Errorf("the %d records of the mirror are not those of this log: %w", c.N, err)
	}
	none.tree = c.Tree
	return none, nil
}

// tilesBetween are those that a tree needs and a smaller one does not have: of entries, and of hashes.
func tilesBetween(from, to int64) [2][]tlog.Tile {
	var list [2][]tlog.Tile
	for _, t := range tlog.NewTiles(torchwood.TileHeight, from, to) {
		list[1] = append(list[1], t)
		if t.L == 0 {
			t.L = -1
			list[0] = append(list[0], t)
		}
	}
	return list
}

// bundle copies the bundle of a shard, where there is one.
func (m *Mirror) bundle(ctx context.Context, shard string) (err error) {
	if !exists(m.Dir.Bundle(shard)) {
		return nil
	}
	key, err := existingKey(m.Dir, shard)
	if err != nil {
		return err
	}
	v, err := note.NewVerifier(key.Verifier)
	if err != nil {
		return err
	}
	base, _, err := placeOf(v.Name())
	if err != nil {
		return err
	}
	f := &store.File{Name: base + "/bundles/" + shard + ".zip", Type: "application/zip", Cache: immutable, Once: true}
	if f.Until, err = m.lock(shard); err != nil {
		return err
	}
	return m.keep(ctx, f, m.Dir.Bundle(shard))
}

// tombstones copies those that are there.
func (m *Mirror) tombstones(ctx context.Context) error {
	list, err := os.ReadDir(m.Dir.Tombstones())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mirror tombstones: %w", err)
	}
	for _, e := range list {
		if _, _, err := volume.ParseShard(e.Name()); err != nil {
			continue // is being written
		}
		text, err := os.ReadFile(m.Dir.Tombstone(e.Name()))
		if err != nil {
			return fmt.Errorf("mirror a tombstone: %w", err)
		}
		var t Tombstone
		if err := json.Unmarshal(text, &t); err != nil {
			return fmt.Errorf("mirror the tombstone of %s: %w", e.Name(), err)
		}
		base, shard, err := placeOf(t.Origin)
		if err != nil {
			return fmt.Errorf("mirror the tombstone of %s: %w", e.Name(), err)
		}
		f := &store.File{Name: base + "/tombstones/" + shard, Type: "application/json", Cache: immutable, Once: true}
		if err := m.keep(ctx, f, m.Dir.Tombstone(e.Name())); err != nil {
			return fmt.Errorf("mirror the tombstone of %s: %w", e.Name(), err)
		}
	}
	return nil
}

// keep copies a file that never changes, and may be large: of one that is there, the length is
// compared.
func (m *Mirror) keep(ctx context.Context, f *store.File, from string) (err error) {
	if m.kept[f.Name] {
		return nil
	}
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	size, err := m.Store.Size(ctx, f.Name)
	switch {
	case err == nil && size != info.Size():
		return fmt.Errorf("the mirror has another %s, of %d bytes; must be the one here, of %d; it was left alone: find out who has written or changed it", f.Name, size, info.Size())
	case errors.Is(err, fs.ErrNotExist):
		f.Data, f.Size = file, info.Size()
		if err := m.Store.Write(ctx, f); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if m.kept == nil {
		m.kept = map[string]bool{}
	}
	m.kept[f.Name] = true
	return nil
}
