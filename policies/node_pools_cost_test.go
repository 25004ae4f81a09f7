package policies_test

import (
	"fmt"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// 5,000 nodes in 40 pools cost what 200 in as many do. Allocations stand for the cost: they
// are the same on every machine, and there are some for each pool that is looked at.
// BenchmarkNodes of internal/cluster has the time.
func TestNodesCostByTheirPools(t *testing.T) {
	few, many := reviewAllocations(t, 200), reviewAllocations(t, 5_000)
	t.Logf("%.0f allocations with 200 nodes, %.0f with 5,000", few, many)
	if few < 40 || many > 1.5*few {
		t.Errorf("changing and judging a pod takes %.0f allocations with 200 nodes and %.0f with 5,000; must take at most half as many again", few, many)
	}
}

// reviewAllocations is how often memory is taken to change and judge a pod in a cluster of
// so many nodes in 40 pools, of which each has labels such as clouds give them.
func reviewAllocations(t *testing.T, count int) float64 {
	t.Helper()
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	object := v1alpha1.DefaultGuard()
	object.Spec.StrictMTLS, object.Spec.MeshMembership, object.Spec.SidecarResources = nil, nil, nil
	object.Spec.NodePools.Scope, object.Spec.NodePools.AllowedRegions = v1alpha1.PlacementAll, []string{"eu-north-1"}
	guard, err := facts.NewGuard(object)
	if err != nil {
		t.Fatal(err)
	}
	var list []*nodes.Node
	for i := range count {
		pool, name := i%40, fmt.Sprintf("n%04d", i)
		list = append(list, catalogue.NewNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, "k8s.io/cloud-provider-aws": fmt.Sprintf("%08x", i),
			corev1.LabelInstanceTypeStable: []string{"t3.large", "m5.large", "m6i.xlarge", "c5.2xlarge"}[pool%4],
			corev1.LabelTopologyRegion:     []string{"eu-north-1", "eu-west-1"}[pool%2], "eks.amazonaws.com/nodegroup": fmt.Sprintf("pool-%d", pool),
		}}}))
	}
	guards := []facts.Guard{guard}
	review := &facts.Review{
		Operation: admissionv1.Create, Namespace: "prod", Submitted: true, Kind: corev1.SchemeGroupVersion.WithKind("Pod"),
		Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web"}},
		Cluster: facts.Cluster{
			ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()}, Guards: guards,
			Namespaces: map[string]*facts.Namespace{"prod": {Name: "prod", Labels: object.Spec.NamespaceSelector.MatchLabels}},
			NodeFacts:  facts.NodeFacts{Catalogue: catalogue, Nodes: nodes.NewInventory(list, facts.NodeLabels(guards)...), NodesComplete: true},
		},
	}
	all := policies.All()
	return testing.AllocsPerRun(10, func() {
		if changes, err := policies.Mutate(all, review); err != nil || len(changes) != 1 {
			t.Fatalf("changes %v, %v", changes, err)
		}
		if d, err := policies.Evaluate(all, review); err != nil || d.Outcome != policies.Allow || len(d.Judged) == 0 {
			t.Fatalf("%+v, %v", d, err)
		}
	})
}
