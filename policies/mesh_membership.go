package policies

import (
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// mesh-membership
//
// Rule: every workload of a guarded namespace is in the mesh and stays in it:
// it has Istio's own proxy, or is enrolled in ambient where the guard accepts
// that; the proxy is as the mesh configures it; all TCP traffic of the workload
// is captured, but for what the guard lets pass.
//
// Fields: of pods and pod templates metadata.labels, metadata.annotations and
// spec; of Bindings both kinds of metadata; of namespaces metadata.labels; of Istio's networking objects spec; of
// istiod's ConfigMaps data.
//
// Not judged: mirror pods, which run whatever the API server says; pods that
// have ended; templates and namespaces that are being deleted, of which nothing
// new comes.
//
// Source: Istio, resource annotations and labels reference; the injection
// template and pkg/kube/inject, tools/istio-iptables and cni/pkg, which say
// what each of them does.

// MeshMembership is the policy mesh-membership.
func MeshMembership() Policy {
	return Policy{
		ID:        "mesh-membership",
		Title:     "Every workload of a guarded namespace is in the mesh, and nothing of its traffic goes around the proxy",
		Rationale: "STRICT binds the proxy only: a pod without one, or a port that bypasses it, takes plaintext from everybody and sends plaintext to everybody, while every PeerAuthentication says otherwise.",
		Citations: []string{
			"https://istio.io/latest/docs/reference/config/annotations/",
			"https://istio.io/latest/docs/setup/additional-setup/sidecar-injection/",
			"https://istio.io/latest/docs/ambient/usage/add-workloads/",
		},
		Reasons: membershipReasons(),
		Matches: slices.Concat(workloadMatches(), bindingMatches(), istioMatches(), []Match{settingsMatch(), rootsMatch()}),
		Actions: func(g *facts.Guard) []v1alpha1.ValidationAction {
			if g.MeshMembership == nil {
				return nil
			}
			return g.MeshMembership.ValidationActions
		},
		Judge: judgeMeshMembership,
	}
}

func workloadMatches() []Match {
	createUpdate := []admissionv1.Operation{admissionv1.Create, admissionv1.Update}
	matches := []Match{
		{
			Group: "", Resource: "namespaces", Versions: []string{"v1"}, Kind: "Namespace",
			Operations: createUpdate, Subresources: []string{"finalize", "status"},
			Scope: ScopeNamespaces, OnlyIfChanged: []string{"metadata.?labels"},
		},
		{
			// Images and labels of a running pod can be changed; so can its annotations,
			// which the proxy reads again when it restarts.
			Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Pod",
			Operations: createUpdate, Subresources: []string{"ephemeralcontainers", "status"},
			Scope: ScopeGuarded, OnlyIfChanged: []string{"metadata.?labels", "metadata.?annotations", "spec"},
		},
	}
	return append(matches, templateMatches()...)
}

// templateMatches are the kinds that make pods, by their templates and by whatever
// else of an UPDATE matters.
func templateMatches(more ...string) []Match {
	var matches []Match
	for _, w := range []struct {
		group, version, resource, kind, template string
	}{
		{"", "v1", "replicationcontrollers", "ReplicationController", "spec.?template"},
		{"apps", "v1", "daemonsets", "DaemonSet", "spec.?template"},
		{"apps", "v1", "deployments", "Deployment", "spec.?template"},
		{"apps", "v1", "replicasets", "ReplicaSet", "spec.?template"},
		{"apps", "v1", "statefulsets", "StatefulSet", "spec.?template"},
		{"argoproj.io", "v1alpha1", "rollouts", "Rollout", "spec.?template"},
		{"batch", "v1", "cronjobs", "CronJob", "spec.?jobTemplate"},
		{"batch", "v1", "jobs", "Job", "spec.?template"},
	} {
		matches = append(matches, Match{
			Group: w.group, Resource: w.resource, Versions: []string{w.version}, Kind: w.kind,
			Operations: []admissionv1.Operation{admissionv1.Create, admissionv1.Update}, Scope: ScopeGuarded,
			OnlyIfChanged: append([]string{w.template}, more...),
		})
	}
	return matches
}

func judgeMeshMembership(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	switch o := r.Object.(type) {
	case *corev1.Pod, *facts.Workload:
		return judgeWorkload(r, g)
	case *corev1.Binding:
		return judgeBindingMetadata(r, o, g)
	case *corev1.Namespace:
		return judgeNamespaceMembership(r, g)
	case *facts.IstioObject:
		return judgeIstioObject(r, g)
	}
	// Of a ConfigMap, which may be going, or an error.
	if slices.Contains(RootsConfigMaps(), r.Name) {
		return judgeRoots(r, g)
	}
	return judgeMeshSettings(r, g)
}
