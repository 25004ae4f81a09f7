package facts

import (
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Pods are the pods that run in a namespace. There may be thousands, and not all of
// them need be in memory at the same time.
type Pods interface {
	// All gives each pod once, in the same order every time. A pod is only good
	// until the next.
	All() iter.Seq[*corev1.Pod]
}

// PodList is Pods as they are.
type PodList []*corev1.Pod

// All implements Pods.
func (l PodList) All() iter.Seq[*corev1.Pod] { return slices.Values(l) }
