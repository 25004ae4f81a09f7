// Package telemetry holds the metrics of Meshvakt: collectors on a registry that
// is passed in, with labels from closed sets. A value that is not in its set is
// counted as "other", so that no request can create a series; all series that
// can be foreseen exist from the start, so that rate() sees the first event.
package telemetry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
)

// other is the label value of everything outside a closed set.
const other = "other"

// Known are the closed sets of label values.
type Known struct {
	Policies []policies.Policy
	// Paths are the paths of the webhooks.
	Paths []string
	// Stages are where requests, and loops beside them, can fail.
	Stages []string
}

// Metrics are the collectors. The zero value is of no use; see New.
type Metrics struct {
	kinds, operations, paths, stages set
	findingsOf                       map[string]set // reasons by policy ID

	decisions *prometheus.CounterVec
	mutations *prometheus.CounterVec
	findings  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	errors    *prometheus.CounterVec
	inFlight  prometheus.Gauge
}

// New registers the collectors.
func New(registerer prometheus.Registerer, known Known) (*Metrics, error) {
	m := &Metrics{
		paths:      known.Paths,
		stages:     known.Stages,
		findingsOf: map[string]set{},
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_admission_decisions_total",
			Help: "Admission requests that were judged and answered, by decision. Requests that could not be judged are in meshvakt_errors_total.",
		}, []string{"decision", "operation", "kind"}),
		mutations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_admission_mutations_total",
			Help: "Admission requests that were answered with a patch, or without one because nothing had to change, reinvocations and dry runs included.",
		}, []string{"outcome", "kind"}),
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_policy_findings_total",
			Help: "Findings of policies in answered admission requests, dry runs included, by what they did to the request.",
		}, []string{"policy", "reason", "action"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "meshvakt_admission_duration_seconds",
			Help:    "Time from the headers of an admission request to its answer, including requests that could not be judged.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"path"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_errors_total",
			Help: "Admission requests that were answered with an HTTP error instead of a decision, by the stage that failed.",
		}, []string{"stage"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshvakt_in_flight_requests",
			Help: "Admission requests being served now, including those whose body is still being read.",
		}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.decisions, m.mutations, m.findings, m.duration, m.errors, m.inFlight} {
		errs = append(errs, registerer.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	m.initialise(known.Policies)
	return m, nil
}

// initialise creates every series that is known to be possible.
func (m *Metrics) initialise(list []policies.Policy) {
	for i := range list {
		p := &list[i]
		for _, match := range p.Matches {
			m.kinds.add(match.Kind)
			for _, o := range match.Operations {
				m.operations.add(string(o))
				for _, d := range decisions() {
					m.decisions.WithLabelValues(d, string(o), match.Kind)
				}
			}
		}
		if p.Mutation != nil {
			for _, match := range p.Mutation.Matches {
				for _, o := range mutations() {
					m.mutations.WithLabelValues(o, match.Kind)
				}
			}
		}
		var reasons set
		for _, r := range p.Reasons {
			reasons.add(r.Name)
			for _, a := range actions() {
				m.findings.WithLabelValues(p.ID, r.Name, a)
			}
		}
		m.findingsOf[p.ID] = reasons
	}
	for _, p := range m.paths {
		m.duration.WithLabelValues(p)
	}
	for _, s := range m.stages {
		m.errors.WithLabelValues(s)
	}
}

// ServingCertificate registers the expiry of the certificate in service, 0 while
// there is none.
func (m *Metrics) ServingCertificate(registerer prometheus.Registerer, notAfter func() time.Time) error {
	err := registerer.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshvakt_serving_certificate_not_after_seconds",
		Help: "When the serving certificate in use expires, in seconds since 1970; 0 while there is none.",
	}, func() float64 {
		if t := notAfter(); !t.IsZero() {
			return float64(t.Unix())
		}
		return 0
	}))
	if err != nil {
		return fmt.Errorf("register expiry of serving certificate: %w", err)
	}
	return nil
}

// Begin counts a request on a path until end is called.
func (m *Metrics) Begin(path string) (end func()) {
	start := time.Now()
	m.inFlight.Inc()
	return func() {
		m.inFlight.Dec()
		m.duration.WithLabelValues(m.paths.bound(path)).Observe(time.Since(start).Seconds())
	}
}

// Decided counts a decision and its findings.
func (m *Metrics) Decided(kind, operation string, d policies.Decision) {
	m.decisions.WithLabelValues(decisions().bound(strings.ToLower(string(d.Outcome))), m.operations.bound(operation), m.kinds.bound(kind)).Inc()
	for i := range d.Findings {
		f := &d.Findings[i]
		policy := f.Policy
		if _, ok := m.findingsOf[policy]; !ok {
			policy = other
		}
		m.findings.WithLabelValues(policy, m.findingsOf[f.Policy].bound(f.Reason.Name), actions().bound(string(f.Action))).Inc()
	}
}

// Changed counts a mutation.
func (m *Metrics) Changed(kind string, patched bool) {
	outcome := unchanged
	if patched {
		outcome = changed
	}
	m.mutations.WithLabelValues(outcome, m.kinds.bound(kind)).Inc()
}

// Failed counts a failure in a stage.
func (m *Metrics) Failed(stage string) {
	m.errors.WithLabelValues(m.stages.bound(stage)).Inc()
}

func decisions() set {
	return set{"allow", "deny", "warn"}
}

const changed, unchanged = "patched", "unchanged"

func mutations() set { return set{changed, unchanged} }

func actions() set {
	return set{string(v1alpha1.Audit), string(v1alpha1.Deny), string(v1alpha1.Warn), string(policies.Excepted)}
}

// set is a closed set of label values.
type set []string

func (s *set) add(value string) {
	if !slices.Contains(*s, value) {
		*s = append(*s, value)
	}
}

// bound returns value if it is in the set.
func (s set) bound(value string) string {
	if slices.Contains(s, value) {
		return value
	}
	return other
}
