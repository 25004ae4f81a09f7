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
// change: one entry for our own objects, one per guard that wants changes, and one for
// the mesh's own pods. They fail open, for the final object is judged by the other one.
func (r *Registration) BuildMutating() *acadmission.MutatingWebhookConfigurationApplyConfiguration {
	config := acadmission.MutatingWebhookConfiguration(MutatingName).WithLabels(ownLabels())
	guards := slices.Clone(r.Guards)
	slices.SortFunc(guards, func(a, b v1alpha1.MeshGuard) int { return strings.Compare(a.Name, b.Name) })
	entry := func(name string, matches []policies.Match, namespaces *acmeta.LabelSelectorApplyConfiguration) {
		if len(matches) == 0 {
			return
		}
		config.WithWebhooks(acadmission.MutatingWebhook().
			WithName(name).
			WithClientConfig(r.clientConfig("/mutate")).
			WithFailurePolicy(admissionregistrationv1.Ignore).
			WithReinvocationPolicy(admissionregistrationv1.IfNeededReinvocationPolicy).
			WithMatchPolicy(admissionregistrationv1.Equivalent).
			WithSideEffects(admissionregistrationv1.SideEffectClassNone).
			WithTimeoutSeconds(r.TimeoutSeconds).
			WithAdmissionReviewVersions("v1").
			WithObjectSelector(acmeta.LabelSelector()).
			WithNamespaceSelector(namespaces).
			WithRules(rules(matches, admissionregistrationv1.NamespacedScope)...))
	}
	var own, controlPlane []policies.Match
	for i := range r.Policies {
		if m := r.Policies[i].Mutation; m != nil && m.Own != nil && r.Mutation {
			own = append(own, m.Matches...)
		}
	}
	entry("own.meshvakt.io", own, acmeta.LabelSelector())
	for i := range guards {
		entry(guardEntryName(&guards[i]), r.mutations(&guards[i]), guardedNamespaces(&guards[i], r.Unguardable))
		if guardsControlPlane(guards[i]) && len(r.RootNamespaces) > 0 {
			for _, m := range r.mutations(&guards[i], policies.ScopeGuardedAndControlPlane) {
				controlPlane = merge(controlPlane, m)
			}
		}
	}
	entry(controlPlaneEntryName, controlPlane, r.roots())
	return config
}

// mutations are what the policies change under a guard, of the scopes if any are given.
// A guard that cannot be read is left alone: nothing is the worse for it.
func (r *Registration) mutations(g *v1alpha1.MeshGuard, scopes ...policies.Scope) []policies.Match {
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
			if len(scopes) == 0 || slices.Contains(scopes, match.Scope) {
				list = merge(list, match)
			}
		}
	}
	return list
}
