package preflight

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Forecaster judges the objects of a cluster one by one. It keeps counts, and of the
// objects only the names of templates that would be refused.
type Forecaster struct {
	state    *check.State
	policies []policies.Policy
	now      time.Time
	source   string

	kinds     map[string]*KindCount
	findings  map[findingKey]*FindingCount
	templates map[string]bool     // kinds that make pods
	all       int                 // namespaces
	refused   map[string]int      // by namespace
	denied    map[string]struct{} // templates, by kind and name
	unread    []unread
	notes     []string
}

type findingKey struct {
	code, kind string
	action     v1alpha1.ValidationAction
}

// NewForecaster reads the state that objects are judged in: namespaces, policies,
// exceptions, nodes and the settings of Istio, but no guards.
// own is the namespace of Meshvakt, which is never guarded.
func NewForecaster(state check.Cluster, guards []v1alpha1.MeshGuard, own, source string, now time.Time) (*Forecaster, error) {
	state.Documents = slices.Clone(state.Documents)
	for i := range guards {
		d, err := guardDocument(&guards[i])
		if err != nil {
			return nil, err
		}
		state.Documents = append(state.Documents, d)
	}
	s, err := stateOf(state, own)
	if err != nil {
		return nil, fmt.Errorf("read the state of the cluster: %w", err)
	}
	var notes []string
	provided, err := provisions(s.Facts(), now)
	if err == nil && len(provided) > 0 {
		notes = append(notes, fmt.Sprintf("Meshvakt will create a STRICT PeerAuthentication in %s (onMissing Provision); all else is judged as if it were there",
			counted(len(provided), "namespace", "namespaces")))
		state.Documents = append(state.Documents, provided...)
		s, err = stateOf(state, own)
	}
	if err != nil {
		return nil, fmt.Errorf("add the policies that Meshvakt creates: %w", err)
	}
	templates := map[string]bool{}
	for _, w := range Workloads() {
		templates[w.Kind] = classOf(w.Kind) == classTemplates
	}
	all := 0
	for i := range state.Documents {
		if state.Documents[i].Kind.Kind == "Namespace" {
			all++
		}
	}
	return &Forecaster{
		all:       all,
		templates: templates, notes: notes, state: s, policies: policies.All(), now: now, source: source,
		kinds: map[string]*KindCount{}, findings: map[findingKey]*FindingCount{},
		refused: map[string]int{}, denied: map[string]struct{}{},
	}, nil
}

func guardDocument(g *v1alpha1.MeshGuard) (check.Document, error) {
	// Only what says what the guard is: the rest of a stored object is not for files.
	bare := v1alpha1.MeshGuard{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "MeshGuard"},
		ObjectMeta: metav1.ObjectMeta{Name: g.Name}, Spec: g.Spec,
	}
	raw, err := json.Marshal(&bare)
	if err != nil {
		return check.Document{}, fmt.Errorf("write MeshGuard %q: %w", g.Name, err)
	}
	return check.Document{Kind: v1alpha1.GroupVersion().WithKind("MeshGuard"), Name: g.Name, JSON: raw, Origin: fmt.Sprintf("MeshGuard %q", g.Name), Stored: true}, nil
}

// stateOf reads the state. Where it is not known how sidecars are injected, they are taken
// to be as Istio's default values have it: that nothing at all injects would be worse.
func stateOf(c check.Cluster, own string) (s *check.State, err error) {
	if slices.Contains(c.Unread, "mutatingwebhookconfigurations") || slices.Contains(c.Unread, "configmaps") {
		s, err = check.NewState(c.Documents)
	} else {
		s, err = check.NewClusterState(c)
	}
	if err == nil {
		s.RunsIn(own)
	}
	return s, err
}

// provisions are the policies that Meshvakt creates in namespaces of guards that ask for it.
func provisions(c *facts.Cluster, now time.Time) ([]check.Document, error) {
	var docs []check.Document
	for _, name := range sortedKeys(c.Namespaces) {
		if !policies.NeedsProvision(c, name) {
			continue
		}
		p := policies.Provisioned(name)
		raw, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"namespace": p.Namespace, "name": p.Name, "creationTimestamp": metav1.NewTime(now)},
			"spec":     map[string]any{"mtls": map[string]any{"mode": p.Mode.String()}},
		})
		if err != nil {
			return nil, fmt.Errorf("write PeerAuthentication %s: %w", p.Key(), err)
		}
		docs = append(docs, check.Document{
			Kind:      schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"},
			Namespace: p.Namespace, Name: p.Name, JSON: raw, Origin: "PeerAuthentication " + p.Key(), Stored: true,
		})
	}
	return docs, nil
}

// Denying returns the guards with Deny as the validation action of all their policies.
func Denying(guards []v1alpha1.MeshGuard) []v1alpha1.MeshGuard {
	list := make([]v1alpha1.MeshGuard, len(guards))
	deny := []v1alpha1.ValidationAction{v1alpha1.Deny}
	for i := range guards {
		guards[i].DeepCopyInto(&list[i])
		s := &list[i].Spec
		if s.StrictMTLS != nil {
			s.StrictMTLS.ValidationActions = deny
		}
		if s.MeshMembership != nil {
			s.MeshMembership.ValidationActions = deny
		}
		if s.SidecarResources != nil {
			s.SidecarResources.ValidationActions = deny
		}
		if s.NodePools != nil {
			s.NodePools.ValidationActions = deny
		}
	}
	return list
}

// Unread takes note that something could not be read which objects of the kinds are judged
// by, or those objects themselves; without kinds, that all are judged by. The note, unless
// empty, says what is done without it.
func (f *Forecaster) Unread(err error, note string, kinds ...string) {
	if len(kinds) == 0 {
		f.unread = append(f.unread, unread{err: err})
	}
	for _, kind := range kinds {
		if u := (unread{classOf(kind), err}); !slices.Contains(f.unread, u) {
			f.unread = append(f.unread, u)
		}
	}
	f.Note(note)
}

// Note takes up what the forecast rests on that is not certain.
func (f *Forecaster) Note(note string) {
	if note != "" {
		f.notes = append(f.notes, note)
	}
}

// Wants reports whether objects of a kind are judged in a namespace.
func (f *Forecaster) Wants(w *Workload, namespace string) bool {
	c := f.state.Facts()
	ns := c.Namespaces[namespace]
	return ns != nil && !ns.Terminating && (w.Everywhere || c.IsRoot(namespace) || c.Guarded(namespace, ns.Labels))
}

// JudgeState judges the namespaces and the policies that are in the state. With
// namespaces, only what is in those.
func (f *Forecaster) JudgeState(namespaces []string) {
	for r, err := range f.state.Standing() {
		if err != nil {
			f.unjudged("", err)
			continue
		}
		name := r.Namespace
		if r.Kind.Kind == "Namespace" {
			name = r.Name
			if ns := r.Cluster.Namespaces[name]; ns == nil || ns.Terminating || !r.Cluster.Guarded(name, ns.Labels) {
				continue
			}
		} else if r.Kind.Kind != "PeerAuthentication" {
			continue
		}
		if len(namespaces) == 0 || slices.Contains(namespaces, name) {
			f.judge(r, name)
		}
	}
}

// Judge judges an object that is not in the state, as if it were applied anew. Pods are
// judged as they are; those that have ended, or are about to, are left out.
func (f *Forecaster) Judge(d *check.Document) {
	r, err := f.state.Review(check.Request{Object: *d, Operation: admissionv1.Create, Final: true})
	if err != nil {
		f.unjudged(d.Kind.Kind, err)
		return
	}
	switch o := r.Object.(type) {
	case *corev1.Pod:
		f.judgePod(d, r, o)
	case *facts.Workload:
		f.judgeTemplate(d, r, o)
	default:
		f.judge(r, r.Namespace)
	}
}

// judgeTemplate judges what makes pods. What something else has made is not counted, for
// that is mended there; but pods come from it. The ReplicaSets of earlier revisions are
// kept for going back to them, and make none.
func (f *Forecaster) judgeTemplate(d *check.Document, r *facts.Review, o *facts.Workload) {
	controlled := metav1.GetControllerOf(o) != nil
	if controlled && o.Pods == 0 || d.Kind.Kind == "Job" && finished(d) {
		return
	}
	decision, ok := f.evaluate(r)
	if !ok {
		return
	}
	if decision.Outcome == policies.Deny {
		f.denied[templateKey(d.Kind.Kind, d.Namespace, d.Name)] = struct{}{}
	}
	if !controlled {
		f.tally(r, r.Namespace, &decision)
	}
}

// judgePod tells pods that are only outdated from those whose successors would be refused
// too.
func (f *Forecaster) judgePod(d *check.Document, r *facts.Review, pod *corev1.Pod) {
	owner, runs, err := lifeOf(d)
	if err != nil {
		f.unjudged(d.Kind.Kind, err)
		return
	}
	if !runs {
		return
	}
	decision, ok := f.evaluate(r)
	if !ok {
		return
	}
	f.tally(r, r.Namespace, &decision)
	if decision.Outcome == policies.Deny && f.outdated(r, pod, owner, &decision) {
		f.kinds[d.Kind.Kind].Outdated++
		for key := range keysOf(r, &decision) {
			if key.action == v1alpha1.Deny {
				f.findings[key].Outdated++
			}
		}
	}
}

// outdated reports whether a successor of a refused pod would be let in: by the template
// that it comes from, or, of a pod without one, by whether it would be if it were created
// anew. Whether it is STRICT does not depend on when a pod was created.
func (f *Forecaster) outdated(r *facts.Review, pod *corev1.Pod, owner *metav1.OwnerReference, decision *policies.Decision) bool {
	if slices.ContainsFunc(decision.Findings, func(found policies.Ruling) bool {
		return found.Action == v1alpha1.Deny && found.Policy == policies.StrictMTLS().ID
	}) {
		return false
	}
	if owner != nil && f.templates[owner.Kind] {
		_, denied := f.denied[templateKey(owner.Kind, r.Namespace, owner.Name)]
		return !denied
	}
	if hasProxy(pod) {
		return false
	}
	again := *r
	again.Submitted = true
	successor, err := policies.Evaluate(f.policies, &again)
	return err == nil && owner != nil && successor.Outcome != policies.Deny
}

// hasProxy reports whether the pod has been injected: as an author's it would be a pod
// that overrides the proxy.
func hasProxy(pod *corev1.Pod) bool { return pod.Annotations["sidecar.istio.io/status"] != "" }

func templateKey(kind, namespace, name string) string { return kind + " " + namespace + "/" + name }

// unjudged takes note of an object that could not be judged, or not be read.
func (f *Forecaster) unjudged(kind string, err error) {
	c := class("")
	if kind != "" {
		c = classOf(kind)
	}
	const kept = 20 // a schema that we do not know would make one for every object
	if len(f.unread) < kept {
		f.unread = append(f.unread, unread{c, err})
	}
}

// evaluate judges a review, unless the facts do not suffice.
func (f *Forecaster) evaluate(r *facts.Review) (decision policies.Decision, ok bool) {
	r.Now = f.now
	decision, err := policies.Evaluate(f.policies, r)
	if err != nil {
		f.unjudged(r.Kind.Kind, fmt.Errorf("judge %s %s: %w", r.Kind.Kind, r.DisplayName(), err))
	}
	return decision, err == nil
}

func (f *Forecaster) judge(r *facts.Review, namespace string) {
	if decision, ok := f.evaluate(r); ok {
		f.tally(r, namespace, &decision)
	}
}

// tally counts what is found.
func (f *Forecaster) tally(r *facts.Review, namespace string, decision *policies.Decision) {
	kind := f.kinds[r.Kind.Kind]
	if kind == nil {
		kind = &KindCount{Kind: r.Kind.Kind}
		f.kinds[r.Kind.Kind] = kind
	}
	kind.Judged++
	for key, found := range keysOf(r, decision) {
		f.count(key, r, found)
	}
	switch {
	case decision.Outcome == policies.Deny:
		kind.Refused++
		f.refused[namespace]++
	case decision.RestsOnException():
		kind.Excepted++
	case decision.Outcome == policies.Warn:
		kind.Warned++
	}
}

// keysOf are the findings of a decision by what they are counted under, the first of each.
func keysOf(r *facts.Review, decision *policies.Decision) map[findingKey]*policies.Ruling {
	keys := map[findingKey]*policies.Ruling{}
	for i := range decision.Findings {
		found := &decision.Findings[i]
		key := findingKey{found.Reason.Code, r.Kind.Kind, found.Action}
		if keys[key] == nil {
			keys[key] = found
		}
	}
	return keys
}

func (f *Forecaster) count(key findingKey, r *facts.Review, found *policies.Ruling) {
	c := f.findings[key]
	if c == nil {
		c = &FindingCount{Policy: found.Policy, Code: key.code, Reason: found.Reason.Name, Kind: key.kind, Action: key.action}
		f.findings[key] = c
	}
	c.Objects++
	if len(c.Examples) < examplesAtMost {
		name := r.DisplayName()
		if r.Namespace != "" {
			name = r.Namespace + "/" + name
		}
		c.Examples = append(c.Examples, Example{name, found.Field, found.Message, found.Remedy})
	}
}
