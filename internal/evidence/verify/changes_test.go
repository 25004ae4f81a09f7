package verify

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// Two replicas see a webhook configuration weakened, deleted and put back; one of them has put it back.
func TestChangesAreToldOnce(t *testing.T) {
	a, b := quiet("meshvakt-0", 0), quiet("meshvakt-1", 0)
	tell := func(w *book, at int, what, version string, weaker bool) {
		found := epoch().Add(seconds(at) - 500*time.Millisecond) // and written behind the word of the one who has put it back
		if at == 8 {
			found = found.Add(time.Hour) // the clock was set back in between
		}
		x := &record.ConfigChanged{GVK: "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration", Name: "meshvakt", UID: "u", ResourceVersion: version, What: what, Found: found, Weaker: weaker, By: record.Subject{Kind: record.Unknown}}
		if what == "repaired" {
			x.By = w.pseudonyms.Subject("system:serviceaccount:meshvakt-system:meshvakt")
		}
		w.add(seconds(at), x)
	}
	tell(a, 2, "changed", "10", true)
	tell(b, 1, "changed", "10", true)
	tell(a, 3, "deleted", "10", true)
	tell(b, 4, "deleted", "10", true)
	tell(a, 6, "repaired", "12", false)
	tell(b, 5, "created", "12", false)
	tell(b, 7, "changed", "", false)
	tell(b, 8, "changed", "", false)
	a.beat(seconds(60))
	b.beat(seconds(60))
	for _, sources := range [][]*Source{append(a.sources(), b.sources()...), append(b.sources(), a.sources()...)} {
		r := verifyAll(t, Options{}, sources...)
		var got []string
		for _, c := range r.Changes {
			got = append(got, fmt.Sprintf("%s %t %q %d %s", c.What, c.Weaker, c.By, c.Seen, c.At.Sub(epoch())))
		}
		want := []string{`changed true "" 2 500ms`, `deleted true "" 2 2.5s`, `repaired false "system:serviceaccount:meshvakt-system:meshvakt" 2 4.5s`, `changed false "" 1 6.5s`, `changed false "" 1 8s`}
		if !slices.Equal(got, want) {
			t.Errorf("changes %q; must be %q", got, want)
		}
	}
}
