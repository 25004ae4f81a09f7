package telemetry

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// EvidenceState is what the evidence log of this replica says of itself.
type EvidenceState struct {
	Available bool
	// Cause is one of the causes that are known beforehand, empty where available.
	Cause string
	// Since the start of the process.
	In, Written, Admitted, Unlogged uint64
	Lines                           uint64 // in the log of this volume so far
	Unsealed                        uint64 // of these, not sealed yet
	LagSeconds                      float64
}

// evidence reports at the moment it is asked.
type evidence struct {
	state     func() EvidenceState
	causes    []string
	available *prometheus.Desc
	cause     *prometheus.Desc
	answers   *prometheus.Desc
	lines     *prometheus.Desc
	unsealed  *prometheus.Desc
	lag       *prometheus.Desc
}

// Evidence registers the metrics of the evidence log.
func Evidence(registerer prometheus.Registerer, causes []string, state func() EvidenceState) error {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	e := &evidence{
		state:     state,
		causes:    causes,
		available: describe("meshvakt_evidence_available", "Whether records can be written to the evidence log of this replica: 1 or 0."),
		cause:     describe("meshvakt_evidence_unavailable", "Why they cannot: 1 for the cause, 0 for the others.", "cause"),
		answers:   describe("meshvakt_evidence_answers_total", "Answers to reviews, dry runs excepted, by what became of their record: a record of their own, counted with others, or none.", "record"),
		lines:     describe("meshvakt_evidence_lines_total", "Lines in the evidence log of this replica since its volume was new."),
		unsealed:  describe("meshvakt_evidence_unsealed_lines", "Lines that are not in a signed checkpoint yet."),
		lag:       describe("meshvakt_evidence_sealer_silence_seconds", "For how long the sealer has said nothing while there was something to seal."),
	}
	if err := registerer.Register(e); err != nil {
		return fmt.Errorf("register metrics of evidence: %w", err)
	}
	if len(causes) == 0 {
		return errors.New("register metrics of evidence: no causes")
	}
	return nil
}

// Describe implements prometheus.Collector.
func (e *evidence) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{e.available, e.cause, e.answers, e.lines, e.unsealed, e.lag} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e *evidence) Collect(ch chan<- prometheus.Metric) {
	s := e.state()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(e.available, one(s.Available))
	for _, c := range e.causes {
		gauge(e.cause, one(!s.Available && c == s.Cause), c)
	}
	counter(e.answers, s.Written, "own")
	counter(e.answers, s.Admitted, "counted")
	counter(e.answers, s.Unlogged, "none")
	counter(e.lines, s.Lines)
	gauge(e.unsealed, float64(s.Unsealed))
	gauge(e.lag, s.LagSeconds)
}

func one(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
