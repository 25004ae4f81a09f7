package telemetry

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Own are the metrics about Meshvakt itself: its own objects, and whether it is asked.
type Own struct {
	kinds, actions, outcomes set

	repaired *prometheus.CounterVec
	canaries *prometheus.CounterVec
}

// OwnKnown are the closed sets of label values.
type OwnKnown struct {
	Kinds, Actions, Outcomes []string
}

// NewOwn registers the collectors. wrong counts the objects that are not as installed, by
// kind; age is how long ago the API server was last seen to ask us and to get our answer,
// false when this replica does not know.
func NewOwn(registerer prometheus.Registerer, known OwnKnown, wrong func() map[string]int, age func() (time.Duration, bool)) (*Own, error) {
	o := &Own{
		kinds: known.Kinds, actions: known.Actions, outcomes: known.Outcomes,
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_own_objects_repaired_total",
			Help: "Objects of Meshvakt's own that somebody had changed or deleted and that this replica has put back.",
		}, []string{"kind", "action"}),
		canaries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshvakt_canaries_total",
			Help: "Requests that Meshvakt must refuse, sent to the API server to see whether it asks, by what came back.",
		}, []string{"outcome"}),
	}
	ages := &canaryAge{prometheus.NewDesc("meshvakt_canary_age_seconds",
		"How long ago the API server was last seen to ask Meshvakt and to get its answer; the leader alone has it.", nil, nil), age}
	unrepaired := &ownWrong{prometheus.NewDesc("meshvakt_own_objects_not_as_installed",
		"Objects of Meshvakt's own that are missing or changed now, and not put back; the leader alone knows.", []string{"kind"}, nil), known.Kinds, wrong}
	var errs []error
	for _, c := range []prometheus.Collector{o.repaired, o.canaries, ages, unrepaired} {
		errs = append(errs, registerer.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics of own objects: %w", err)
	}
	for _, k := range known.Kinds {
		for _, a := range known.Actions {
			o.repaired.WithLabelValues(k, a)
		}
	}
	for _, v := range known.Outcomes {
		o.canaries.WithLabelValues(v)
	}
	return o, nil
}

// OwnObjectRepaired counts a repair.
func (o *Own) OwnObjectRepaired(kind, action string) {
	o.repaired.WithLabelValues(o.kinds.bound(kind), o.actions.bound(action)).Inc()
}

// CanaryAnswered counts what came back of a canary.
func (o *Own) CanaryAnswered(outcome string) {
	o.canaries.WithLabelValues(o.outcomes.bound(outcome)).Inc()
}

// canaryAge reports the age at the moment it is asked, and nothing where it is not known.
type canaryAge struct {
	description *prometheus.Desc
	age         func() (time.Duration, bool)
}

// Describe implements prometheus.Collector.
func (c *canaryAge) Describe(ch chan<- *prometheus.Desc) { ch <- c.description }

// Collect implements prometheus.Collector.
func (c *canaryAge) Collect(ch chan<- prometheus.Metric) {
	if age, known := c.age(); known {
		ch <- prometheus.MustNewConstMetric(c.description, prometheus.GaugeValue, age.Seconds())
	}
}

type ownWrong struct {
	description *prometheus.Desc
	kinds       []string
	wrong       func() map[string]int
}

// Describe implements prometheus.Collector.
func (w *ownWrong) Describe(ch chan<- *prometheus.Desc) { ch <- w.description }

// Collect implements prometheus.Collector.
func (w *ownWrong) Collect(ch chan<- prometheus.Metric) {
	counts := w.wrong()
	for _, k := range w.kinds {
		ch <- prometheus.MustNewConstMetric(w.description, prometheus.GaugeValue, float64(counts[k]), k)
	}
}
