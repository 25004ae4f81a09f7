// Package scan reckons how a cluster stands: what is there is judged by the policies
// as if it were created now, so that scan and admission cannot disagree, and counted.
// It holds counts and no objects, whatever the size of the cluster.
package scan

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// MaxResults bounds the results that the examination of a namespace gives.
const MaxResults = 100

// leaving is how long a pod that is being deleted is let alone: it goes, and what
// replaces it is judged. One that takes longer to go goes on running.
const leaving = time.Hour

// Standing is how a namespace stands.
type Standing struct {
	Namespace string
	// Began is the time before which nothing was read: what happened later may not be in it.
	Began time.Time
	// Guards are the names of the guards that select the namespace, sorted.
	Guards []string
	// Strict is true when the namespace is STRICT without a hole.
	Strict bool
	// Pods is how many running pods were judged, Stale how many of them have a proxy
	// that injection would not give them now, and Unjudged how many objects could not
	// be judged.
	Pods, Stale, Unjudged int
	// Passed is how many of the policies that the guards enforce found nothing.
	Passed int
	// Counts of what was found, sorted.
	Counts []Count
	// Exceptions that apply, and those that have expired and are there still, by guard.
	Exceptions []Exception
	// Changes is when the next exception begins or ceases to apply without anybody
	// doing anything, zero when none does.
	Changes time.Time

	// Results are what was found, by owner; at most MaxResults, and LeftOut more. Relied is
	// how many objects would break something but for an exception, by its UID. They are
	// handed on, and not kept by a Ledger.
	Results []Result
	LeftOut int
	Relied  map[types.UID]int
}

// Count is how often something was found under a guard.
type Count struct {
	Guard, Policy, Reason string
	// Found is how many objects break the policy, Excepted how many more would but for
	// an exception.
	Found, Excepted int
}

// Exception is one that applies under a guard until it ends, or has ended.
type Exception struct {
	Guard, Name string
	Ends        time.Time
	Ended       bool
}

// Object names what a result is about.
type Object struct {
	Kind schema.GroupVersionKind
	Name string
	UID  string // "" where only the name is known
}

// Result is something that one or more objects of an owner break in the same way.
type Result struct {
	Owner Object
	// First is the first of the objects, by which they can be looked at, and Objects
	// how many there are.
	First   Object
	Objects int

	Policy  string
	Reason  policies.Reason
	Text    string
	Guards  []string
	Actions []v1alpha1.ValidationAction
	// Exception names the one that lets it pass, "" where none does.
	Exception string
}

// Examination judges what is in a namespace, object by object. It holds none of them.
type Examination struct {
	policies []policies.Policy
	cluster  facts.Cluster
	now      time.Time
	standing Standing
	counts   map[Count]*Count // by Count without numbers
	results  map[resultKey]*Result
	order    []resultKey
	owners   map[Object]string // UIDs of what was seen, by kind and name
	errs     []error
}

type resultKey struct {
	owner                             Object
	policy, reason, field, exceptions string
}

// Begin examines a namespace of the snapshot, which need not hold others but the mesh
// root namespaces. What it is given is no older than began.
func Begin(list []policies.Policy, c facts.Cluster, namespace string, began, now time.Time) *Examination {
	// The caches know all nodes there are; a pod is not held against one that is gone.
	c.NodesComplete = true
	e := &Examination{
		policies: list, cluster: c, now: now,
		standing: Standing{Namespace: namespace, Began: began},
		counts:   map[Count]*Count{}, results: map[resultKey]*Result{}, owners: map[Object]string{},
	}
	ns := c.Namespaces[namespace]
	if ns == nil {
		return e
	}
	e.standing.Strict = policies.Strict(&c, namespace)
	for i := range c.Guards {
		g := &c.Guards[i]
		if !c.Selects(g, namespace, ns.Labels) {
			continue
		}
		e.standing.Guards = append(e.standing.Guards, g.Name)
		for _, x := range ns.Exceptions {
			if state := x.State(g, now); state == v1alpha1.ExceptionActive || state == v1alpha1.ExceptionExpired {
				e.standing.Exceptions = append(e.standing.Exceptions, Exception{g.Name, x.Name, x.Spec.ExpiresAt.Time, state == v1alpha1.ExceptionExpired})
			}
		}
	}
	slices.Sort(e.standing.Guards)
	e.standing.Passed = e.enforced()
	for _, x := range ns.Exceptions {
		if ends := x.Spec.ExpiresAt.Time; ends.After(now) && !x.Spec.Revoked && (e.standing.Changes.IsZero() || ends.Before(e.standing.Changes)) {
			e.standing.Changes = ends
		}
	}
	if len(e.standing.Guards) > 0 {
		kind := corev1.SchemeGroupVersion.WithKind("Namespace")
		e.judge(&facts.Review{
			Kind: kind, Name: namespace,
			Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: ns.Labels}},
		}, Object{Kind: kind, Name: namespace}, Object{})
	}
	return e
}

// enforced counts the policies that a guard of the namespace enforces.
func (e *Examination) enforced() int {
	n := 0
	for i := range e.policies {
		if slices.ContainsFunc(e.cluster.Guards, func(g facts.Guard) bool {
			return slices.Contains(e.standing.Guards, g.Name) && len(e.policies[i].Actions(&g)) > 0
		}) {
			n++
		}
	}
	return n
}

// Workload judges the template of a controller.
func (e *Examination) Workload(kind schema.GroupVersionKind, w *facts.Workload) {
	self := Object{kind, w.Name, string(w.UID)}
	e.owners[Object{Kind: kind, Name: w.Name}] = self.UID
	if w.DeletionTimestamp != nil || facts.Controller(&w.ObjectMeta) != nil {
		return // what makes it is judged in its place
	}
	e.judge(&facts.Review{Kind: kind, Namespace: e.standing.Namespace, Name: w.Name, Object: w}, self, Object{})
}

// Pod judges a pod, if it runs.
func (e *Examination) Pod(pod *corev1.Pod) {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if mirror || ended || pod.DeletionTimestamp != nil && pod.DeletionTimestamp.Sub(e.now) < leaving {
		return
	}
	e.standing.Pods++
	if ns := e.cluster.Namespaces[e.standing.Namespace]; ns != nil && Stale(&e.cluster.Injection, ns, pod) {
		e.standing.Stale++
	}
	kind := corev1.SchemeGroupVersion.WithKind("Pod")
	e.judge(&facts.Review{Kind: kind, Namespace: e.standing.Namespace, Name: pod.Name, Object: asWritten(pod)},
		Object{kind, pod.Name, string(pod.UID)}, ownerOf(pod))
}

// judge takes the standing object for one that is being created. owner is the zero
// Object for what answers for itself.
func (e *Examination) judge(r *facts.Review, self, owner Object) {
	r.Operation, r.Cluster, r.Now = admissionv1.Create, e.cluster, e.now
	if owner == (Object{}) {
		owner = self
	}
	d, err := policies.Evaluate(e.policies, r)
	if err != nil {
		e.standing.Unjudged++
		if len(e.errs) < 3 {
			e.errs = append(e.errs, err)
		}
		return
	}
	type same struct {
		policies.Finding
		policy, guard string
	}
	counted := map[same]bool{}
	relied := map[types.UID]bool{}
	for i := range d.Findings {
		f := &d.Findings[i]
		if x := f.Exception; x != nil && x.UID != "" && !relied[x.UID] && policies.Stands(r, &f.Finding) {
			relied[x.UID] = true
			if e.standing.Relied == nil {
				e.standing.Relied = map[types.UID]int{}
			}
			e.standing.Relied[x.UID]++
		}
	}
	for _, f := range e.standingOf(r, d.Findings) {
		fresh := false
		for _, g := range f.Guards {
			if k := (same{f.Finding, f.Policy, g}); !counted[k] { // once for all actions of the guard
				counted[k], fresh = true, true
				e.count(Count{Guard: g, Policy: f.Policy, Reason: f.Reason.Name}, f.Exception != nil)
			}
		}
		e.result(&f, self, owner, fresh)
	}
}

// standingOf are the findings that stand. Those that a namespace is not STRICT are let pass
// by what speaks for the pods that may take plaintext, as when it would be restored. What
// stands by it then are these pods, and not the namespace.
func (e *Examination) standingOf(r *facts.Review, list []policies.Ruling) []policies.Ruling {
	var stand []policies.Ruling
	for _, f := range list {
		if !policies.Stands(r, &f.Finding) {
			continue
		}
		if f.Exception != nil || !policies.TellsOfMode(&f.Finding) {
			stand = append(stand, f)
			continue
		}
		var minding []string
		for _, name := range f.Guards {
			at := slices.IndexFunc(e.cluster.Guards, func(g facts.Guard) bool { return g.Name == name })
			x := policies.ExcusedBy(&e.cluster, &e.cluster.Guards[at], r.Name, r.Now)
			if x == nil {
				minding = append(minding, name)
				continue
			}
			let := f
			let.Guards, let.Action, let.Exception = []string{name}, policies.Excepted, x
			stand = append(stand, let)
		}
		if len(minding) > 0 {
			f.Guards = minding
			stand = append(stand, f)
		}
	}
	return stand
}

func (e *Examination) count(k Count, excepted bool) {
	c := e.counts[k]
	if c == nil {
		c = &Count{Guard: k.Guard, Policy: k.Policy, Reason: k.Reason}
		e.counts[k] = c
	}
	if excepted {
		c.Excepted++
	} else {
		c.Found++
	}
}

// result gathers what the objects of an owner break in the same way.
func (e *Examination) result(f *policies.Ruling, self, owner Object, fresh bool) {
	k := resultKey{owner: owner, policy: f.Policy, reason: f.Reason.Name, field: f.Field}
	if f.Exception != nil {
		k.exceptions = f.Exception.Name
	}
	r := e.results[k]
	if r == nil {
		if len(e.results) == MaxResults {
			if fresh {
				e.standing.LeftOut++
			}
			return
		}
		r = &Result{Owner: owner, First: self, Policy: f.Policy, Reason: f.Reason, Text: f.Text(), Exception: k.exceptions}
		e.results[k] = r
		e.order = append(e.order, k)
	}
	if fresh {
		r.Objects++
	}
	for _, g := range f.Guards {
		if !slices.Contains(r.Guards, g) {
			r.Guards = append(r.Guards, g)
		}
	}
	if !slices.Contains(r.Actions, f.Action) {
		r.Actions = append(r.Actions, f.Action)
	}
}

// Finish returns how the namespace stands, and why some of it could not be judged.
func (e *Examination) Finish() (*Standing, error) {
	s := &e.standing
	for _, c := range e.counts {
		s.Counts = append(s.Counts, *c)
	}
	broken := map[string]bool{}
	for _, c := range s.Counts {
		broken[c.Policy] = broken[c.Policy] || c.Found > 0
	}
	for _, found := range broken {
		if found {
			s.Passed = max(s.Passed-1, 0)
		}
	}
	slices.SortFunc(s.Counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Guard, b.Guard), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Reason, b.Reason))
	})
	slices.SortFunc(s.Exceptions, func(a, b Exception) int { return cmp.Or(cmp.Compare(a.Guard, b.Guard), cmp.Compare(a.Name, b.Name)) })
	for _, k := range e.order {
		r := *e.results[k]
		if r.Owner.UID == "" {
			r.Owner.UID = e.owners[Object{Kind: r.Owner.Kind, Name: r.Owner.Name}]
		}
		slices.Sort(r.Guards)
		s.Results = append(s.Results, r)
	}
	return s, errors.Join(e.errs...)
}

// Found is how many findings stand in the namespace under the guard, "" for all. With
// several guards an object counts for each that finds something.
func (s *Standing) Found(guard string) int {
	n := 0
	for _, c := range s.Counts {
		if guard == "" || c.Guard == guard {
			n += c.Found
		}
	}
	return n
}

// Reasons are the reasons found under the guard, the most frequent first.
func (s *Standing) Reasons(guard string) []string {
	by := map[string]int{}
	for _, c := range s.Counts {
		if (guard == "" || c.Guard == guard) && c.Found > 0 {
			by[c.Reason] += c.Found
		}
	}
	return slices.SortedFunc(maps.Keys(by), func(a, b string) int { return cmp.Or(cmp.Compare(by[b], by[a]), cmp.Compare(a, b)) })
}
