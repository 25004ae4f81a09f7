package volume

import (
	"crypto/rand"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

func TestPeriods(t *testing.T) {
	for at, want := range map[string]Period{
		"2026-01-01T00:00:00Z":      "2026q1",
		"2026-03-31T23:59:59Z":      "2026q1",
		"2026-04-01T00:00:00Z":      "2026q2",
		"2026-12-31T23:59:59Z":      "2026q4",
		"2027-01-01T00:30:00+01:00": "2026q4",
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		p := PeriodAt(when)
		if p != want {
			t.Errorf("%s lies in %s; must be %s", at, p, want)
		}
		from, to, err := p.Bounds()
		if err != nil || when.Before(from) || !when.Before(to) || PeriodAt(to) == p || PeriodAt(to.Add(-1)) != p {
			t.Errorf("%s is from %s to %s, %v", p, from, to, err)
		}
	}
	if next, err := Period("2026q4").Next(); next != "2027q1" || err != nil {
		t.Errorf("after 2026q4 comes %q, %v", next, err)
	}
	for _, bad := range []Period{"", "2026", "2026q5", "2026q0", "26q1", "2026q11", "2026q1 "} {
		if _, _, err := bad.Bounds(); err == nil {
			t.Errorf("%q is a period", bad)
		}
	}
}

func TestShardsAndOrigins(t *testing.T) {
	for _, shard := range []string{"2026q4", "2026q4-2", "2026q4-17"} {
		origin := Origin("evidence.example.org/prod", "9a7ab2d8", "meshvakt-0", shard)
		name, cluster, replica, again, err := SplitOrigin(origin)
		if name != "evidence.example.org/prod" || cluster != "9a7ab2d8" || replica != "meshvakt-0" || again != shard || err != nil {
			t.Errorf("%s splits into %q, %q, %q, %q, %v", origin, name, cluster, replica, again, err)
		}
	}
	for _, bad := range []string{"2026q4-1", "2026q4-", "2026q4-02", "2026q4-x", "2026q9"} {
		if _, _, err := ParseShard(bad); err == nil {
			t.Errorf("%q is a shard", bad)
		}
	}
	if _, _, _, _, err := SplitOrigin("a/b/2026q4"); err == nil {
		t.Error("an origin of three parts is taken")
	}
}

func TestOneLogKeyForAllWhoAsk(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.Create(); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(); err != nil {
		t.Fatalf("create again: %v", err)
	}
	origin := Origin("evidence.example.org", "c", "meshvakt-0", "2026q4")
	keys := make([]LogKey, 16)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			var err error
			if keys[i], err = d.LogKey("2026q4", origin, rand.Reader); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, k := range keys[1:] {
		if k != keys[0] {
			t.Fatalf("two keys for one shard: %s and %s", keys[0].Verifier, k.Verifier)
		}
	}
	signer, err := note.NewSigner(keys[0].Signer)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(keys[0].Verifier)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: "text\n"}, signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(verifier)); err != nil {
		t.Errorf("what the key has signed does not open: %v", err)
	}
	left, err := os.ReadDir(d.Keys())
	if err != nil || len(left) != 1 {
		t.Errorf("%d files in keys, %v; must be the key alone", len(left), err)
	}
	if info, err := left[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key is %v, %v; must be 0600", info.Mode(), err)
	}
	if _, err := d.LogKey("2026q4", strings.Replace(origin, "meshvakt-0", "meshvakt-1", 1), rand.Reader); err == nil {
		t.Error("a key of another replica's volume is taken")
	}
}

func TestSealedIsWhatWasWritten(t *testing.T) {
	d := Dir(t.TempDir())
	if s, err := d.ReadSealed(); s != (Sealed{}) || err != nil {
		t.Errorf("before any sealer: %+v, %v", s, err)
	}
	want := Sealed{Line: 412889, At: time.Date(2026, 11, 22, 18, 0, 0, 123456789, time.UTC)}
	if err := d.WriteSealed(want); err != nil {
		t.Fatal(err)
	}
	if s, err := d.ReadSealed(); s != want || err != nil {
		t.Errorf("read %+v, %v; must be %+v", s, err, want)
	}
	if err := os.WriteFile(string(d)+"/sealed", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadSealed(); err == nil {
		t.Error("what is not a number is read")
	}
}

func TestCurrentIsWhatWasWritten(t *testing.T) {
	d := Dir(t.TempDir())
	if c, err := d.ReadCurrent(); c != (Current{}) || err != nil {
		t.Errorf("before anything was written: %+v, %v", c, err)
	}
	want := Current{Shard: "2026q4-2", Origin: Origin("evidence.example.org", "c", "meshvakt-0", "2026q4-2"), Pseudonyms: "k:1"}
	if err := d.WriteCurrent(want); err != nil {
		t.Fatal(err)
	}
	if c, err := d.ReadCurrent(); c != want || err != nil {
		t.Errorf("read %+v, %v; must be %+v", c, err, want)
	}
}
