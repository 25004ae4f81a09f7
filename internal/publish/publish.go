// Package publish tells on a Node what a probe measures there, again and again: as
// annotations, which others read, and as a condition, which people see.
//
// It is made for thousands of nodes that share one API server. A Node is written only
// when the number before the point or the condition has changed, or half an hour after
// the last time; one request writes all of it; what fails is tried again in the next
// round and no sooner.
package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/internal/probe"
)

const (
	// RewriteAfter is when a Node is written although nothing has changed, so that others
	// can tell a probe that has ended from a machine that stays as it is.
	RewriteAfter = 30 * time.Minute

	// MaxTargets is how many targets may be measured, for all of them are published.
	MaxTargets = 8

	fieldManager = "meshvakt-probe"
	writeTimeout = 30 * time.Second

	// Rounds begin a little early or late.
	slack = time.Second
)

// Nodes changes Nodes; client-go's typed client is one. The Node that Patch returns is
// the one the API server has after the change.
type Nodes interface {
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*corev1.Node, error)
}

// Config is what a Publisher needs. All of it must be set.
type Config struct {
	Nodes Nodes
	// Node is the name of the Node.
	Node string
	// Measure measures one window, and the disk as well when it is told to.
	Measure func(ctx context.Context, disk bool) (*probe.Result, error)
	// Offset is how long to wait before the first round. It differs between processes,
	// or all nodes would write at once.
	Offset time.Duration
	// Interval is from the beginning of one round to that of the next. A round that takes
	// longer swallows the next one.
	Interval time.Duration
	// DiskInterval is how often the disk is measured, the first time in the first round.
	DiskInterval time.Duration
	// ContendedAt is the CPU steal in percent from which on the condition is True.
	ContendedAt float64
	Log         *slog.Logger
}

// Publisher measures and writes for as long as it runs. It is not for concurrent use.
type Publisher struct {
	cfg    Config
	recent steals
	disk   diskFigures
	// Of the last write; nil before the first one, and after one that failed, of which
	// nobody knows whether it arrived.
	written *written
}

// written is what this process and the API server agree upon.
type written struct {
	at        time.Time // when its round began
	reading   reading
	condition corev1.NodeCondition
}

// New returns a Publisher that has measured nothing yet.
func New(cfg Config) *Publisher { return &Publisher{cfg: cfg} }

// Run measures and writes, one round after the other, until ctx ends. Nothing that fails
// in a round ends it.
func (p *Publisher) Run(ctx context.Context) {
	if !wait(ctx, time.After(p.cfg.Offset)) {
		return
	}
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	for {
		if err := p.round(ctx, time.Now()); err != nil && ctx.Err() == nil {
			p.cfg.Log.ErrorContext(ctx, "nothing published, trying again in the next round", "node", p.cfg.Node, "error", err)
		}
		if !wait(ctx, tick.C) {
			return
		}
	}
}

// wait reports whether the time came before ctx ended.
func wait(ctx context.Context, c <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c:
		return true
	}
}

// round measures once, and writes when that is due. What could not be measured is not
// published: the Node keeps what it says, and its age tells.
func (p *Publisher) round(ctx context.Context, began time.Time) error {
	disk := p.disk.due(began, p.cfg.DiskInterval)
	r, err := p.cfg.Measure(ctx, disk)
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	for _, e := range r.Errors {
		p.cfg.Log.WarnContext(ctx, "not measured", "node", p.cfg.Node, "error", e)
	}
	if disk {
		p.disk.take(r, began)
	} else {
		p.disk.carryInto(r)
	}
	if !r.StealMeasured {
		return errors.New("measure: no CPU steal, and nothing else is published without it")
	}
	p.recent.add(r.StealPercent)
	now := readingOf(p.recent.median(), p.cfg.ContendedAt)
	if w := p.written; w != nil && now.like(w.reading) && began.Sub(w.at) < RewriteAfter-slack {
		p.cfg.Log.DebugContext(ctx, "measured, and not due to be published", "node", p.cfg.Node, "steal", now.text())
		return nil
	}
	return p.write(ctx, began, now, r)
}

// write brings annotations and condition to the Node in one request: nodes/status takes
// metadata too, and leaves the spec alone whatever a patch says.
func (p *Publisher) write(ctx context.Context, began time.Time, now reading, r *probe.Result) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var before *corev1.NodeCondition
	if p.written != nil {
		before = &p.written.condition
	} else {
		// The time of the last transition may be that of a process before this one. An
		// empty patch changes nothing and is answered with the Node: to read one's own
		// Node needs no right beyond the one to patch it.
		node, err := p.patch(ctx, struct{}{})
		if err != nil {
			return err
		}
		before = conditionOf(node)
	}
	// Of what comes next nobody knows the outcome until it is there.
	p.written = nil
	at := time.Now()
	condition := now.condition(before, at, p.recent.len(), r.WindowSeconds, p.cfg.ContendedAt)
	annotations, err := now.annotations(r, at)
	if err != nil {
		return err
	}
	if _, err := p.patch(ctx, nodePatch(annotations, condition)); err != nil {
		return err
	}
	p.written = &written{at: began, reading: now, condition: condition}
	p.cfg.Log.InfoContext(ctx, "published", "node", p.cfg.Node, "steal", now.text(), "contended", now.contended)
	return nil
}

func (p *Publisher) patch(ctx context.Context, content any) (*corev1.Node, error) {
	data, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode the patch: %w", err)
	}
	node, err := p.cfg.Nodes.Patch(ctx, p.cfg.Node, types.StrategicMergePatchType, data, metav1.PatchOptions{FieldManager: fieldManager}, "status")
	if err != nil {
		return nil, fmt.Errorf("patch Node %s: %w", p.cfg.Node, err)
	}
	return node, nil
}
