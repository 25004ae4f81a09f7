package v1alpha1_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*v1alpha1.MeshGuard)
		fields []string
	}{
		{"default guard", func(*v1alpha1.MeshGuard) {}, nil},
		{"no name", func(g *v1alpha1.MeshGuard) { g.Name = "" }, []string{"metadata.name"}},
		{"bad name", func(g *v1alpha1.MeshGuard) { g.Name = "Production" }, []string{"metadata.name"}},
		{"no policy", func(g *v1alpha1.MeshGuard) {
			g.Spec.StrictMTLS, g.Spec.MeshMembership, g.Spec.SidecarResources, g.Spec.NodePools = nil, nil, nil, nil
		}, []string{"spec"}},
		{"one policy", func(g *v1alpha1.MeshGuard) { g.Spec.StrictMTLS = nil }, nil},
		{"unknown data plane", func(g *v1alpha1.MeshGuard) { g.Spec.MeshMembership.DataPlanes = []v1alpha1.DataPlane{"Proxyless"} }, []string{"spec.meshMembership.dataPlanes[0]"}},
		{"unknown probe rewrite", func(g *v1alpha1.MeshGuard) { g.Spec.MeshMembership.ProbeRewrite = "Refuse" }, []string{"spec.meshMembership.probeRewrite"}},
		{"empty image", func(g *v1alpha1.MeshGuard) { g.Spec.MeshMembership.ProxyImages = []string{"a", ""} }, []string{"spec.meshMembership.proxyImages[1]"}},
		{"port zero", func(g *v1alpha1.MeshGuard) { g.Spec.MeshMembership.Outbound.Ports = []int32{0} }, []string{"spec.meshMembership.outbound.ports[0]"}},
		{"address for a range", func(g *v1alpha1.MeshGuard) { g.Spec.MeshMembership.Outbound.CIDRs = []string{"10.0.0.1"} }, []string{"spec.meshMembership.outbound.cidrs[0]"}},
		{"empty selector", func(g *v1alpha1.MeshGuard) { g.Spec.NamespaceSelector = metav1.LabelSelector{} }, nil},
		{"deny and audit", actions("Deny", "Audit"), nil},
		{"deny and warn", actions("Deny", "Warn"), []string{"spec.strictMTLS.validationActions"}},
		{"no action", actions(), []string{"spec.strictMTLS.validationActions"}},
		{"unknown action", actions("deny"), []string{"spec.strictMTLS.validationActions[0]"}},
		{"doubled action", actions("Warn", "Warn"), []string{"spec.strictMTLS.validationActions[1]"}},
		{"unknown onMissing", func(g *v1alpha1.MeshGuard) { g.Spec.StrictMTLS.OnMissing = "hold" }, []string{"spec.strictMTLS.onMissing"}},
		{"operator", expression("Equals", "a"), []string{"spec.namespaceSelector.matchExpressions[0].operator"}},
		{"In without values", expression("In"), []string{"spec.namespaceSelector.matchExpressions[0].values"}},
		{"Exists with values", expression("Exists", "a"), []string{"spec.namespaceSelector.matchExpressions[0].values"}},
		{"NotIn with values", expression("NotIn", "a"), nil},
		{"unknown mode", resources(func(s *v1alpha1.SidecarResources) { s.Mode = "fill" }), []string{"spec.sidecarResources.mode"}},
		{"unknown treatment", resources(func(s *v1alpha1.SidecarResources) { s.QoS = "Keep" }), []string{"spec.sidecarResources.qos"}},
		{"no action of resources", resources(func(s *v1alpha1.SidecarResources) { s.ValidationActions = nil }), []string{"spec.sidecarResources.validationActions"}},
		{"request over limit", resources(func(s *v1alpha1.SidecarResources) { s.Requests.CPU = quantity("2001m") }), []string{"spec.sidecarResources.limits.cpu"}},
		{"request at limit", resources(func(s *v1alpha1.SidecarResources) { s.Requests.CPU, s.Requests.Memory = quantity("2"), quantity("1Gi") }), nil},
		{"zero", resources(func(s *v1alpha1.SidecarResources) { s.Requests.Memory = quantity("0") }), []string{"spec.sidecarResources.requests.memory"}},
		{"negative", resources(func(s *v1alpha1.SidecarResources) { s.Limits.CPU = quantity("-1") }), []string{"spec.sidecarResources.limits.cpu"}},
		{"minimum over request", resources(func(s *v1alpha1.SidecarResources) { s.Minimum = &v1alpha1.ProxyBound{CPU: quantity("101m")} }), []string{"spec.sidecarResources.requests.cpu"}},
		{"maximum under limit", resources(func(s *v1alpha1.SidecarResources) { s.Maximum = &v1alpha1.ProxyBound{Memory: quantity("1Mi")} }), []string{"spec.sidecarResources.maximum.memory"}},
		{"empty minimum", resources(func(s *v1alpha1.SidecarResources) { s.Minimum = &v1alpha1.ProxyBound{} }), []string{"spec.sidecarResources.minimum"}},
		{"Clamp without bounds", resources(func(s *v1alpha1.SidecarResources) { s.Mode = v1alpha1.ModeClamp }), []string{"spec.sidecarResources.maximum"}},
		{"Clamp with a bound", resources(func(s *v1alpha1.SidecarResources) {
			s.Mode, s.Minimum = v1alpha1.ModeClamp, &v1alpha1.ProxyBound{CPU: quantity("100m")}
		}), nil},
		{"Exact with a bound", resources(func(s *v1alpha1.SidecarResources) {
			s.Mode, s.Maximum = v1alpha1.ModeExact, &v1alpha1.ProxyBound{CPU: quantity("2")}
		}), []string{"spec.sidecarResources.mode"}},
		{"all of nodePools", nodePools(func(n *v1alpha1.NodePools) {
			five := int32(5)
			*n = v1alpha1.NodePools{
				ValidationActions: []v1alpha1.ValidationAction{"Warn", "Audit"}, Scope: "All", ControlPlane: "Ignore", Unknown: "Deny", Steering: "None", OnNoNode: "Reject",
				NodeLabel:       &v1alpha1.NodeLabel{Key: "example.com/cpu", Burstable: []string{"shared"}, Dedicated: []string{""}},
				InstanceTypes:   []v1alpha1.InstanceTypeClass{{Types: []string{"m5.*"}, Class: "Dedicated"}},
				MaxStealPercent: &five, AllowedRegions: []string{"eu-north-1"}, AllowedZones: []string{"eu-north-1a"},
			}
		}), nil},
		{"unknown words", nodePools(func(n *v1alpha1.NodePools) { n.Scope, n.ControlPlane, n.Unknown, n.Steering = "a", "b", "c", "d" }),
			[]string{"spec.nodePools.scope", "spec.nodePools.controlPlane", "spec.nodePools.unknown", "spec.nodePools.steering"}},
		{"too many values", nodePools(func(n *v1alpha1.NodePools) {
			n.AllowedRegions, n.InstanceTypes = distinct(65), []v1alpha1.InstanceTypeClass{{Types: distinct(65), Class: "Dedicated"}}
		}), []string{"spec.nodePools.instanceTypes[0].types", "spec.nodePools.allowedRegions"}},
		{"too long a type", nodePools(func(n *v1alpha1.NodePools) {
			n.InstanceTypes = []v1alpha1.InstanceTypeClass{{Types: []string{strings.Repeat("a", 64)}, Class: "Dedicated"}}
		}), []string{"spec.nodePools.instanceTypes[0].types[0]"}},
		{"no thread", resources(func(s *v1alpha1.SidecarResources) { s.Concurrency = new(int32) }), []string{"spec.sidecarResources.concurrency"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := v1alpha1.DefaultGuard()
			tt.change(g)
			var fields []string
			for _, e := range v1alpha1.Validate(g) {
				fields = append(fields, e.Field)
			}
			if !slices.Equal(fields, tt.fields) {
				t.Errorf("refused fields %v, want %v", fields, tt.fields)
			}
		})
	}
}

func actions(list ...v1alpha1.ValidationAction) func(*v1alpha1.MeshGuard) {
	return func(g *v1alpha1.MeshGuard) { g.Spec.StrictMTLS.ValidationActions = list }
}

func resources(change func(*v1alpha1.SidecarResources)) func(*v1alpha1.MeshGuard) {
	return func(g *v1alpha1.MeshGuard) { change(g.Spec.SidecarResources) }
}

func nodePools(change func(*v1alpha1.NodePools)) func(*v1alpha1.MeshGuard) {
	return func(g *v1alpha1.MeshGuard) { change(g.Spec.NodePools) }
}

func distinct(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprint("v", i))
	}
	return list
}

func quantity(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}

func expression(operator metav1.LabelSelectorOperator, values ...string) func(*v1alpha1.MeshGuard) {
	return func(g *v1alpha1.MeshGuard) {
		g.Spec.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "stage", Operator: operator, Values: values}}
	}
}
