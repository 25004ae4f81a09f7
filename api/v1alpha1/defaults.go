package v1alpha1

import (
	"cmp"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DefaultGuard is the guard that applies where none is given: every policy
// that exists, Deny, default parameters, on namespaces labelled
// meshvakt.io/guarded: "true".
func DefaultGuard() *MeshGuard {
	g := &MeshGuard{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion().String(), Kind: "MeshGuard"},
		ObjectMeta: metav1.ObjectMeta{Name: DefaultGuardName},
		Spec: MeshGuardSpec{
			NamespaceSelector: metav1.LabelSelector{MatchLabels: map[string]string{GuardedLabel: GuardedValue}},
			StrictMTLS:        &StrictMTLS{},
			MeshMembership:    &MeshMembership{},
			SidecarResources:  &SidecarResources{},
			NodePools:         &NodePools{},
			Exceptions:        &Exceptions{},
		},
	}
	SetDefaults(g)
	return g
}

// SetDefaults fills what the CustomResourceDefinition's defaults fill in the
// API server, for guards that are read from files.
func SetDefaults(g *MeshGuard) {
	setExceptionDefaults(&g.Spec)
	if s := g.Spec.StrictMTLS; s != nil {
		if len(s.ValidationActions) == 0 {
			s.ValidationActions = []ValidationAction{Deny}
		}
		if s.OnMissing == "" {
			s.OnMissing = OnMissingReject
		}
	}
	if m := g.Spec.MeshMembership; m != nil {
		if len(m.ValidationActions) == 0 {
			m.ValidationActions = []ValidationAction{Deny}
		}
		if len(m.DataPlanes) == 0 {
			m.DataPlanes = []DataPlane{DataPlaneSidecar}
		}
		if m.ProbeRewrite == "" {
			m.ProbeRewrite = ProbeRewriteAllow
		}
	}
	if s := g.Spec.SidecarResources; s != nil {
		if len(s.ValidationActions) == 0 {
			s.ValidationActions = []ValidationAction{Deny}
		}
		s.Mode = cmp.Or(s.Mode, ModeFill)
		s.QoS = cmp.Or(s.QoS, QoSAllow)
		s.Requests.CPU = orQuantity(s.Requests.CPU, "100m")
		s.Requests.Memory = orQuantity(s.Requests.Memory, "128Mi")
		s.Limits.CPU = orQuantity(s.Limits.CPU, "2000m")
		s.Limits.Memory = orQuantity(s.Limits.Memory, "1024Mi")
	}
	if n := g.Spec.NodePools; n != nil {
		if len(n.ValidationActions) == 0 {
			n.ValidationActions = []ValidationAction{Deny}
		}
		n.Scope = cmp.Or(n.Scope, PlacementMesh)
		n.ControlPlane = cmp.Or(n.ControlPlane, ControlPlaneGuard)
		n.Unknown = cmp.Or(n.Unknown, UnknownAllow)
		n.Steering = cmp.Or(n.Steering, SteeringRequired)
		n.OnNoNode = cmp.Or(n.OnNoNode, OnNoNodeReject)
	}
}

// setExceptionDefaults is about exceptions and remediation.
func setExceptionDefaults(s *MeshGuardSpec) {
	s.Remediation = cmp.Or(s.Remediation, RemediationNone)
	if e := s.Exceptions; e != nil {
		e.MaxDuration.Duration = cmp.Or(e.MaxDuration.Duration, DefaultExceptionHours*time.Hour)
		e.Approval = cmp.Or(e.Approval, ApprovalTwoPerson)
	}
}

func orQuantity(q *resource.Quantity, text string) *resource.Quantity {
	if q != nil {
		return q
	}
	other := resource.MustParse(text)
	return &other
}
