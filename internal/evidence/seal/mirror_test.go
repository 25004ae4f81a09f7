package seal

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/torchwood"

	"github.com/meshvakt/meshvakt/internal/evidence/store"
)

// bucket is a server that stores what is put, and remembers the order.
type bucket struct {
	mu      sync.Mutex
	objects map[string]string
	order   []string
	full    int  // puts that it takes yet; negative: any number
	worm    bool // removes nothing
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case req.Header.Get("Authorization") != "Bearer letmein":
		http.Error(w, "who?", http.StatusForbidden)
	case req.Method == http.MethodPut && req.Header.Get("If-None-Match") == "*" && b.objects[req.URL.Path] != "":
		http.Error(w, "there", http.StatusPreconditionFailed)
	case req.Method == http.MethodDelete && b.worm:
		http.Error(w, "never", http.StatusMethodNotAllowed)
	case req.Method == http.MethodDelete:
		delete(b.objects, req.URL.Path)
	case req.Method == http.MethodPut && b.full == 0:
		http.Error(w, "full", http.StatusInsufficientStorage)
	case req.Method == http.MethodPut:
		data, err := io.ReadAll(req.Body)
		if err != nil { // the client has given up
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		b.full--
		b.objects[req.URL.Path] = string(data)
		b.order = append(b.order, req.URL.Path)
	default:
		data, is := b.objects[req.URL.Path]
		if !is {
			http.NotFound(w, req)
			return
		}
		_, _ = io.WriteString(w, data)
	}
}

// A request that its client has given up may still be served when the client has returned, so all is read under the lock.

func (b *bucket) get(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.objects[name]
}

func (b *bucket) set(name, data string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects[name] = data
}

// all returns what is stored, puts what was put in which order.
func (b *bucket) all() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.objects)
}

func (b *bucket) puts() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.order)
}

// takes forgets the order, and how many puts were taken.
func (b *bucket) takes(full int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.full, b.order = full, nil
}

type withAuthorization struct{}

func (withAuthorization) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer letmein")
	return http.DefaultTransport.RoundTrip(req)
}

// mirrorPlace is where the logs of newBook lie on a mirror.
const mirrorPlace = "/" + testName + "/" + testCluster + "/meshvakt-0"

func mirrorTo(t *testing.T, b *book, url, authorization string) *Mirror {
	t.Helper()
	h, err := store.NewHTTP(url, nil, func() (string, error) { return authorization, nil })
	if err != nil {
		t.Fatal(err)
	}
	return &Mirror{Store: h, Dir: b.dir, Log: quiet()}
}

// At every moment the mirror holds a log that verifies, and at the end all of it.
func TestMirror(t *testing.T) {
	b := newBook(t, t.TempDir())
	has := &bucket{objects: map[string]string{}, full: -1}
	server := httptest.NewServer(has)
	defer server.Close()
	newMirror := func(server *httptest.Server) *Mirror {
		return mirrorTo(t, b, server.URL+"/fleet", "Bearer letmein")
	}
	holds := func(shard string) int64 {
		t.Helper()
		tiles := mustFetch(t, server.URL+"/fleet"+mirrorPlace+"/logs/"+shard)
		return mustHold(t, tiles, b.verifier(t, shard), b.lines[shard], false).N
	}
	s := openSealer(t, b.config())
	b.begin(t, "2026q3")
	b.fill(t, 600)
	mustPass(t, s)
	m := newMirror(server)
	if err := m.Turn(t.Context()); err != nil || holds("2026q3") != 602 {
		t.Fatalf("the first turn: %v, %d records", err, holds("2026q3"))
	}
	has.takes(-1)
	if err := m.Turn(t.Context()); err != nil || len(has.puts()) != 0 {
		t.Errorf("a turn with nothing new: %v, puts %q", err, has.puts())
	}

	b.fill(t, 300)
	b.end(t, "2026q4")
	mustPass(t, s)
	const puts = 7 // two bundles of entries, three tiles of hashes, keys, checkpoint
	before := has.all()
	for full := range puts {
		has.mu.Lock()
		has.objects = maps.Clone(before)
		has.mu.Unlock()
		has.takes(full)
		filling := httptest.NewServer(has)
		if err := newMirror(filling).Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "507") {
			t.Errorf("a turn with a server that is full after %d: %v", full, err)
		}
		filling.Close() // what is served still is of this turn
		if n := holds("2026q3"); n != 602 {
			t.Errorf("the server has %d records after %d puts; must have 602", n, full)
		}
	}
	// Another process goes on with what the server says it has.
	b.begin(t, "2026q4")
	mustPass(t, s)
	m = newMirror(server)
	has.takes(-1)
	if err := m.Turn(t.Context()); err != nil || holds("2026q3") != 903 || holds("2026q4") != 2 {
		t.Errorf("the turn of another process: %v, %d and %d records", err, holds("2026q3"), holds("2026q4"))
	}
	if len(has.puts()) >= 2*puts {
		t.Errorf("what the process before has put was put again: %q", has.puts())
	}
	for _, name := range has.puts() {
		if strings.HasSuffix(name, "/2026q3/tile/0/000") || strings.HasSuffix(name, "/2026q3/tile/0/001") {
			t.Errorf("%s was put again", name)
		}
	}
	m = mirrorTo(t, b, server.URL+"/fleet", "")
	b.fill(t, 1)
	mustPass(t, s)
	if err := m.Turn(t.Context()); err == nil {
		t.Error("a server that refuses is no error")
	}
}

// Where the mirror has another log, or more of it, what it has is left alone.
func TestAMirrorThatHasAnother(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	s := openSealer(t, b.config())
	mustPass(t, s)
	early, err := (files{b.dir.Log("2026q4")}).read("checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	b.fill(t, 5)
	mustPass(t, s)
	late, err := (files{b.dir.Log("2026q4")}).read("checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	has := &bucket{objects: map[string]string{}, full: -1}
	server := httptest.NewServer(has)
	defer server.Close()
	m := mirrorTo(t, b, server.URL, "Bearer letmein")
	has.set(mirrorPlace+"/logs/2026q4/checkpoint", strings.Replace(string(late), "\n7\n", "\n8\n", 1))
	if err := m.Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "not of this log") || len(has.puts()) != 0 {
		t.Errorf("a checkpoint that is not signed: %v, puts %q", err, has.puts())
	}
	has.set(mirrorPlace+"/logs/2026q4/checkpoint", string(late))
	if err := writeFile(b.dir.Log("2026q4")+"/checkpoint", early); err != nil {
		t.Fatal(err)
	}
	if err := m.Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "set back") || len(has.puts()) != 0 {
		t.Errorf("a log that was set back: %v, puts %q", err, has.puts())
	}
}

// What is on the mirror already must be what is here, or it is told of and left alone.
func TestAMirrorThatWasChanged(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	b.fill(t, 300)
	s := openSealer(t, b.config())
	mustPass(t, s)
	has := &bucket{objects: map[string]string{}, full: -1}
	server := httptest.NewServer(has)
	defer server.Close()
	tile := mirrorPlace + "/logs/2026q4/tile/entries/000"
	has.set(tile, "another")
	err := mirrorTo(t, b, server.URL, "Bearer letmein").Turn(t.Context())
	if err == nil || !strings.Contains(err.Error(), "has another") || !strings.Contains(err.Error(), "tile/entries/000") {
		t.Errorf("a tile that is another: %v", err)
	}
	if has.get(tile) != "another" || has.get(mirrorPlace+"/logs/2026q4/checkpoint") != "" {
		t.Error("it was replaced, or a checkpoint was put over it")
	}
}

// Partial tiles go once their full one is there; from a store that removes nothing, they do not,
// and that is no failure.
func TestMirrorSweeps(t *testing.T) {
	for _, worm := range []bool{false, true} {
		b := newBook(t, t.TempDir())
		b.begin(t, "2026q4")
		s := openSealer(t, b.config())
		has := &bucket{objects: map[string]string{}, full: -1, worm: worm}
		server := httptest.NewServer(has)
		defer server.Close()
		m := mirrorTo(t, b, server.URL, "Bearer letmein")
		partial := func() (list []string) {
			for name := range has.all() {
				if strings.Contains(name, ".p/") {
					list = append(list, strings.TrimPrefix(name, mirrorPlace+"/logs/2026q4/tile/"))
				}
			}
			return list
		}
		for range 3 {
			b.fill(t, 80)
			mustPass(t, s)
			if err := m.Turn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if list := partial(); len(list) != 6 {
			t.Errorf("partial tiles are %q; must be three of entries and three of hashes", list)
		}
		b.fill(t, 80)
		mustPass(t, s)
		if err := m.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := 3 // of entries, of hashes, and of the hashes of these
		if worm {
			want = 9
		}
		if list := partial(); len(list) != want {
			t.Errorf("with worm %t partial tiles are %q; must be %d", worm, list, want)
		}
	}
}

// What a shard leaves when it is over is copied too: its bundle, and its tombstone.
func TestMirrorKeeps(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q1")
	b.fill(t, 10)
	b.end(t, "2026q2")
	b.begin(t, "2026q2")
	now := testTime()
	c := b.config()
	c.Now, c.Retention = func() time.Time { return now }, 300*24*time.Hour
	s := openSealer(t, c)
	mustPass(t, s)
	if err := s.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	has := &bucket{objects: map[string]string{}, full: -1}
	server := httptest.NewServer(has)
	defer server.Close()
	m := mirrorTo(t, b, server.URL, "Bearer letmein")
	turn := func() {
		t.Helper()
		if err := m.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	turn()
	zip, err := os.ReadFile(b.dir.Bundle("2026q1"))
	if err != nil {
		t.Fatal(err)
	}
	if has.get(mirrorPlace+"/bundles/2026q1.zip") != string(zip) {
		t.Error("the bundle on the mirror is another")
	}
	if keys := has.get(mirrorPlace + "/logs/2026q1/keys"); keys != b.verifier(t, "2026q1")+"\n" {
		t.Errorf("the keys on the mirror are %q", keys)
	}
	now = now.AddDate(1, 0, 0)
	if err := s.Keep(t.Context()); err != nil {
		t.Fatal(err)
	}
	turn()
	stone, err := os.ReadFile(b.dir.Tombstone("2026q1"))
	if err != nil {
		t.Fatal(err)
	}
	if has.get(mirrorPlace+"/tombstones/2026q1") != string(stone) || has.get(mirrorPlace+"/bundles/2026q1.zip") != string(zip) {
		t.Error("the tombstone is not on the mirror, or what was there is gone")
	}
	// Another process finds that it is there, and one that is of another length.
	has.set(mirrorPlace+"/tombstones/2026q1", "short")
	m = mirrorTo(t, b, server.URL, "Bearer letmein")
	if err := m.Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "has another") {
		t.Errorf("a tombstone that is another: %v", err)
	}
}

// A mirror that does not answer holds up nothing, is asked ever less often, and gets all in the end.
func TestMirrorThatIsAway(t *testing.T) {
	for _, random := range []float64{0, 1} {
		pauses := []time.Duration{}
		for n := range 40 {
			pauses = append(pauses, backoff(n+1, 10*time.Second, random))
		}
		if pauses[0] < 5*time.Second || pauses[0] > 15*time.Second || pauses[1] != 2*pauses[0] || pauses[39] < mirrorRest/2 || pauses[39] > 3*mirrorRest/2 {
			t.Errorf("pauses are %v", pauses)
		}
	}
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	has := &bucket{objects: map[string]string{}}
	server := httptest.NewServer(has)
	defer server.Close()
	c := b.config()
	c.Interval = 20 * time.Millisecond
	c.Mirror = mirrorTo(t, b, server.URL, "Bearer letmein")
	s := openSealer(t, c)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for st := s.Stats(); st.Sealed != 2 || st.MirrorFailures == 0; st = s.Stats() {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched() // until the first turn that has something to copy
	}
	if has.get(mirrorPlace+"/logs/2026q4/checkpoint") != "" {
		t.Error("a server that is full has a checkpoint")
	}
	has.takes(-1)
	b.fill(t, 5)
	end()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	tree, _, err := verifyLog(mustFetch(t, server.URL+mirrorPlace+"/logs/2026q4"), b.verifier(t, "2026q4"))
	if err != nil || tree.N != 7 {
		t.Errorf("at the end the mirror has %d records: %v; must have all that was sealed last", tree.N, err)
	}
}

func mustFetch(t *testing.T, url string) torchwood.TileReader {
	t.Helper()
	tiles, err := torchwood.NewTileFetcher(url, torchwood.WithHTTPClient(&http.Client{Transport: withAuthorization{}}))
	if err != nil {
		t.Fatal(err)
	}
	return tiles
}
