package preflight

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/check"
)

// life is what tells whether an object still does something, of which reviews know
// nothing: to policies it makes no difference.
type life struct {
	Metadata struct {
		OwnerReferences   []metav1.OwnerReference `json:"ownerReferences"`
		DeletionTimestamp string                  `json:"deletionTimestamp"`
	} `json:"metadata"`
	Status struct {
		Phase      corev1.PodPhase        `json:"phase"`
		Conditions []batchv1.JobCondition `json:"conditions"`
	} `json:"status"`
}

// lifeOf returns what controls a pod, nil for nothing, and whether it runs or will: not
// one that has ended or is about to.
func lifeOf(d *check.Document) (owner *metav1.OwnerReference, runs bool, err error) {
	var l life
	if err := json.Unmarshal(d.JSON, &l); err != nil {
		return nil, false, fmt.Errorf("read %s %s/%s: %w", d.Kind.Kind, d.Namespace, d.Name, err)
	}
	ended := l.Status.Phase == corev1.PodSucceeded || l.Status.Phase == corev1.PodFailed || l.Metadata.DeletionTimestamp != ""
	return metav1.GetControllerOf(&metav1.ObjectMeta{OwnerReferences: l.Metadata.OwnerReferences}), !ended, nil
}

// finished reports whether a Job has ended, for good or ill.
func finished(d *check.Document) bool {
	var l life
	if err := json.Unmarshal(d.JSON, &l); err != nil {
		return false
	}
	return slices.ContainsFunc(l.Status.Conditions, func(c batchv1.JobCondition) bool {
		return (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue
	})
}
