package telemetry

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
)

// Ledger is where the standing of the cluster is asked for.
type Ledger interface {
	Scanned() (at time.Time, took time.Duration, failing error)
	Totals(guard string, now time.Time) scan.Totals
}

// Scan are the metrics of the scan. A replica that does not lead has but counters at 0.
type Scan struct {
	duration     prometheus.Histogram
	failures     prometheus.Counter
	remediations *prometheus.CounterVec
	events       *prometheus.CounterVec

	ledger   Ledger
	guards   func() []string
	now      func() time.Time
	policies []policies.Policy

	findings, namespaces, pods, stale, exceptions, age *prometheus.Desc
}

// NewScan registers the metrics. guards returns the names of the guards there are.
func NewScan(registerer prometheus.Registerer, list []policies.Policy, ledger Ledger, guards func() []string, now func() time.Time) (*Scan, error) {
	s := &Scan{
		ledger: ledger, guards: guards, now: now, policies: list,
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshvakt_scan_duration_seconds", Help: "Time that a pass of the scan over all namespaces took, of those that were brought to their end.",
			Buckets: []float64{.1, .5, 1, 5, 10, 30, 60, 120, 300, 600},
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meshvakt_scan_failures_total", Help: "Passes of the scan over all namespaces that failed; they are tried again.",
		}),
		remediations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_remediations_total", Help: "Attempts to make a guarded namespace STRICT again that had ceased to be, by what came of them.",
		}, []string{"outcome"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_scan_events_total", Help: "Events about what the scan has newly found, by whether they were left or put off because there were too many.",
		}, []string{"outcome"}),
		findings:   prometheus.NewDesc("meshvakt_scan_findings", "Objects that break a policy as they stand, by guard and reason; of state excepted are those that an exception lets pass. Told by the leader.", []string{"guard", "policy", "reason", "state"}, nil),
		namespaces: prometheus.NewDesc("meshvakt_scan_namespaces", "Namespaces that a guard selects, by how they stand; not_strict are counted among compliant or violating too. Told by the leader.", []string{"guard", "state"}, nil),
		pods:       prometheus.NewDesc("meshvakt_scan_pods", "Running pods of a guard's namespaces that were judged. Told by the leader.", []string{"guard"}, nil),
		stale:      prometheus.NewDesc("meshvakt_scan_stale_proxies", "Running pods of a guard's namespaces whose proxy is of another revision or image than they would get now. Told by the leader.", []string{"guard"}, nil),
		exceptions: prometheus.NewDesc("meshvakt_scan_exceptions", "GuardExceptions of a guard's namespaces: active ones apply, expiring are those of them that end within a day, and expired ones have ended and are there still. Told by the leader.", []string{"guard", "state"}, nil),
		age:        prometheus.NewDesc("meshvakt_scan_age_seconds", "Time since the last pass of the scan over all namespaces ended. Told by the leader, once there was one.", nil, nil),
	}
	var errs []error
	for _, c := range []prometheus.Collector{s.duration, s.failures, s.remediations, s.events, s} {
		errs = append(errs, registerer.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics of the scan: %w", err)
	}
	for _, o := range remediations() {
		s.remediations.WithLabelValues(o)
	}
	for _, o := range announcements() {
		s.events.WithLabelValues(o)
	}
	return s, nil
}

func remediations() set { return set{"failed", "impossible", "restored"} }

func announcements() set { return set{"left", "put_off"} }

// ScanEnded counts a pass.
func (s *Scan) ScanEnded(took time.Duration, err error) {
	if err != nil {
		s.failures.Inc()
		return
	}
	s.duration.Observe(took.Seconds())
}

// Remediated counts an attempt to restore STRICT.
func (s *Scan) Remediated(outcome string) {
	s.remediations.WithLabelValues(remediations().bound(outcome)).Inc()
}

// Announced counts an event that was left, or put off.
func (s *Scan) Announced(left bool) {
	outcome := announcements()[1]
	if left {
		outcome = announcements()[0]
	}
	s.events.WithLabelValues(outcome).Inc()
}

// Describe implements prometheus.Collector.
func (s *Scan) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.findings, s.namespaces, s.pods, s.stale, s.exceptions, s.age} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Scan) Collect(ch chan<- prometheus.Metric) {
	at, _, _ := s.ledger.Scanned()
	if at.IsZero() {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	now := s.now()
	gauge(s.age, max(now.Sub(at).Seconds(), 0))
	for _, guard := range s.guards() {
		t := s.ledger.Totals(guard, now)
		counts := map[[2]string]scan.Count{}
		for _, c := range t.Counts {
			counts[[2]string{c.Policy, c.Reason}] = c
		}
		for i := range s.policies {
			for _, r := range s.policies[i].Reasons {
				c := counts[[2]string{s.policies[i].ID, r.Name}]
				gauge(s.findings, float64(c.Found), guard, s.policies[i].ID, r.Name, "stands")
				gauge(s.findings, float64(c.Excepted), guard, s.policies[i].ID, r.Name, "excepted")
			}
		}
		gauge(s.namespaces, float64(t.Guarded-t.Violating), guard, "compliant")
		gauge(s.namespaces, float64(t.Violating), guard, "violating")
		gauge(s.namespaces, float64(t.Guarded-t.Strict), guard, "not_strict")
		gauge(s.pods, float64(t.Pods), guard)
		gauge(s.stale, float64(t.Stale), guard)
		gauge(s.exceptions, float64(t.Active), guard, "active")
		gauge(s.exceptions, float64(t.Expiring), guard, "expiring")
		gauge(s.exceptions, float64(t.Expired), guard, "expired")
	}
}
