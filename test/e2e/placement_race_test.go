package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

const racePods, raceNodes = 500, 30

// flipEvery is how often each of those who change nodes does so.
const flipEvery = 20 * time.Millisecond

// raceRecord is what happened, in the order in which it was stored.
type raceRecord struct {
	mu       sync.Mutex
	versions map[string][]nodeVersion // guarded by mu; by node, ascending
	bindings []raceBinding            // guarded by mu
	writes   map[uint64]write         // guarded by mu; by the revision they came to
	shared   map[string]bool          // guarded by mu; what nodes were told to be
	newest   uint64                   // guarded by mu; of the versions of nodes
	ended    []string                 // guarded by mu; watches that ended too early
}

// write is when something was written: not before it was sent, and not after the answer.
type write struct{ sent, answered time.Time }

type nodeVersion struct {
	revision uint64
	off      string
}

type raceBinding struct {
	revision             uint64
	namespace, pod, onto string
}

func revisionOf(t testing.TB, o metav1.Object) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	must(t, err)
	return n
}

// wrote notes when a revision came to be.
func (r *raceRecord) wrote(revision uint64, w write) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes[revision] = w
}

// refused reports whether a node was told to be one that is refused.
func (r *raceRecord) refused(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shared[node]
}

// record follows nodes, and the pods of the namespaces, until the context ends.
func (p *placement) record(t testing.TB, ctx context.Context, namespaces ...string) *raceRecord {
	t.Helper()
	r := &raceRecord{versions: map[string][]nodeVersion{}, writes: map[uint64]write{}, shared: map[string]bool{}}
	follow := func(what string, list func(metav1.ListOptions) (string, error), start func(metav1.ListOptions) (watch.Interface, error), take func(runtime.Object)) {
		version, err := list(metav1.ListOptions{Limit: 1})
		must(t, err)
		w, err := start(metav1.ListOptions{ResourceVersion: version})
		must(t, err)
		go func() {
			defer w.Stop()
			for event := range w.ResultChan() {
				r.mu.Lock()
				if event.Type == watch.Error {
					r.ended = append(r.ended, fmt.Sprintf("%s: %v", what, event.Object))
				} else if event.Type != watch.Deleted {
					take(event.Object)
				}
				r.mu.Unlock()
			}
			if ctx.Err() == nil {
				r.mu.Lock()
				r.ended = append(r.ended, what)
				r.mu.Unlock()
			}
		}()
	}
	nodes := p.clientset.CoreV1().Nodes()
	follow("nodes", func(o metav1.ListOptions) (string, error) {
		list, err := nodes.List(ctx, o)
		return list.ResourceVersion, err
	}, func(o metav1.ListOptions) (watch.Interface, error) { return nodes.Watch(ctx, o) }, func(o runtime.Object) {
		n, ok := o.(*corev1.Node)
		if !ok {
			return
		}
		r.newest = revisionOf(t, n)
		r.versions[n.Name] = append(r.versions[n.Name], nodeVersion{r.newest, offLimits(n)})
	})
	for _, namespace := range namespaces {
		pods, bound := p.clientset.CoreV1().Pods(namespace), map[string]bool{}
		follow("pods", func(o metav1.ListOptions) (string, error) {
			list, err := pods.List(ctx, o)
			return list.ResourceVersion, err
		}, func(o metav1.ListOptions) (watch.Interface, error) { return pods.Watch(ctx, o) }, func(o runtime.Object) {
			pod, ok := o.(*corev1.Pod)
			if !ok || pod.Spec.NodeName == "" || bound[pod.Name] {
				return
			}
			bound[pod.Name] = true
			r.bindings = append(r.bindings, raceBinding{revisionOf(t, pod), namespace, pod.Name, pod.Spec.NodeName})
		})
	}
	return r
}

// bound is how many bindings have been seen.
func (r *raceRecord) bound() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.bindings)
}

// window is that of a binding to a node that was refused already.
type window struct {
	raceBinding
	why string
	// least and most are for how long it had been.
	least, most time.Duration
	// asked is for how long it had surely been when the API server got the request: then
	// Meshvakt, which reads the node anew, must have seen it. Below 0 for what is not sure.
	asked time.Duration
}

// windows judges every binding by the newest version of its node that is older.
func (r *raceRecord) windows(t testing.TB) []window {
	t.Helper()
	events, err := plane.Audited(func(e controlplane.AuditEvent) bool {
		return e.ObjectRef.Subresource == "binding" && e.ResponseStatus.Code == 201
	})
	must(t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range events {
		e := &events[i]
		at := slices.IndexFunc(r.bindings, func(b raceBinding) bool { return b.pod == e.ObjectRef.Name && b.namespace == e.ObjectRef.Namespace })
		if at >= 0 {
			r.writes[r.bindings[at].revision] = write{e.Received, e.Finished}
		}
	}
	notBefore, notAfter := r.bounds()
	var list []window
	for _, b := range r.bindings {
		if _, ok := r.writes[b.revision]; !ok {
			t.Errorf("the audit log has no binding of pod %s", b.pod)
			continue
		}
		versions := r.versions[b.onto]
		at, _ := slices.BinarySearchFunc(versions, b.revision, func(v nodeVersion, revision uint64) int { return cmp.Compare(v.revision, revision) })
		if at == 0 {
			t.Errorf("pod %s is bound to node %s, of which no older version is known", b.pod, b.onto)
			continue
		}
		since := at - 1
		if versions[since].off == "" {
			continue
		}
		for since > 0 && versions[since-1].off != "" {
			since--
		}
		began := versions[since].revision
		if _, ok := r.writes[began]; !ok {
			t.Errorf("pod %s is bound to node %s, which is %s since a version that nobody here wrote", b.pod, b.onto, versions[since].off)
			continue
		}
		list = append(list, window{b, versions[at-1].off, notBefore[b.revision].Sub(notAfter[began]), notAfter[b.revision].Sub(notBefore[began]), r.writes[b.revision].sent.Sub(notAfter[began])})
	}
	return list
}

// bounds are the times between which each revision came to be: revisions come in order,
// so that none is older than any before it was sent, nor newer than an answer about a
// later one.
func (r *raceRecord) bounds() (notBefore, notAfter map[uint64]time.Time) {
	notBefore, notAfter = map[uint64]time.Time{}, map[uint64]time.Time{}
	revisions := slices.Sorted(maps.Keys(r.writes))
	var latest, earliest time.Time
	for _, revision := range revisions {
		if sent := r.writes[revision].sent; sent.After(latest) {
			latest = sent
		}
		notBefore[revision] = latest
	}
	for _, revision := range slices.Backward(revisions) {
		if answered := r.writes[revision].answered; earliest.IsZero() || answered.Before(earliest) {
			earliest = answered
		}
		notAfter[revision] = earliest
	}
	return notBefore, notAfter
}

// race creates pods while nodes join and change all the time.
func (p *placement) race(t *testing.T) {
	namespaces := []string{p.namespace(t, steered), p.namespace(t, unsteeredBy)}
	watching, stopWatching := context.WithCancel(t.Context())
	defer stopWatching()
	r := p.record(t, watching, namespaces...)
	for i := range 10 {
		join(t, racing(i))
	}
	began := time.Now()
	changing, stop := context.WithCancel(t.Context())
	defer stop()
	var work, changes sync.WaitGroup
	changes.Go(func() { p.change(t, changing, r, 0, 1, 2, 3, 4) })
	changes.Go(func() { p.change(t, changing, r, 5, 6, 7, 8, 9) })
	work.Go(func() { p.joinRace(t, changing, r, &changes) })
	next := make(chan int)
	for range 4 {
		work.Go(func() {
			for i := range next {
				p.raceTo(t, newPod(namespaces[i%2], inPool("race")))
			}
		})
	}
	for i := range racePods {
		next <- i
	}
	close(next)
	work.Wait()
	inTime := r.bound()
	eventually(t, 20*time.Second, func() error { // for as long as pods get nodes
		before := r.bound()
		waitUntil(t, time.Now().Add(time.Second))
		if after := r.bound(); after > before && after < racePods {
			return fmt.Errorf("%d of %d pods are bound", after, racePods)
		}
		return nil
	})
	stop()
	changes.Wait()
	whileChanging := r.bound()
	p.endRace(t, r)
	took := time.Since(began)
	refusals := 0
	for _, namespace := range namespaces {
		refusals += attempts(t, schedulerName, "pods", "binding", namespace, began)
	}
	t.Logf("%d bindings in %s (%d when the last pod was created, %d until nodes stopped changing), %d changes of nodes, %d bindings refused",
		racePods, took.Round(time.Millisecond), inTime, whileChanging, len(r.writes), refusals)
	judgeRace(t, r.windows(t))
	for _, namespace := range namespaces {
		p.deletePods(t, namespace)
	}
}

// racing is one of the nodes of the race.
func racing(i int) *corev1.Node {
	k := kindOfNodes{pool: "race", instanceType: "m5.xlarge", region: "eu-north-1"}
	return k.node(i)
}

// change changes one of the nodes after the other until the context ends.
func (p *placement) change(t testing.TB, ctx context.Context, r *raceRecord, nodes ...int) {
	for ctx.Err() == nil {
		name := racing(nodes[rand.IntN(len(nodes))]).Name
		p.flip(t, r, name, map[bool]string{true: "own", false: "shared"}[r.refused(name)])
		waitUntil(t, time.Now().Add(flipEvery))
	}
}

// joinRace lets nodes join, of one kind or the other, of which some change from then on.
func (p *placement) joinRace(t testing.TB, ctx context.Context, r *raceRecord, changes *sync.WaitGroup) {
	for i := 10; i < raceNodes; i++ {
		n := racing(i)
		n.Labels[cpuLabel] = []string{"own", "shared"}[i%2]
		sent := time.Now()
		added, err := plane.AddNode(t.Context(), n)
		if err != nil {
			t.Error(err)
			return
		}
		r.joined(t, n.Name, added, write{sent, time.Now()})
		if i%5 == 4 {
			changes.Go(func() { p.change(t, ctx, r, i, i-1, i-2) })
		}
	}
}

// endRace lets all pods get nodes, and waits until everything has been recorded.
func (p *placement) endRace(t testing.TB, r *raceRecord) {
	t.Helper()
	for i := range raceNodes {
		if name := racing(i).Name; r.refused(name) {
			p.flip(t, r, name, "own")
		}
	}
	eventually(t, 30*time.Second, func() error {
		if n := r.bound(); n < racePods {
			return fmt.Errorf("%d of %d pods are bound", n, racePods)
		}
		return nil
	})
	p.stir(t)
	eventually(t, 30*time.Second, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.ended) > 0 {
			t.Fatalf("watches ended: %q", r.ended)
		}
		if last := slices.MaxFunc(r.bindings, func(a, b raceBinding) int { return cmp.Compare(a.revision, b.revision) }); r.newest < last.revision {
			return fmt.Errorf("nodes are known up to %d, and the last binding is %d", r.newest, last.revision)
		}
		return nil
	})
}

// judgeRace demands that no pod was bound to a node that had been refused for long.
func judgeRace(t testing.TB, list []window) {
	t.Helper()
	var least, most []time.Duration
	for _, w := range list {
		least, most = append(least, max(w.least, 0).Round(time.Millisecond)), append(most, w.most.Round(time.Millisecond))
		if w.asked > 0 {
			t.Errorf("pod %s/%s was bound to node %s; the API server was asked for it %s after the node had become one that is %s", w.namespace, w.pod, w.onto, w.asked, w.why)
		}
	}
	slices.Sort(least)
	slices.Sort(most)
	t.Logf("%d bindings to nodes that had become refused a moment before: at least %v, at most %v before", len(list), least, most)
}

// flip changes what a node says of its CPU: it must be another value, or the answer tells
// of a revision that came to be long before.
func (p *placement) flip(t testing.TB, r *raceRecord, name, value string) {
	t.Helper()
	n := nodeObject(name)
	sent := time.Now()
	if err := p.admin.Patch(t.Context(), n, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"`+cpuLabel+`":"`+value+`"}}}`))); err != nil {
		t.Errorf("change node %s: %v", name, err)
		return
	}
	r.wrote(revisionOf(t, n), write{sent, time.Now()})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shared[name] = value == "shared"
}

// joined notes when the first version of a node was sent: its later versions up to the
// one that is given differ in nothing that counts.
func (r *raceRecord) joined(t testing.TB, name string, n *corev1.Node, w write) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.versions[name]) == 0 {
			return fmt.Errorf("the watch has not told of node %s, version %s", name, n.ResourceVersion)
		}
		r.writes[r.versions[name][0].revision] = w
		r.shared[name] = n.Labels[cpuLabel] == "shared"
		return nil
	})
}

// raceTo creates a pod, again if at the moment all nodes are refused.
func (p *placement) raceTo(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		err := p.admin.Create(t.Context(), pod.DeepCopy())
		if err != nil && !strings.Contains(err.Error(), "[MV405]") {
			t.Errorf("create a pod: %v", err)
			return nil
		}
		return err
	})
}
