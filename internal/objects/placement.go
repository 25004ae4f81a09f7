package objects

import corev1 "k8s.io/api/core/v1"

// What policies read of where a pod wants to run.

func affinity(r *reader, a *corev1.Affinity) {
	for name := range r.fields() {
		if name == "nodeAffinity" {
			pointer(r, &a.NodeAffinity, nodeAffinity)
			continue
		}
		r.skip()
	}
}

func nodeAffinity(r *reader, a *corev1.NodeAffinity) {
	for name := range r.fields() {
		if name == "requiredDuringSchedulingIgnoredDuringExecution" {
			pointer(r, &a.RequiredDuringSchedulingIgnoredDuringExecution, nodeSelector)
			continue
		}
		r.skip()
	}
}

func nodeSelector(r *reader, s *corev1.NodeSelector) {
	for name := range r.fields() {
		if name == "nodeSelectorTerms" {
			list(r, &s.NodeSelectorTerms, nodeSelectorTerm)
			continue
		}
		r.skip()
	}
}

func nodeSelectorTerm(r *reader, t *corev1.NodeSelectorTerm) {
	for name := range r.fields() {
		switch name {
		case "matchExpressions":
			list(r, &t.MatchExpressions, nodeSelectorRequirement)
		case "matchFields":
			list(r, &t.MatchFields, nodeSelectorRequirement)
		default:
			r.skip()
		}
	}
}

func nodeSelectorRequirement(r *reader, q *corev1.NodeSelectorRequirement) {
	for name := range r.fields() {
		switch name {
		case "key":
			stringValue(r, &q.Key)
		case "operator":
			stringValue(r, &q.Operator)
		case "values":
			list(r, &q.Values, stringValue)
		default:
			r.skip()
		}
	}
}

func toleration(r *reader, t *corev1.Toleration) {
	for name := range r.fields() {
		switch name {
		case "key":
			stringValue(r, &t.Key)
		case "operator":
			stringValue(r, &t.Operator)
		case "value":
			stringValue(r, &t.Value)
		case "effect":
			stringValue(r, &t.Effect)
		default:
			r.skip()
		}
	}
}
