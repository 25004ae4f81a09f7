package telemetry

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

func newMetrics(t *testing.T) (*Metrics, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	m, err := New(registry, Known{
		Policies: policies.All(),
		Paths:    []string{"/mutate", "/validate"},
		Stages:   []string{"decode", "panic"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ServingCertificate(registry, func() time.Time { return time.Unix(1_800_000_000, 0) }); err != nil {
		t.Fatal(err)
	}
	return m, registry
}

func TestLint(t *testing.T) {
	_, registry := newMetrics(t)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestRegisteredTwice(t *testing.T) {
	_, registry := newMetrics(t)
	if _, err := New(registry, Known{}); err == nil {
		t.Error("second registration on one registry succeeded")
	}
}

func TestEverySeriesStartsAtZero(t *testing.T) {
	_, registry := newMetrics(t)
	wantReasons, judged := 0, map[string]bool{}
	for _, p := range policies.All() {
		wantReasons += len(p.Reasons)
		for _, m := range p.Matches {
			for _, o := range m.Operations {
				judged[m.Kind+" "+string(o)] = true
			}
		}
	}
	wantDecisions := 3 * len(judged)
	for name, want := range map[string]int{
		"meshvakt_admission_decisions_total":             wantDecisions,
		"meshvakt_policy_findings_total":                 4 * wantReasons,
		"meshvakt_admission_duration_seconds":            2,
		"meshvakt_errors_total":                          2,
		"meshvakt_in_flight_requests":                    1,
		"meshvakt_serving_certificate_not_after_seconds": 1,
	} {
		got, err := testutil.GatherAndCount(registry, name)
		if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s has %d series at the start, want %d", name, got, want)
		}
	}
}

func TestCounts(t *testing.T) {
	m, registry := newMetrics(t)
	before, err := testutil.GatherAndCount(registry)
	if err != nil {
		t.Fatal(err)
	}
	denied := policies.Decision{Outcome: policies.Deny, Findings: []policies.Ruling{
		{Policy: "strict-mtls", Action: v1alpha1.Deny, Finding: policies.Finding{Reason: policies.Reason{Name: "WorkloadNotStrict"}}},
	}}
	m.Decided("Pod", "CREATE", denied)
	m.Failed("panic")
	end := m.Begin("/validate")
	if got := testutil.ToFloat64(m.inFlight); got != 1 {
		t.Errorf("%v requests in flight after Begin, want 1", got)
	}
	end()
	after, err := testutil.GatherAndCount(registry)
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("known values made %d new series", after-before)
	}
	const want = `
# HELP meshvakt_errors_total Admission requests that were answered with an HTTP error instead of a decision, by the stage that failed.
# TYPE meshvakt_errors_total counter
meshvakt_errors_total{stage="decode"} 0
meshvakt_errors_total{stage="panic"} 1
# HELP meshvakt_in_flight_requests Admission requests being served now, including those whose body is still being read.
# TYPE meshvakt_in_flight_requests gauge
meshvakt_in_flight_requests 0
# HELP meshvakt_serving_certificate_not_after_seconds When the serving certificate in use expires, in seconds since 1970; 0 while there is none.
# TYPE meshvakt_serving_certificate_not_after_seconds gauge
meshvakt_serving_certificate_not_after_seconds 1.8e+09
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want),
		"meshvakt_errors_total", "meshvakt_in_flight_requests", "meshvakt_serving_certificate_not_after_seconds"); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(m.decisions.WithLabelValues("deny", "CREATE", "Pod")); got != 1 {
		t.Errorf("denied pods: %v, want 1", got)
	}
	if got := testutil.ToFloat64(m.findings.WithLabelValues("strict-mtls", "WorkloadNotStrict", "Deny")); got != 1 {
		t.Errorf("findings: %v, want 1", got)
	}
}

// What comes from outside must not become a label.
func TestUnknownValuesAreBounded(t *testing.T) {
	m, registry := newMetrics(t)
	for _, evil := range []string{"a", "b", "c\n"} {
		m.Decided(evil, evil, policies.Decision{Outcome: policies.Outcome(evil), Findings: []policies.Ruling{
			{Policy: evil, Action: v1alpha1.ValidationAction(evil), Finding: policies.Finding{Reason: policies.Reason{Name: evil}}},
		}})
		m.Failed(evil)
		m.Begin(evil)()
	}
	const want = `
# HELP meshvakt_errors_total Admission requests that were answered with an HTTP error instead of a decision, by the stage that failed.
# TYPE meshvakt_errors_total counter
meshvakt_errors_total{stage="decode"} 0
meshvakt_errors_total{stage="other"} 3
meshvakt_errors_total{stage="panic"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "meshvakt_errors_total"); err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(m.decisions.WithLabelValues(other, other, other)); got != 3 {
		t.Errorf("other decisions: %v, want 3", got)
	}
	if got := testutil.ToFloat64(m.findings.WithLabelValues(other, other, other)); got != 3 {
		t.Errorf("other findings: %v, want 3", got)
	}
	if got := testutil.CollectAndCount(m.duration); got != 3 {
		t.Errorf("%d paths, want 2 and other", got)
	}
}
