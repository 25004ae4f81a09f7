package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/probe"
)

const (
	offset   = 3 * time.Minute
	interval = 10 * time.Minute
	window   = time.Minute
)

// cluster is an API server with one Node, which it changes as the real one does.
type cluster struct {
	t       *testing.T
	node    corev1.Node
	patches []string
	at      []time.Duration // of the patches, since the start
	began   time.Time
	fail    func(n int) error // of the nth patch, counted from 1; nil for none
	lost    func(n int) error // the same, of the answer alone
}

func (c *cluster) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*corev1.Node, error) {
	if name != c.node.Name || pt != types.StrategicMergePatchType || fmt.Sprint(subresources) != "[status]" || opts.FieldManager == "" {
		c.t.Errorf("patch of %s/%v, type %s, options %+v", name, subresources, pt, opts)
	}
	c.patches = append(c.patches, string(data))
	c.at = append(c.at, time.Since(c.began))
	if c.fail != nil {
		if err := c.fail(len(c.patches)); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	before, err := json.Marshal(&c.node)
	if err != nil {
		return nil, err
	}
	after, err := strategicpatch.StrategicMergePatch(before, data, corev1.Node{})
	if err != nil {
		return nil, err
	}
	spec := c.node.Spec
	c.node = corev1.Node{}
	if err := json.Unmarshal(after, &c.node); err != nil {
		return nil, err
	}
	c.node.Spec = spec
	if c.lost != nil {
		if err := c.lost(len(c.patches)); err != nil {
			return nil, err
		}
	}
	return c.node.DeepCopy(), nil
}

// writes are the patches that are not empty.
func (c *cluster) writes() int {
	n := 0
	for _, p := range c.patches {
		if p != "{}" {
			n++
		}
	}
	return n
}

// say is a round of the machine: what it measures, or that it cannot.
type say struct {
	steal  float64
	err    error
	result *probe.Result // instead of steal
}

// machine measures what it is told, and the last of it for ever.
type machine struct {
	says  []say
	disks []int // the rounds in which the disk was measured
	n     int
}

func (m *machine) measure(ctx context.Context, disk bool) (*probe.Result, error) {
	s := m.says[min(m.n, len(m.says)-1)]
	if disk {
		m.disks = append(m.disks, m.n)
	}
	m.n++
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(window):
	}
	if s.err != nil || s.result != nil {
		return s.result, s.err
	}
	r := &probe.Result{WindowSeconds: window.Seconds(), StealPercent: s.steal, StealMeasured: true, Errors: []string{}}
	if disk {
		r.Sync, r.ReadsPerSecond = probe.Latency{Samples: 500, P50: int64(m.n)}, float64(m.n)
	}
	return r, nil
}

func steal(percents ...float64) []say {
	list := make([]say, len(percents))
	for i, p := range percents {
		list[i] = say{steal: p}
	}
	return list
}

func newCluster(t *testing.T) *cluster {
	return &cluster{t: t, began: time.Now(), node: corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"zone": "1"}, Annotations: map[string]string{"mine": "stays"}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{
			Phase:      corev1.NodeRunning,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
		},
	}}
}

// publish runs a publisher for so long.
func publish(t *testing.T, c *cluster, m *machine, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	New(Config{
		Nodes: c, Node: "a", Measure: m.measure, Offset: offset, Interval: interval, DiskInterval: 6 * time.Hour,
		ContendedAt: 5, Log: slog.New(slog.DiscardHandler),
	}).Run(ctx)
}

func TestPublishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := newCluster(t), &machine{says: steal(3.44)}
		before := c.node.DeepCopy()
		publish(t, c, m, offset+window+time.Second)
		if want := []time.Duration{offset + window, offset + window}; len(c.patches) != 2 || c.patches[0] != "{}" || c.at[0] != want[0] || c.at[1] != want[1] {
			t.Fatalf("patches %q at %v; must be an empty one and a full one at %v", c.patches, c.at, want)
		}
		at := c.began.Add(offset + window)
		for key, want := range map[string]string{
			v1alpha1.AnnotationSteal:      "3.4",
			v1alpha1.AnnotationMeasuredAt: at.UTC().Format(time.RFC3339),
			"mine":                        "stays",
		} {
			if got := c.node.Annotations[key]; got != want {
				t.Errorf("annotation %s is %q; must be %q", key, got, want)
			}
		}
		var r probe.Result
		if text := c.node.Annotations[v1alpha1.AnnotationResult]; json.Unmarshal([]byte(text), &r) != nil || r.StealPercent != 3.44 || r.Sync.Samples != 500 || strings.ContainsAny(text, "\n") {
			t.Errorf("result %q", text)
		}
		got := conditionOf(&c.node)
		if got == nil || got.Status != corev1.ConditionFalse || got.Reason != ReasonStealLow || !strings.HasPrefix(got.Message, "3.4 % ") ||
			!got.LastHeartbeatTime.Equal(&metav1.Time{Time: at}) || !got.LastTransitionTime.Equal(&metav1.Time{Time: at}) {
			t.Errorf("condition %+v", got)
		}
		for _, key := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.AnnotationResult} {
			delete(c.node.Annotations, key)
		}
		if len(c.node.Status.Conditions) != 2 {
			t.Fatalf("conditions %v", c.node.Status.Conditions)
		}
		for i := range c.node.Status.Conditions {
			if o := &c.node.Status.Conditions[i]; o.Type == corev1.NodeReady && *o != before.Status.Conditions[0] {
				t.Errorf("the condition of somebody else: %+v", o)
			}
		}
		c.node.Status.Conditions = before.Status.Conditions
		if fmt.Sprint(c.node) != fmt.Sprint(*before) {
			t.Errorf("the Node was\n%+v\nand is\n%+v", before, c.node)
		}
	})
}

// When a Node is written, by what is measured.
func TestWritesAreFew(t *testing.T) {
	round := func(n int) time.Duration { return offset + time.Duration(n)*interval + window }
	for name, c := range map[string]struct {
		says   []say
		want   []int // rounds that write, counted from 0
		rounds int
	}{
		"nothing changes":                  {steal(0), []int{0, 3, 6}, 8},
		"the number before the point":      {steal(3, 3.2, 3.9, 3.9, 3.9, 4.1, 4.1, 4.1), []int{0, 3, 6, 7}, 8},
		"the condition":                    {steal(4.9, 5, 5, 5), []int{0, 1, 4}, 6},
		"within the same number":           {steal(1.0, 1.9, 1.0, 1.9), []int{0, 3}, 5},
		"a spike is no news":               {steal(0, 0, 40, 0, 0), []int{0, 3}, 5},
		"a failing measurement":            {[]say{{steal: 1}, {err: errors.New("no")}, {steal: 7}, {err: errors.New("no")}, {steal: 7}}, []int{0, 2, 4}, 6},
		"a failing one when it is due":     {[]say{{steal: 1}, {steal: 1}, {steal: 1}, {err: errors.New("no")}, {steal: 1}}, []int{0, 4}, 6},
		"no steal is not a steal of zero":  {[]say{{result: &probe.Result{}}, {steal: 8}, {result: &probe.Result{}}}, []int{1}, 6},
		"it never measured, it never says": {[]say{{err: errors.New("no")}}, nil, 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newCluster(t)
				publish(t, api, &machine{says: c.says}, round(c.rounds))
				var got []time.Duration
				for i, p := range api.patches {
					if p != "{}" {
						got = append(got, api.at[i])
					}
				}
				var want []time.Duration
				for _, n := range c.want {
					want = append(want, round(n))
				}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("writes at %v; must be at %v", got, want)
				}
				if empty := len(api.patches) - len(got); empty != min(1, len(want)) {
					t.Errorf("%d empty patches; one must do", empty)
				}
			})
		})
	}
}

// The time of the last transition is that of the last transition, whoever wrote it.
func TestTransitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		since := func() time.Duration { return conditionOf(&c.node).LastTransitionTime.Sub(c.began) }
		heartbeat := func() time.Duration { return conditionOf(&c.node).LastHeartbeatTime.Sub(c.began) }
		status := func() string { return string(conditionOf(&c.node).Status) + " " + conditionOf(&c.node).Reason }

		publish(t, c, &machine{says: steal(6)}, time.Hour)
		first := offset + window
		if got := since(); got != first || heartbeat() != first+30*time.Minute || status() != "True StealHigh" {
			t.Fatalf("since %v, heartbeat %v, %s", got, heartbeat(), status())
		}
		// Another process, the same status.
		publish(t, c, &machine{says: steal(9)}, 5*time.Minute)
		if got := since(); got != first || heartbeat() != time.Hour+first || status() != "True StealHigh" {
			t.Errorf("after a restart: since %v, heartbeat %v, %s", got, heartbeat(), status())
		}
		// Another process, another status.
		again := time.Since(c.began)
		publish(t, c, &machine{says: steal(4.9)}, 5*time.Minute)
		if got := since(); got != again+first || status() != "False StealLow" {
			t.Errorf("after a restart with another status: since %v, %s", got, status())
		}
		// Back and forth within one process.
		again = time.Since(c.began)
		publish(t, c, &machine{says: steal(4.9, 5.2)}, 25*time.Minute)
		if got := since(); got != again+first+interval || status() != "True StealHigh" {
			t.Errorf("within a process: since %v, %s", got, status())
		}
	})
}

func TestMedianOfFive(t *testing.T) {
	for _, c := range []struct {
		windows []float64
		want    float64
	}{
		{[]float64{7}, 7},
		{[]float64{7, 1}, 4},
		{[]float64{7, 1, 2}, 2},
		{[]float64{7, 1, 2, 9}, 4.5},
		{[]float64{7, 1, 2, 9, 8}, 7},
		{[]float64{90, 90, 90, 1, 2, 3, 4, 5}, 3},
	} {
		var s steals
		for _, w := range c.windows {
			s.add(w)
		}
		if got := s.median(); got != c.want {
			t.Errorf("%v: %v; must be %v", c.windows, got, c.want)
		}
	}
}

// The condition follows from the number that people see.
func TestReading(t *testing.T) {
	for _, c := range []struct {
		percent, at float64
		text        string
		contended   bool
	}{
		{0, 5, "0.0", false},
		{4.94, 5, "4.9", false},
		{4.95, 5, "5.0", true},
		{5, 5, "5.0", true},
		{0.3, 0.3, "0.3", true},
		{0.24, 0.3, "0.2", false},
		{100, 100, "100.0", true},
	} {
		r := readingOf(c.percent, c.at)
		if r.text() != c.text || r.contended != c.contended {
			t.Errorf("%v %% at %v: %s, contended %t", c.percent, c.at, r.text(), r.contended)
		}
	}
}

// Either of the two is worth a write.
func TestLike(t *testing.T) {
	for _, c := range []struct {
		a, b reading
		want bool
	}{
		{reading{44, false}, reading{46, false}, true},
		{reading{44, false}, reading{46, true}, false},
		{reading{49, true}, reading{50, true}, false},
	} {
		if got := c.a.like(c.b); got != c.want {
			t.Errorf("%+v like %+v: %t", c.a, c.b, got)
		}
	}
}

// What fails is tried again in the next round and not before, whatever is measured by
// then; and the transition is looked up anew.
func TestFailingWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.fail = func(n int) error {
			if n == 1 || n == 2 || n == 4 { // two looks, and the write after the third
				return errors.New("away")
			}
			return nil
		}
		publish(t, c, &machine{says: steal(1)}, offset+6*interval)
		var rounds []time.Duration
		for _, at := range c.at {
			rounds = append(rounds, (at-offset)/interval)
		}
		if got := fmt.Sprint(rounds); got != fmt.Sprint([]time.Duration{0, 1, 2, 2, 3, 3}) {
			t.Errorf("patches in rounds %v: %q", rounds, c.patches)
		}
		if c.writes() != 2 || c.node.Annotations[v1alpha1.AnnotationSteal] != "1.0" {
			t.Errorf("%d writes, annotations %v", c.writes(), c.node.Annotations)
		}
	})
}

// A write whose answer is lost may have arrived: the Node is set right in the next round,
// though it would say the same as before that write.
func TestLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.lost = func(n int) error {
			if n == 3 {
				return errors.New("connection lost")
			}
			return nil
		}
		publish(t, c, &machine{says: steal(1, 21, 1)}, offset+2*interval+2*window)
		if c.writes() != 3 || c.node.Annotations[v1alpha1.AnnotationSteal] != "1.0" || conditionOf(&c.node).Status != corev1.ConditionFalse {
			t.Errorf("%d writes, annotations %v", c.writes(), c.node.Annotations)
		}
		if got := conditionOf(&c.node).LastTransitionTime.Sub(c.began); got != offset+2*interval+window {
			t.Errorf("the last transition was after %v", got)
		}
	})
}

// An API server that does not answer holds nobody up for longer than half a minute.
func TestHangingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := New(Config{
			Nodes: hanging{}, Node: "a", Measure: (&machine{says: steal(1)}).measure, Interval: interval, DiskInterval: time.Hour,
			ContendedAt: 5, Log: slog.New(slog.DiscardHandler),
		})
		if err := p.round(t.Context(), began); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if waited := time.Since(began) - window; waited != writeTimeout {
			t.Errorf("waited %v", waited)
		}
	})
}

type hanging struct{}

func (hanging) Patch(ctx context.Context, _ string, _ types.PatchType, _ []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Node, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// It ends at once, wherever it is.
func TestEnds(t *testing.T) {
	for name, d := range map[string]time.Duration{
		"before the first round": offset / 2,
		"while it measures":      offset + window/2,
		"between rounds":         offset + interval/2,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				publish(t, c, &machine{says: steal(1)}, d)
				if got := time.Since(c.began); got != d {
					t.Errorf("ended after %v; must be %v", got, d)
				}
				if d < offset+window && len(c.patches) > 0 {
					t.Errorf("wrote %q", c.patches)
				}
			})
		})
	}
}

// The disk is measured now and then; in between its figures are carried over, with the
// time they are from.
func TestDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := newCluster(t), &machine{says: steal(0)}
		publish(t, c, m, offset+13*time.Hour)
		if got := fmt.Sprint(m.disks); got != "[0 36 72]" {
			t.Errorf("the disk was measured in rounds %s", got)
		}
		var r probe.Result
		if err := json.Unmarshal([]byte(c.node.Annotations[v1alpha1.AnnotationResult]), &r); err != nil {
			t.Fatal(err)
		}
		want := c.began.Add(offset + 12*time.Hour)
		if r.ReadsPerSecond != 73 || r.Sync.P50 != 73 || r.DiskMeasuredAt == nil || !r.DiskMeasuredAt.Equal(want) {
			t.Errorf("%+v, measured at %v; must be that of round 72, %v", r, r.DiskMeasuredAt, want)
		}
	})
	var none diskFigures
	r := &probe.Result{}
	none.take(r, time.Unix(1, 0))
	if none.carryInto(r); r.DiskMeasuredAt != nil {
		t.Error("a disk that could not be measured has a time")
	}
}

// The API has a bound for all annotations of an object together; ours must not take
// others' room.
func TestResultIsBounded(t *testing.T) {
	r := &probe.Result{WindowSeconds: 3599.123456789, StealPercent: 99.123456789012345, ReadsPerSecond: 123456.123456789}
	big := probe.Latency{Samples: 1e9, P50: 1e12, P99: 1e12, Max: 1e12}
	r.WakeUp, r.Sync = big, big
	at := time.Unix(1e9, 0)
	r.DiskMeasuredAt = &at
	for range MaxTargets {
		address := strings.Repeat("x", 253) + ":65535"
		r.Targets = append(r.Targets, probe.Target{Address: address, Connect: big})
		r.Errors = append(r.Errors, strings.Repeat("<&>", 60)+address+strings.Repeat(`"`, 100))
	}
	for range 5 { // all else that can go wrong
		r.Errors = append(r.Errors, strings.Repeat(`"é`, 1000))
	}
	text, err := compact(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 8<<10 {
		t.Errorf("%d bytes; must be at most 8 KiB", len(text))
	}
	t.Logf("%d bytes", len(text))
	if strings.ContainsAny(text, "\n") || strings.Contains(text, `\u00`) || strings.Contains(text, `\ufffd`) {
		t.Errorf("not compact, or cut within a character: %s", text)
	}
	if len(r.Errors[0]) <= maxError+len("…") {
		t.Error("the result itself was cut")
	}
}
