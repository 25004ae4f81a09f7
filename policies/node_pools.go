package policies

import (
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// node-pools
//
// Rule: no pod of the mesh runs on a node whose CPU is shared or paid for by credits,
// and none outside of the allowed regions.
//
// Kubernetes decides in several places where a pod runs, and each of them is closed:
// the pod as it is created asks for other nodes (see node_pools_steering.go); a pod or
// a template that could only land on nodes on which it may not run is refused, and so
// is a pod that names such a node; and the scheduler's choice is judged when it is made
// (see node_pools_nodes.go). A node that changes under running pods, and a volume, are
// remarked on.
//
// Fields: of pods and templates spec.nodeName, spec.nodeSelector, required node
// affinity and tolerations; of Bindings the target; of nodes labels, taints and the
// annotation with the measured CPU steal; of PersistentVolumes the node affinity.
//
// Not judged: pods outside of the mesh, unless the guard says so; mirror pods, which
// run already; pods that have ended; templates that are being deleted; what a DaemonSet
// runs in the root namespaces of the mesh, which belongs on every node.
//
// Source: Kubernetes, "Assigning Pods to Nodes" and "Taints and Tolerations"; the
// scheduler's plugins NodeAffinity and TaintToleration; registry/core/pod/storage,
// BindingREST.

// NodePools is the policy node-pools.
func NodePools() Policy {
	return Policy{
		ID:        "node-pools",
		Title:     "No pod of the mesh runs on a node whose CPU is shared, and none outside of the allowed regions",
		Rationale: "There is a proxy on both ends of every request: on a CPU that is shared or out of credits each of them waits tens of milliseconds for its turn, and all traffic with them. And personal data is processed where its pods run.",
		Citations: []string{
			"https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/",
			"https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/",
			"https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction",
		},
		Reasons: nodeReasons(),
		Matches: nodeMatches(),
		Actions: func(g *facts.Guard) []v1alpha1.ValidationAction {
			if g.NodePools == nil {
				return nil
			}
			return g.NodePools.ValidationActions
		},
		Judge: judgeNodePools,
		Mutation: &Mutation{
			Matches: []Match{{
				Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Pod",
				Operations: []admissionv1.Operation{admissionv1.Create}, Scope: ScopeGuardedAndControlPlane,
			}},
			Enforced:     steers,
			ControlPlane: guardsControlPlane,
			Changes:      steeringChanges,
		},
	}
}

func nodeMatches() []Match {
	create := []admissionv1.Operation{admissionv1.Create}
	createUpdate := []admissionv1.Operation{admissionv1.Create, admissionv1.Update}
	matches := templateMatches()
	for i := range matches {
		matches[i].Scope = ScopeGuardedAndControlPlane
	}
	return append(matches,
		// Where a pod may land is settled when it is created: after that a node
		// selector and an affinity can only be narrowed, and what more tolerations
		// open is judged with the Binding. Its labels can bring it into ambient.
		Match{
			Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Pod", Operations: createUpdate, Subresources: []string{"status"},
			Scope: ScopeGuardedAndControlPlane, OnlyIfChanged: []string{"metadata.?labels"},
		},
		Match{Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Binding", Operations: create, OnlySubresource: "binding", Scope: ScopeGuardedAndControlPlane},
		Match{Group: "", Resource: "bindings", Versions: []string{"v1"}, Kind: "Binding", Operations: create, Scope: ScopeGuardedAndControlPlane},
		// Kubelets change labels by the subresource too.
		Match{
			Group: "", Resource: "nodes", Versions: []string{"v1"}, Kind: "Node",
			Operations: []admissionv1.Operation{admissionv1.Update}, Subresources: []string{"status"},
			Scope: ScopeNodes, OnlyIfChanged: []string{"metadata.?labels"},
		},
		Match{
			Group: "", Resource: "persistentvolumes", Versions: []string{"v1"}, Kind: "PersistentVolume",
			Operations: createUpdate, Scope: ScopeNodes, OnlyIfChanged: []string{"spec.?nodeAffinity", "spec.?claimRef"},
		},
	)
}

func judgeNodePools(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	switch o := r.Object.(type) {
	case *corev1.Node:
		return judgeNode(r, o, g)
	case *corev1.PersistentVolume:
		return judgeVolume(r, o, g)
	}
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the %s", ErrMissingFact, r.Namespace, r.Kind.Kind)
	}
	switch o := r.Object.(type) {
	case *corev1.Binding:
		return judgeBinding(r, o, ns, g)
	case *corev1.Pod, *facts.Workload:
		after, err := placementFindings(r, o, ns, g)
		if len(after) == 0 || r.Operation == admissionv1.Create {
			return after, err
		}
		before, err := placementFindings(r, r.OldObject, ns, g)
		return onlyNew(before, after, reasonPlacementStillAmiss()), err
	}
	return nil, errWrongObject(r)
}

// guardsControlPlane reports whether a guard of node-pools is about the mesh's own pods
// too.
func guardsControlPlane(g *facts.Guard) bool {
	return g.NodePools.ControlPlane == v1alpha1.ControlPlaneGuard
}
