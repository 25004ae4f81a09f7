package telemetry

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestOwn(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	var age time.Duration
	known := false
	o, err := NewOwn(registry, OwnKnown{Kinds: []string{"Role", "Service"}, Actions: []string{"changed", "created"}, Outcomes: []string{"CanaryRefused"}},
		func() map[string]int { return map[string]int{"Role": 2, "Secret": 1} }, func() (time.Duration, bool) { return age, known })
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{
		"meshvakt_own_objects_repaired_total": 4, "meshvakt_canaries_total": 1,
		"meshvakt_own_objects_not_as_installed": 2, "meshvakt_canary_age_seconds": 0, // of a replica that does not lead
	} {
		if got, err := testutil.GatherAndCount(registry, name); err != nil || got != want {
			t.Errorf("%s has %d series at the start, %v; want %d", name, got, err, want)
		}
	}
	o.OwnObjectRepaired("Role", "created")
	o.OwnObjectRepaired("Role\n", "blessed")
	o.CanaryAnswered("CanaryRefused")
	o.CanaryAnswered("whatever")
	age, known = 1500*time.Millisecond, true
	const want = `
# HELP meshvakt_canaries_total Requests that Meshvakt must refuse, sent to the API server to see whether it asks, by what came back.
# TYPE meshvakt_canaries_total counter
meshvakt_canaries_total{outcome="CanaryRefused"} 1
meshvakt_canaries_total{outcome="other"} 1
# HELP meshvakt_canary_age_seconds How long ago the API server was last seen to ask Meshvakt and to get its answer; the leader alone has it.
# TYPE meshvakt_canary_age_seconds gauge
meshvakt_canary_age_seconds 1.5
# HELP meshvakt_own_objects_not_as_installed Objects of Meshvakt's own that are missing or changed now, and not put back; the leader alone knows.
# TYPE meshvakt_own_objects_not_as_installed gauge
meshvakt_own_objects_not_as_installed{kind="Role"} 2
meshvakt_own_objects_not_as_installed{kind="Service"} 0
# HELP meshvakt_own_objects_repaired_total Objects of Meshvakt's own that somebody had changed or deleted and that this replica has put back.
# TYPE meshvakt_own_objects_repaired_total counter
meshvakt_own_objects_repaired_total{action="changed",kind="Role"} 0
meshvakt_own_objects_repaired_total{action="changed",kind="Service"} 0
meshvakt_own_objects_repaired_total{action="created",kind="Role"} 1
meshvakt_own_objects_repaired_total{action="created",kind="Service"} 0
meshvakt_own_objects_repaired_total{action="other",kind="other"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
