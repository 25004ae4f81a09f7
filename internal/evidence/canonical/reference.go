package canonical

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Ref says which object it is, and which state of it.
type Ref struct {
	// GVK is as in records, group/version/Kind. It is empty for what does not know its own, such as an object that
	// makes pods: the request that it comes with does.
	GVK string
	// Namespace of a Namespace is its own name.
	Namespace, Name string
	UID             string
	Generation      uint64
	// ResourceVersion is empty for what a request brings: the API server has yet to give it one.
	ResourceVersion string
}

// Reference returns the zero Ref for what is none of the objects that Of takes.
func Reference(object any) Ref {
	switch o := object.(type) {
	case *mesh.PeerAuthentication:
		return Ref{GVK: policyGVK(), Namespace: o.Namespace, Name: o.Name, UID: o.UID, Generation: generation(o.Generation)}
	case *objects.PeerAuthentication:
		return of(policyGVK(), &o.ObjectMeta)
	case *corev1.Namespace:
		r := of("v1/Namespace", &o.ObjectMeta)
		r.Namespace = o.Name
		return r
	case *corev1.ConfigMap:
		return of("v1/ConfigMap", &o.ObjectMeta)
	case *corev1.Pod:
		return of("v1/Pod", &o.ObjectMeta)
	case *corev1.Node:
		return of("v1/Node", &o.ObjectMeta)
	case *corev1.PersistentVolume:
		return of("v1/PersistentVolume", &o.ObjectMeta)
	case *corev1.Binding:
		return of("v1/Binding", &o.ObjectMeta)
	case *v1alpha1.MeshGuard:
		return of(GVK(v1alpha1.Group, v1alpha1.Version, "MeshGuard"), &o.ObjectMeta)
	case *v1alpha1.GuardException:
		return of(GVK(v1alpha1.Group, v1alpha1.Version, "GuardException"), &o.ObjectMeta)
	case *facts.Workload:
		return of("", &o.ObjectMeta)
	case *facts.IstioObject:
		return of("", &o.ObjectMeta)
	}
	m, isObject := object.(metav1.Object)
	if !isObject {
		return Ref{}
	}
	r := of("", m)
	if typed, ok := object.(runtime.Object); ok {
		if k := typed.GetObjectKind().GroupVersionKind(); !k.Empty() {
			r.GVK = GVK(k.Group, k.Version, k.Kind)
		}
	}
	if r.GVK == "v1/Namespace" {
		r.Namespace = r.Name
	}
	return r
}

// GVK writes a kind as records do.
func GVK(group, version, kind string) string {
	if group == "" {
		return version + "/" + kind
	}
	return group + "/" + version + "/" + kind
}

func policyGVK() string {
	k := objects.PeerAuthenticationKind()
	return GVK(k.Group, k.Version, k.Kind)
}

func of(gvk string, m metav1.Object) Ref {
	return Ref{
		GVK: gvk, Namespace: m.GetNamespace(), Name: m.GetName(), UID: string(m.GetUID()),
		Generation: generation(m.GetGeneration()), ResourceVersion: m.GetResourceVersion(),
	}
}

func generation(g int64) uint64 { return uint64(max(g, 0)) }
