package policies

import (
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Stands reports whether a finding tells of a breach when what is there already has
// been judged as if it were created. Remarks do not; but that a namespace is not STRICT
// is a breach also where its guard lets it come in first. Two findings belong to
// another object: that its namespace is not STRICT is told of the namespace and not of
// each of its pods, and a pod whose node is gone runs nowhere.
func Stands(r *facts.Review, f *Finding) bool {
	ofNamespace := r.Kind.Kind == "Namespace"
	switch f.Reason {
	case reasonNamespaceNotStrict():
		return ofNamespace
	case reasonNodeNotFound():
		return false
	}
	return f.Severity == Breach
}

// TellsOfMode reports whether a finding is that its namespace is not STRICT. ExcusedBy says
// whether it may stand so: the policy itself asks for an exception of the namespace alone,
// and for none where its guard lets it come in first.
func TellsOfMode(f *Finding) bool { return f.Reason == reasonNamespaceNotStrict() }

// GuardsControlPlane reports whether the guard says where the mesh's own pods run.
func GuardsControlPlane(g *facts.Guard) bool { return g.NodePools != nil && guardsControlPlane(g) }
