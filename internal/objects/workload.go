package objects

import (
	"fmt"

	"github.com/go-json-experiment/json"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// templatePath is where objects of a kind have their pod template, "" for kinds
// that have none.
func templatePath(kind schema.GroupKind) string {
	switch kind {
	case schema.GroupKind{Kind: "ReplicationController"},
		schema.GroupKind{Group: "apps", Kind: "DaemonSet"},
		schema.GroupKind{Group: "apps", Kind: "Deployment"},
		schema.GroupKind{Group: "apps", Kind: "ReplicaSet"},
		schema.GroupKind{Group: "apps", Kind: "StatefulSet"},
		schema.GroupKind{Group: "argoproj.io", Kind: "Rollout"},
		schema.GroupKind{Group: "batch", Kind: "Job"}:
		return "spec.template"
	case schema.GroupKind{Group: "batch", Kind: "CronJob"}:
		return "spec.jobTemplate.spec.template"
	}
	return ""
}

// workload is what all kinds with a pod template have in common.
type workload struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas    *int32                  `json:"replicas"`
		Template    *corev1.PodTemplateSpec `json:"template"`
		Parallelism *int32                  `json:"parallelism"`
		JobTemplate struct {
			Spec struct {
				Parallelism *int32                  `json:"parallelism"`
				Template    *corev1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

// runsReplicas reports whether spec.replicas says how many pods run.
func runsReplicas(kind schema.GroupKind) bool {
	return kind.Kind != "DaemonSet" && kind.Kind != "Job" && kind.Kind != "CronJob"
}

func decodeWorkload(kind schema.GroupKind, raw []byte) (any, error) {
	var w workload
	if err := json.Unmarshal(raw, &w); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind.Kind, err)
	}
	f := &facts.Workload{ObjectMeta: w.ObjectMeta, Template: w.Spec.Template, Path: templatePath(kind), Pods: 1}
	pods := w.Spec.Parallelism
	switch {
	case kind.Kind == "CronJob":
		f.Template, pods = w.Spec.JobTemplate.Spec.Template, w.Spec.JobTemplate.Spec.Parallelism
	case kind.Kind != "Job":
		pods = nil
	}
	if runsReplicas(kind) {
		pods = w.Spec.Replicas
	}
	if pods != nil {
		f.Pods = *pods
	}
	return f, nil
}
