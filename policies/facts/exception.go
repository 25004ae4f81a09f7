package facts

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

// Exception is a GuardException with its selector parsed. Whether it applies follows
// from what is here, a guard and the clock, and from nothing else: everybody who asks
// gets the same answer.
type Exception struct {
	Namespace, Name string
	UID             types.UID
	Spec            v1alpha1.GuardExceptionSpec
	// Created is when it was created, to the second, as the API server says; zero: now.
	Created  time.Time
	selector labels.Selector
}

// NewException reads a GuardException. It errs when the object selector cannot be parsed.
func NewException(e *v1alpha1.GuardException) (*Exception, error) {
	selector, err := metav1.LabelSelectorAsSelector(&e.Spec.ObjectSelector)
	if err != nil {
		return nil, fmt.Errorf("parse spec.objectSelector of GuardException %s/%s: %w", e.Namespace, e.Name, err)
	}
	return &Exception{Namespace: e.Namespace, Name: e.Name, UID: e.UID, Spec: e.Spec, Created: e.GetCreationTimestamp().Time, selector: selector}, nil
}

// Key names the exception in messages.
func (e *Exception) Key() string { return e.Namespace + "/" + e.Name }

// State is how the exception stands under a guard at a moment. It ends with the second
// at which it expires.
func (e *Exception) State(g *Guard, now time.Time) v1alpha1.ExceptionState {
	created := e.Created
	if created.IsZero() {
		created = now
	}
	switch {
	case e.Spec.Revoked:
		return v1alpha1.ExceptionRevoked
	case !now.Before(e.Spec.ExpiresAt.Time):
		return v1alpha1.ExceptionExpired
	case g.Exceptions == nil || e.Spec.ExpiresAt.After(created.Add(g.Exceptions.MaxDuration.Duration)):
		return v1alpha1.ExceptionNotGranted
	case g.Exceptions.Approval == v1alpha1.ApprovalNone:
		return v1alpha1.ExceptionActive
	case !e.Spec.Approved || e.Spec.Approver == "" || e.Spec.Approver == e.Spec.Requester:
		return v1alpha1.ExceptionPending
	}
	return v1alpha1.ExceptionActive
}

// Standing is how the exception stands under the guards together: active when it is so
// under any, else what comes closest to it.
func (e *Exception) Standing(guards []*Guard, now time.Time) v1alpha1.ExceptionState {
	closeness := []v1alpha1.ExceptionState{v1alpha1.ExceptionActive, v1alpha1.ExceptionPending, v1alpha1.ExceptionNotGranted, v1alpha1.ExceptionExpired, v1alpha1.ExceptionRevoked}
	none := Guard{}
	best := e.State(&none, now)
	for _, g := range guards {
		if s := e.State(g, now); slices.Index(closeness, s) < slices.Index(closeness, best) {
			best = s
		}
	}
	return best
}

// Names reports whether the exception is from the reason of a policy; reason "": from
// the policy at all.
func (e *Exception) Names(policy, reason string) bool {
	return slices.ContainsFunc(e.Spec.Policies, func(p v1alpha1.ExceptedPolicy) bool {
		return p.Name == policy && (reason == "" || len(p.Reasons) == 0 || slices.Contains(p.Reasons, reason))
	})
}

// Excepting returns the exception by which the guard lets the object of the request
// break a policy for the reason, nil without one. Of several it is the one that ends
// last.
func (r *Review) Excepting(g *Guard, policy, reason string) *Exception {
	name := r.Namespace
	if r.Kind.Kind == "Namespace" {
		name = r.Name
	}
	ns := r.Cluster.Namespaces[name]
	if ns == nil || len(ns.Exceptions) == 0 || !r.exceptable() {
		return nil
	}
	var found *Exception
	for _, e := range ns.Exceptions {
		if !e.Names(policy, reason) || e.State(g, r.Now) != v1alpha1.ExceptionActive || !e.selects(r) {
			continue
		}
		if found == nil || cmp.Or(e.Spec.ExpiresAt.Compare(found.Spec.ExpiresAt.Time), cmp.Compare(found.Name, e.Name)) > 0 {
			found = e
		}
	}
	return found
}

// exceptable reports whether an exception can be about the object: in a mesh root
// namespace only pods and what makes them, for all else there counts for every
// namespace.
func (r *Review) exceptable() bool {
	if !r.Cluster.IsRoot(r.Namespace) && !(r.Kind.Kind == "Namespace" && r.Cluster.IsRoot(r.Name)) {
		return true
	}
	switch r.Object.(type) {
	case *corev1.Pod, *Workload, *corev1.Binding:
		return true
	}
	return false
}

// selects reports whether the exception is about the object of the request. What
// selects pods itself is so if it selects none but those that the exception selects,
// before the change and after it.
func (e *Exception) selects(r *Review) bool {
	for _, o := range []any{r.Object, r.OldObject} {
		switch o := o.(type) {
		case *mesh.PeerAuthentication:
			if !e.SelectsAll(o.Selector) {
				return false
			}
		case *corev1.Namespace:
			if !e.selector.Empty() {
				return false
			}
		}
	}
	object := r.Object
	if object == nil {
		object = r.OldObject
	}
	switch o := object.(type) {
	case *mesh.PeerAuthentication, *corev1.Namespace:
		return true
	case *corev1.Pod:
		return e.selector.Matches(labels.Set(o.Labels))
	case *Workload:
		if o.Template == nil {
			return e.selector.Matches(labels.Set(o.Labels))
		}
		return e.selector.Matches(labels.Set(o.Template.Labels))
	case *corev1.Binding:
		if r.Cluster.Bound == nil {
			return e.selector.Empty()
		}
		return e.selector.Matches(labels.Set(r.Cluster.Bound.Labels))
	case *corev1.ConfigMap:
		return e.selector.Matches(labels.Set(o.Labels))
	case *IstioObject:
		return e.selectsIstio(o)
	}
	return false
}

func (e *Exception) selectsIstio(o *IstioObject) bool {
	switch s := o.Spec.(type) {
	case *networkingv1alpha3.EnvoyFilter:
		return e.SelectsAll(s.GetWorkloadSelector().GetLabels())
	case *networkingv1alpha3.Sidecar:
		return e.SelectsAll(s.GetWorkloadSelector().GetLabels())
	case *networkingv1beta1.ProxyConfig:
		return e.SelectsAll(s.GetSelector().GetMatchLabels())
	}
	return e.selector.Matches(labels.Set(o.Labels))
}

// SelectsAll reports whether every object with these labels, whatever others it has,
// is one that the exception selects.
func (e *Exception) SelectsAll(selected map[string]string) bool {
	requirements, selectable := e.selector.Requirements()
	if !selectable {
		return false
	}
	for _, r := range requirements {
		value, has := selected[r.Key()]
		if !has || r.Operator() == selection.DoesNotExist || !r.Matches(labels.Set{r.Key(): value}) {
			return false
		}
	}
	return true
}
