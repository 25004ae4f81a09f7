package verify

import (
	"testing"
)

// quiet is a replica that saw one namespace for n minutes.
func quiet(replica string, minutes int) *book {
	b := newBook(replica, 1)
	b.rows["payments"] = b.row("payments", "STRICT", 0, 1)
	b.start(0)
	b.snapshot(0, "boot", 0)
	for m := range minutes + 1 {
		b.beat(seconds(60 * m))
	}
	return b
}

func TestAQuietHourHolds(t *testing.T) {
	b := quiet("meshvakt-0", 60)
	r := verifyAll(t, Options{Claims: []Claim{claimOf(t, "mtls=STRICT,namespace=payments", 60, 3540)}}, b.sources()...)
	if len(r.Problems) > 0 || len(r.Findings) > 0 {
		t.Fatalf("problems %v, findings %v", r.Problems, r.Findings)
	}
	if a := r.Claims[0]; a.Verdict != Holds || r.ExitCode() != 0 {
		t.Errorf("the claim: %+v", a)
	}
	list := r.Namespaces[0].Intervals
	if len(list) != 1 || list[0].Grade != Observed || list[0].To.Sub(list[0].From) != seconds(3600) {
		t.Errorf("intervals: %+v", list)
	}
}
