package cluster

import (
	"fmt"
	"slices"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// WithoutInjection returns the namespaces of a guard that enforces mesh membership,
// sorted, in which a pod that says nothing gets no sidecar, each with the cause.
// Ambient will do where the guard accepts it.
func WithoutInjection(state *facts.Cluster, g *facts.Guard) []string {
	ambient := slices.Contains(g.MeshMembership.DataPlanes, v1alpha1.DataPlaneAmbient)
	var list []string
	for name, ns := range state.Namespaces {
		if ns.Terminating || !state.Selects(g, name, ns.Labels) {
			continue
		}
		plain := mesh.Candidate{Namespace: name, NamespaceLabels: ns.Labels}
		if ambient && mesh.AmbientEnrolled(plain) {
			continue
		}
		if d := state.Injection.Decide(plain); !d.Injected() {
			list = append(list, fmt.Sprintf("%s (%s)", name, injectionText(d.Cause)))
		}
	}
	slices.Sort(list)
	return list
}

// injectionText says why nothing is injected into pods that say nothing.
func injectionText(c mesh.InjectionCause) string {
	switch c {
	case mesh.NotInjectedNamespace:
		return "no label of the namespace turns injection on"
	case mesh.NotInjectedNamespaceDisabled:
		return "label istio-injection turns injection off"
	case mesh.NotInjectedNamespaceRevision:
		return "label istio.io/rev names no revision or tag that is there"
	case mesh.NotInjectedNoInjector:
		return "no MutatingWebhookConfiguration of an injector answers"
	case mesh.NotInjectedPolicy:
		return "the injector's configuration has a policy other than enabled"
	case mesh.NotInjectedIgnoredNamespace:
		return "injectors leave this namespace out"
	default:
		return string(c)
	}
}
