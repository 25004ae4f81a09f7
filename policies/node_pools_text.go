package policies

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// refusedNodes are the nodes of some pools on which pods may not run, by the reasons.
type refusedNodes struct {
	pools  int // how many pools are refused
	groups []refusedGroup
}

type refusedGroup struct {
	text  string
	first string
	nodes int
}

func refusedPools(g *facts.Guard, pools []nodes.Pool) refusedNodes {
	var r refusedNodes
	for i := range pools {
		text := refusalText(nodes.Refused(g.NodePools, pools[i].First()))
		if text == "" {
			continue
		}
		r.pools++
		at := slices.IndexFunc(r.groups, func(have refusedGroup) bool { return have.text == text })
		if at < 0 {
			at = len(r.groups)
			r.groups = append(r.groups, refusedGroup{text: text, first: pools[i].First().Name()})
		}
		r.groups[at].nodes += len(pools[i].Nodes)
	}
	return r
}

// refusalText completes "the node is ..."; it is empty when nothing is refused.
func refusalText(list []nodes.Refusal) string {
	texts := make([]string, 0, len(list))
	for _, f := range list {
		texts = append(texts, f.Text)
	}
	return strings.Join(texts, " and ")
}

// groupsAtMost is how many groups of nodes a message tells of.
const groupsAtMost = 5

func (r refusedNodes) text() string {
	var parts []string
	for _, g := range r.groups[:min(len(r.groups), groupsAtMost)] {
		parts = append(parts, nodesText(g.nodes, g.first)+" "+g.text)
	}
	return firstOf(parts, len(r.groups))
}

// nodesText names a group of nodes as the subject of a sentence.
func nodesText(n int, first string) string {
	if n == 1 {
		return fmt.Sprintf("node %q is", first)
	}
	return fmt.Sprintf("%d nodes such as %q are", n, first)
}

// wayOut is the cheapest way for the pod to land on nodes on which it may run.
func (p *placed) wayOut(g *facts.Guard, asked nodes.Placement) string {
	asked.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	if n := allowedNode(g, p.cluster.Nodes.Reach(asked)); n != nil {
		return fmt.Sprintf("tolerate the %s of nodes such as %q", taintsText(n), n.Name())
	}
	n := allowedNode(g, p.cluster.Nodes.Pools())
	if n == nil {
		return addNodes(g)
	}
	text := fmt.Sprintf("ask for nodes such as %q", n.Name()) + askedLabelsText(asked, n)
	if taints := taintsText(n); taints != "" {
		text += ", and tolerate their " + taints
	}
	return text
}

// labelsAtMost is how many labels of a node a remedy tells.
const labelsAtMost = 5

// askedLabelsText tells in brackets what a node has of the labels that are asked for.
func askedLabelsText(asked nodes.Placement, n *nodes.Node) string {
	keys := sortedKeys(asked.NodeSelector)
	if asked.Required != nil {
		for _, t := range asked.Required.NodeSelectorTerms {
			for _, q := range t.MatchExpressions {
				keys = append(keys, q.Key)
			}
		}
	}
	slices.Sort(keys)
	var texts []string
	for _, key := range slices.Compact(keys) {
		text := "no " + key
		if v, ok := n.Object.Labels[key]; ok {
			text = key + "=" + v
		}
		texts = append(texts, text)
	}
	if len(texts) == 0 {
		return ""
	}
	return " (" + firstOf(texts[:min(len(texts), labelsAtMost)], len(texts)) + ")"
}

// addNodes is the way out where the cluster has no node on which pods may run.
func addNodes(g *facts.Guard) string { return "the cluster has none; add " + allowedText(g) }

// allowedText says on which nodes pods of the guard may run.
func allowedText(g *facts.Guard) string {
	text := "nodes that are not burstable"
	if g.NodePools.Unknown == v1alpha1.UnknownDeny {
		text = "dedicated nodes"
	}
	if places := plural("zone", quotes(g.NodePools.AllowedZones)); places != "" {
		return text + ", in " + places
	}
	if places := plural("region", quotes(g.NodePools.AllowedRegions)); places != "" {
		return text + ", in " + places
	}
	return text
}

// allowedNode returns a node on which pods of the guard may run, one without a taint if
// there is one; nil without any.
func allowedNode(g *facts.Guard, pools []nodes.Pool) *nodes.Node {
	var tainted *nodes.Node
	for i := range pools {
		switch n := pools[i].First(); {
		case len(nodes.Refused(g.NodePools, n)) > 0:
		case taintsText(n) == "":
			return n
		case tainted == nil:
			tainted = n
		}
	}
	return tainted
}

// taintsText names the taints of a node that keep pods off, "" if it has none.
func taintsText(n *nodes.Node) string {
	var texts []string
	for _, t := range n.Object.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			texts = append(texts, quote(t.ToString()))
		}
	}
	return plural("taint", texts)
}

// quotes repeats values, each shortened.
func quotes(values []string) []string {
	quoted := make([]string, 0, len(values))
	for _, v := range values {
		quoted = append(quoted, quote(v))
	}
	return quoted
}

// plural puts a noun before a list, in the plural if that is called for; it is empty
// when the list is.
func plural(noun string, list []string) string {
	switch len(list) {
	case 0:
		return ""
	case 1:
		return noun + " " + list[0]
	}
	return noun + "s " + strings.Join(list, ", ")
}

// leaveOut tells how nodes are left out that these requirements keep off, which may be
// none: where only the CPU steal of nodes tells them apart, and guards disagree about it.
func leaveOut(list []corev1.NodeSelectorRequirement) string {
	if len(list) == 0 {
		return "leave them out by required node affinity"
	}
	return "leave them out by required node affinity, in each of its terms: " + requirementsText(list)
}

// requirementsText writes requirements as they stand in a manifest, on one line.
func requirementsText(list []corev1.NodeSelectorRequirement) string {
	texts := make([]string, 0, len(list))
	for _, q := range list {
		texts = append(texts, fmt.Sprintf("{key: %s, operator: %s, values: [%s]}", q.Key, q.Operator, strings.Join(q.Values, ", ")))
	}
	return strings.Join(texts, ", ")
}
