package objects

import (
	"fmt"

	"github.com/go-json-experiment/json"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Decodes reports whether Decode knows the kind, in any version.
func Decodes(kind schema.GroupKind) bool {
	switch kind {
	case schema.GroupKind{Kind: "Binding"}, schema.GroupKind{Kind: "ConfigMap"}, schema.GroupKind{Kind: "Namespace"},
		schema.GroupKind{Kind: "Node"}, schema.GroupKind{Kind: "PersistentVolume"}, schema.GroupKind{Kind: "Pod"},
		PeerAuthenticationKind().GroupKind(), ownKind("GuardException"), ownKind("MeshGuard"):
		return true
	}
	return templatePath(kind) != "" || istioSpec(kind) != nil
}

// Decode reads the JSON of an object of a kind that policies judge: a
// *corev1.Pod, a *facts.Workload, a *corev1.Namespace, a *corev1.ConfigMap, a
// *corev1.Binding, a *corev1.Node, a *corev1.PersistentVolume, a
// *mesh.PeerAuthentication, a *facts.IstioObject, a *v1alpha1.MeshGuard or a
// *v1alpha1.GuardException. Fields that the types do not
// have are passed over; a name that stands twice in one JSON object is an error,
// since readers that take the first and the last would disagree.
//
// A mode or port that Istio's schema does not know is an error too, so that it is
// not let in; DecodeStored reads objects that are in already.
func Decode(kind schema.GroupKind, raw []byte) (any, error) {
	switch kind {
	case schema.GroupKind{Kind: "Binding"}:
		return into(raw, &corev1.Binding{})
	case schema.GroupKind{Kind: "ConfigMap"}:
		return into(raw, &corev1.ConfigMap{})
	case schema.GroupKind{Kind: "Namespace"}:
		return into(raw, &corev1.Namespace{})
	case schema.GroupKind{Kind: "Node"}:
		return into(raw, &corev1.Node{})
	case schema.GroupKind{Kind: "PersistentVolume"}:
		return into(raw, &corev1.PersistentVolume{})
	case schema.GroupKind{Kind: "Pod"}:
		return into(raw, &corev1.Pod{})
	case PeerAuthenticationKind().GroupKind():
		return decodePolicy(raw, false)
	case ownKind("GuardException"):
		return into(raw, &v1alpha1.GuardException{})
	case ownKind("MeshGuard"):
		return decodeGuard(raw)
	}
	if templatePath(kind) != "" {
		return decodeWorkload(kind, raw)
	}
	if istioSpec(kind) != nil {
		return decodeIstio(kind, raw, false)
	}
	return nil, fmt.Errorf("kind %s is not one that policies read", kind)
}

// DecodeStored is Decode for an object that the cluster holds, the old one of an
// UPDATE or DELETE: unknown modes count as DISABLE, for an object that could
// neither be mended nor deleted would be worse than a strange one. For the same
// reason a spec of Istio's that cannot be read counts as empty.
func DecodeStored(kind schema.GroupKind, raw []byte) (any, error) {
	if kind == PeerAuthenticationKind().GroupKind() {
		return decodePolicy(raw, true)
	}
	if istioSpec(kind) != nil {
		return decodeIstio(kind, raw, true)
	}
	return Decode(kind, raw)
}

func decodePolicy(raw []byte, stored bool) (any, error) {
	var p PeerAuthentication
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("decode PeerAuthentication: %w", err)
	}
	m, err := p.Mesh()
	if err != nil && !stored {
		return nil, fmt.Errorf("decode PeerAuthentication %s/%s: %w", p.Namespace, p.Name, err)
	}
	return m, nil
}

func ownKind(kind string) schema.GroupKind {
	return schema.GroupKind{Group: v1alpha1.Group, Kind: kind}
}

// decodeGuard settles defaults, which a guard from before there were such settings has
// not got.
func decodeGuard(raw []byte) (any, error) {
	var g v1alpha1.MeshGuard
	if err := json.Unmarshal(raw, &g); err != nil {
		return nil, fmt.Errorf("decode MeshGuard: %w", err)
	}
	v1alpha1.SetDefaults(&g)
	return &g, nil
}

func into[T any](raw []byte, object *T) (any, error) {
	if err := json.Unmarshal(raw, object); err != nil {
		return nil, fmt.Errorf("decode %T: %w", object, err)
	}
	return object, nil
}
