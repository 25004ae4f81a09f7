package scan

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

func emptyRecord(t *testing.T) *Record {
	t.Helper()
	r, err := ParseRecord("")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRecordOutlivesItsLeader(t *testing.T) {
	r := emptyRecord(t)
	r.Confirmed = noon()
	for _, name := range []string{"b", "a", "c", "a"} {
		r.NoteStrict(name)
	}
	r.OpenGap("b", Gap{After: noon(), Found: noon().Add(time.Second)})
	r.Tried("b", noon())
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	next, err := ParseRecord(text)
	if err != nil || !reflect.DeepEqual(next, r) || !slices.Equal(next.Strict, []string{"a", "b", "c"}) {
		t.Errorf("%+v, %v; want %+v", next, err, r)
	}
	if _, err := ParseRecord("{"); err == nil {
		t.Error("half a record was read")
	}
}

func TestRecordForgets(t *testing.T) {
	r := emptyRecord(t)
	r.NoteStrict("a")
	r.OpenGap("a", Gap{})
	r.Tried("a", noon())
	if !r.WasStrict("a") || !r.Forget("a") || r.Forget("a") || r.WasStrict("a") || len(r.Gaps)+len(r.Restorations) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestRecordIsBounded(t *testing.T) {
	r := emptyRecord(t)
	for i := range 12_000 {
		name := fmt.Sprintf("%063d", i) // the longest names there are
		r.NoteStrict(name)
		if i < recordedGaps+5 {
			r.OpenGap(name, Gap{After: noon(), Found: noon()})
			r.Tried(name, noon())
		}
	}
	text, err := r.Encode()
	if err != nil || len(text) > 1<<20-64<<10 || len(r.Strict) < 10_000 {
		t.Errorf("%d bytes, %v; must fit into a ConfigMap", len(text), err)
	}
}

func TestRestorationsSlowDown(t *testing.T) {
	r, now := emptyRecord(t), noon()
	var waits []time.Duration
	for range 12 {
		wait := r.Wait("a", now)
		waits = append(waits, wait)
		now = now.Add(wait)
		if left := r.Wait("a", now); left != 0 {
			t.Fatalf("%s are left after %s", left, wait)
		}
		r.Tried("a", now)
	}
	minute := time.Minute
	if want := []time.Duration{0, 0, 0, minute, 2 * minute, 4 * minute, 8 * minute, 16 * minute, 30 * minute, 30 * minute, 30 * minute, 30 * minute}; !slices.Equal(waits, want) {
		t.Errorf("waits %s, want %s", waits, want)
	}
	if !slices.Equal(r.Undone(), []string{"a"}) {
		t.Errorf("undone %q", r.Undone())
	}
	r.OpenGap("a", Gap{})
	if r.Prune(now.Add(2 * triesForget)) {
		t.Error("forgotten while the namespace is open")
	}
	delete(r.Gaps, "a")
	if r.Prune(now.Add(triesForget)) || !r.Prune(now.Add(triesForget+1)) || len(r.Undone()) > 0 || r.Wait("a", now) != 0 {
		t.Errorf("%+v", r)
	}
}
