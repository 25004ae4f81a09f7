package policies

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Bindings
//
// Rule: a Binding gives a pod nothing but its node. The API server writes the labels and
// annotations of a Binding over those of the pod, which has been judged by then, and
// nobody is asked about the pod again: its labels decide which policies hold for it, and
// the proxy reads its annotations when it starts.
//
// Let pass: the topology of the node, which the API server itself adds, and annotations
// that mean nothing to Istio; schedulers leave notes for others in them.
//
// Source: Kubernetes, pkg/registry/core/pod/storage (setPodNodeAndMetadata) and
// plugin/pkg/admission/podtopologylabels.
func bindingMatches() []Match {
	create := []admissionv1.Operation{admissionv1.Create}
	return []Match{
		{Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Binding", Operations: create, OnlySubresource: "binding", Scope: ScopeGuarded},
		{Group: "", Resource: "bindings", Versions: []string{"v1"}, Kind: "Binding", Operations: create, Scope: ScopeGuarded},
	}
}

func judgeBindingMetadata(r *facts.Review, b *corev1.Binding, g *facts.Guard) ([]Finding, error) {
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the %s", ErrMissingFact, r.Namespace, r.Kind.Kind)
	}
	if !r.Cluster.Selects(g, ns.Name, ns.Labels) {
		return nil, nil
	}
	var found []Finding
	refuse := func(field, key, value, what string) {
		found = append(found, Finding{
			Reason: reasonBindingChangesPod(), Type: metav1.CauseTypeForbidden, Field: fmt.Sprintf("metadata.%s[%s]", field, key),
			Message: fmt.Sprintf("%s is written over the %s of the pod, which nobody judges any more; must be absent", quote(value), what),
			Remedy:  "set it on the pod itself, before it is scheduled",
		})
	}
	for _, key := range sortedKeys(b.Labels) {
		if !slices.Contains([]string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion}, key) {
			refuse("labels", key, b.Labels[key], "label")
		}
	}
	for _, key := range sortedKeys(b.Annotations) {
		if domain, _, _ := strings.Cut(key, "/"); domain == "istio.io" || strings.HasSuffix(domain, ".istio.io") {
			refuse("annotations", key, b.Annotations[key], "annotation")
		}
	}
	return found, nil
}
