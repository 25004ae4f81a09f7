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
		Message: fmt.Sprintf("asks for nodes on which pods may not run by MeshGuard %q: %s; must ask for others", g.Name, firstOf(texts[:min(len(texts), groupsAtMost)], len(texts))),
		Remedy:  "ask for " + allowedText(g),
	}}
}

// demand is what one term of the affinity, together with the node selector, asks for.
type demand struct {
	nodeSelector map[string]string
	term         corev1.NodeSelectorTerm
}

// values are those that a label must have one of; none when it may have any.
func (d demand) values(key string) []string {
	var values []string
	if v, ok := d.nodeSelector[key]; ok {
		values = []string{v}
	}
	for _, q := range d.term.MatchExpressions {
		switch {
		case q.Key != key || q.Operator != corev1.NodeSelectorOpIn:
		case values == nil:
			values = q.Values
		default:
			values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return !slices.Contains(q.Values, v) })
		}
	}
	return values
}

// each returns the values that a label must have one of, if it holds for each of them.
func (d demand) each(key string, holds func(value string) bool) []string {
	values := d.values(key)
	if slices.ContainsFunc(values, func(v string) bool { return !holds(v) }) {
		return nil
	}
	return values
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
			values := d.each(key, func(v string) bool { return len(place.allowed) > 0 && !slices.Contains(place.allowed, v) })
			if len(values) > 0 {
				return plural(place.what, quotes(values))
			}
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
		if values := d.each(l.Key, func(v string) bool { return slices.Contains(l.Burstable, v) }); len(values) > 0 {
			return "label " + quote(l.Key+"="+strings.Join(values, ", ")) + " of burstable nodes"
		}
		if values := d.each(l.Key, func(v string) bool { return slices.Contains(l.Dedicated, v) }); len(values) > 0 {
			return ""
		}
	}
	for _, key := range []string{corev1.LabelInstanceTypeStable, corev1.LabelInstanceType} {
		if values := d.each(key, func(v string) bool { return refusesClass(g, c.TypeClass(g, v)) }); len(values) > 0 {
			return plural("instance type", quotes(values)) + classText(c, g, values)
		}
	}
	if values := d.each(v1alpha1.ClassLabel, func(v string) bool { return refusesClass(g, nodes.LabelledClass(v)) }); len(values) > 0 {
		return "class " + quote(strings.Join(values, ", "))
	}
	return ""
}

// classText says in brackets why instance types are refused.
func classText(c *nodes.Catalogue, g *v1alpha1.NodePools, types []string) string {
	is := func(class nodes.Class) bool {
		return slices.ContainsFunc(types, func(t string) bool { return c.TypeClass(g, t) == class })
	}
	switch {
	case is(nodes.Burstable) && is(nodes.Unknown):
		return " (burstable or of unknown class)"
	case is(nodes.Unknown):
		return " (of unknown class)"
	}
	return " (burstable)"
}
