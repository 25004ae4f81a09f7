package seal

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"filippo.io/torchwood"
)

// bucket is a server that stores what is put, and remembers the order.
type bucket struct {
	mu      sync.Mutex
	objects map[string]string
	order   []string
	full    int // puts that it takes yet; negative: any number
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case req.Header.Get("Authorization") != "Bearer letmein":
		http.Error(w, "who?", http.StatusForbidden)
	case req.Method == http.MethodPut && b.full == 0:
		http.Error(w, "full", http.StatusInsufficientStorage)
	case req.Method == http.MethodPut:
		data, _ := io.ReadAll(req.Body)
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

type withAuthorization struct{}

func (withAuthorization) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer letmein")
	return http.DefaultTransport.RoundTrip(req)
}

// At every moment the mirror holds a log that verifies, and at the end all of it.
func TestMirror(t *testing.T) {
	b := newBook(t, t.TempDir())
	store := &bucket{objects: map[string]string{}, full: -1}
	server := httptest.NewServer(store)
	defer server.Close()
	set := func(full int) {
		store.mu.Lock()
		defer store.mu.Unlock()
		store.full, store.order = full, nil
	}
	newMirror := func() *Mirror {
		return &Mirror{
			URL: server.URL + "/cluster/meshvakt-0", Dir: b.dir, Client: server.Client(),
			Authorization: func() (string, error) { return "Bearer letmein", nil },
		}
	}
	holds := func(shard string) int64 {
		t.Helper()
		tiles, err := torchwood.NewTileFetcher(server.URL+"/cluster/meshvakt-0/"+shard, torchwood.WithHTTPClient(&http.Client{Transport: withAuthorization{}}))
		if err != nil {
			t.Fatal(err)
		}
		return mustHold(t, tiles, b.verifier(t, shard), b.lines[shard], false).N
	}
	s := openSealer(t, b.config())
	b.begin(t, "2026q3")
	b.fill(t, 600)
	mustPass(t, s)
	m := newMirror()
	if err := m.Turn(t.Context()); err != nil || holds("2026q3") != 602 {
		t.Fatalf("the first turn: %v, %d records", err, holds("2026q3"))
	}
	set(-1)
	if err := m.Turn(t.Context()); err != nil || len(store.order) != 0 {
		t.Errorf("a turn with nothing new: %v, puts %q", err, store.order)
	}

	b.fill(t, 300)
	b.end(t, "2026q4")
	mustPass(t, s)
	for full := range 5 {
		set(full)
		if err := m.Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "507") {
			t.Errorf("a turn with a server that is full after %d: %v", full, err)
		}
		if n := holds("2026q3"); n != 602 {
			t.Errorf("the server has %d records after %d puts; must have 602", n, full)
		}
	}
	// Another process goes on with what the server says it has.
	b.begin(t, "2026q4")
	mustPass(t, s)
	m = newMirror()
	set(-1)
	if err := m.Turn(t.Context()); err != nil || holds("2026q3") != 903 || holds("2026q4") != 2 {
		t.Errorf("the turn of another process: %v, %d and %d records", err, holds("2026q3"), holds("2026q4"))
	}
	for _, name := range store.order {
		if strings.HasSuffix(name, "/2026q3/tile/0/000") || strings.HasSuffix(name, "/2026q3/tile/0/001") {
			t.Errorf("%s was put again", name)
		}
	}
	m.Authorization = nil
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
	store := &bucket{objects: map[string]string{}, full: -1}
	server := httptest.NewServer(store)
	defer server.Close()
	m := &Mirror{URL: server.URL, Dir: b.dir, Client: &http.Client{Transport: withAuthorization{}}}
	store.objects["/2026q4/checkpoint"] = strings.Replace(string(late), "\n7\n", "\n8\n", 1)
	if err := m.Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "not of this log") || len(store.order) != 0 {
		t.Errorf("a checkpoint that is not signed: %v, puts %q", err, store.order)
	}
	store.objects["/2026q4/checkpoint"] = string(late)
	if err := writeFile(b.dir.Log("2026q4")+"/checkpoint", early); err != nil {
		t.Fatal(err)
	}
	if err := m.Turn(t.Context()); err == nil || !strings.Contains(err.Error(), "set back") || len(store.order) != 0 {
		t.Errorf("a log that was set back: %v, puts %q", err, store.order)
	}
}
