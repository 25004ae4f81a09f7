package controller

import (
	"slices"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// guardOfNodes demands nothing but where pods run.
func guardOfNodes(name string, edit func(*v1alpha1.NodePools)) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Name, g.Spec.StrictMTLS, g.Spec.MeshMembership, g.Spec.SidecarResources = name, nil, nil, nil
	edit(g.Spec.NodePools)
	return g
}

// What concerns nodes and the mesh's own pods must never wait for Meshvakt.
func TestBuildNodesAndControlPlaneFailOpen(t *testing.T) {
	const controlPlane, nodes = "control-plane.mesh.meshvakt.io", "nodes.meshvakt.io"
	strict := guardWith("strict", guardedSelector(), v1alpha1.OnMissingReject)
	all := guardOfNodes("all", func(*v1alpha1.NodePools) {})
	unsteered := guardOfNodes("unsteered", func(n *v1alpha1.NodePools) { n.Steering = v1alpha1.SteeringNone })
	workloads := guardOfNodes("workloads", func(n *v1alpha1.NodePools) { n.ControlPlane = v1alpha1.ControlPlaneIgnore })
	for name, c := range map[string]struct {
		guards               []*v1alpha1.MeshGuard
		validates, mutates   []string // of the two entries
		mutatesGuardedSpaces bool
	}{
		"all":             {[]*v1alpha1.MeshGuard{all}, []string{controlPlane, nodes}, []string{controlPlane}, true},
		"no steering":     {[]*v1alpha1.MeshGuard{unsteered}, []string{controlPlane, nodes}, nil, false},
		"workloads alone": {[]*v1alpha1.MeshGuard{workloads}, []string{nodes}, nil, true},
		"one of two":      {[]*v1alpha1.MeshGuard{workloads, strict, all}, []string{controlPlane, nodes}, []string{controlPlane}, true},
		"none":            {[]*v1alpha1.MeshGuard{strict}, nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrationOf(c.guards...)
			r.Mutation = true
			var validates, mutates []string
			for _, w := range built(t, r) {
				if w.Name != controlPlane && w.Name != nodes {
					continue
				}
				validates = append(validates, w.Name)
				if *w.FailurePolicy != admissionregistrationv1.Ignore {
					t.Errorf("%s fails closed", w.Name)
				}
				if w.Name == nodes && *w.TimeoutSeconds != 1 {
					t.Errorf("kubelets wait %d s for us", *w.TimeoutSeconds)
				}
			}
			guarded := false
			for _, w := range builtMutating(t, r) {
				if w.Name == "own.meshvakt.io" {
					continue
				}
				if w.Name != controlPlane {
					guarded = true
					continue
				}
				mutates = append(mutates, w.Name)
				if got := w.NamespaceSelector.MatchExpressions; len(got) != 1 || !slices.Equal(got[0].Values, []string{"istio-system", "mesh-b"}) {
					t.Errorf("namespaces %+v", got)
				}
			}
			if !slices.Equal(validates, c.validates) || !slices.Equal(mutates, c.mutates) || guarded != c.mutatesGuardedSpaces {
				t.Errorf("validates by %q, changes by %q and in guarded namespaces %t", validates, mutates, guarded)
			}
		})
	}
}
