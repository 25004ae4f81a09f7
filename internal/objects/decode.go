package objects

import (
	"fmt"

	"github.com/go-json-experiment/json"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Decodes reports whether Decode knows the kind, in any version.
func Decodes(kind schema.GroupKind) bool {
	switch kind {
	case schema.GroupKind{Kind: "Namespace"}, schema.GroupKind{Kind: "Pod"}, PeerAuthenticationKind().GroupKind():
		return true
	}
	return false
}

// Decode reads the JSON of an object of a kind that policies judge: a
// *corev1.Pod, a *corev1.Namespace or a *mesh.PeerAuthentication. Fields that the
// types do not have are passed over; a name that stands twice in one JSON object
// is an error, since readers that take the first and the last would disagree.
func Decode(kind schema.GroupKind, raw []byte) (any, error) {
	switch kind {
	case schema.GroupKind{Kind: "Namespace"}:
		return into(raw, &corev1.Namespace{})
	case schema.GroupKind{Kind: "Pod"}:
		return into(raw, &corev1.Pod{})
	case PeerAuthenticationKind().GroupKind():
		var p PeerAuthentication
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, fmt.Errorf("decode %s: %w", kind, err)
		}
		m, err := p.Mesh()
		if err != nil {
			return nil, fmt.Errorf("decode PeerAuthentication %s/%s: %w", p.Namespace, p.Name, err)
		}
		return m, nil
	}
	return nil, fmt.Errorf("kind %s is not one that policies read", kind)
}

func into[T any](raw []byte, object *T) (any, error) {
	if err := json.Unmarshal(raw, object); err != nil {
		return nil, fmt.Errorf("decode %T: %w", object, err)
	}
	return object, nil
}
