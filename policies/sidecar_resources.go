package policies

import (
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// sidecar-resources
//
// Rule: every container of Istio's in a pod of a guarded namespace has requests and
// limits of CPU and memory, within the bounds of the guard.
//
// The policy has two halves. Pods that are being created are changed (see
// sidecar_resources_mutate.go), which may fail to happen; and the pod that is to be
// stored is judged, which may not.
//
// Fields: resources of the containers istio-proxy, istio-init and istio-validation,
// the annotations that they come from, spec.resources, and annotation
// proxy.istio.io/config for the number of worker threads.
//
// Not judged: pods without a proxy, mirror pods, pods that have ended, templates
// that are being deleted. Templates are never changed.
//
// Source: Istio, resource annotations reference; the injection template
// ("resources") and pkg/kube/inject; Kubernetes, admission/reinvocation.go and
// pkg/apis/core/v1/helper/qos.

// SidecarResources is the policy sidecar-resources.
func SidecarResources() Policy {
	return Policy{
		ID:        "sidecar-resources",
		Title:     "Every proxy of a guarded namespace has requests and limits of CPU and memory, within the bounds of the guard",
		Rationale: "There is a proxy in every pod: without limits a few of them take a node down, with too little CPU they slow down all traffic, and one annotation alone makes Istio drop all of its defaults.",
		Citations: []string{
			"https://istio.io/latest/docs/reference/config/annotations/",
			"https://kubernetes.io/docs/concepts/configuration/manage-resources-containers/",
			"https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/",
		},
		Reasons: resourcesReasons(),
		Matches: append(templateMatches("spec.?replicas", "spec.?parallelism"), Match{
			// Resources of a running pod change by the subresource only; images and
			// annotations, which decide about the rest, by the pod itself.
			Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Pod",
			Operations: []admissionv1.Operation{admissionv1.Create, admissionv1.Update}, Subresources: []string{"resize"},
			Scope: ScopeGuarded, OnlyIfChanged: []string{"metadata.?labels", "metadata.?annotations", "spec"},
		}),
		Actions: func(g *facts.Guard) []v1alpha1.ValidationAction {
			if g.SidecarResources == nil {
				return nil
			}
			return g.SidecarResources.ValidationActions
		},
		Judge: judgeSidecarResources,
		Mutation: &Mutation{
			Matches: []Match{{
				Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Pod",
				Operations: []admissionv1.Operation{admissionv1.Create}, Scope: ScopeGuarded,
			}},
			Enforced: func(g *facts.Guard) bool { return g.SidecarResources != nil },
			Changes:  sidecarChanges,
		},
	}
}

// judgeSidecarResources judges a pod or a template before and after the request. As
// with mesh-membership, what was amiss before does not refuse the change.
func judgeSidecarResources(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	if !makesPods(r.Object) || r.Operation == admissionv1.Update && !makesPods(r.OldObject) {
		return nil, errWrongObject(r)
	}
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the %s", ErrMissingFact, r.Namespace, r.Kind.Kind)
	}
	if !r.Cluster.Selects(g, ns.Name, ns.Labels) {
		return nil, nil
	}
	found := onlyNew(resourcesFindings(r, r.OldObject, ns, g), resourcesFindings(r, r.Object, ns, g), reasonSidecarStillAmiss())
	return append(found, refusedElsewhere(r, ns, g)...), nil
}

func makesPods(object any) bool {
	switch object.(type) {
	case *corev1.Pod, *facts.Workload:
		return true
	}
	return false
}

// resourcesFindings judges one side of a request, which may not be there.
func resourcesFindings(r *facts.Review, object any, ns *facts.Namespace, g *facts.Guard) []Finding {
	s, _ := podsOf(r, ns, object)
	switch {
	case s == nil:
		return nil
	case s.isFinal:
		return s.judge(g, r.Operation == admissionv1.Update) // running pods change by resize only
	}
	return s.judgeComing(g)
}
