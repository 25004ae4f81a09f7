package check

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Requests is a set of requests, each of which meets the same state.
type Requests struct {
	Objects, Old, Cluster []Document
	Operation             admissionv1.Operation
	MayUnguard            bool
	Final                 bool
	Now                   time.Time
}

// Decide decides each request. It returns no result when one of them cannot be
// judged; the errors are reported together.
func Decide(q Requests) (*Result, error) {
	state, err := NewState(q.Cluster)
	if err != nil {
		state = &State{judges: newJudges()}
	}
	olds, errPair := pair(state.judges, q.Objects, q.Old)
	if err := errors.Join(err, errPair); err != nil {
		return nil, err
	}
	result := newResult()
	var errs []error
	for _, d := range q.Objects {
		if old := cmp.Or(olds[state.key(&d)], state.docs[state.key(&d)]); !state.reads(&d) && (old == nil || !state.reads(old)) {
			errs = append(errs, result.skip(&d))
			continue
		}
		r, err := state.Review(Request{Object: d, Old: olds[state.key(&d)], Operation: q.Operation, MayUnguard: q.MayUnguard, Final: q.Final})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		r.Now = q.Now
		state.predicts(r)
		state.places(r)
		errs = append(errs, result.judge(&d, r, state.policies))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	result.Notes = append(append(result.Notes, state.injectedNotes(q.Final)...), slices.Concat(state.injectionNotes(), state.nodeNotes())...)
	return result, nil
}

// Desired takes all objects for the state that a cluster is to have, and judges
// each of them as it would stand in it: a namespace together with the policies
// in it, a policy by whether the state would be better without it. What guards
// provision is taken for granted. Pods are as they are submitted, or final. The
// result notes where the objects could not be applied in any order.
//
// progress, if it is not nil, is told how far the judging is.
func Desired(docs []Document, final bool, now time.Time, progress Progress) (*Result, error) {
	docs, generated := named(docs)
	state, err := NewState(docs)
	if err != nil {
		return nil, err
	}
	j := newJudging(state, final, now)
	j.progress, j.of = progress, len(docs)+len(generated)
	j.result.Notes = append(orderNotes(state), state.provision()...)
	for _, k := range state.order {
		d := state.docs[k]
		j.judge(d, admissionv1.Create, func() (*facts.Review, error) { return state.standing(d, k) })
	}
	for i := range generated {
		j.judgeGenerated(&generated[i])
	}
	return j.finish()
}

// judging goes through the objects of a state.
type judging struct {
	state             *State
	result            *Result
	sum               *overheads
	final, mayUnguard bool
	now               time.Time
	errs              []error
	progress          Progress
	done, of          int
}

// Progress is told how many of the objects have been judged.
type Progress func(judged, of int)

func newJudging(state *State, final bool, now time.Time) *judging {
	return &judging{state: state, result: newResult(), sum: newOverheads(), final: final, now: now}
}

// judge judges an object by the review of it, if any policy reads what is done to it.
func (j *judging) judge(d *Document, operation admissionv1.Operation, review func() (*facts.Review, error)) {
	j.done++
	if j.progress != nil {
		j.progress(j.done, j.of)
	}
	old := j.state.beforeDocs[j.state.key(d)]
	if !j.state.reads(d) && (old == nil || !j.state.reads(old)) || !j.state.judgedOn(d.Kind.GroupKind(), operation) {
		j.errs = append(j.errs, j.result.skip(d))
		return
	}
	r, err := review()
	if err != nil {
		j.errs = append(j.errs, err)
		return
	}
	r.Now = j.now
	r.Submitted = !j.final && r.Operation == admissionv1.Create && !injected(r.Object)
	if j.mayUnguard {
		mayUnguard(r)
	}
	j.state.predicts(r)
	j.state.places(r)
	j.sum.add(r)
	j.errs = append(j.errs, j.result.judge(d, r, j.state.policies))
}

// judgeGenerated judges an object whose name is yet to be generated.
func (j *judging) judgeGenerated(d *Document) {
	j.judge(d, admissionv1.Create, func() (*facts.Review, error) {
		return j.state.Review(Request{Object: *d, Operation: admissionv1.Create, Final: j.final})
	})
}

func (j *judging) finish() (*Result, error) {
	if err := errors.Join(j.errs...); err != nil {
		return nil, err
	}
	t, s := j.result, j.state
	t.Overhead = j.sum.list()
	t.Notes = slices.Concat(t.Notes, j.sum.notes(), s.injectedNotes(j.final), s.injectionNotes(), s.nodeNotes())
	return t, nil
}

// named parts the objects that have a name from those that are to get a
// generated one: these can be in no state, for there is no telling them apart.
func named(docs []Document) (named, generated []Document) {
	for _, d := range docs {
		if d.Name == "" {
			generated = append(generated, d)
		} else {
			named = append(named, d)
		}
	}
	return named, generated
}

// standing is the creation of an object in the state that holds all others.
func (s *State) standing(d *Document, k key) (*facts.Review, error) {
	if k.namespace != "" && s.cluster.Namespaces[k.namespace] == nil {
		return nil, s.missingNamespace(d)
	}
	r := &facts.Review{
		Operation: admissionv1.Create,
		Kind:      d.Kind,
		Resource:  s.resource(d.Kind, ""),
		Namespace: k.namespace,
		Name:      d.Name,
		Object:    s.objects[k],
	}
	r.Cluster = s.scoped(r)
	switch o := r.Object.(type) {
	case *corev1.Namespace:
		// It is judged with what is in it; the API server, however, asks before Meshvakt
		// can have created anything there.
		if s.live && s.provisioned[o.Name] {
			r.Cluster = without(r.Cluster, o.Name, policies.Provisioned(o.Name).Name)
		}
	case *corev1.ConfigMap:
		if s.live {
			if err := s.settingsWithout(k, &r.Cluster); err != nil {
				return nil, err
			}
		}
	case *corev1.Pod, *corev1.Binding, *corev1.Node, *corev1.PersistentVolume, *facts.Workload, *facts.IstioObject:
	case *mesh.PeerAuthentication:
		r.Cluster = without(r.Cluster, o.Namespace, o.Name)
	case *v1alpha1.GuardException:
		if s.live {
			signed(r)
			break
		}
		// That it has been approved is the state; judged are its terms.
		asked := o.DeepCopy()
		asked.Spec.Approved, asked.Spec.Approver = false, ""
		r.Object = asked
		signed(r)
	}
	s.around(r)
	return r, nil
}

// provision adds the policies that Meshvakt would create, and tells of them.
func (s *State) provision() []string {
	var notes []string
	for _, k := range s.order {
		ns, ok := s.objects[k].(*corev1.Namespace)
		if !ok || s.docs[k].Stored || !policies.NeedsProvision(&s.cluster, ns.Name) {
			continue
		}
		p := policies.Provisioned(ns.Name)
		p.Created = s.next()
		s.last = p.Created
		in := s.cluster.Namespaces[ns.Name]
		in.PeerAuthentications = append(in.PeerAuthentications, p)
		if s.provisioned == nil {
			s.provisioned = map[string]bool{}
		}
		s.provisioned[ns.Name] = true
		notes = append(notes, fmt.Sprintf("Meshvakt will create PeerAuthentication %s with mode STRICT (onMissing Provision); the verdicts take it as there", p.Key()))
	}
	return notes
}

// Result is what `meshvakt check -o json` prints.
type Result struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Results    []ObjectResult `json:"results"`
	// Overhead is what sidecars cost by namespace; only of a desired state.
	Overhead []Overhead `json:"overhead,omitempty"`
	Notes    []string   `json:"notes"`
	Summary  Summary    `json:"summary"`
}

// ObjectResult is the decision about one object.
type ObjectResult struct {
	Object ObjectReference `json:"object"`
	// File and Line are where the object stands.
	File     string           `json:"file,omitempty"`
	Line     int              `json:"line,omitempty"`
	Decision policies.Outcome `json:"decision"`
	Findings []Finding        `json:"findings"`
	// Patch is what the webhook would change in a pod as submitted.
	Patch []objects.Operation `json:"patch"`

	operation admissionv1.Operation
}

// ObjectReference names an object.
type ObjectReference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
}

// Finding is one thing wrong with an object.
type Finding struct {
	// ID is the same wherever and whenever the same is found; see identify.
	ID      string                    `json:"id"`
	Policy  string                    `json:"policy"`
	Code    string                    `json:"code"`
	Reason  string                    `json:"reason"`
	Action  v1alpha1.ValidationAction `json:"action"`
	Field   string                    `json:"field"`
	Message string                    `json:"message"`
	Remedy  string                    `json:"remedy"`
	// Exception is the GuardException, namespace/name, that lets it pass.
	Exception string `json:"exception,omitempty"`
	// Line of the file where the field stands, or what is around it.
	Line int `json:"line,omitempty"`
	// Known findings are in the baseline, and fail nothing.
	Known bool `json:"known,omitempty"`
}

// Summary counts the objects under review. Skipped are those of kinds that no
// policy judges, Known those that are denied by findings of the baseline alone, which are
// not among Denied.
type Summary struct {
	Objects int `json:"objects"`
	Allowed int `json:"allowed"`
	Warned  int `json:"warned"`
	Denied  int `json:"denied"`
	Known   int `json:"known,omitempty"`
	Skipped int `json:"skipped"`
}

func newResult() *Result {
	return &Result{
		APIVersion: v1alpha1.GroupVersion().String(),
		Kind:       "CheckResult",
		Results:    []ObjectResult{},
		Notes:      []string{},
	}
}

// skip counts an object that no policy judges. Of our own kinds it errs on what
// the API server would refuse.
func (t *Result) skip(d *Document) error {
	t.Summary.Objects++
	t.Summary.Skipped++
	if d.Kind.GroupKind() == guardKind() {
		_, err := decodeGuard(d)
		return err
	}
	return nil
}

func (t *Result) judge(d *Document, r *facts.Review, list []policies.Policy) error {
	decision, err := policies.Evaluate(list, r)
	if err != nil {
		return d.errorf("%w", err)
	}
	one := ObjectResult{
		Object: ObjectReference{
			APIVersion: d.Kind.GroupVersion().String(),
			Kind:       d.Kind.Kind,
			Namespace:  r.Namespace,
			Name:       r.DisplayName(),
		},
		File:      d.File(),
		Line:      d.Line(),
		Decision:  decision.Outcome,
		Findings:  []Finding{},
		Patch:     []objects.Operation{},
		operation: r.Operation,
	}
	if d.Name == "" {
		one.Object.Name = d.GenerateName + "*"
	}
	if r.Submitted {
		changes, err := policies.Mutate(list, r)
		if err != nil {
			return d.errorf("%w", err)
		}
		patch, err := objects.Patch(d.JSON, changes)
		if err != nil {
			return d.errorf("%w", err)
		}
		one.Patch = append(one.Patch, patch...)
	}
	for _, f := range decision.Findings {
		finding := Finding{
			Policy: f.Policy, Code: f.Reason.Code, Reason: f.Reason.Name, Action: f.Action,
			Field: f.Field, Message: f.Message, Remedy: f.Remedy,
		}
		if f.Exception != nil {
			finding.Exception = f.Exception.Key()
		}
		one.Findings = append(one.Findings, finding)
	}
	if len(one.Findings) > 0 {
		identify(&one, d.JSON)
		at := d.place()
		for i := range one.Findings {
			one.Findings[i].Line = at.of(one.Findings[i].Field)
		}
	}
	t.Results = append(t.Results, one)
	t.Summary.Objects++
	switch decision.Outcome {
	case policies.Allow:
		t.Summary.Allowed++
	case policies.Warn:
		t.Summary.Warned++
	case policies.Deny:
		t.Summary.Denied++
	}
	return nil
}
