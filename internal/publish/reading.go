package publish

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/probe"
)

// The reasons of the condition.
const (
	ReasonStealHigh = "StealHigh"
	ReasonStealLow  = "StealLow"
)

const (
	maxWindows = 5
	// An error is cut after so many bytes, so that MaxTargets results with an error each
	// stay within the 8 KiB of v1alpha1.AnnotationResult.
	maxError = 200
)

// steals is the CPU steal of the last windows in percent, oldest first.
type steals []float64

func (s *steals) add(percent float64) {
	*s = append(*s, percent)
	*s = (*s)[max(0, len(*s)-maxWindows):]
}

func (s *steals) len() int { return len(*s) }

// median is the mean of the two in the middle where there is no middle one.
func (s *steals) median() float64 {
	sorted := slices.Sorted(slices.Values(*s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// reading is what is published of the CPU: the steal in tenths of a percent, as others
// read it, and whether that is much. Both follow from the rounded number, or the Node
// would contradict itself.
type reading struct {
	tenths    int
	contended bool
}

func readingOf(percent, contendedAt float64) reading {
	tenths := int(math.Round(10 * percent))
	return reading{tenths: tenths, contended: float64(tenths)/10 >= contendedAt}
}

// like reports whether nothing has changed that is worth a write.
func (r reading) like(other reading) bool {
	return r.tenths/10 == other.tenths/10 && r.contended == other.contended
}

func (r reading) text() string { return fmt.Sprintf("%d.%d", r.tenths/10, r.tenths%10) }

func (r reading) annotations(result *probe.Result, at time.Time) (map[string]string, error) {
	text, err := compact(result)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		v1alpha1.AnnotationSteal:      r.text(),
		v1alpha1.AnnotationMeasuredAt: at.UTC().Format(time.RFC3339),
		v1alpha1.AnnotationResult:     text,
	}, nil
}

// compact encodes a result on one line, with errors cut.
func compact(r *probe.Result) (string, error) {
	short := *r
	short.Errors = make([]string, len(r.Errors))
	for i, e := range r.Errors {
		if len(e) > maxError {
			e = strings.ToValidUTF8(e[:maxError], "") + "…"
		}
		short.Errors[i] = e
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // which would make six bytes of one
	if err := enc.Encode(&short); err != nil {
		return "", fmt.Errorf("encode the result: %w", err)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// condition is the condition that follows the one before, which may be nil: it has its
// time of transition where the status is the same.
func (r reading) condition(before *corev1.NodeCondition, at time.Time, windows int, windowSeconds, contendedAt float64) corev1.NodeCondition {
	c := corev1.NodeCondition{
		Type:   v1alpha1.ConditionCPUContended,
		Status: corev1.ConditionFalse,
		Reason: ReasonStealLow,
		Message: fmt.Sprintf("%s %% of CPU time was stolen (median of %d windows of %s); contended from %s %%",
			r.text(), windows, time.Duration(windowSeconds*float64(time.Second)), strconv.FormatFloat(contendedAt, 'f', -1, 64)),
		LastHeartbeatTime:  metav1.NewTime(at),
		LastTransitionTime: metav1.NewTime(at),
	}
	if r.contended {
		c.Status, c.Reason = corev1.ConditionTrue, ReasonStealHigh
	}
	if before != nil && before.Status == c.Status && !before.LastTransitionTime.IsZero() {
		c.LastTransitionTime = before.LastTransitionTime
	}
	return c
}

// conditionOf returns the condition of a Node, nil if it has none.
func conditionOf(node *corev1.Node) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == v1alpha1.ConditionCPUContended {
			return c
		}
	}
	return nil
}

// nodePatch is a strategic merge patch: conditions are merged by their type, so that
// others stay as they are.
func nodePatch(annotations map[string]string, c corev1.NodeCondition) any {
	return map[string]any{
		"metadata": map[string]any{"annotations": annotations},
		"status":   map[string]any{"conditions": []corev1.NodeCondition{c}},
	}
}

// diskFigures are those of the last round that measured the disk, the zero value before
// it.
type diskFigures struct {
	at             time.Time // when that round began
	sync           probe.Latency
	readsPerSecond float64
}

func (d *diskFigures) due(now time.Time, every time.Duration) bool {
	return d.at.IsZero() || now.Sub(d.at) >= every-slack
}

func (d *diskFigures) take(r *probe.Result, at time.Time) {
	*d = diskFigures{at: at, sync: r.Sync, readsPerSecond: r.ReadsPerSecond}
}

// carryInto completes a result without the disk; where that could not be measured there
// is nothing to carry.
func (d *diskFigures) carryInto(r *probe.Result) {
	if d.sync.Samples == 0 && d.readsPerSecond == 0 {
		return
	}
	at := d.at.UTC().Truncate(time.Second)
	r.Sync, r.ReadsPerSecond, r.DiskMeasuredAt = d.sync, d.readsPerSecond, &at
}
