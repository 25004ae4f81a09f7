package policies

import (
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Roots. istiod keeps a copy of the mesh's roots in every namespace, and proxies
// find in it whom to believe that it is istiod. Whoever may write ConfigMaps in a
// namespace may write this one too; istiod puts it back at once, but not one that
// can no longer be changed. istiod itself freezes none.
//
// Source: Istio, pilot/pkg/bootstrap, namespace controller; Kubernetes, immutable
// ConfigMaps.

// RootsConfigMaps are the names of the ConfigMaps with what proxies trust.
func RootsConfigMaps() []string { return []string{"istio-ca-crl", "istio-ca-root-cert"} }

func rootsMatch() Match {
	return Match{
		Group: "", Resource: "configmaps", Versions: []string{"v1"}, Kind: "ConfigMap",
		Operations: []admissionv1.Operation{admissionv1.Create, admissionv1.Update},
		Scope:      ScopeGuarded, Names: RootsConfigMaps(), OnlyIfChanged: []string{"immutable"},
	}
}

func judgeRoots(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	old, cm, err := sides[corev1.ConfigMap](r)
	if err != nil {
		return nil, err
	}
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the ConfigMap", ErrMissingFact, r.Namespace)
	}
	if !r.Cluster.Selects(g, ns.Name, ns.Labels) || !frozen(cm) || old != nil && frozen(old) {
		return nil, nil
	}
	return []Finding{{
		Reason: reasonRootsFrozen(), Type: metav1.CauseTypeForbidden, Field: "immutable",
		Message: fmt.Sprintf("true keeps istiod from putting back the roots that proxies in guarded namespace %q trust; must be absent", ns.Name),
		Remedy:  "leave this ConfigMap to istiod",
	}}, nil
}

func frozen(cm *corev1.ConfigMap) bool { return cm.Immutable != nil && *cm.Immutable }
