package v1alpha1

import corev1 "k8s.io/api/core/v1"

// The annotations by which `meshvakt probe --publish` tells on a Node what it has
// measured there.
const (
	// AnnotationSteal is the CPU steal in percent, 0 to 100 with one digit after the
	// point ("3.4"): the median of the last five windows, or of those there are.
	AnnotationSteal = "probe.meshvakt.io/cpu-steal-percent"
	// AnnotationMeasuredAt is when the last measurement that was published had ended,
	// in UTC as RFC 3339 has it ("2026-08-27T12:45:20Z"). It is at most about half an
	// hour old where the probe works.
	AnnotationMeasuredAt = "probe.meshvakt.io/measured-at"
	// AnnotationResult is the last measurement that was published, as `meshvakt probe
	// --output json` prints it, on one line of at most 8 KiB.
	AnnotationResult = "probe.meshvakt.io/result"
)

// ConditionCPUContended is the condition of a Node that `meshvakt probe --publish` keeps:
// True when the published CPU steal is at or above what the probe was told, 5 % unless it
// was told otherwise, and False below.
const ConditionCPUContended corev1.NodeConditionType = "CPUContended"
