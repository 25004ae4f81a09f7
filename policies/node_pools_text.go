package policies

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

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
	if more := len(r.groups) - groupsAtMost; more > 0 {
		parts = append(parts, fmt.Sprintf("and so on, %d groups of nodes more", more))
	}
	return strings.Join(parts, ", ")
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
	allowed := slices.DeleteFunc(slices.Clone(p.cluster.Nodes.Pools()), func(pool nodes.Pool) bool {
		return len(nodes.Refused(g.NodePools, pool.First())) > 0
	})
	if len(allowed) == 0 {
		return "no node of the cluster is one on which it may run; add a pool of such nodes"
	}
	everything := nodes.Placement{NodeSelector: asked.NodeSelector, Required: asked.Required, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}}
	for _, pool := range p.cluster.Nodes.Reach(everything) {
		if len(nodes.Refused(g.NodePools, pool.First())) > 0 {
			continue
		}
		return fmt.Sprintf("tolerate the taint %s of nodes such as %q, on which it may run", quote(taintText(pool.First())), pool.First().Name())
	}
	return fmt.Sprintf("let it land on others by nodeSelector, node affinity and tolerations, such as %q", allowed[0].First().Name())
}

func taintText(n *nodes.Node) string {
	var texts []string
	for _, t := range n.Object.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			texts = append(texts, t.ToString())
		}
	}
	return strings.Join(texts, ",")
}

// requirementsText writes requirements as they stand in a manifest, on one line.
func requirementsText(list []corev1.NodeSelectorRequirement) string {
	texts := make([]string, 0, len(list))
	for _, q := range list {
		texts = append(texts, fmt.Sprintf("{key: %s, operator: %s, values: [%s]}", q.Key, q.Operator, strings.Join(q.Values, ", ")))
	}
	return strings.Join(texts, ", ")
}
