package seal

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Collector gives what Stats tells, at the moment it is asked for.
type Collector struct {
	sealer *Sealer
	series []series
}

type series struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(st Stats, now time.Time) float64
}

// NewCollector is for one Sealer.
func NewCollector(s *Sealer) *Collector {
	c := &Collector{sealer: s}
	add := func(kind prometheus.ValueType, name, help string, value func(Stats, time.Time) float64) {
		c.series = append(c.series, series{prometheus.NewDesc(name, help, nil, nil), kind, value})
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	add(gauge, "meshvakt_sealer_sealed_line", "Last line of the spool that is in a published checkpoint with all before it.", func(s Stats, _ time.Time) float64 { return float64(s.Sealed) })
	add(gauge, "meshvakt_sealer_witnessed_line", "Last line of the spool that is in a witnessed checkpoint with all before it; as sealed where no witness is configured.", func(s Stats, _ time.Time) float64 { return float64(s.Witnessed) })
	add(gauge, "meshvakt_sealer_unsealed_lines", "Lines of the spool that are in no published checkpoint, as of the last look.", func(s Stats, _ time.Time) float64 { return float64(s.Last - min(s.Sealed, s.Last)) })
	add(gauge, "meshvakt_sealer_unsealed_seconds", "Time since all of the spool was sealed, or since the start.", func(s Stats, now time.Time) float64 { return since(now, s.AllSealed, s.Started) })
	add(gauge, "meshvakt_sealer_checkpoint_age_seconds", "Time since a checkpoint was published that has more records than the one before, or since the start.", func(s Stats, now time.Time) float64 { return since(now, s.Signed, s.Started) })
	add(gauge, "meshvakt_sealer_pass_age_seconds", "Time since the last pass came to an end, whatever became of it.", func(s Stats, now time.Time) float64 { return since(now, s.Pass, s.Started) })
	add(counter, "meshvakt_sealer_sealed_records_total", "Records added to logs by this process.", func(s Stats, _ time.Time) float64 { return float64(s.Records) })
	add(counter, "meshvakt_sealer_failures_total", "Passes, and turns of bundling and retention, that failed.", func(s Stats, _ time.Time) float64 { return float64(s.Failures) })
	add(counter, "meshvakt_sealer_witness_failures_total", "Checkpoints for which the quorum of witnesses was not reached.", func(s Stats, _ time.Time) float64 { return float64(s.WitnessFailures) })
	if s.config.Witnesses != nil {
		add(gauge, "meshvakt_sealer_unwitnessed_seconds", "Time since the quorum of witnesses had cosigned all that was sealed, or since the start.", func(s Stats, now time.Time) float64 { return since(now, s.Seen, s.Started) })
	}
	if s.config.Mirror != nil {
		add(gauge, "meshvakt_sealer_mirror_age_seconds", "Time since the mirror had all that was sealed, or since the start.", func(s Stats, now time.Time) float64 { return since(now, s.Mirrored, s.Started) })
		add(counter, "meshvakt_sealer_mirror_failures_total", "Turns of copying to the mirror that failed.", func(s Stats, _ time.Time) float64 { return float64(s.MirrorFailures) })
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, s := range c.series {
		out <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	st, now := c.sealer.Stats(), c.sealer.config.Now()
	for _, s := range c.series {
		out <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(st, now))
	}
}

func since(now, t, start time.Time) float64 {
	if t.IsZero() {
		t = start
	}
	return max(now.Sub(t), 0).Seconds()
}
