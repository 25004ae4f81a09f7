package seal

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"time"

	"filippo.io/torchwood"
	"github.com/go-chi/chi/v5"

	"github.com/meshvakt/meshvakt/internal/evidence/volume"
)

// Handler serves health, metrics and the logs, read-only. Whoever reaches it may read all
// evidence: pseudonyms of people, and names of namespaces and service accounts in clear.
func Handler(s *Sealer, metrics http.Handler) (http.Handler, error) {
	root, err := os.OpenRoot(s.config.Dir.Logs())
	if err != nil {
		return nil, fmt.Errorf("serve logs: %w", err)
	}
	r := chi.NewRouter()
	r.Method(http.MethodGet, "/metrics", metrics)
	r.Get("/healthz", s.health)
	serve := func(w http.ResponseWriter, req *http.Request) { serveLog(w, req, root) }
	keys := func(w http.ResponseWriter, req *http.Request) { serveKey(w, req, s.config.Dir) }
	r.Get("/logs/{shard}/checkpoint", serve)
	r.Get("/logs/{shard}/tile/*", serve)
	r.Get("/logs/{shard}/keys", keys)
	r.Head("/logs/{shard}/keys", keys)
	r.Head("/logs/{shard}/checkpoint", serve)
	r.Head("/logs/{shard}/tile/*", serve)
	return r, nil
}

// health fails while nothing comes to an end: that a witness or the disk fails is no reason to
// start the process again.
func (s *Sealer) health(w http.ResponseWriter, _ *http.Request) {
	since := s.config.Now().Sub(s.Stats().Pass)
	if limit := s.limit(); since > limit {
		http.Error(w, fmt.Sprintf("nothing was sealed for %s; must be within %s", since.Round(time.Second), limit), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// limit is how long a pass may take that does not hang.
func (s *Sealer) limit() time.Duration { return 3*s.config.Interval + 2*s.config.Stall }

// serveKey has the public half of a log's key, for whoever makes it known to witnesses. Who believes it
// must know it from elsewhere: the log before announces it.
func serveKey(w http.ResponseWriter, req *http.Request, dir volume.Dir) {
	shard := chi.URLParam(req, "shard")
	if _, _, err := volume.ParseShard(shard); err != nil {
		http.NotFound(w, req)
		return
	}
	key, err := existingKey(dir, shard)
	if errors.Is(err, errNoLog) || errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, req)
		return
	}
	if err != nil {
		http.Error(w, "the key cannot be read", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	fmt.Fprintln(w, key.Verifier)
}

// serveLog has no other files than those of C2SP tlog-tiles, by their one name.
func serveLog(w http.ResponseWriter, req *http.Request, root *os.Root) {
	shard, name := chi.URLParam(req, "shard"), "checkpoint"
	kind, cache := "text/plain; charset=utf-8", "no-cache"
	if rest := chi.URLParam(req, "*"); rest != "" {
		name = "tile/" + rest
		t, err := torchwood.ParseTilePath(name)
		if err != nil || t.L > 63 {
			http.NotFound(w, req)
			return
		}
		kind, cache = "application/octet-stream", "public, max-age=31536000, immutable"
	}
	if _, _, err := volume.ParseShard(shard); err != nil {
		http.NotFound(w, req)
		return
	}
	data, err := root.ReadFile(shard + "/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, req)
		return
	}
	if err != nil {
		http.Error(w, "the log cannot be read", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", cache)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if req.Method != http.MethodHead {
		_, _ = w.Write(data) // the client has gone
	}
}
