package seal

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// bundleFormat is of the manifest.
const bundleFormat = 1

// Manifest says what a bundle is of. Nothing in it is needed to verify the log, and nothing in it
// is signed: it is for people, and to find out which file was damaged on its way.
type Manifest struct {
	Format   int               `json:"format"`
	Origin   string            `json:"origin"`
	Cluster  string            `json:"cluster"`
	Replica  string            `json:"replica"`
	Shard    string            `json:"shard"`
	Period   Span              `json:"period"`
	Size     int64             `json:"size"`
	Root     tlog.Hash         `json:"root"` // base64, as in the checkpoint
	Closed   bool              `json:"closed"`
	Previous *Predecessor      `json:"previous,omitempty"`
	Kinds    map[string]uint64 `json:"kinds"`
	Files    []File            `json:"files"`
}

// Span is a time, without its end.
type Span struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Predecessor is the shard before, as the first record names it.
type Predecessor struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	Last   string `json:"last"` // hash of its last record, in hex
}

// File is one of a bundle.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// survey is a log that was verified from its first record to the last one of its checkpoint.
type survey struct {
	files
	key        volume.LogKey
	checkpoint *checkpoint
	genesis    *record.Genesis
	previous   record.Hash
	closed     bool
	kinds      map[string]uint64
}

// errUnsealed says that a log has no record in a checkpoint.
var errUnsealed = errors.New("nothing is sealed yet")

// inspect verifies the log of a shard as of its checkpoint.
func inspect(ctx context.Context, dir volume.Dir, shard string) (*survey, error) {
	key, err := existingKey(dir, shard)
	if err != nil {
		return nil, err
	}
	s := &survey{files: files{dir.Log(shard)}, key: key, kinds: map[string]uint64{}}
	if s.checkpoint, err = s.files.checkpoint(key.Verifier); err != nil {
		return nil, err
	}
	if s.checkpoint == nil || s.checkpoint.tree.N == 0 {
		return nil, fmt.Errorf("log of shard %s: %w", shard, errUnsealed)
	}
	client, err := torchwood.NewClient(s.files, torchwood.WithTimeout(time.Hour))
	if err != nil {
		return nil, err
	}
	chain := record.Chain{}
	for i, line := range client.AllEntries(ctx, s.checkpoint.tree, 0) {
		if i == 0 {
			if chain, err = s.first(line); err != nil {
				return nil, fmt.Errorf("log of shard %s: %w", shard, err)
			}
		}
		r, next, err := chain.Follow(line)
		if err != nil && !errors.Is(err, record.ErrUnknownKind) {
			return nil, fmt.Errorf("log of shard %s: %w", shard, err)
		}
		kind := "unknown"
		if r.Body != nil {
			kind = string(r.Body.Kind())
		}
		s.kinds[kind]++
		chain = next
	}
	if err := client.Err(); err != nil {
		return nil, fmt.Errorf("verify log of shard %s: %w", shard, err)
	}
	if chain.Size() != uint64(s.checkpoint.tree.N) {
		return nil, fmt.Errorf("verify log of shard %s: %d records; its checkpoint says %d", shard, chain.Size(), s.checkpoint.tree.N)
	}
	s.closed = chain.Closed()
	return s, nil
}

func (s *survey) first(line []byte) (record.Chain, error) {
	r, err := record.Parse(line)
	if err != nil {
		return record.Chain{}, err
	}
	genesis, is := r.Body.(*record.Genesis)
	if !is || genesis.Origin != s.checkpoint.origin {
		return record.Chain{}, fmt.Errorf("its first record is not the %s of %s", record.KindGenesis, s.checkpoint.origin)
	}
	s.genesis, s.previous = genesis, r.Prev
	return record.Begin(r.Prev), nil
}

// WriteBundle writes the log of a shard as of its last checkpoint as a zip: checkpoint, keys,
// manifest.json, and tiles as C2SP tlog-tiles lays them out. The same log makes the same bytes. It
// is verified before, record by record.
func WriteBundle(ctx context.Context, w io.Writer, dir volume.Dir, shard string) (*Manifest, error) {
	s, err := inspect(ctx, dir, shard)
	if err != nil {
		return nil, err
	}
	return s.bundle(w)
}

func (s *survey) bundle(w io.Writer) (*Manifest, error) {
	m, err := s.manifest()
	if err != nil {
		return nil, err
	}
	z := zip.NewWriter(w)
	add := func(name string, data []byte) error {
		// Stored, as what a compressor makes of it changes from one version to the next.
		f, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: m.Period.From})
		if err == nil {
			_, err = f.Write(data)
		}
		if err != nil {
			return fmt.Errorf("write %s into a bundle: %w", name, err)
		}
		return nil
	}
	keep := func(name string, data []byte) error {
		sum := sha256.Sum256(data)
		m.Files = append(m.Files, File{name, int64(len(data)), hex.EncodeToString(sum[:])})
		return add(name, data)
	}
	if err := errors.Join(keep("checkpoint", s.checkpoint.signed), keep("keys", []byte(s.key.Verifier+"\n"))); err != nil {
		return nil, err
	}
	for _, t := range tilesOf(s.checkpoint.tree.N) {
		data, err := s.tile(t)
		if err != nil {
			return nil, fmt.Errorf("read a tile for a bundle: %w", err)
		}
		if err := keep(torchwood.TilePath(t), data); err != nil {
			return nil, err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write a manifest: %w", err)
	}
	if err := errors.Join(add("manifest.json", append(text, '\n')), z.Close()); err != nil {
		return nil, err
	}
	return m, nil
}

func (s *survey) manifest() (*Manifest, error) {
	_, cluster, replica, shard, err := volume.SplitOrigin(s.checkpoint.origin)
	if err != nil {
		return nil, err
	}
	span, err := spanOf(shard)
	if err != nil {
		return nil, err
	}
	m := &Manifest{
		Format: bundleFormat, Origin: s.checkpoint.origin, Cluster: cluster, Replica: replica, Shard: shard, Period: span,
		Size: s.checkpoint.tree.N, Root: s.checkpoint.tree.Hash, Closed: s.closed, Kinds: s.kinds,
	}
	if s.genesis.PrevOrigin != "" {
		m.Previous = &Predecessor{s.genesis.PrevOrigin, s.genesis.PrevSize, s.previous.String()}
	}
	return m, nil
}

func spanOf(shard string) (Span, error) {
	period, _, err := volume.ParseShard(shard)
	if err != nil {
		return Span{}, err
	}
	from, to, err := period.Bounds()
	return Span{from, to}, err
}

// storeBundle writes the bundle of a shard to its place, whole or not at all.
func storeBundle(dir volume.Dir, shard string, s *survey) (m *Manifest, err error) {
	name := dir.Bundle(shard)
	temporary := name + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the bundle of shard %s: %w", shard, err)
	}
	m, err = s.bundle(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("make the bundle of shard %s: %w", shard, err), os.Remove(temporary))
	}
	if err := errors.Join(os.Rename(temporary, name), syncDir(filepath.Dir(name))); err != nil {
		return nil, fmt.Errorf("make the bundle of shard %s: %w", shard, err)
	}
	return m, nil
}
