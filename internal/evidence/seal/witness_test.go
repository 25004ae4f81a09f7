package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/meshvakt/meshvakt/internal/evidence/spool"
)

// witness cosigns what extends what it has seen, as C2SP tlog-witness has it.
type witness struct {
	signer *torchwood.CosignatureSigner
	log    note.Verifier

	mu   sync.Mutex
	away bool
	seen tlog.Tree
}

func newWitness(t *testing.T, log string) (*witness, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &witness{}
	if w.signer, err = torchwood.NewCosignatureSigner("witness.example.org", key); err != nil {
		t.Fatal(err)
	}
	if w.log, err = note.NewVerifier(log); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	return w, server.URL
}

func (w *witness) ServeHTTP(out http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, err := io.ReadAll(req.Body)
	if err != nil || w.away || req.URL.Path != "/add-checkpoint" {
		http.Error(out, "away", http.StatusServiceUnavailable)
		return
	}
	head, signed, _ := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	var old int64
	if _, err := fmt.Sscanf(lines[0], "old %d", &old); err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	c, n, err := torchwood.VerifyCheckpoint(signed, torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(w.log.Name()), torchwood.SingleVerifierPolicy(w.log)))
	if err != nil {
		http.Error(out, err.Error(), http.StatusForbidden)
		return
	}
	if old != w.seen.N {
		out.Header().Set("Content-Type", "text/x.tlog.size")
		out.WriteHeader(http.StatusConflict)
		fmt.Fprintf(out, "%d\n", w.seen.N)
		return
	}
	var proof tlog.TreeProof
	for _, l := range lines[1:] {
		h, err := tlog.ParseHash(l)
		if err != nil {
			http.Error(out, err.Error(), http.StatusBadRequest)
			return
		}
		proof = append(proof, h)
	}
	if w.seen.N > 0 && w.seen.N < c.N {
		err = tlog.CheckTree(proof, c.N, c.Hash, w.seen.N, w.seen.Hash)
	} else if w.seen.N == c.N && w.seen.Hash != c.Hash {
		err = fmt.Errorf("two trees of %d records", c.N)
	}
	if err != nil {
		http.Error(out, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.seen = c.Tree
	again, err := note.Sign(&note.Note{Text: n.Text}, w.signer)
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	_, sigs, _ := bytes.Cut(again, []byte("\n\n"))
	_, _ = out.Write(sigs)
}

func (w *witness) set(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}

// While the witness does not answer, the log goes on or waits, as configured, and the spool keeps
// what it has not seen. Once it answers, all is made up for, closed shards too.
func TestWitnesses(t *testing.T) {
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprintf("required=%v", required), func(t *testing.T) {
			b := newBook(t, t.TempDir())
			b.begin(t, "2026q4")
			w, url := newWitness(t, b.verifier(t, "2026q4"))
			text := fmt.Sprintf("log %s\nwitness w %s %s\nquorum w\n", b.verifier(t, "2026q4"), w.signer.Verifier(), url)
			policy, err := torchwood.ParsePolicy([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			c, now := b.config(), testTime()
			c.Now = func() time.Time { return now }
			if c.Witnesses, err = ParseWitnesses([]byte(text)); err != nil {
				t.Fatal(err)
			}
			c.Witnesses.Required = required
			// The size that a witnessed checkpoint has; 0 where the last one is not.
			witnessed := func() int64 {
				t.Helper()
				signed, err := os.ReadFile(b.dir.Log("2026q4") + "/checkpoint")
				if err != nil {
					t.Fatal(err)
				}
				if c, _, err := torchwood.VerifyCheckpoint(signed, policy); err == nil {
					return c.N
				}
				return 0
			}
			first := func() uint64 {
				t.Helper()
				r, err := spool.OpenReader(b.dir.Spool(), 1)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				e, err := r.Extent()
				if err != nil {
					t.Fatal(err)
				}
				return e.First
			}
			b.fill(t, 498)
			s := openSealer(t, c)
			mustPass(t, s)
			if !s.Stats().Seen.Equal(now) {
				t.Errorf("all was witnessed last at %s; must be now", s.Stats().Seen)
			}
			before := now
			now = now.Add(time.Hour)
			if n := witnessed(); n != 500 {
				t.Fatalf("%d records are witnessed; must be 500", n)
			}
			kept := first()
			if kept == 1 {
				t.Error("the spool has kept what is witnessed")
			}

			w.set(true)
			b.fill(t, 499)
			b.end(t, "")
			err = s.Pass(t.Context())
			st := s.Stats()
			if required && (err == nil || witnessed() != 500 || st.Sealed != 500) {
				t.Errorf("without its witness: %v, %d witnessed, %+v; must stay with the checkpoint that it has", err, witnessed(), st)
			}
			if !required && (err != nil || witnessed() != 0 || st.Sealed != 1000 || st.Witnessed != 500) {
				t.Errorf("without its witness: %v, %d witnessed, %+v; must publish its own checkpoint", err, witnessed(), st)
			}
			if !st.Seen.Equal(before) {
				t.Errorf("all was witnessed last at %s; must be before its witness was away", st.Seen)
			}
			if st.WitnessFailures != 1 || first() != kept {
				t.Errorf("%+v, and the spool begins with %d; must count the failure and keep what is not witnessed", st, first())
			}
			if err := s.Keep(t.Context()); err != nil || exists(b.dir.Bundle("2026q4")) {
				t.Errorf("a shard that is not witnessed is bundled (%v)", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			w.set(false)
			s = openSealer(t, c)
			mustPass(t, s)
			if err := s.Keep(t.Context()); err != nil || witnessed() != 1000 || !exists(b.dir.Bundle("2026q4")) || first() == kept {
				t.Errorf("with its witness again: %v, %d records are witnessed, the spool begins with %d", err, witnessed(), first())
			}
			b.mustBeSealed(t)
		})
	}
}

func TestPoliciesWithoutWitnesses(t *testing.T) {
	for _, text := range []string{"", "quorum none\n", "quorum w\n", "witness w " + base64.StdEncoding.EncodeToString([]byte("x")) + " http://w\nquorum w\n"} {
		if _, err := ParseWitnesses([]byte(text)); err == nil {
			t.Errorf("policy %q is taken", text)
		}
	}
}
