package policies

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// demandFindings judges what a pod asks for where there is no node yet on which it
// could land, as with pools that are scaled to zero. Each of the ORed terms must ask for
// something that is refused.
func (p *placed) demandFindings(g *facts.Guard, asked nodes.Placement) []Finding {
	terms := []corev1.NodeSelectorTerm{{}}
	if asked.Required != nil {
		terms = slices.DeleteFunc(slices.Clone(asked.Required.NodeSelectorTerms), func(t corev1.NodeSelectorTerm) bool {
			return len(t.MatchExpressions) == 0 && len(t.MatchFields) == 0 // matches no node
		})
	}
	var texts []string
	for _, t := range terms {
		d := demandOf(asked.NodeSelector, t)
		text := refusedPlace(g.NodePools, d)
		if text == "" {
			text = refusedClass(p.cluster.Catalogue, g.NodePools, d)
		}
		if text == "" {
			return nil
		}
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return []Finding{{
		Reason: reasonOnlyRefusedNodes(), Type: metav1.CauseTypeForbidden, Field: p.blame(asked),
		Message: fmt.Sprintf("asks for nodes on which pods may not run by MeshGuard %q: %s; must ask for others", g.Name, firstOf(texts[:min(len(texts), groupsAtMost)], len(texts))),
		Remedy:  "ask for " + allowedText(g),
	}}
}

// demand is what is asked of a node, as far as it is that a label has one of some
// values: these by the label.
type demand map[string][]string

// demandOf is what one term of the affinity asks for together with the node selector.
func demandOf(nodeSelector map[string]string, term corev1.NodeSelectorTerm) demand {
	d := demand{}
	for key, value := range nodeSelector {
		d[key] = []string{value}
	}
	for _, q := range term.MatchExpressions {
		if q.Operator != corev1.NodeSelectorOpIn {
			continue
		}
		before, asked := d[q.Key]
		d[q.Key] = q.Values
		if asked {
			d[q.Key] = slices.DeleteFunc(slices.Clone(before), func(v string) bool { return !slices.Contains(q.Values, v) })
		}
	}
	return d
}

// refusedPlace says which region or zone is refused of all that the demand lets in; ""
// when it lets in another too.
func refusedPlace(g *v1alpha1.NodePools, d demand) string {
	for _, place := range []struct {
		what    string
		keys    []string
		allowed []string
	}{
		{"region", []string{corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaRegion}, g.AllowedRegions},
		{"zone", []string{corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone}, g.AllowedZones},
	} {
		for _, key := range place.keys {
			outside := len(place.allowed) > 0 && !slices.ContainsFunc(d[key], func(v string) bool { return slices.Contains(place.allowed, v) })
			if outside && len(d[key]) > 0 {
				return "in " + plural(place.what, quotes(d[key]))
			}
		}
	}
	return ""
}

// refusedClass says why all nodes that the demand lets in are refused for their class;
// "" when it lets in others too. What it asks a label for one value of, all of them have;
// of the other labels it is tried whether each of the values is refused.
func refusedClass(c *nodes.Catalogue, g *v1alpha1.NodePools, d demand) string {
	given := map[string]string{}
	for key, values := range d {
		if len(values) == 1 {
			given[key] = values[0]
		}
	}
	for _, key := range sortedKeys(d) {
		var texts []string
		for _, value := range d[key] {
			labels := maps.Clone(given)
			labels[key] = value
			text := refusedLabels(c, g, labels)
			if text == "" {
				texts = nil
				break
			}
			if !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
		if len(texts) > 0 {
			return firstOf(texts[:min(len(texts), groupsAtMost)], len(texts))
		}
	}
	return ""
}

// refusedLabels says why nodes with these labels, and any others, are refused for their
// class; "" when they are not. A node that is asked for without a type may be of any.
func refusedLabels(c *nodes.Catalogue, g *v1alpha1.NodePools, labels map[string]string) string {
	if class := labels[v1alpha1.ClassLabel]; slices.Contains(refusedClasses(g), class) {
		return "of class " + quote(class)
	}
	if l := g.NodeLabel; l != nil && len(l.Dedicated) > 0 && labels[l.Key] == "" {
		return "" // nodes of any type may state that their CPU is their own
	}
	typed := labels[corev1.LabelInstanceTypeStable] != "" || labels[corev1.LabelInstanceType] != ""
	n := c.NewNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: labels}})
	for _, f := range nodes.Refused(g, n) {
		if f.Cause == nodes.CauseBurstable || f.Cause == nodes.CauseUnknown && typed {
			return f.Text
		}
	}
	return ""
}
