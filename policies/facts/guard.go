package facts

import (
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Guard is a MeshGuard with its selector parsed.
type Guard struct {
	Name     string
	Selector labels.Selector
	// A policy whose parameters are nil is not enforced.
	StrictMTLS       *v1alpha1.StrictMTLS
	MeshMembership   *v1alpha1.MeshMembership
	SidecarResources *v1alpha1.SidecarResources
	NodePools        *v1alpha1.NodePools
	// Exceptions are the rules for exceptions, nil when the guard takes none.
	Exceptions  *v1alpha1.Exceptions
	Remediation v1alpha1.Remediation
}

// NewGuard reads a MeshGuard. It errs when the namespace selector cannot be
// parsed, which the CustomResourceDefinition should have refused.
func NewGuard(g *v1alpha1.MeshGuard) (Guard, error) {
	selector, err := metav1.LabelSelectorAsSelector(&g.Spec.NamespaceSelector)
	if err != nil {
		return Guard{}, fmt.Errorf("parse spec.namespaceSelector of MeshGuard %q: %w", g.Name, err)
	}
	return Guard{
		Name:             g.Name,
		Selector:         selector,
		StrictMTLS:       g.Spec.StrictMTLS,
		MeshMembership:   g.Spec.MeshMembership,
		SidecarResources: g.Spec.SidecarResources,
		NodePools:        g.Spec.NodePools,
		Exceptions:       g.Spec.Exceptions,
		Remediation:      g.Spec.Remediation,
	}, nil
}

// NodeLabels returns the labels by which guards have nodes state their class, sorted.
func NodeLabels(guards []Guard) []string {
	var keys []string
	for i := range guards {
		if n := guards[i].NodePools; n != nil && n.NodeLabel != nil {
			keys = append(keys, n.NodeLabel.Key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Selects reports whether the guard covers a namespace of this name and labels.
func (c *Cluster) Selects(g *Guard, namespace string, namespaceLabels map[string]string) bool {
	return !slices.Contains(c.Unguardable, namespace) && g.Selector.Matches(labels.Set(namespaceLabels))
}

// Guarded reports whether any guard covers a namespace of this name and labels.
func (c *Cluster) Guarded(namespace string, namespaceLabels map[string]string) bool {
	return slices.ContainsFunc(c.Guards, func(g Guard) bool {
		return c.Selects(&g, namespace, namespaceLabels)
	})
}

// Unguards returns the names of the guards that the request takes a living
// namespace out of, or that it changes or deletes.
func (r *Review) Unguards() []string {
	if g, ok := r.OldObject.(*v1alpha1.MeshGuard); ok {
		return []string{g.Name}
	}
	before, after, ok := r.namespaceUpdate()
	if !ok {
		return nil
	}
	var names []string
	for i := range r.Cluster.Guards {
		g := &r.Cluster.Guards[i]
		if r.Cluster.Selects(g, before.Name, before.Labels) && !r.Cluster.Selects(g, after.Name, after.Labels) {
			names = append(names, g.Name)
		}
	}
	return names
}

// namespaceUpdate returns both sides of an UPDATE of a namespace that is not
// being deleted.
func (r *Review) namespaceUpdate() (before, after *corev1.Namespace, ok bool) {
	if r.Operation != admissionv1.Update {
		return nil, nil, false
	}
	before, okBefore := r.OldObject.(*corev1.Namespace)
	after, okAfter := r.Object.(*corev1.Namespace)
	if !okBefore || !okAfter || after.DeletionTimestamp != nil {
		return nil, nil, false
	}
	return before, after, true
}

// Approves reports whether the request approves an exception.
func (r *Review) Approves() bool {
	old, okOld := r.OldObject.(*v1alpha1.GuardException)
	e, ok := r.Object.(*v1alpha1.GuardException)
	return ok && okOld && e.Spec.Approved && !old.Spec.Approved
}
