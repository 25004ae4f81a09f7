package facts

import (
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
