package seal

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func startServer(t *testing.T, s *Sealer) *httptest.Server {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(s))
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
	h, err := Handler(s, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

func get(t *testing.T, server *httptest.Server, path string) (*http.Response, string) {
	t.Helper()
	// As it stands: a client would tidy the path up.
	req, err := http.NewRequest(http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = "//" + req.URL.Host + path
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// Over HTTP a log verifies with torchwood's client, and there is nothing else to be had.
func TestLogsOverHTTP(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	b.fill(t, 600)
	s := openSealer(t, b.config())
	mustPass(t, s)
	server := startServer(t, s)
	fetcher, err := torchwood.NewTileFetcher(server.URL + "/logs/2026q4")
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, fetcher, b.verifier(t, "2026q4"), b.lines["2026q4"], true)

	for path, cache := range map[string]string{
		"/logs/2026q4/checkpoint":            "no-cache",
		"/logs/2026q4/keys":                  "no-cache",
		"/logs/2026q4/tile/0/000":            "public, max-age=31536000, immutable",
		"/logs/2026q4/tile/entries/002.p/90": "public, max-age=31536000, immutable",
	} {
		if resp, _ := get(t, server, path); resp.StatusCode != http.StatusOK || resp.Header.Get("Cache-Control") != cache {
			t.Errorf("%s: %s, cached %q; must be %q", path, resp.Status, resp.Header.Get("Cache-Control"), cache)
		}
	}
	if _, body := get(t, server, "/logs/2026q4/keys"); body != b.verifier(t, "2026q4")+"\n" {
		t.Errorf("the key of the log is %q", body)
	}
	if err := os.Symlink(b.dir.LogKeyFile("2026q4"), b.dir.Log("2026q4")+"/tile/0/009"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/logs/2026q4/.state/treeState", "/logs/2026q4/tile/../.state/treeState", "/logs/2026q4/tile/%2e%2e/.state/treeState",
		"/logs/2026q4/tile/0/000/../../../.state/treeState", "/logs/../keys/2026q4.key", "/logs/%2e%2e/keys/2026q4.key",
		"/logs/2026q4%2f..%2f..%2fkeys/checkpoint", "/logs/keys/checkpoint", "/logs/2026q4/tile/0/0", "/logs/2026q4/tile/0/000.p/256",
		"/logs/2026q4/tile/0/009", "/logs/2026q3/checkpoint", "/logs/2026q3/keys", "/logs/2026q4.key/keys", "/logs/..%2fkeys/keys", "/logs/", "/logs/2026q4/", "/spool/mark", "/",
	} {
		resp, body := get(t, server, path)
		if resp.StatusCode < 300 || strings.Contains(body, "PRIVATE") || strings.Contains(body, "size") {
			t.Errorf("%s: %s %q; must not be served", path, resp.Status, body)
		}
	}
	req, _ := http.NewRequest(http.MethodPut, server.URL+"/logs/2026q4/checkpoint", strings.NewReader("x"))
	if resp, err := server.Client().Do(req); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %v, %v", resp, err)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	b := newBook(t, t.TempDir())
	b.begin(t, "2026q4")
	now := testTime()
	c := b.config()
	c.Now = func() time.Time { return now }
	s := openSealer(t, c)
	server := startServer(t, s)
	if _, body := get(t, server, "/metrics"); !strings.Contains(body, "\nmeshvakt_sealer_sealed_line 0\n") {
		t.Errorf("before the first pass:\n%s", body)
	}
	mustPass(t, s)
	b.fill(t, 3)
	now = now.Add(30 * time.Second)
	if _, body := get(t, server, "/metrics"); !strings.Contains(body, "\nmeshvakt_sealer_sealed_line 2\n") || !strings.Contains(body, "\nmeshvakt_sealer_unsealed_seconds 30\n") {
		t.Errorf("30 s after the first pass:\n%s", body)
	}
	if resp, body := get(t, server, "/healthz"); resp.StatusCode != http.StatusOK {
		t.Errorf("healthz: %s", body)
	}
	now = now.Add(10 * time.Minute)
	if resp, body := get(t, server, "/healthz"); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "nothing was sealed for 10m30s") {
		t.Errorf("healthz of a sealer that hangs: %s %s", resp.Status, body)
	}
}
