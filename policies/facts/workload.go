package facts

import (
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
}

// IstioObject is an object of Istio's networking API.
type IstioObject struct {
	metav1.ObjectMeta
	// Spec is the message of Istio's API that belongs to the kind of the request.
	Spec proto.Message
}
