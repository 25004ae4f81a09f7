package check

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Request is one request to decide.
type Request struct {
	// Object is the object as the user writes it. On DELETE only what names it
	// is read.
	Object Document
	// Old is the object as it was; nil takes it from the state.
	Old *Document
	// Operation, when empty, is UPDATE if there is an old object, else CREATE.
	Operation admissionv1.Operation
	// SubResource is the one that the request is for; empty for the object itself.
	SubResource string
	// MayUnguard says that the user may take namespaces out of guards.
	MayUnguard bool
	// User is the name of the requesting user. Where it is empty, exceptions are taken for
	// requested and approved by those whom they name, as Meshvakt fills them in.
	User string
	// MayApprove says that the user may approve exceptions.
	MayApprove bool
	// Final says that a pod is as it is after all mutating webhooks, as the
	// validating webhook sees it. Otherwise its injection is predicted, unless it
	// has evidently been injected.
	Final bool
}

// Review puts a request to the state, in the form that policies judge. For a kind
// that none of them reads it has no objects, and nobody judges it.
func (s *State) Review(q Request) (*facts.Review, error) {
	d := &q.Object
	k := s.key(d)
	if !s.judged(k.kind) {
		return &facts.Review{
			Operation: q.Operation, Kind: d.Kind, SubResource: q.SubResource,
			Namespace: d.Namespace, Name: d.Name, Cluster: s.cluster,
		}, nil
	}
	old, err := s.old(q)
	if err != nil {
		return nil, err
	}
	op := q.Operation
	if op == "" {
		op = admissionv1.Create
		if old != nil {
			op = admissionv1.Update
		}
	}
	if err := s.fits(d, k, op, old != nil); err != nil {
		return nil, err
	}
	r := &facts.Review{
		Operation:   op,
		Kind:        d.Kind,
		Resource:    s.resource(d.Kind, q.SubResource),
		SubResource: q.SubResource,
		Namespace:   k.namespace,
		Name:        d.Name,
		Cluster:     s.cluster,
	}
	if op != admissionv1.Delete {
		if r.Object, err = s.decode(d); err != nil {
			return nil, err
		}
	}
	r.Submitted = !q.Final && op == admissionv1.Create && !injected(r.Object)
	if op == admissionv1.Create {
		fresh(r.Object)
	} else {
		r.OldObject = old
		r.Cluster = holding(r.Cluster, old)
		inherit(r.Object, old)
	}
	s.around(r)
	if k.namespace != "" && r.Cluster.Namespaces[k.namespace] == nil {
		return nil, s.missingNamespace(d)
	}
	r.User.Username, r.MayApprove = q.User, q.MayApprove
	if q.User == "" {
		signed(r)
	}
	if q.MayUnguard {
		mayUnguard(r)
	}
	return r, nil
}

// mayUnguard gives the user the verb on all guards that the request is about.
func mayUnguard(r *facts.Review) {
	r.MayUnguard = map[string]bool{}
	for _, name := range r.Unguards() {
		r.MayUnguard[name] = true
	}
}

// signed takes a request about an exception for one by the user whom the exception names.
func signed(r *facts.Review) {
	e, ok := r.Object.(*v1alpha1.GuardException)
	if !ok {
		return
	}
	const somebody = "the-requester"
	old, hasOld := r.OldObject.(*v1alpha1.GuardException)
	switch {
	case r.Approves():
		e.Spec.Requester = cmp.Or(e.Spec.Requester, old.Spec.Requester)
		e.Spec.Approver = cmp.Or(e.Spec.Approver, "the-approver")
		r.User.Username, r.MayApprove = e.Spec.Approver, true
	case hasOld:
		e.Spec.Requester = cmp.Or(e.Spec.Requester, old.Spec.Requester, somebody)
		e.Spec.Approver = cmp.Or(e.Spec.Approver, old.Spec.Approver)
		r.User.Username = e.Spec.Requester
	default:
		e.Spec.Requester = cmp.Or(e.Spec.Requester, somebody)
		r.User.Username = e.Spec.Requester
	}
}

// old returns the object before the request, nil if there is none.
func (s *State) old(q Request) (any, error) {
	k := s.key(&q.Object)
	if q.Old == nil {
		if q.Operation == admissionv1.Create {
			return nil, nil
		}
		return s.objects[k], nil
	}
	if is := s.key(q.Old); is != k {
		return nil, q.Old.errorf("the old object is %s; must be %s, the object under review", is, k)
	}
	old, err := s.decode(q.Old)
	if err != nil {
		return nil, err
	}
	if p, ok := old.(*mesh.PeerAuthentication); ok && p.Created.IsZero() {
		p.Created = s.next()
		if in, ok := s.objects[k].(*mesh.PeerAuthentication); ok {
			p.Created = in.Created
		}
	}
	return old, nil
}

// fits checks that the operation can meet the state.
func (s *State) fits(d *Document, k key, op admissionv1.Operation, hasOld bool) error {
	switch {
	case op == admissionv1.Create && s.has(k):
		return d.errorf("operation CREATE, but the cluster state already holds %s (%s); take it out there, or use --operation UPDATE", k, s.docs[k].Origin)
	case op != admissionv1.Create && d.Name == "":
		return d.errorf("operation %s of %s with metadata.generateName; metadata.name must be set", op, d.Kind.Kind)
	case op != admissionv1.Create && !hasOld:
		return d.errorf("operation %s, but there is no old %s; add it to the cluster state, or give it with --old", op, k)
	}
	return nil
}

// fresh makes an object one that is not in the cluster yet.
func fresh(object any) {
	switch o := object.(type) {
	case *corev1.Namespace:
		o.DeletionTimestamp = nil
	case *corev1.Pod:
		o.DeletionTimestamp = nil
	case *corev1.ConfigMap:
		o.DeletionTimestamp = nil
	case *facts.Workload:
		o.DeletionTimestamp = nil
	case *facts.IstioObject:
		o.DeletionTimestamp = nil
	case *v1alpha1.GuardException:
		o.DeletionTimestamp, o.CreationTimestamp = nil, metav1.Time{}
	case *mesh.PeerAuthentication:
		o.Created, o.Terminating = mesh.PeerAuthentication{}.Created, false
	}
}

// inherit carries over what an update cannot change.
func inherit(object, old any) {
	switch o := object.(type) {
	case *corev1.Namespace:
		if was, ok := old.(*corev1.Namespace); ok {
			o.DeletionTimestamp = was.DeletionTimestamp
		}
	case *corev1.Pod:
		if was, ok := old.(*corev1.Pod); ok {
			o.DeletionTimestamp = was.DeletionTimestamp
		}
	case *corev1.ConfigMap:
		if was, ok := old.(*corev1.ConfigMap); ok {
			o.DeletionTimestamp = was.DeletionTimestamp
		}
	case *facts.Workload:
		if was, ok := old.(*facts.Workload); ok {
			o.DeletionTimestamp = was.DeletionTimestamp
		}
	case *facts.IstioObject:
		if was, ok := old.(*facts.IstioObject); ok {
			o.DeletionTimestamp = was.DeletionTimestamp
		}
	case *v1alpha1.GuardException:
		if was, ok := old.(*v1alpha1.GuardException); ok {
			o.DeletionTimestamp, o.CreationTimestamp = was.DeletionTimestamp, was.CreationTimestamp
		}
	case *mesh.PeerAuthentication:
		if was, ok := old.(*mesh.PeerAuthentication); ok {
			o.Created, o.Terminating = was.Created, was.Terminating
		}
	}
}

// holding returns the state with the old object in it.
func holding(c facts.Cluster, old any) facts.Cluster {
	switch o := old.(type) {
	case *corev1.Namespace:
		ns := namespaceOf(o)
		if was := c.Namespaces[o.Name]; was != nil {
			ns.PeerAuthentications, ns.Pods, ns.Exceptions = was.PeerAuthentications, was.Pods, was.Exceptions
		}
		c.Namespaces = maps.Clone(c.Namespaces)
		c.Namespaces[o.Name] = ns
	case *mesh.PeerAuthentication:
		c = without(c, o.Namespace, o.Name)
		if ns := c.Namespaces[o.Namespace]; ns != nil {
			ns.PeerAuthentications = append(ns.PeerAuthentications, o)
		}
	}
	return c
}

// scoped is the state with those namespaces alone that the request is judged by, which is
// what the webhook reads for it. Where there are thousands, they are not copied for each.
func (s *State) scoped(r *facts.Review) facts.Cluster {
	c := s.cluster
	name, roots := r.Namespace, c.RootNamespaces()
	switch o := r.Object.(type) {
	case *corev1.Namespace:
		name = o.Name
		if slices.Contains(roots, name) {
			return c
		}
	case *mesh.PeerAuthentication:
		if slices.Contains(roots, name) {
			return c
		}
	case *corev1.Pod, *facts.Workload, *facts.IstioObject, *corev1.Binding, *v1alpha1.GuardException:
	default:
		return c
	}
	whole := c.Namespaces
	r.Cluster.ControlPlanes = c.ControlPlanes // OtherNamespaces leaves their roots out
	c.Namespaces = map[string]*facts.Namespace{}
	for _, n := range slices.Concat([]string{name}, roots, r.OtherNamespaces()) {
		if ns := whole[n]; ns != nil {
			c.Namespaces[n] = ns
		}
	}
	return c
}

// without returns the state without one policy; its namespace is a copy.
func without(c facts.Cluster, namespace, name string) facts.Cluster {
	was := c.Namespaces[namespace]
	if was == nil {
		return c
	}
	ns := *was
	ns.PeerAuthentications = slices.DeleteFunc(slices.Clone(was.PeerAuthentications), func(p *mesh.PeerAuthentication) bool {
		return p.Name == name
	})
	c.Namespaces = maps.Clone(c.Namespaces)
	c.Namespaces[namespace] = &ns
	return c
}

// ParseOperation reads CREATE, UPDATE or DELETE in any case; empty is "derive it".
func ParseOperation(text string) (admissionv1.Operation, error) {
	op := admissionv1.Operation(strings.ToUpper(text))
	switch op {
	case "", admissionv1.Create, admissionv1.Update, admissionv1.Delete:
		return op, nil
	}
	return "", fmt.Errorf("operation %q; must be CREATE, UPDATE or DELETE", text)
}

// pair finds for each object the old one of the same identity.
func pair(j *judges, objects, old []Document) (map[key]*Document, error) {
	olds := map[key]*Document{}
	var errs []error
	for i := range old {
		k := j.key(&old[i])
		if other := olds[k]; other != nil {
			errs = append(errs, old[i].errorf("%s stands twice, the first time in %s", k, other.Origin))
		}
		olds[k] = &old[i]
	}
	wanted := map[key]*Document{}
	for i := range objects {
		k := j.key(&objects[i])
		if other := wanted[k]; other != nil && objects[i].Name != "" {
			errs = append(errs, objects[i].errorf("%s stands twice, the first time in %s", k, other.Origin))
		}
		wanted[k] = &objects[i]
	}
	for k, d := range olds {
		if wanted[k] == nil {
			errs = append(errs, d.errorf("old %s belongs to no object under review", k))
		}
	}
	return olds, errors.Join(errs...)
}
