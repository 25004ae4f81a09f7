package telemetry

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestEvidence(t *testing.T) {
	registry := prometheus.NewRegistry()
	state := EvidenceState{Available: true, Written: 3, Admitted: 40, Lines: 99, Unsealed: 2, LagSeconds: 1.5}
	if err := Evidence(registry, []string{"full", "slow"}, func() EvidenceState { return state }); err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		err := testutil.GatherAndCompare(registry, strings.NewReader(want), "meshvakt_evidence_available", "meshvakt_evidence_unavailable", "meshvakt_evidence_answers_total")
		if err != nil {
			t.Error(err)
		}
	}
	const help = `
# HELP meshvakt_evidence_answers_total Answers to reviews, dry runs excepted, by what became of their record: a record of their own, counted with others, or none.
# TYPE meshvakt_evidence_answers_total counter
# HELP meshvakt_evidence_available Whether records can be written to the evidence log of this replica: 1 or 0.
# TYPE meshvakt_evidence_available gauge
# HELP meshvakt_evidence_unavailable Why they cannot: 1 for the cause, 0 for the others.
# TYPE meshvakt_evidence_unavailable gauge
`
	expect(help + `
meshvakt_evidence_answers_total{record="counted"} 40
meshvakt_evidence_answers_total{record="none"} 0
meshvakt_evidence_answers_total{record="own"} 3
meshvakt_evidence_available 1
meshvakt_evidence_unavailable{cause="full"} 0
meshvakt_evidence_unavailable{cause="slow"} 0
`)
	state = EvidenceState{Cause: "slow", Unlogged: 7}
	expect(help + `
meshvakt_evidence_answers_total{record="counted"} 0
meshvakt_evidence_answers_total{record="none"} 7
meshvakt_evidence_answers_total{record="own"} 0
meshvakt_evidence_available 0
meshvakt_evidence_unavailable{cause="full"} 0
meshvakt_evidence_unavailable{cause="slow"} 1
`)
}
