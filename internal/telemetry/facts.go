package telemetry

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// factsAge reports the age of the facts at the moment it is asked.
type factsAge struct {
	description *prometheus.Desc
	ages        func() map[string]time.Duration
}

// FactsAge registers for how long each kind's watch has been broken.
func (m *Metrics) FactsAge(registerer prometheus.Registerer, ages func() map[string]time.Duration) error {
	err := registerer.Register(&factsAge{
		description: prometheus.NewDesc("meshvakt_facts_age_seconds",
			"For how long the watch of a kind that policies read has been broken; 0 while it works.", []string{"kind"}, nil),
		ages: ages,
	})
	if err != nil {
		return fmt.Errorf("register age of facts: %w", err)
	}
	return nil
}

// Describe implements prometheus.Collector.
func (f *factsAge) Describe(ch chan<- *prometheus.Desc) { ch <- f.description }

// Collect implements prometheus.Collector.
func (f *factsAge) Collect(ch chan<- prometheus.Metric) {
	for kind, age := range f.ages() {
		ch <- prometheus.MustNewConstMetric(f.description, prometheus.GaugeValue, age.Seconds(), kind)
	}
}
