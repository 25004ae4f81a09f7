package e2e

import (
	"fmt"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// TestEvidenceOfWhatWasSeen takes the webhook out of the API server, changes a policy behind its
// back and puts it right again: the log has both, with their bounds, and no decision for the first.
func TestEvidenceOfWhatWasSeen(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	r := start(t, append(evidenceOf(dir), "--leader-elect")...)
	enforcing(t, "default")
	admin := clientFor(t, controlplane.Admin)
	ns := unique("seen")
	create(t, admin, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), admin, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	seen := func(least string) record.Row {
		t.Helper()
		var row record.Row
		eventually(t, 30*time.Second, func() error {
			found := ""
			for _, rec := range spooled(t, dir) {
				switch b := rec.Body.(type) {
				case *record.State:
					if b.Row.Namespace == ns {
						found, row = b.Row.Least, b.Row
					}
				case *record.Snapshot:
					for _, r := range b.Rows {
						if r.Namespace == ns {
							found, row = r.Least, r
						}
					}
				}
			}
			if found != least {
				return fmt.Errorf("namespace %s is recorded as %q; must be %q", ns, found, least)
			}
			return nil
		})
		return row
	}
	before := seen("STRICT")

	// The leader puts the webhook back within a moment, so it must lose the right to.
	giveBack := withoutRight(t, admin)
	must(t, admin.Delete(t.Context(), registered(t, admin)))
	var changed time.Time
	weak := policy(ns, "default", "PERMISSIVE")
	eventually(t, 10*time.Second, func() error { // the API server asks on until it knows
		changed = time.Now()
		return admin.Patch(t.Context(), weak, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"mtls":{"mode":"PERMISSIVE"}}}`)))
	})
	stored := time.Now()
	after := seen("PERMISSIVE")
	told := time.Now()
	must(t, admin.Patch(t.Context(), weak, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"mtls":{"mode":"STRICT"}}}`))))
	seen("STRICT")
	giveBack()
	enforcing(t, "default")
	eventually(t, 30*time.Second, func() error {
		if n := countOf[*record.Beat](spooled(t, dir)); n == 0 {
			return fmt.Errorf("%d beats", n)
		}
		return nil
	})
	r.stop()
	unregister(t)

	log := spooled(t, dir)
	decisions := map[string]bool{}
	weakened, least := 0, ""
	for _, rec := range log {
		switch b := rec.Body.(type) {
		case *record.Decision:
			if b.Verdict == "allow" {
				decisions[b.Object.UID+b.Object.Digest] = true
			}
		case *record.State:
			if b.Row.Namespace != ns || b.Row.Least == least {
				continue // something else has changed
			}
			if least = b.Row.Least; least == "PERMISSIVE" {
				weakened++
				if b.After.After(stored) || rec.Time.Before(changed) || rec.Time.After(told) {
					t.Errorf("the change between %s and %s is told between %s and %s", changed, told, b.After, rec.Time)
				}
			}
		}
	}
	if weakened != 1 {
		t.Errorf("the change is told %d times", weakened)
	}
	explained := func(row record.Row) (n int) {
		for _, in := range row.Inputs {
			if in.Object.GVK == "security.istio.io/v1/PeerAuthentication" && decisions[in.Object.UID+in.Object.Digest] {
				n++
			}
		}
		return n
	}
	t.Logf("%d records; before %+v; after %+v", len(log), before.Inputs, after.Inputs)
	if explained(after) != 0 {
		t.Error("a change that nobody was asked about has a decision")
	}
}

func countOf[T record.Body](log []record.Record) (n int) {
	for _, r := range log {
		if _, is := r.Body.(T); is {
			n++
		}
	}
	return n
}
