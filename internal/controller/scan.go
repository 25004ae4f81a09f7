package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// The pace of the scan. What changes in a namespace rarely changes alone, and the
// larger the namespace the more there is to read again.
const (
	// lookAfter is how long a change in a namespace waits for others, and perPod how
	// much longer for each pod in it, up to lookAtLast.
	lookAfter  = time.Second
	perPod     = 10 * time.Millisecond
	lookAtLast = 30 * time.Second
	// passAfter is how long what may concern all namespaces waits for more of it: nodes
	// change in numbers.
	passAfter = 30 * time.Second
	// scanners is how many examinations run at once: the pass over all, and two of
	// single namespaces.
	scanners = 3
)

// everything is the request for a pass over all namespaces; no namespace has such a name.
const everything = "*"

// ScanRecorder counts what the scan does.
type ScanRecorder interface {
	// ScanEnded tells of a pass over all namespaces that has ended, or why it has not.
	ScanEnded(took time.Duration, err error)
}

// Scanner keeps how the guarded namespaces stand: all of them at an interval, and
// each a moment after something has changed in it.
type Scanner struct {
	Source   *cluster.Source
	Touched  *cluster.Touched
	Ledger   *scan.Ledger
	Policies []policies.Policy
	Interval time.Duration
	Recorder ScanRecorder
	Log      *slog.Logger
	Now      func() time.Time
	// Tell is given how a namespace stands, nil for one that is not looked at any more.
	// It may block.
	Tell func(ctx context.Context, namespace string, now *scan.Standing)
	// Passed is told that a whole pass has ended, and asks which namespaces are looked at.
	Passed func(ctx context.Context, known func(namespace string) bool)

	again   func(namespace string, after time.Duration) // set before the first request
	due     atomic.Bool                                 // a pass is wanted before the interval is over
	mu      sync.Mutex
	settled facts.Cluster // guarded by mu; by which the last pass judged
	// judged are the namespaces as they were when they were judged, or are being judged,
	// which shares most of it with the caches.
	judged map[string]*facts.Namespace // guarded by mu
}

// settingsOf is the part of the state that concerns all namespaces.
func settingsOf(c *facts.Cluster) facts.Cluster {
	s := facts.Cluster{Guards: c.Guards, ControlPlanes: c.ControlPlanes, Injection: c.Injection, Namespaces: map[string]*facts.Namespace{}}
	for _, root := range c.RootNamespaces() {
		if ns := c.Namespaces[root]; ns != nil {
			s.Namespaces[root] = &facts.Namespace{Name: root, Labels: ns.Labels, PeerAuthentications: ns.PeerAuthentications}
		}
	}
	return s
}

// AddScan adds the controller of the scan, which is not among those of Add, for it needs
// none of them.
func AddScan(m manager.Manager, s *cluster.Source, sc *Scanner) error {
	c, err := controller.New("scan", m, controller.Options{Reconciler: sc, MaxConcurrentReconciles: scanners})
	if err != nil {
		return fmt.Errorf("create the scan controller: %w", err)
	}
	return c.Watch(source.Func(func(ctx context.Context, q queue) error {
		sc.again = func(namespace string, after time.Duration) { q.AddAfter(request(namespace), after) }
		s.OnChange(func(namespace string) {
			switch {
			case !s.Synced(): // the first pass will see it
			case namespace == "":
				q.AddAfter(request(everything), settle)
			case sc.differs(namespace):
				q.AddAfter(request(namespace), settle)
			}
		})
		whole := func() { sc.whole(q) }
		s.OnNode(func(string) { whole() })
		go sc.Touched.Watch(ctx, func(namespace string, perhaps bool) {
			switch {
			case namespace == "":
				whole()
			case perhaps:
				q.AddAfter(request(namespace), lookAtLast)
			default:
				q.AddAfter(request(namespace), sc.patience(namespace))
			}
		})
		go func() {
			select {
			case <-sc.Touched.Ready():
			case <-time.After(passAfter): // the pass will say what is wrong
			case <-ctx.Done():
			}
			sc.due.Store(true)
			q.Add(request(everything))
		}()
		return nil
	}))
}

// whole asks for a pass because of something that may concern all namespaces. Before the
// caches are filled there has been none: the first one sees it, and there need not be a
// second because all nodes were new to us.
func (s *Scanner) whole(q queue) {
	if !s.Source.Synced() {
		return
	}
	s.due.Store(true)
	q.AddAfter(request(everything), passAfter)
}

// differs reports whether a namespace is another one than was judged last: the caches
// tell of all of them when they have to begin anew.
func (s *Scanner) differs(namespace string) bool {
	state, err := s.Source.Cached(namespace)
	if err != nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.judged[namespace]
	if !scanned(&state, namespace) {
		return was != nil
	}
	return !reflect.DeepEqual(was, state.Namespaces[namespace])
}

// begin examines a namespace of the state.
func (s *Scanner) begin(state facts.Cluster, namespace string, began time.Time) *scan.Examination {
	s.mu.Lock()
	if s.judged == nil {
		s.judged = map[string]*facts.Namespace{}
	}
	s.judged[namespace] = state.Namespaces[namespace]
	s.mu.Unlock()
	return scan.Begin(s.Policies, state, namespace, began, s.Now())
}

// gone lets go of a namespace that is not looked at any more.
func (s *Scanner) gone(ctx context.Context, namespace string) {
	s.mu.Lock()
	delete(s.judged, namespace)
	s.mu.Unlock()
	s.Tell(ctx, namespace, nil)
}

// patience is how long changes of pods are waited for.
func (s *Scanner) patience(namespace string) time.Duration {
	return min(lookAfter+time.Duration(s.Ledger.Pods(namespace))*perPod, lookAtLast)
}

// Reconcile looks at the namespace named by the request, or at all of them.
func (s *Scanner) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	state, err := s.Source.Cached(r.Name)
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil // caches that are not filled yet are waited for
	}
	if r.Name == everything {
		return s.all(ctx)
	}
	if !scanned(&state, r.Name) {
		if s.Ledger.Remove(r.Name) {
			s.gone(ctx, r.Name)
		}
		return reconcile.Result{}, nil
	}
	e := s.begin(state, r.Name, s.Now())
	for o, err := range s.Source.Running(ctx, r.Name) {
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("scan namespace %q: %w", r.Name, err)
		}
		s.examine(e, &o)
	}
	s.finish(ctx, e)
	return reconcile.Result{}, nil
}

// scanned reports whether the scan looks at a namespace: it is guarded, or a mesh root
// namespace whose own pods a guard is about.
func scanned(c *facts.Cluster, namespace string) bool {
	ns := c.Namespaces[namespace]
	return ns != nil && !ns.Terminating && (c.Guarded(namespace, ns.Labels) ||
		c.IsRoot(namespace) && slices.ContainsFunc(c.Guards, func(g facts.Guard) bool { return policies.GuardsControlPlane(&g) }))
}

func (s *Scanner) examine(e *scan.Examination, o *cluster.Running) {
	if o.Pod != nil {
		e.Pod(o.Pod)
	} else {
		e.Workload(o.Kind, o.Workload)
	}
	s.Touched.Judged(o)
}

// finish takes down how a namespace stands, and has it looked at again when it comes to
// stand otherwise by the clock alone.
func (s *Scanner) finish(ctx context.Context, e *scan.Examination) {
	standing, err := e.Finish()
	if err != nil {
		s.Log.ErrorContext(ctx, "cannot judge what is in a namespace", "namespace", standing.Namespace, "objects", standing.Unjudged, "error", err)
	}
	switch {
	case s.left(standing.Namespace):
	case s.Ledger.Put(standing):
		s.Tell(ctx, standing.Namespace, standing)
	default:
		s.mu.Lock()
		delete(s.judged, standing.Namespace) // what stands was judged by something else
		s.mu.Unlock()
	}
	// Asked once more: who lets go of it meanwhile finds nothing yet, and nobody looks again
	// before the next pass.
	if s.left(standing.Namespace) {
		s.Ledger.Remove(standing.Namespace)
		s.gone(ctx, standing.Namespace)
		return
	}
	if !standing.Changes.IsZero() {
		s.again(standing.Namespace, standing.Changes.Sub(s.Now()))
	}
}

// left reports whether a namespace is not looked at any more. A pass judges by the state in
// which it began, and the namespace may have changed or gone since.
func (s *Scanner) left(namespace string) bool {
	state, err := s.Source.Cached(namespace)
	return err == nil && !scanned(&state, namespace)
}

// all looks at every namespace, if it is time to.
func (s *Scanner) all(ctx context.Context) (reconcile.Result, error) {
	state, err := s.Source.Snapshot()
	if err != nil {
		return reconcile.Result{RequeueAfter: retryAfter}, nil //nolint:nilerr // as in Reconcile
	}
	now := settingsOf(&state)
	s.mu.Lock()
	same := reflect.DeepEqual(now, s.settled)
	s.mu.Unlock()
	last, _, _ := s.Ledger.Scanned()
	if left := s.Interval - s.Now().Sub(last); same && left > 0 && !s.due.Load() {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	s.due.Store(false)
	began := s.Now()
	s.Touched.Begin()
	met, err := s.pass(ctx, &state, began)
	s.Touched.End(err == nil)
	ended := s.Now()
	s.Recorder.ScanEnded(ended.Sub(began), err)
	if err != nil {
		s.due.Store(true)
		s.Ledger.Failed(err)
		s.Ledger.Changed(s.Source.GuardNames()...)
		return reconcile.Result{}, fmt.Errorf("scan all namespaces: %w", err)
	}
	s.mu.Lock()
	s.settled = now
	s.mu.Unlock()
	for _, gone := range s.Ledger.Complete(began, ended, met) {
		s.gone(ctx, gone)
	}
	s.Passed(ctx, s.Ledger.Knows)
	s.Ledger.Changed(s.Source.GuardNames()...)
	s.Source.ReturnMemory()
	s.Log.InfoContext(ctx, "scanned all namespaces", "namespaces", len(met), "duration", ended.Sub(began))
	return reconcile.Result{RequeueAfter: s.Interval}, nil
}

// pass examines the namespaces one after the other as their objects come, and then
// those that hold none. It returns which.
func (s *Scanner) pass(ctx context.Context, state *facts.Cluster, began time.Time) (map[string]bool, error) {
	met := map[string]bool{}
	var e *scan.Examination
	at := ""
	for o, err := range s.Source.Running(ctx, "") {
		if err != nil {
			return nil, err
		}
		if name := o.Namespace(); name != at {
			if e != nil {
				s.finish(ctx, e)
			}
			at, e = name, nil
			if scanned(state, name) {
				met[name] = true
				e = s.begin(around(state, name), name, began)
			}
		}
		if e != nil {
			s.examine(e, &o)
		}
	}
	if e != nil {
		s.finish(ctx, e)
	}
	for _, name := range slices.Sorted(maps.Keys(state.Namespaces)) {
		if !met[name] && scanned(state, name) {
			met[name] = true
			s.finish(ctx, s.begin(around(state, name), name, began))
		}
	}
	return met, ctx.Err()
}

// around is the part of the state that a namespace is judged by.
func around(c *facts.Cluster, namespace string) facts.Cluster {
	part := *c
	part.Namespaces = map[string]*facts.Namespace{namespace: c.Namespaces[namespace]}
	for _, root := range c.RootNamespaces() {
		if ns := c.Namespaces[root]; ns != nil {
			part.Namespaces[root] = ns
		}
	}
	return part
}
