package v1alpha1

import corev1 "k8s.io/api/core/v1"

// The annotations of a node in which the probe that runs on it publishes what it
// measures.
const (
	// AnnotationSteal is the CPU steal in percent, a decimal number with one digit
	// after the point: the median of the last five windows.
	AnnotationSteal = "probe.meshvakt.io/cpu-steal-percent"
	// AnnotationMeasuredAt is when that was, RFC 3339 in UTC.
	AnnotationMeasuredAt = "probe.meshvakt.io/measured-at"
	// AnnotationResult is everything that the latest window has shown, as JSON.
	AnnotationResult = "probe.meshvakt.io/result"
)

// ConditionCPUContended is the condition of a node by which the probe says whether
// the CPU steal is high.
const ConditionCPUContended corev1.NodeConditionType = "CPUContended"
