package check

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Cluster is the state of a cluster as it was read from there. What is not in it is not
// in the cluster either: nothing is taken for granted, as it is with files.
type Cluster struct {
	// Documents are the objects, all of them Stored.
	Documents []Document
	// Unread are the resources that could not be read, such as "nodes".
	Unread []string
}

// NewClusterState reads the state of a cluster.
func NewClusterState(c Cluster) (*State, error) {
	return newState(&State{judges: newJudges(), live: true, unread: c.Unread}, c.Documents)
}

// Change is manifests that are to be applied to a cluster.
type Change struct {
	Manifests         []Document
	Cluster           Cluster
	MayUnguard, Final bool
	Now               time.Time
	// Progress, if it is not nil, is told how far the judging is.
	Progress Progress
}

// Apply judges each manifest as it would stand in the cluster once all of them have been
// applied: one that is there already as an update of what is there, the others as being
// created. What is in the cluster and not among the manifests is not judged.
func Apply(q Change) (*Result, error) {
	docs, generated := named(q.Manifests)
	state, err := overlay(q.Cluster, docs)
	if err != nil {
		return nil, err
	}
	j := newJudging(state, q.Final, q.Now)
	j.mayUnguard = q.MayUnguard
	j.progress, j.of = q.Progress, len(q.Manifests)
	j.result.Notes = append(append(state.brokenNotes(), orderNotes(state)...), state.provision()...)
	for i := range docs {
		d, k := &docs[i], state.key(&docs[i])
		if state.beforeDocs[k] == nil {
			j.judge(d, admissionv1.Create, func() (*facts.Review, error) { return state.standing(d, k) })
		} else {
			j.judge(d, admissionv1.Update, func() (*facts.Review, error) { return state.update(d, k) })
		}
	}
	for i := range generated {
		j.judgeGenerated(&generated[i])
	}
	return j.finish()
}

// overlay is the state of the cluster with the manifests in it.
func overlay(c Cluster, manifests []Document) (*State, error) {
	s := &State{judges: newJudges(), live: true, unread: c.Unread, before: map[key]any{}, beforeDocs: map[key]*Document{}}
	replaced := make(map[key]bool, len(manifests))
	for i := range manifests {
		replaced[s.key(&manifests[i])] = true
	}
	docs := make([]Document, 0, len(c.Documents)+len(manifests))
	var errs []error
	for i := range c.Documents {
		d := &c.Documents[i]
		k := s.key(d)
		if !replaced[k] {
			docs = append(docs, *d)
			continue
		}
		s.beforeDocs[k] = d
		if !s.judged(k.kind) {
			continue
		}
		old, err := s.decode(d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.before[k] = old
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return newState(s, append(docs, manifests...))
}

// decodeStored reads an object that the cluster holds as the webhook reads it.
func decodeStored(d *Document) (any, error) {
	kind := d.Kind.GroupKind()
	if kind == (schema.GroupKind{Kind: "Pod"}) || kind == namespaceKind() {
		_, object, err := objects.Checked(kind, d.JSON)
		if err != nil {
			return nil, d.errorf("%w", err)
		}
		if ns, ok := object.(*corev1.Namespace); ok {
			label(ns)
		}
		return object, nil
	}
	object, err := objects.DecodeStored(kind, d.JSON)
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	return object, nil
}

// settle makes an object of a manifest what it comes to be in the cluster. What an update
// cannot change is as before; and so is what others than the author write, where the
// manifest does not say it: applying it leaves that alone.
func (s *State) settle(k key, object any) {
	old := s.before[k]
	if old == nil {
		fresh(object)
		return
	}
	inherit(object, old)
	switch o := object.(type) {
	case *corev1.Namespace:
		if was, ok := old.(*corev1.Namespace); ok {
			o.Labels, o.Annotations = over(was.Labels, o.Labels), over(was.Annotations, o.Annotations)
		}
	case *v1alpha1.GuardException:
		if was, ok := old.(*v1alpha1.GuardException); ok {
			o.Spec.Approved = o.Spec.Approved || was.Spec.Approved
			o.Spec.Revoked = o.Spec.Revoked || was.Spec.Revoked
			// Those of the state may be numbers in the place of names, and cannot be
			// compared with the manifest's.
			o.Spec.Requester = cmp.Or(was.Spec.Requester, o.Spec.Requester)
			o.Spec.Approver = cmp.Or(was.Spec.Approver, o.Spec.Approver)
		}
	}
}

// over returns the map with the entries of another over its own.
func over(under, upper map[string]string) map[string]string {
	all := make(map[string]string, len(under)+len(upper))
	maps.Copy(all, under)
	maps.Copy(all, upper)
	return all
}

// unapproved is an exception as it stands in the state: one of a manifest that is new to
// a cluster has nobody's approval there, whatever it says.
func (s *State) unapproved(k key, e *v1alpha1.GuardException) *v1alpha1.GuardException {
	if !s.live || s.docs[k].Stored || s.before[k] != nil {
		return e
	}
	pending := e.DeepCopy()
	pending.Spec.Approved, pending.Spec.Approver = false, ""
	return pending
}

// update is the change of an object in the state that holds all others.
func (s *State) update(d *Document, k key) (*facts.Review, error) {
	if k.namespace != "" && s.cluster.Namespaces[k.namespace] == nil {
		return nil, s.missingNamespace(d)
	}
	old := s.before[k]
	r := &facts.Review{
		Operation: admissionv1.Update,
		Kind:      d.Kind,
		Resource:  s.resource(d.Kind, ""),
		Namespace: k.namespace,
		Name:      d.Name,
		Object:    s.objects[k],
		OldObject: old,
	}
	r.Cluster = holding(s.scoped(r), old)
	switch o := old.(type) {
	case *corev1.ConfigMap:
		if err := s.settingsWithout(k, &r.Cluster); err != nil {
			return nil, err
		}
	case *v1alpha1.MeshGuard:
		guards, err := withGuard(r.Cluster.Guards, o)
		if err != nil {
			return nil, d.errorf("%w", err)
		}
		r.Cluster.Guards = guards
	case *v1alpha1.GuardException:
		signed(r)
	}
	s.around(r)
	return r, nil
}

// meshConfigBefore are the settings of a control plane in whose place a manifest stands.
func (s *State) meshConfigBefore(k key) (cp mesh.ControlPlane, found bool, err error) {
	if d := s.beforeDocs[k]; d != nil {
		return decodeMeshConfig(d)
	}
	return mesh.ControlPlane{}, false, nil
}

// settingsWithout takes the settings of a ConfigMap out of the cluster, or puts those back
// that it had before, if they can be read: its change is judged by what it is a change of.
func (s *State) settingsWithout(k key, c *facts.Cluster) error {
	err := s.settingsWith(k, s.beforeDocs[k], c)
	if err != nil {
		err = s.settingsWith(k, nil, c)
	}
	return err
}

func (s *State) settingsWith(k key, old *Document, c *facts.Cluster) error {
	was := &State{judges: s.judges, live: true, docs: map[key]*Document{}}
	for _, other := range s.order {
		d := s.docs[other]
		if other == k {
			d = old
		}
		if d != nil && (other.kind == webhooksKind() || other.kind.Group == "" && other.kind.Kind == "ConfigMap") {
			was.docs[other], was.order = d, append(was.order, other)
		}
	}
	if err := errors.Join(was.readSettings(), was.readInjection()); err != nil {
		return err
	}
	c.ControlPlanes, c.Injection = was.cluster.ControlPlanes, was.cluster.Injection
	return nil
}

// withGuard returns the guards with one as it was before.
func withGuard(guards []facts.Guard, old *v1alpha1.MeshGuard) ([]facts.Guard, error) {
	was, err := facts.NewGuard(old)
	if err != nil {
		return nil, err
	}
	list := make([]facts.Guard, 0, len(guards))
	for i := range guards {
		if guards[i].Name == was.Name {
			list = append(list, was)
			continue
		}
		list = append(list, guards[i])
	}
	return list, nil
}

// brokenNotes tells of objects of the cluster that cannot be read.
func (s *State) brokenNotes() []string {
	if len(s.broken) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s of the cluster cannot be read, and so nothing follows from it", strings.Join(s.broken, ", "))}
}
