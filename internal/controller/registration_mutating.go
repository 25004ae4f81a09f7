package controller

import (
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	acadmission "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	acmeta "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// MutatingName is the name of the MutatingWebhookConfiguration. The API server calls
// these in the order of their names, and Istio's begin with "istio-": before injection,
// the annotations of a pod decide what its sidecar gets, however often Istio is asked.
// What comes to be by injection, or by others after it, is settled when the API server
// asks again, which it does because of reinvocationPolicy IfNeeded. A webhook that
// comes after Istio loses to an injector that is asked again.
const MutatingName = "before-istio.meshvakt.io"

// BuildMutating returns the webhook configuration that lets the API server ask what to
// change: one entry per guard that wants changes, which fails open, for the final
// object is judged by the other one.
func (r *Registration) BuildMutating() *acadmission.MutatingWebhookConfigurationApplyConfiguration {
	config := acadmission.MutatingWebhookConfiguration(MutatingName).WithLabels(ownLabels())
	guards := slices.Clone(r.Guards)
	slices.SortFunc(guards, func(a, b v1alpha1.MeshGuard) int { return strings.Compare(a.Name, b.Name) })
	for i := range guards {
		matches := r.mutations(&guards[i])
		if len(matches) == 0 {
			continue
		}
		config.WithWebhooks(acadmission.MutatingWebhook().
			WithName(guards[i].Name + ".guard.meshvakt.io").
			WithClientConfig(r.clientConfig("/mutate")).
			WithFailurePolicy(admissionregistrationv1.Ignore).
			WithReinvocationPolicy(admissionregistrationv1.IfNeededReinvocationPolicy).
			WithMatchPolicy(admissionregistrationv1.Equivalent).
			WithSideEffects(admissionregistrationv1.SideEffectClassNone).
			WithTimeoutSeconds(r.TimeoutSeconds).
			WithAdmissionReviewVersions("v1").
			WithObjectSelector(acmeta.LabelSelector()).
			WithNamespaceSelector(guardedNamespaces(&guards[i], r.Unguardable)).
			WithRules(rules(matches, admissionregistrationv1.NamespacedScope)...))
	}
	return config
}

// mutations are what the policies change under a guard. A guard that cannot be read is
// left alone: nothing is the worse for it.
func (r *Registration) mutations(g *v1alpha1.MeshGuard) []policies.Match {
	guard, err := facts.NewGuard(g)
	if err != nil || !r.Mutation {
		return nil
	}
	var list []policies.Match
	for i := range r.Policies {
		m := r.Policies[i].Mutation
		if m == nil || !m.Enforced(&guard) {
			continue
		}
		for _, match := range m.Matches {
			list = merge(list, match)
		}
	}
	return list
}
