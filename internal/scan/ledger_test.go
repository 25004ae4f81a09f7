package scan

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

func standing(name string, began time.Time, found int) *Standing {
	s := &Standing{Namespace: name, Began: began, Guards: []string{"default"}, Strict: true, Pods: 3, Results: []Result{{Policy: "x"}}}
	if found > 0 {
		s.Counts = []Count{{Guard: "default", Policy: "mesh-membership", Reason: "NotInMesh", Found: found, Excepted: 1}}
	}
	return s
}

func TestLedgerAddsUp(t *testing.T) {
	l := NewLedger()
	for i := range 15 {
		l.Put(standing(fmt.Sprintf("ns-%02d", i), noon(), i))
	}
	open := standing("open", noon(), 0)
	open.Strict, open.Stale, open.Unjudged = false, 2, 1
	open.Exceptions = []Exception{
		{"default", "a", noon().Add(time.Hour), false}, {"default", "b", noon().Add(48 * time.Hour), false}, {"other", "c", noon().Add(time.Hour), false},
		{"default", "over since", noon(), false}, {"default", "found over", noon(), true},
	}
	l.Put(open)
	got := l.Totals("default", noon())
	if got.Guarded != 16 || got.Violating != 14 || got.Strict != 15 || got.Pods != 48 || got.Stale != 2 || got.Unjudged != 1 || got.Found != 105 || got.Excepted != 14 {
		t.Errorf("%+v", got)
	}
	if got.Active != 2 || got.Expiring != 1 || got.Expired != 2 {
		t.Errorf("%d exceptions apply, %d expire, %d have; want 2, 1 and 2", got.Active, got.Expiring, got.Expired)
	}
	if len(got.Worst) != WorstAtMost || got.Worst[0].Namespace != "ns-14" || got.Worst[9].Namespace != "ns-05" {
		t.Errorf("worst %+v", got.Worst)
	}
	if want := (Count{"default", "mesh-membership", "NotInMesh", 105, 14}); len(got.Counts) != 1 || got.Counts[0] != want {
		t.Errorf("counts %+v", got.Counts)
	}
	if other := l.Totals("other", noon()); other.Guarded != 0 || other.Found != 0 {
		t.Errorf("a guard that selects nothing: %+v", other)
	}
}

func TestLedgerTellsOfChanges(t *testing.T) {
	l := NewLedger()
	var told []string
	l.OnChange(func(guard string) { told = append(told, guard) })
	step := func(what string, want int, do func()) {
		t.Helper()
		told = nil
		do()
		if len(told) != want {
			t.Errorf("%s: told of %q, want %d", what, told, want)
		}
	}
	step("a namespace", 1, func() { l.Put(standing("prod", noon(), 0)) })
	step("the same again", 0, func() { l.Put(standing("prod", noon().Add(time.Second), 0)) })
	step("a finding", 1, func() { l.Put(standing("prod", noon().Add(2*time.Second), 1)) })
	step("an older examination", 0, func() {
		if l.Put(standing("prod", noon(), 0)) {
			t.Error("taken")
		}
	})
	if l.Pods("prod") != 3 || l.Pods("dev") != 0 {
		t.Errorf("pods %d and %d", l.Pods("prod"), l.Pods("dev"))
	}
	step("a namespace that goes", 1, func() { l.Remove("prod") })
	step("one that was not there", 0, func() { l.Remove("prod") })
}

func TestLedgerForgetsWhatAPassDoesNotMeet(t *testing.T) {
	l := NewLedger()
	l.Put(standing("gone", noon(), 1))
	began := noon().Add(time.Minute)
	l.Put(standing("met", began, 1))
	l.Put(standing("new", began.Add(time.Second), 1)) // after the pass had gone by
	l.Failed(errors.New("boom"))
	gone := l.Complete(began, began.Add(3*time.Second), map[string]bool{"met": true})
	if at, took, failing := l.Scanned(); !at.Equal(began.Add(3*time.Second)) || took != 3*time.Second || failing != nil {
		t.Errorf("scanned %s in %s, %v", at, took, failing)
	}
	if t2 := l.Totals("default", began); !slices.Equal(gone, []string{"gone"}) || t2.Guarded != 2 {
		t.Errorf("gone %q, %d left", gone, t2.Guarded)
	}
}

// What is kept of a namespace holds no texts and no objects.
func TestLedgerKeepsNoResults(t *testing.T) {
	l := NewLedger()
	l.Put(standing("prod", noon(), 1))
	if w := l.Totals("default", noon()).Worst; len(w) != 1 || w[0].Results != nil {
		t.Errorf("%+v", w)
	}
}
