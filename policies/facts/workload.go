package facts

import (
	"slices"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Workload is an object of any kind that makes pods from a template.
type Workload struct {
	metav1.ObjectMeta
	// Template is nil when the object has none of its own.
	Template *corev1.PodTemplateSpec
	// Path is where the template stands: "spec.template".
	Path string
	// Pods is how many pods of the template run at a time; 1 where the object does not
	// say, as of a DaemonSet.
	Pods int32
}

// AuthorsPods reports whether the request creates or changes a pod or a template of
// pods in somebody's own name. Those that controllers make answer to nobody, and come
// by the thousand.
func (r *Review) AuthorsPods() bool {
	var meta *metav1.ObjectMeta
	switch o := r.Object.(type) {
	case *corev1.Pod:
		meta = &o.ObjectMeta
	case *Workload:
		meta = &o.ObjectMeta
	default:
		return false
	}
	return Controller(meta) == nil
}

// Controller returns the reference to the controller that owns an object, nil without.
func Controller(meta *metav1.ObjectMeta) *metav1.OwnerReference {
	i := slices.IndexFunc(meta.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Controller != nil && *o.Controller })
	if i < 0 {
		return nil
	}
	return &meta.OwnerReferences[i]
}

// IstioObject is an object of Istio's networking API.
type IstioObject struct {
	metav1.ObjectMeta
	// Spec is the message of Istio's API that belongs to the kind of the request.
	Spec proto.Message
}
