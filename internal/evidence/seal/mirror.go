package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// Mirror copies logs to a server that takes PUT, and gives back with GET what was put: tiles
// first, then the checkpoint that needs them. Nothing is ever removed there. What the server says
// is not trusted: it is compared with the log, and where it has another, nothing is put.
type Mirror struct {
	// URL is what the logs of this replica are under, as in https://mirror.example.org/cluster/replica.
	URL string
	// Authorization is asked for the header of that name before each turn; nil: none.
	Authorization func() (string, error)
	Dir           volume.Dir
	Client        *http.Client

	done map[string]checkpoint // what this process has put
}

// mirrorPatience is for one file.
const mirrorPatience = 30 * time.Second

// maxCheckpoint is how much of an answer is read.
const maxCheckpoint = 1 << 20

// Turn copies what is new in all logs that are here.
func (m *Mirror) Turn(ctx context.Context) error {
	shards, err := shardsIn(m.Dir.Logs())
	if err != nil {
		return err
	}
	authorization := ""
	if m.Authorization != nil {
		if authorization, err = m.Authorization(); err != nil {
			return fmt.Errorf("mirror: %w", err)
		}
	}
	var failed error
	for _, shard := range shards {
		if exists(m.Dir.Tombstone(shard)) {
			continue
		}
		err := m.shard(ctx, shard, authorization)
		if errors.Is(err, errNoLog) || errors.Is(err, fs.ErrNotExist) && !exists(m.Dir.Log(shard)) {
			continue
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("mirror shard %s: %w", shard, err))
		}
	}
	return failed
}

func (m *Mirror) shard(ctx context.Context, shard, authorization string) error {
	key, err := existingKey(m.Dir, shard)
	if err != nil {
		return err
	}
	log := files{m.Dir.Log(shard)}
	here, err := log.checkpoint(key.Verifier)
	if err != nil || here == nil || here.tree.N == 0 {
		return err
	}
	put, known := m.done[shard]
	there := put.tree
	if !known {
		if there, err = m.there(ctx, shard, authorization, key, here.tree, log); err != nil {
			return err
		}
	}
	if bytes.Equal(put.signed, here.signed) {
		return nil // a witness may sign an unchanged tree anew
	}
	for _, t := range tilesBetween(there.N, here.tree.N) {
		data, err := log.tile(t)
		if err != nil {
			return err
		}
		if err := m.put(ctx, shard+"/"+torchwood.TilePath(t), authorization, data); err != nil {
			return err
		}
	}
	if err := m.put(ctx, shard+"/checkpoint", authorization, here.signed); err != nil {
		return err
	}
	if m.done == nil {
		m.done = map[string]checkpoint{}
	}
	m.done[shard] = *here
	return nil
}

// there is the tree that the mirror has, which must be a part of the one that is here.
func (m *Mirror) there(ctx context.Context, shard, authorization string, key volume.LogKey, here tlog.Tree, log files) (tlog.Tree, error) {
	status, body, err := m.do(ctx, http.MethodGet, shard+"/checkpoint", authorization, nil)
	if err != nil {
		return tlog.Tree{}, err
	}
	switch status {
	case http.StatusOK:
	case http.StatusNotFound:
		return tlog.Tree{}, nil
	default:
		return tlog.Tree{}, fmt.Errorf("the mirror answers %d to GET of its checkpoint; must be 200 or 404", status)
	}
	v, err := note.NewVerifier(key.Verifier)
	if err != nil {
		return tlog.Tree{}, err
	}
	c, _, err := torchwood.VerifyCheckpoint(body, torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(v.Name()), torchwood.SingleVerifierPolicy(v)))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("the mirror has a checkpoint that is not of this log: %w", err)
	}
	if c.N > here.N {
		return tlog.Tree{}, fmt.Errorf("the mirror has %d records, here are %d; the log was set back", c.N, here.N)
	}
	if c.N == 0 {
		return tlog.Tree{}, nil
	}
	proof, err := tlog.ProveTree(here.N, c.N, log.hashes(here.N))
	if err == nil {
		err = tlog.CheckTree(proof, here.N, here.Hash, c.N, c.Hash)
	}
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("the %d records of the mirror are not those of this log: %w", c.N, err)
	}
	return c.Tree, nil
}

// tilesBetween are those that a tree needs and a smaller one does not have, entries before hashes.
func tilesBetween(from, to int64) []tlog.Tile {
	var entries, hashes []tlog.Tile
	for _, t := range tlog.NewTiles(torchwood.TileHeight, from, to) {
		hashes = append(hashes, t)
		if t.L == 0 {
			t.L = -1
			entries = append(entries, t)
		}
	}
	return append(entries, hashes...)
}

func (m *Mirror) put(ctx context.Context, name, authorization string, data []byte) error {
	status, _, err := m.do(ctx, http.MethodPut, name, authorization, data)
	if err != nil {
		return err
	}
	if status < 200 || status > 299 {
		return fmt.Errorf("the mirror answers %d to PUT %s; must be 2xx", status, name)
	}
	return nil
}

func (m *Mirror) do(ctx context.Context, method, name, authorization string, data []byte) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, mirrorPatience)
	defer cancel()
	target, err := url.JoinPath(m.URL, name)
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := m.Client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCheckpoint))
	return resp.StatusCode, body, errors.Join(err, resp.Body.Close())
}

// mirrorOn copies after each checkpoint until ctx ends. What fails is tried again.
func (s *Sealer) mirrorOn(ctx context.Context) error {
	ticker := time.NewTicker(s.config.Interval)
	defer ticker.Stop()
	for {
		err := s.config.Mirror.Turn(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.stats.mirror(s.config.Now(), err)
		if err != nil {
			s.config.Log.WarnContext(ctx, "the mirror does not have all that is sealed; it will be tried again", "err", err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
