package preflight

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
)

// nodeClasses is about where pods of the guards may run at all.
func nodeClasses(f *Facts) Check {
	const id = "nodes"
	if f.Nodes.Err != nil {
		return unknown(id, f.Nodes.Err)
	}
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		return unknown(id, err)
	}
	if len(f.Nodes.Value) == 0 {
		return Check{ID: id, Result: Warn, Found: "no nodes", Must: "be some, or every pod that asks for one waits or is refused", Remedy: "add nodes"}
	}
	c := Check{ID: id, Result: Pass, Found: nodesText(catalogue, f.Nodes.Value)}
	where := ""
	for i := range f.Judged {
		g := &f.Judged[i]
		if g.Spec.NodePools == nil {
			continue
		}
		refused := map[string]int{}
		n := 0
		for j := range f.Nodes.Value {
			if r := nodes.Refused(g.Spec.NodePools, catalogue.NewNode(&f.Nodes.Value[j])); len(r) > 0 {
				n++
				refused[r[0].Text]++
			}
		}
		for _, text := range sortedKeys(refused) {
			c.Details = append(c.Details, fmt.Sprintf("MeshGuard %q: %s %s", g.Name, counted(refused[text], "node is", "nodes are"), text))
		}
		denies := slices.Contains(g.Spec.NodePools.ValidationActions, v1alpha1.Deny)
		if n == len(f.Nodes.Value) && len(g.Spec.NodePools.AllowedRegions) > 0 {
			where = " and that are in an allowed region (spec.nodePools.allowedRegions, label topology.kubernetes.io/region)"
		}
		switch {
		case n == len(f.Nodes.Value) && denies && g.Spec.NodePools.OnNoNode != v1alpha1.OnNoNodeWait:
			c.Result, c.Must = Fail, "include one on which pods of the guard may run, or all of them are refused"
		case n == len(f.Nodes.Value) && c.Result == Pass:
			c.Result, c.Must = Warn, "include one on which pods of the guard may run, or all of them wait"
		}
	}
	if c.Result != Pass {
		c.Remedy = "add nodes whose CPU is their own" + where + ", or state their class (spec.nodePools.nodeLabel, instanceTypes)"
	}
	c.Details = details(c.Details)
	return c
}

// nodesText counts the nodes by class and region.
func nodesText(catalogue *nodes.Catalogue, list []corev1.Node) string {
	classes, regions := map[string]int{}, map[string]int{}
	untyped := 0
	for i := range list {
		n := catalogue.NewNode(&list[i])
		classes[nodes.ClassLabelValue(nodes.Classify(&v1alpha1.NodePools{}, n).Class)]++
		if r := n.Label(corev1.LabelTopologyRegion); r != "" {
			regions[r]++
		}
		if n.Label(corev1.LabelInstanceTypeStable) == "" && n.Label(corev1.LabelInstanceType) == "" {
			untyped++
		}
	}
	parts := make([]string, 0, len(classes))
	for _, class := range sortedKeys(classes) {
		parts = append(parts, fmt.Sprintf("%d %s", classes[class], class))
	}
	text := fmt.Sprintf("%s: %s", counted(len(list), "node", "nodes"), strings.Join(parts, ", "))
	if untyped > 0 {
		text += fmt.Sprintf("; %d without an instance type", untyped)
	}
	if len(regions) > 0 {
		text += "; regions " + joined(sortedKeys(regions))
	}
	return text
}
