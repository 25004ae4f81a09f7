package nodes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Inventory is the nodes of a cluster by pools, so that thousands of nodes cost what
// some dozens of pools do. It is immutable, and nil is the inventory of a cluster
// without nodes.
type Inventory struct {
	pools  []Pool
	byName map[string]place
	// own are the labels that tell nodes of a pool apart; see ownLabels.
	own map[string]bool
}

// place is where a node stands among the pools.
type place struct{ pool, node int }

// Pool is nodes that no pod can tell apart, unless it asks for one by its name: their
// labels and taints are the same, and so is their CPU steal.
type Pool struct {
	// Nodes of the pool, sorted by name, at least one.
	Nodes []*Node
}

// First stands for all nodes of the pool.
func (p *Pool) First() *Node { return p.Nodes[0] }

// NewInventory groups nodes. Their names are distinct. The labels that guards name are
// given, since nodes that differ in one of those are never of one pool.
func NewInventory(list []*Node, judged ...string) *Inventory {
	i := &Inventory{byName: make(map[string]place, len(list)), own: ownLabels(list)}
	for _, label := range append(judged, judgedLabels()...) {
		delete(i.own, label)
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *Node) int { return strings.Compare(a.Name(), b.Name()) })
	at := map[string]int{}
	k := keys{own: i.own}
	for _, n := range list {
		key := k.of(n)
		p, ok := at[string(key)]
		if !ok {
			p = len(i.pools)
			at[string(key)] = p
			i.pools = append(i.pools, Pool{})
		}
		i.byName[n.Name()] = place{p, len(i.pools[p].Nodes)}
		i.pools[p].Nodes = append(i.pools[p].Nodes, n)
	}
	return i
}

// judgedLabels are those by which nodes are judged under every guard. By those of the
// catalogue they are told apart by what it makes of them.
func judgedLabels() []string {
	return []string{
		corev1.LabelInstanceTypeStable, corev1.LabelInstanceType, corev1.LabelTopologyRegion, corev1.LabelTopologyZone, v1alpha1.ClassLabel,
	}
}

// manyValues is how many values a label may have before it is asked whether it is one
// that every node has its own of.
const manyValues = 8

// ownLabels are the labels of which nearly every node has a value of its own: the host
// name, and what providers add of the kind. Pods are told apart by them as by names.
func ownLabels(list []*Node) map[string]bool {
	type seen struct {
		nodes  int
		values map[string]struct{}
	}
	labels := map[string]*seen{}
	for _, n := range list {
		for k, v := range n.Object.Labels {
			s := labels[k]
			if s == nil {
				s = &seen{values: map[string]struct{}{}}
				labels[k] = s
			}
			s.nodes++
			s.values[v] = struct{}{}
		}
	}
	own := map[string]bool{corev1.LabelHostname: true}
	for k, s := range labels {
		if len(s.values) > manyValues && 2*len(s.values) > s.nodes {
			own[k] = true
		}
	}
	return own
}

// keys makes keys that are the same for nodes of the same pool. It keeps its room from
// one node to the next: there are thousands, and an inventory is made whenever one of
// them changes.
type keys struct {
	own    map[string]bool
	labels []string
	taints []corev1.Taint
	key    []byte
}

// of is the key of a node, good until the next call. What separates the parts stands in
// no label and in no taint.
func (k *keys) of(n *Node) []byte {
	k.labels, k.taints, k.key = k.labels[:0], append(k.taints[:0], n.Object.Spec.Taints...), k.key[:0]
	for label := range n.Object.Labels {
		if !k.own[label] {
			k.labels = append(k.labels, label)
		}
	}
	slices.Sort(k.labels)
	slices.SortFunc(k.taints, func(a, b corev1.Taint) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Value, b.Value), cmp.Compare(a.Effect, b.Effect))
	})
	for _, label := range k.labels {
		k.key = append(append(append(append(k.key, label...), '='), n.Object.Labels[label]...), '\n')
	}
	for _, t := range k.taints {
		k.key = fmt.Appendf(k.key, "%s=%s:%s\n", t.Key, t.Value, t.Effect)
	}
	return fmt.Appendf(k.key, "%d %s %s", n.steal, n.catalogued.Why, n.stolenText())
}

// Node returns the node of a name, nil if there is none.
func (i *Inventory) Node(name string) *Node {
	if i == nil {
		return nil
	}
	at, ok := i.byName[name]
	if !ok {
		return nil
	}
	return i.pools[at.pool].Nodes[at.node]
}

// Pools are the pools, in an order that is the same every time.
func (i *Inventory) Pools() []Pool {
	if i == nil {
		return nil
	}
	return i.pools
}

// Empty reports whether no node is known.
func (i *Inventory) Empty() bool { return i == nil || len(i.pools) == 0 }
