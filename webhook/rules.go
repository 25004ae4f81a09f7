package webhook

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// rule is what the policies together declare about one kind.
type rule struct {
	resource string
	// subresources that objects of the kind come by; "" is the resource itself.
	subresources []string
	namespaced   bool
	operations   []admissionv1.Operation
}

// ruleSet are the requests that some policy judges. A request outside it is not
// answered with allowed: either the webhook configuration sends too much, or it
// is newer than this binary and expects a judgement that would be missing. A Binding
// comes by two resources, and so has two rules.
type ruleSet map[schema.GroupVersionKind][]rule

func newRuleSet(list []policies.Policy) (ruleSet, error) {
	set := ruleSet{}
	for i := range list {
		for _, m := range list[i].Matches {
			if err := set.add(list[i].ID, m); err != nil {
				return nil, err
			}
		}
	}
	return set, nil
}

func (s ruleSet) add(policy string, m policies.Match) error {
	if kind := (schema.GroupKind{Group: m.Group, Kind: m.Kind}); !objects.Decodes(kind) {
		return fmt.Errorf("policy %s matches kind %s, which cannot be decoded", policy, kind)
	}
	for _, version := range m.Versions {
		gvk := schema.GroupVersionKind{Group: m.Group, Version: version, Kind: m.Kind}
		namespaced := m.Namespaced()
		if slices.ContainsFunc(s[gvk], func(known rule) bool { return known.namespaced != namespaced }) {
			return fmt.Errorf("policy %s and another one disagree about the scope of %s", policy, gvk)
		}
		at := slices.IndexFunc(s[gvk], func(known rule) bool { return known.resource == m.Resource })
		if at < 0 {
			at = len(s[gvk])
			s[gvk] = append(s[gvk], rule{resource: m.Resource, namespaced: namespaced})
		}
		known := &s[gvk][at]
		known.operations = union(known.operations, m.Operations)
		known.subresources = union(known.subresources, append([]string{m.OnlySubresource}, m.Subresources...))
	}
	return nil
}

// union returns what is in either list, sorted.
func union[T cmp.Ordered](a, b []T) []T {
	list := slices.Concat(a, b)
	slices.Sort(list)
	return slices.Compact(list)
}

// check returns the rule for a request. Kind says how the object is decoded and
// judged while resource says what the API server acts on: if they disagree, one
// thing would be judged and another be done.
func (s ruleSet) check(r *facts.Review) (rule, error) {
	rules := s[r.Kind]
	if len(rules) == 0 {
		return rule{}, failf(StageNotJudged, http.StatusUnprocessableEntity, "kind %s is not one that Meshvakt judges", r.Kind)
	}
	at := slices.IndexFunc(rules, func(known rule) bool { return r.Resource == r.Kind.GroupVersion().WithResource(known.resource) })
	if at < 0 {
		return rules[0], failf(StageDecode, http.StatusBadRequest, "request.resource %s is not the resource of request.kind %s", r.Resource, r.Kind)
	}
	rule := rules[at]
	switch {
	case !slices.Contains(rule.subresources, r.SubResource):
		return rule, failf(StageNotJudged, http.StatusUnprocessableEntity, "subresource %q of %s is not one that Meshvakt judges", r.SubResource, rule.resource)
	case !slices.Contains(rule.operations, r.Operation):
		return rule, failf(StageNotJudged, http.StatusUnprocessableEntity, "operation %q on %s is not one that Meshvakt judges", r.Operation, rule.resource)
	}
	return rule, nil
}
