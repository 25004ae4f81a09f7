package policies

import (
	"fmt"
	"slices"
	"strings"

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
		text := refusedDemand(p.cluster.Catalogue, g.NodePools, demand{asked.NodeSelector, t})
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
		Message: fmt.Sprintf("asks for nodes on which it may not run by MeshGuard %q: %s; must ask for others", g.Name, firstOf(texts[:min(len(texts), groupsAtMost)], len(texts))),
		Remedy:  "take that out, or ask for what the guard allows",
	}}
}

// demand is what one term of the affinity, together with the node selector, asks for.
type demand struct {
	nodeSelector map[string]string
	term         corev1.NodeSelectorTerm
}

// values are those that a label must have one of; ok is false when it may have any.
func (d demand) values(key string) (values []string, ok bool) {
	if v, has := d.nodeSelector[key]; has {
		values, ok = []string{v}, true
	}
	for _, q := range d.term.MatchExpressions {
		if q.Key != key || q.Operator != corev1.NodeSelectorOpIn {
			continue
		}
		if !ok {
			values, ok = q.Values, true
			continue
		}
		values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return !slices.Contains(q.Values, v) })
	}
	return values, ok && len(values) > 0
}

// refusedPlace says which region or zone is refused of all that the demand lets in; ""
// when it lets in another too.
func refusedPlace(g *v1alpha1.NodePools, d demand) string {
	for _, place := range []struct {
		what, key string
		allowed   []string
	}{
		{"region", corev1.LabelTopologyRegion, g.AllowedRegions},
		{"region", corev1.LabelFailureDomainBetaRegion, g.AllowedRegions},
		{"zone", corev1.LabelTopologyZone, g.AllowedZones},
		{"zone", corev1.LabelFailureDomainBetaZone, g.AllowedZones},
	} {
		values, ok := d.values(place.key)
		if ok && len(place.allowed) > 0 && every(values, func(v string) bool { return !slices.Contains(place.allowed, v) }) {
			return place.what + " " + quote(strings.Join(values, ", "))
		}
	}
	return ""
}

// refusedDemand says what is refused of all that the demand lets in; "" when it lets in
// something else too.
func refusedDemand(c *nodes.Catalogue, g *v1alpha1.NodePools, d demand) string {
	if text := refusedPlace(g, d); text != "" {
		return text
	}
	if l := g.NodeLabel; l != nil {
		if values, ok := d.values(l.Key); ok {
			if every(values, func(v string) bool { return slices.Contains(l.Burstable, v) }) {
				return "label " + quote(l.Key+"="+strings.Join(values, ", ")) + " of burstable nodes"
			}
			if every(values, func(v string) bool { return slices.Contains(l.Dedicated, v) }) {
				return ""
			}
		}
	}
	refuses := func(c nodes.Class) bool {
		return c == nodes.Burstable || c == nodes.Unknown && g.Unknown == v1alpha1.UnknownDeny
	}
	if values, ok := d.values(corev1.LabelInstanceTypeStable); ok && every(values, func(v string) bool { return refuses(c.TypeClass(g, v)) }) {
		return "instance type " + quote(strings.Join(values, ", ")) + ", which is " + strings.ToLower(string(c.TypeClass(g, values[0])))
	}
	if values, ok := d.values(v1alpha1.ClassLabel); ok && every(values, func(v string) bool { return refuses(nodes.LabelledClass(v)) }) {
		return "class " + quote(strings.Join(values, ", "))
	}
	return ""
}

func every(values []string, holds func(string) bool) bool {
	return !slices.ContainsFunc(values, func(v string) bool { return !holds(v) })
}
