package preflight

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// systemNamespace is where Kubernetes itself runs.
const systemNamespace = "kube-system"

// guardedBy reports whether a guard that the forecast is about selects the namespace.
func guardedBy(f *Facts, name string, of map[string]string) bool {
	if slices.Contains(unguardable(f), name) {
		return false
	}
	for i := range f.Judged {
		if g, err := facts.NewGuard(&f.Judged[i]); err == nil && g.Selector.Matches(labels.Set(of)) {
			return true
		}
	}
	return false
}

// unguardable are the namespaces that no guard guards, whatever it selects.
func unguardable(f *Facts) []string { return append(facts.SystemNamespaces(), f.Names.Namespace) }

func guardedNamespaces(f *Facts) []*corev1.Namespace {
	var list []*corev1.Namespace
	for i := range f.Namespaces.Value {
		if ns := &f.Namespaces.Value[i]; ns.DeletionTimestamp == nil && guardedBy(f, ns.Name, ns.Labels) {
			list = append(list, ns)
		}
	}
	return list
}

func namespacesByName(f *Facts) map[string]*corev1.Namespace {
	byName := make(map[string]*corev1.Namespace, len(f.Namespaces.Value))
	for i := range f.Namespaces.Value {
		byName[f.Namespaces.Value[i].Name] = &f.Namespaces.Value[i]
	}
	return byName
}
