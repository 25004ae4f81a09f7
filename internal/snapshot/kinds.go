package snapshot

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/policies"
)

// kind is a kind of objects to be read.
type kind struct {
	schema.GroupKind
	resource string
	// versions in which policies read it, the preferred one first.
	versions []string
	// namespace is the only one in which it is read; empty: all of them.
	namespace string
}

// kinds are what policies judge, and the settings that they judge by. Namespaces come
// first: one that is known is then known with what was in it.
func kinds(istioNamespace string) []kind {
	var list []kind
	add := func(group, name, resource, namespace string, versions ...string) {
		k := schema.GroupKind{Group: group, Kind: name}
		if at := slices.IndexFunc(list, func(o kind) bool { return o.GroupKind == k }); at >= 0 {
			for _, v := range versions {
				if !slices.Contains(list[at].versions, v) {
					list[at].versions = append(list[at].versions, v)
				}
			}
			return
		}
		list = append(list, kind{k, resource, versions, namespace})
	}
	add("", "Namespace", "namespaces", "", "v1")
	add("meshvakt.io", "MeshGuard", "meshguards", "", "v1alpha1")
	add("admissionregistration.k8s.io", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", "", "v1")
	add("", "ConfigMap", "configmaps", istioNamespace, "v1")
	add("", "LimitRange", "limitranges", "", "v1")
	add("", "ResourceQuota", "resourcequotas", "", "v1")
	for _, p := range policies.All() {
		for i := range p.Matches {
			m := &p.Matches[i]
			// Bindings are requests; there is nothing to be listed.
			if m.OnlySubresource == "" && m.Kind != "Binding" {
				add(m.Group, m.Kind, m.Resource, "", m.Versions...)
			}
		}
	}
	return list
}
