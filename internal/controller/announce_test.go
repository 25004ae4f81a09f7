package controller

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"k8s.io/client-go/tools/events"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/scan"
)

type announced struct{ left, putOff int }

func (a *announced) Announced(left bool) {
	if left {
		a.left++
	} else {
		a.putOff++
	}
}

func TestAnnouncerSaysWhatIsNew(t *testing.T) {
	recorder := events.NewFakeRecorder(300)
	counts := &announced{}
	a := NewAnnouncer(recorder, counts)
	web, cart, excepted := resultOf("web", v1alpha1.Deny), resultOf("cart", v1alpha1.Deny), resultOf("old", v1alpha1.Deny)
	excepted.Exception = "migration"
	for _, step := range []struct {
		what string
		now  *scan.Standing
		want int
	}{
		{"one and one by an exception", &scan.Standing{Results: []scan.Result{web, excepted}}, 1},
		{"the same", &scan.Standing{Results: []scan.Result{web, excepted}}, 0},
		{"another", &scan.Standing{Results: []scan.Result{web, cart}}, 1},
		{"one is mended", &scan.Standing{Results: []scan.Result{cart}}, 0},
		{"it is back", &scan.Standing{Results: []scan.Result{web, cart}}, 1},
		{"nobody looks at it", nil, 0},
		{"somebody does again", &scan.Standing{Results: []scan.Result{cart}}, 1},
	} {
		a.Tell("prod", step.now)
		if len(recorder.Events) != step.want {
			t.Errorf("%s: %d events, want %d", step.what, len(recorder.Events), step.want)
		}
		for len(recorder.Events) > 0 {
			if event := <-recorder.Events; !strings.HasPrefix(event, "Warning NotInMesh 2 pods such as") {
				t.Errorf("event %q", event)
			}
		}
	}
}

func TestAnnouncerPutsOff(t *testing.T) {
	recorder := events.NewFakeRecorder(2000)
	counts := &announced{}
	a := NewAnnouncer(recorder, counts)
	s := &scan.Standing{}
	for i := range saidAtMost {
		s.Results = append(s.Results, resultOf(fmt.Sprintf("web-%d", i), v1alpha1.Deny))
	}
	for i := range 10 {
		a.Tell(fmt.Sprintf("prod-%d", i), s)
	}
	// Some may be left while the test runs.
	if counts.left < eventsAtOnce || counts.left > eventsAtOnce+10*eventsPerSecond || counts.left+counts.putOff != 10*saidAtMost || len(recorder.Events) != counts.left {
		t.Errorf("%+v, %d events", counts, len(recorder.Events))
	}
}

func TestNotesAreCutBetweenRunes(t *testing.T) {
	for n := range 4 {
		if got := shortened(strings.Repeat("x", n) + strings.Repeat("ø", longestNote)); len(got) > longestNote+4 || !utf8.ValidString(got) {
			t.Errorf("%d bytes, valid %t", len(got), utf8.ValidString(got))
		}
	}
}
