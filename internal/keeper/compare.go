package keeper

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// What others may write to an own object: everything in its metadata but the labels and
// annotations that the installer states, and its status. Everywhere else nothing may be
// different and nothing may be added, for one condition more in a policy ends it; but for
// what the API server fills in.

// differences are the fields in which an object is not as wanted, sorted.
func differences(want, live *unstructured.Unstructured) []string {
	c := comparison{kind: want.GetKind()}
	for name, value := range want.Object {
		if counts(name) {
			c.compare(name, value, live.Object[name])
		}
	}
	for name, value := range live.Object {
		if _, stated := want.Object[name]; counts(name) && !stated {
			c.added(name, value)
		}
	}
	c.subset("metadata.labels", want.GetLabels(), live.GetLabels())
	c.subset("metadata.annotations", want.GetAnnotations(), live.GetAnnotations())
	slices.Sort(c.found)
	return slices.Compact(c.found)
}

func counts(field string) bool {
	return !slices.Contains([]string{"apiVersion", "kind", "metadata", "status"}, field)
}

type comparison struct {
	kind  string
	found []string
}

func (c *comparison) subset(at string, want, live map[string]string) {
	for k, v := range want {
		if live[k] != v {
			c.found = append(c.found, fmt.Sprintf("%s[%s]", at, k))
		}
	}
}

func (c *comparison) added(at string, value any) {
	if !empty(value) && !filledIn(c.kind, at, value) {
		c.found = append(c.found, at)
	}
}

func (c *comparison) compare(at string, want, live any) {
	switch w := want.(type) {
	case map[string]any:
		l, ok := live.(map[string]any)
		if !ok && !(live == nil && len(w) == 0) {
			c.found = append(c.found, at)
			return
		}
		for name, value := range w {
			c.compare(path(at, name), value, l[name])
		}
		for name, value := range l {
			if _, stated := w[name]; !stated {
				c.added(path(at, name), value)
			}
		}
	case []any:
		l, ok := live.([]any)
		if len(w) != len(l) || !ok && len(w) > 0 {
			c.found = append(c.found, at)
			return
		}
		for i := range w {
			c.compare(at+"[]", w[i], l[i])
		}
	default:
		if fmt.Sprint(want) != fmt.Sprint(live) && !(empty(want) && empty(live)) {
			c.found = append(c.found, at)
		}
	}
}

// restored is the object as it is, with everything put right that counts. What the API
// server has filled in stays.
func restored(want, live *unstructured.Unstructured) *unstructured.Unstructured {
	out := live.DeepCopy()
	for name := range live.Object {
		if counts(name) {
			delete(out.Object, name)
		}
	}
	for name, value := range want.DeepCopy().Object {
		if counts(name) {
			out.Object[name] = merged(want.GetKind(), name, value, live.Object[name])
		}
	}
	for name, value := range live.Object {
		if _, stated := want.Object[name]; counts(name) && !stated && filledIn(want.GetKind(), name, value) {
			out.Object[name] = value
		}
	}
	for _, m := range []struct {
		want, live map[string]string
		set        func(map[string]string)
	}{{want.GetLabels(), live.GetLabels(), out.SetLabels}, {want.GetAnnotations(), live.GetAnnotations(), out.SetAnnotations}} {
		all := maps.Clone(m.live)
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, m.want)
		if len(all) > 0 {
			m.set(all)
		}
	}
	return out
}

func merged(kind, at string, want, live any) any {
	switch w := want.(type) {
	case map[string]any:
		l, _ := live.(map[string]any)
		out := map[string]any{}
		for name, value := range w {
			out[name] = merged(kind, path(at, name), value, l[name])
		}
		for name, value := range l {
			if _, stated := w[name]; !stated && filledIn(kind, path(at, name), value) {
				out[name] = value
			}
		}
		return out
	case []any:
		l, _ := live.([]any)
		if len(l) != len(w) {
			return w
		}
		out := make([]any, len(w))
		for i := range w {
			out[i] = merged(kind, at+"[]", w[i], l[i])
		}
		return out
	}
	return want
}

func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	case string:
		return v == ""
	case bool:
		return !v
	}
	return false
}

// filledIn reports whether the API server gives the field this value where nobody states
// it. What is not in the list counts as changed by somebody, which the tests against a
// real API server would show.
func filledIn(kind, at string, value any) bool {
	given := func(values ...string) bool { return slices.Contains(values, fmt.Sprint(value)) }
	switch kind + " " + at {
	case "Service spec.clusterIP", "Service spec.clusterIPs", "Service spec.ipFamilies", "Service spec.ports[].nodePort", "Service spec.healthCheckNodePort":
		return true // chosen by the API server, and not to be changed
	case "Service spec.ipFamilyPolicy":
		return true
	case "Service spec.internalTrafficPolicy":
		return given("Cluster")
	case "Service spec.sessionAffinity":
		return given("None")
	case "NetworkPolicy spec.ingress[].ports[].protocol", "NetworkPolicy spec.egress[].ports[].protocol":
		return given("TCP")
	case "CustomResourceDefinition spec.conversion":
		return given("map[strategy:None]")
	case "CustomResourceDefinition spec.names.singular", "CustomResourceDefinition spec.names.listKind":
		return true
	case "ValidatingAdmissionPolicy spec.failurePolicy":
		return given("Fail")
	case "ValidatingAdmissionPolicy spec.matchConstraints.matchPolicy":
		return given("Equivalent")
	case "ValidatingAdmissionPolicy spec.matchConstraints.resourceRules[].scope":
		return given("*")
	case "ServiceAccount secrets", "ServiceAccount imagePullSecrets":
		return true // by controllers of older clusters and of some providers
	}
	return false
}
