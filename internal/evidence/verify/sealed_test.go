package verify

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/meshvakt/meshvakt/internal/evidence/seal"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// What the sealer makes of a replica's records is verified from all that it leaves: the directory,
// a log in it, the bundle of a closed shard, and over HTTP.
func TestWhatTheSealerLeaves(t *testing.T) {
	dir := volume.Dir(t.TempDir())
	if err := dir.Create(); err != nil {
		t.Fatal(err)
	}
	b := pair()[0]
	b.ready = nil
	sp, err := spool.Open(dir.Spool(), spool.Options{SegmentSize: 64 << 10, ReserveSize: 64 << 10, Budget: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range b.shards {
		placeKey(t, dir, s)
		for _, line := range s.lines {
			if _, _, err := sp.Append(t.Context(), func(uint64, [32]byte) ([]byte, error) { return line, nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := sp.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := seal.Open(seal.Config{Dir: dir, Now: time.Now, Random: rand.Reader, Log: slog.New(slog.DiscardHandler), Batch: 5})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Keep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if list := must(Open(string(dir), nil)); len(list) != 3 {
		t.Errorf("the directory has %d logs; must be that of each shard, and a bundle", len(list))
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir.Logs())))
	defer server.Close()
	trust := must(NewTrust(nil, []string{b.shards[0].key.public}, false))
	for name, inputs := range map[string][]string{
		"directory":      {string(dir)},
		"logs":           {dir.Log("2026q4"), dir.Log("2026q4-2")},
		"bundle and log": {dir.Bundle("2026q4"), dir.Log("2026q4-2")},
		"HTTP":           {server.URL + "/2026q4", server.URL + "/2026q4-2/"},
	} {
		var sources []*Source
		for _, input := range inputs {
			list, err := Open(input, server.Client())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			sources = append(sources, list...)
		}
		r, err := Verify(context.Background(), sources, Options{Trust: trust, MaxClockError: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Problems) > 0 || len(r.Logs) != 2 || r.Logs[0].Size != uint64(len(b.shards[0].lines)) || r.Logs[1].Size != uint64(len(b.shards[1].lines)) {
			t.Errorf("%s: problems %v, logs %+v", name, r.Problems, r.Logs)
		}
		for _, s := range sources {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// placeKey puts the key of a shard where the webhook and the sealer look for it.
func placeKey(t *testing.T, dir volume.Dir, s *shard) {
	t.Helper()
	if _, err := note.NewSigner(s.key.secret); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir.Keys(), s.name+".key"), []byte(s.key.secret+"\n"+s.key.public+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
