package nodes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Inventory is the nodes of a cluster by pools, so that thousands of nodes cost what
// some dozens of pools do. It is immutable, and nil is the inventory of a cluster
// without nodes.
type Inventory struct {
	pools  []Pool
	byName map[string]*Node
	// names are the labels that tell nodes of a pool apart; see ownLabels.
	names map[string]bool
}

// Pool is nodes that no pod can tell apart, unless it asks for one by its name: their
// labels and taints are the same, and so is their CPU steal.
type Pool struct {
	// Nodes of the pool, sorted by name, at least one.
	Nodes []*Node
}

// First stands for all nodes of the pool.
func (p *Pool) First() *Node { return p.Nodes[0] }

// NewInventory groups nodes. Their names are distinct.
func NewInventory(list []*Node) *Inventory {
	i := &Inventory{byName: make(map[string]*Node, len(list)), names: ownLabels(list)}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *Node) int { return strings.Compare(a.Name(), b.Name()) })
	at := map[string]int{}
	for _, n := range list {
		i.byName[n.Name()] = n
		key := i.key(n)
		p, ok := at[key]
		if !ok {
			p = len(i.pools)
			at[key] = p
			i.pools = append(i.pools, Pool{})
		}
		i.pools[p].Nodes = append(i.pools[p].Nodes, n)
	}
	return i
}

// manyValues is how many values a label may have before it is asked whether it is one
// that every node has its own of.
const manyValues = 8

// ownLabels are the labels of which nearly every node has a value of its own: the host
// name, and what providers add of the kind. Pods are told apart by them as by names.
func ownLabels(list []*Node) map[string]bool {
	values := map[string]map[string]int{}
	for _, n := range list {
		for k, v := range n.Object.Labels {
			if values[k] == nil {
				values[k] = map[string]int{}
			}
			values[k][v]++
		}
	}
	own := map[string]bool{corev1.LabelHostname: true}
	for k, seen := range values {
		nodes := 0
		for _, n := range seen {
			nodes += n
		}
		if len(seen) > manyValues && 2*len(seen) > nodes {
			own[k] = true
		}
	}
	return own
}

// key is the same for nodes of the same pool.
func (i *Inventory) key(n *Node) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(n.Object.Labels)) {
		if !i.names[k] {
			b.WriteString(k + "=" + n.Object.Labels[k] + "\n")
		}
	}
	taints := slices.Clone(n.Object.Spec.Taints)
	slices.SortFunc(taints, func(a, b corev1.Taint) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Value, b.Value), cmp.Compare(a.Effect, b.Effect))
	})
	for _, t := range taints {
		b.WriteString(t.Key + "=" + t.Value + ":" + string(t.Effect) + "\n")
	}
	fmt.Fprintf(&b, "%d %t", n.steal, n.stolen)
	return b.String()
}

// Node returns the node of a name, nil if there is none.
func (i *Inventory) Node(name string) *Node {
	if i == nil {
		return nil
	}
	return i.byName[name]
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
