package policies

import (
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// strict-mtls
//
// Rule: every port of every workload that a guarded namespace holds, or could
// come to hold, takes mutual TLS only. What counts is the effective mode, which
// Istio computes from the mesh-wide, namespace-wide, workload and port levels of
// all PeerAuthentications; that a STRICT object exists proves nothing.
//
// Fields: Namespace metadata.labels; PeerAuthentication spec and
// metadata.labels[istio.io/rev], on DELETE its existence; Pod metadata.labels;
// rootNamespace and discoverySelectors in istiod's ConfigMaps.
//
// Not judged: namespaces that are being deleted, and everything in them.
//
// Source: Istio, PeerAuthentication reference (inheritance, precedence of the
// oldest policy, port level only with a selector) and its implementation in
// pilot/pkg/model/authentication.go and pilot/pkg/security/authn.

// The reasons of strict-mtls.
func reasonNamespaceNotStrict() Reason {
	return Reason{"NamespaceNotStrict", "MV101", "A guarded namespace does not demand mutual TLS of all its workloads"}
}

func reasonWorkloadNotStrict() Reason {
	return Reason{"WorkloadNotStrict", "MV102", "A pod in a guarded namespace would take plaintext by a PeerAuthentication that selects it"}
}

func reasonPolicyWeakensMTLS() Reason {
	return Reason{"PolicyWeakensMTLS", "MV103", "A change of a PeerAuthentication would let plaintext into a guarded namespace"}
}

func reasonNamespaceWeakensMTLS() Reason {
	return Reason{"NamespaceWeakensMTLS", "MV104", "A change of a namespace's labels would let plaintext into a guarded namespace"}
}

func reasonNamespaceUnguarded() Reason {
	return Reason{"NamespaceUnguarded", "MV105", "A namespace would leave its guard without the right to do so"}
}

func reasonStillNotStrict() Reason {
	return Reason{"StillNotStrict", "MV106", "A guarded namespace was not STRICT before the change and is not STRICT after it"}
}

func reasonPolicyHasNoEffect() Reason {
	return Reason{"PolicyHasNoEffect", "MV107", "A STRICT PeerAuthentication for a guarded namespace is not applied by Istio"}
}

func reasonSettingsWeakenMTLS() Reason {
	return Reason{"SettingsWeakenMTLS", "MV108", "A change of istiod's settings would let plaintext into a guarded namespace"}
}

// StrictMTLS is the policy strict-mtls.
func StrictMTLS() Policy {
	return Policy{
		ID:        "strict-mtls",
		Title:     "Every workload port of a guarded namespace takes mutual TLS only",
		Rationale: "In any other mode a workload accepts plaintext from every pod that reaches it: traffic can be read and forged, and no caller has an identity that authorization could rely on.",
		Citations: []string{
			"https://istio.io/latest/docs/reference/config/security/peer_authentication/",
			"https://istio.io/latest/docs/concepts/security/#peer-authentication",
		},
		Reasons: []Reason{
			reasonNamespaceNotStrict(),
			reasonWorkloadNotStrict(),
			reasonPolicyWeakensMTLS(),
			reasonNamespaceWeakensMTLS(),
			reasonNamespaceUnguarded(),
			reasonStillNotStrict(),
			reasonPolicyHasNoEffect(),
			reasonSettingsWeakenMTLS(),
		},
		Matches: []Match{
			{
				Group: "", Resource: "namespaces", Versions: []string{"v1"}, Kind: "Namespace",
				// No DELETE: deleting a namespace is never held up.
				Operations:    []admissionv1.Operation{admissionv1.Create, admissionv1.Update},
				Subresources:  []string{"finalize", "status"},
				Scope:         ScopeNamespaces,
				OnlyIfChanged: []string{"metadata.?labels"},
			},
			{
				Group: "", Resource: "pods", Versions: []string{"v1"}, Kind: "Pod",
				Operations:    []admissionv1.Operation{admissionv1.Create, admissionv1.Update},
				Subresources:  []string{"status"},
				Scope:         ScopeGuarded,
				OnlyIfChanged: []string{"metadata.?labels"},
			},
			{
				Group: "security.istio.io", Resource: "peerauthentications", Versions: []string{"v1", "v1beta1"}, Kind: "PeerAuthentication",
				Operations:    []admissionv1.Operation{admissionv1.Create, admissionv1.Update, admissionv1.Delete},
				Scope:         ScopeGuardedAndRoot,
				OnlyIfChanged: []string{"spec", "metadata.?labels"},
			},
			settingsMatch(),
		},
		Actions: func(g *facts.Guard) []v1alpha1.ValidationAction {
			if g.StrictMTLS == nil {
				return nil
			}
			return g.StrictMTLS.ValidationActions
		},
		Judge: judgeStrictMTLS,
	}
}

func judgeStrictMTLS(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	switch r.Kind.Kind {
	case "Namespace":
		return judgeNamespaceMTLS(r, g)
	case "Pod":
		return judgePodMTLS(r, g)
	case "PeerAuthentication":
		return judgePeerAuthentication(r, g)
	case "ConfigMap":
		return judgeSettingsMTLS(r, g)
	}
	return nil, nil
}

// sides returns the object before and after the request, nil where there is
// none. It errs when an object is not what the request's kind says.
func sides[T corev1.ConfigMap | corev1.Pod | corev1.Namespace | mesh.PeerAuthentication | v1alpha1.GuardException | v1alpha1.MeshGuard](r *facts.Review) (before, after *T, err error) {
	before, _ = r.OldObject.(*T)
	after, ok := r.Object.(*T)
	switch {
	case r.Object != nil && !ok:
		return nil, nil, errWrongObject(r)
	case r.Operation != admissionv1.Delete && after == nil, r.Operation != admissionv1.Create && before == nil:
		return nil, nil, errWrongObject(r)
	}
	return before, after, nil
}

// namespaceSides is sides of a namespace, which must be known with what is in it unless
// it is only about to be.
func namespaceSides(r *facts.Review) (old, ns *corev1.Namespace, err error) {
	if old, ns, err = sides[corev1.Namespace](r); err != nil {
		return nil, nil, err
	}
	if old != nil && r.Cluster.Namespaces[ns.Name] == nil {
		return nil, nil, fmt.Errorf("%w: namespace %q", ErrMissingFact, ns.Name)
	}
	return old, ns, nil
}
