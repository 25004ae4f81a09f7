package journal

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// book is what a cluster remembers of the logs of a replica.
type book struct {
	last  string
	err   error
	noted []string
}

func (b *book) Last(context.Context, string) (string, error) { return b.last, b.err }

func (b *book) Note(_ context.Context, replica, shard string) error {
	if replica != "meshvakt-0" {
		return errors.New("noted for " + replica)
	}
	if b.err != nil {
		return b.err
	}
	b.last = shard
	if n := len(b.noted); n == 0 || b.noted[n-1] != shard {
		b.noted = append(b.noted, shard)
	}
	return nil
}

// onVolume is a life on a volume, which the book outlives.
func onVolume(dir string, b *book, at string) *replica {
	r := newReplica(dir)
	r.edit = func(c *Config) { c.Book = b }
	r.clock.set(at)
	return r
}

func genesisOf(t *testing.T, r *replica) (list []string) {
	t.Helper()
	for _, g := range all[*record.Genesis](r.records(t)) {
		list = append(list, g.Shard+" after "+g.PrevOrigin)
	}
	return list
}

// A volume that is new begins a log of another name than all that the replica has had, and names none that goes before: what
// that one had at its end nobody knows.
func TestANewVolumeBeginsALogOfAnotherName(t *testing.T) {
	b := &book{}
	for i, c := range []struct{ at, want string }{
		{"2026-11-26T12:00:00Z", "2026q4 after "},
		{"2026-11-27T12:00:00Z", "2026q4-2 after "},
		{"2026-11-28T12:00:00Z", "2026q4-3 after "},
		{"2027-01-01T12:00:00Z", "2027q1 after "},
		{"2027-01-02T12:00:00Z", "2027q1-2 after "},
		{"2026-12-30T12:00:00Z", "2027q1-3 after "}, // the clock was set back
	} {
		r := onVolume(t.TempDir(), b, c.at)
		for range 2 { // it goes on in the same log while it has the volume
			r.stop(t, r.opened(t))
		}
		if got := genesisOf(t, r); !slices.Equal(got, []string{c.want}) {
			t.Errorf("volume %d has the logs %q; must have %q", i, got, c.want)
		}
		if warned := strings.Contains(r.log.String(), "this volume is new"); warned != (i != 0) {
			t.Errorf("volume %d: that it is new is told: %t", i, warned)
		}
	}
	if want := []string{"2026q4", "2026q4-2", "2026q4-3", "2027q1", "2027q1-2", "2027q1-3"}; !slices.Equal(b.noted, want) {
		t.Errorf("noted %q; must be %q", b.noted, want)
	}
}

// TestABeatThatWaits: what had not been heard of a watch when a beat was made had not been heard when it is stored, however
// much later that is.
func TestABeatThatWaits(t *testing.T) {
	r := onVolume(t.TempDir(), &book{}, "2026-11-26T12:00:00Z")
	j := r.opened(t)
	err := j.Append(t.Context(), "2026q4", func(record.Pseudonymiser) (record.Body, error) {
		b := &record.Beat{
			Guards: record.NewPseudonymiser(record.Key{}).Digest(nil), Made: j.config.Since(),
			Watches: []record.Watch{{GVK: "v1/Namespace", ResourceVersion: "7", Healthy: true, QuietMillis: 5}},
		}
		r.clock.add(90*time.Second + 100*time.Microsecond) // the machine stands still
		return b, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.stop(t, j)
	beats := all[*record.Beat](r.records(t))
	if len(beats) != 1 || beats[0].Watches[0].QuietMillis != 90_006 || beats[0].CanaryMillis != 0 {
		t.Errorf("stored %+v; must be quiet for 90006 ms", beats)
	}
}

func TestLogsAreNotedBeforeTheyBegin(t *testing.T) {
	b := &book{}
	r := onVolume(t.TempDir(), b, "2026-11-26T12:00:00Z")
	r.edit = func(c *Config) { c.Book, c.MaxRecords = b, 8 }
	j := r.opened(t)
	b.err = errors.New("connection refused")
	for i := range 8 {
		if err := j.Append(t.Context(), "2026q4", func(record.Pseudonymiser) (record.Body, error) {
			return &record.Gap{Of: "clock", Cause: "clock", From: r.clock.Now(), To: r.clock.Now()}, nil
		}); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	j.Tend(t.Context())
	if j.Shard() != "2026q4" || j.health() != nil {
		t.Fatalf("shard %s, %v; where the next cannot be noted, the one before must go on", j.Shard(), j.health())
	}
	b.err = nil
	j.Tend(t.Context())
	if j.Shard() != "2026q4-2" || b.last != "2026q4-2" {
		t.Errorf("shard %s, noted %s; must go on in 2026q4-2", j.Shard(), b.last)
	}
	r.clock.set("2027-01-01T00:00:00Z")
	j.Tend(t.Context())
	r.stop(t, j)
	if b.last != "2027q1" {
		t.Errorf("noted %s; must be 2027q1", b.last)
	}
	origin := "evidence.example.org/cluster-uid/meshvakt-0/"
	if got, want := genesisOf(t, r), []string{"2026q4 after ", "2026q4-2 after " + origin + "2026q4", "2027q1 after " + origin + "2026q4-2"}; !slices.Equal(got, want) {
		t.Errorf("logs %q; must be %q", got, want)
	}
}

// Where the process ends between noting a name and beginning the log, the same volume begins it; another one does not.
func TestANameThatWasNotedAndNotBegun(t *testing.T) {
	b := &book{}
	dir := t.TempDir()
	r := onVolume(dir, b, "2026-11-26T12:00:00Z")
	if err := r.dir.Create(); err != nil {
		t.Fatal(err)
	}
	j := r.journal(t)
	if name, err := j.first(t.Context(), "cluster-uid", r.clock.Now()); name != "2026q4" || err != nil {
		t.Fatalf("%q, %v", name, err)
	}
	r.stop(t, r.opened(t))
	if got := genesisOf(t, r); !slices.Equal(got, []string{"2026q4 after "}) {
		t.Errorf("the same volume has %q", got)
	}
	other := onVolume(t.TempDir(), b, "2026-11-26T13:00:00Z")
	other.stop(t, other.opened(t))
	if got := genesisOf(t, other); !slices.Equal(got, []string{"2026q4-2 after "}) {
		t.Errorf("another volume has %q", got)
	}
	// Its spool is gone, and nothing of it was sealed: the name is used up.
	if err := os.RemoveAll(other.dir.Spool()); err != nil {
		t.Fatal(err)
	}
	other.stop(t, other.opened(t))
	if got := genesisOf(t, other); !slices.Equal(got, []string{"2026q4-3 after "}) {
		t.Errorf("a volume that has lost its spool has %q", got)
	}
}

func TestWithoutTheBookNothingBegins(t *testing.T) {
	b := &book{err: errors.New("connection refused")}
	r := onVolume(t.TempDir(), b, "2026-11-26T12:00:00Z")
	j := r.journal(t)
	j.Tend(t.Context())
	if j.health() == nil || j.Shard() != "" {
		t.Fatalf("shard %q is open, and nobody knows which were before", j.Shard())
	}
	b.err = nil
	j.Tend(t.Context())
	r.stop(t, j)
	// One that has begun goes on, noted or not.
	b.err, b.last = errors.New("connection refused"), ""
	j = r.opened(t)
	if j.Shard() != "2026q4" {
		t.Errorf("shard %q", j.Shard())
	}
	r.stop(t, j)
	b.err = nil
	r.stop(t, r.opened(t))
	if b.last != "2026q4" {
		t.Errorf("noted %q; one that was begun before anybody noted must be, too", b.last)
	}
}
