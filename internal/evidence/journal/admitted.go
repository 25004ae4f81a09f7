package journal

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// admittedFor is how long what is admitted is counted before it is written, and admittedMost how
// many different ones are kept for that.
const (
	admittedFor  = time.Minute
	admittedMost = 4096
)

// admitted counts workloads that are let in, by what they have in common.
type admitted struct {
	mu     sync.Mutex
	counts map[group]*times
	since  time.Time
}

type group struct {
	kind            schema.GroupVersionKind // of the requests
	namespace       string
	ownerGVK, owner string
	template        string
	guards          string
}

type times struct {
	from, to time.Time
	n        uint64
}

func (a *admitted) add(g group, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counts == nil {
		a.counts, a.since = map[group]*times{}, now
	}
	t := a.counts[g]
	if t == nil {
		t = &times{from: now}
		a.counts[g] = t
	}
	t.to = now
	t.n++
}

// take returns what is to be written now, or nothing.
func (a *admitted) take(now time.Time, all bool) map[group]*times {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.counts) == 0 || !all && now.Sub(a.since) < admittedFor && now.After(a.since) && len(a.counts) < admittedMost {
		return nil
	}
	counts := a.counts
	a.counts = nil
	return counts
}

// groupOf is who a pod or template of pods belongs to.
func groupOf(r *facts.Review, guards string) group {
	g := group{kind: r.Kind, namespace: r.Namespace, ownerGVK: gvk(r.Kind), guards: guards}
	switch o := r.Object.(type) {
	case *corev1.Pod:
		g.template = cmp.Or(o.Labels[appsv1.DefaultDeploymentUniqueLabelKey], o.Labels[appsv1.ControllerRevisionHashLabelKey])
		if owner := facts.Controller(&o.ObjectMeta); owner != nil {
			g.ownerGVK, g.owner = gvk(schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind)), owner.Name
		}
	case *facts.Workload:
		g.owner = o.Name
	}
	return g
}

// flush writes what has been counted for long enough, or all of it, and what was kept for later.
func (j *Journal) flush(ctx context.Context, now time.Time, all bool) {
	counts := j.admitted.take(now, all)
	// In one order, so that the same counts make the same log.
	for _, g := range slices.SortedFunc(maps.Keys(counts), func(a, b group) int {
		return cmp.Or(counts[a].from.Compare(counts[b].from), cmp.Compare(a.namespace, b.namespace),
			cmp.Compare(a.owner, b.owner), cmp.Compare(a.template, b.template), cmp.Compare(a.kind.Kind, b.kind.Kind))
	}) {
		t := counts[g]
		if _, err := j.append(ctx, func(s *openShard) (record.Body, error) { return g.body(s, t), nil }); err != nil {
			j.counts.unlogged.Add(t.n)
			j.gap.note("allow", gvk(g.kind), cause(err), !uncertain(err), t.n, t.from, t.to)
			continue
		}
		j.counts.admitted.Add(t.n)
	}
	if j.health() != nil {
		return
	}
	j.tellGlass(ctx)
	j.mu.RLock()
	defer j.mu.RUnlock()
	if j.open != nil {
		_ = j.tellGap(ctx, j.open.log) // tried again with the next record
	}
}

func (g group) body(s *openShard, t *times) record.Body {
	b := &record.Admitted{
		Namespace: g.namespace, OwnerGVK: g.ownerGVK, Guards: s.pseudonyms.Digest([]byte(g.guards)),
		From: t.from, To: t.to, N: t.n,
	}
	if g.owner != "" {
		b.Owner = s.pseudonyms.Object(g.ownerGVK, g.namespace, g.owner)
	}
	if g.template != "" {
		b.Template = s.pseudonyms.Digest([]byte(g.template))
	}
	return b
}
