package nodes

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// nodesOf makes so many nodes in 40 pools, with 25 labels each, as the nodes of a managed
// cluster have, and a taint on every fourth pool.
func nodesOf(tb testing.TB, count int) []*Node {
	c := catalogue(tb)
	list := make([]*Node, count)
	for n := range list {
		says := []string{
			fmt.Sprintf("example.com/node-pool=pool-%d", n%40),
			fmt.Sprintf("provider.example/id=0a1b2c3d-%08d", n),
			fmt.Sprintf("topology.kubernetes.io/zone=region-1%c", 'a'+n%40%3),
			"topology.kubernetes.io/region=region-1",
			[]string{"node.kubernetes.io/instance-type=m5.large", "node.kubernetes.io/instance-type=t3.large"}[n%2],
		}
		for l := range 19 {
			says = append(says, fmt.Sprintf("provider.example/some-attribute-%d=value-%d", l, l*n%40))
		}
		if n%4 == 0 {
			says = append(says, "dedicated=team:NoSchedule")
		}
		list[n] = newNode(tb, c, fmt.Sprintf("node-%04d", n), says...)
	}
	return list
}

func BenchmarkReach(b *testing.B) {
	ordinary := Placement{
		NodeSelector: map[string]string{"topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": "region-1a"},
		Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: "example.com/node-pool", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"pool-1", "pool-2"}},
			{Key: corev1.LabelInstanceTypeStable, Operator: corev1.NodeSelectorOpExists},
		}}}},
		Tolerations: []corev1.Toleration{
			{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
			{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		},
	}
	daemon := Placement{Required: nameTerm("node-0007"), Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}}
	byHost := Placement{NodeSelector: map[string]string{corev1.LabelHostname: "node-0007"}}
	for _, count := range []int{50, 5000} {
		i := NewInventory(nodesOf(b, count))
		if len(i.Pools()) != 40 {
			b.Fatalf("%d pools; must be 40", len(i.Pools()))
		}
		for _, x := range []struct {
			name string
			pod  Placement
			want int
		}{{"ordinary", ordinary, 10}, {"asks-for-nothing", Placement{}, 30}, {"DaemonSet", daemon, 1}, {"host-name", byHost, 1}} {
			b.Run(fmt.Sprintf("%s/%d-nodes", x.name, count), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if got := len(i.Reach(x.pod)); got != x.want {
						b.Fatalf("reaches %d pools; must be %d", got, x.want)
					}
				}
			})
		}
	}
}

func BenchmarkNewInventory(b *testing.B) {
	for _, count := range []int{50, 5000} {
		list := nodesOf(b, count)
		b.Run(fmt.Sprintf("%d-nodes", count), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NewInventory(list)
			}
		})
	}
}

func BenchmarkNewNode(b *testing.B) {
	c := catalogue(b)
	for _, instanceType := range []string{"t3.large", "m5.large", ""} {
		o := newNode(b, c, "n", "example.com/node-pool=pool-1", corev1.LabelInstanceTypeStable+"="+instanceType).Object.DeepCopy()
		b.Run("type-"+instanceType, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.NewNode(o)
			}
		})
	}
}
