package scheduler

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodeaffinity"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/tainttoleration"

	"github.com/meshvakt/meshvakt/internal/nodes"
)

var (
	seedFlag  = flag.Uint64("seed", envSeed(), "seed of the random cases; 0: from the clock; also MESHVAKT_SEED")
	casesFlag = flag.Int("cases", 0, "number of random cases; 0: the default of each test")
)

func envSeed() uint64 {
	seed, _ := strconv.ParseUint(os.Getenv("MESHVAKT_SEED"), 10, 64)
	return seed
}

// seed announces the seed, so that a failure can be replayed.
func seed(t *testing.T) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test . -run '^%s$' -seed %d", t.Name(), s)
	return s
}

// answers holds, for each pod, by its place in the case, the names of the nodes that it can land on.
type answers []map[string]bool

// plugins are the scheduler's, in the order in which it asks them.
type plugins []filter

type filter interface {
	fwk.PreFilterPlugin
	fwk.FilterPlugin
}

// newPlugins makes the plugins with the features of a scheduler that was given no --feature-gates but one:
// tolerations with Gt and Lt, which the API server lets in only where they count.
func newPlugins(t testing.TB) plugins {
	t.Helper()
	ctx, features := context.Background(), feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate)
	features.EnableTaintTolerationComparisonOperators = true
	taints, err := tainttoleration.New(ctx, nil, nil, features)
	if err != nil {
		t.Fatal(err)
	}
	affinity, err := nodeaffinity.New(ctx, &config.NodeAffinityArgs{}, nil, features)
	if err != nil {
		t.Fatal(err)
	}
	return plugins{taints.(filter), affinity.(filter)}
}

// answers asks the scheduler's plugins.
func (p plugins) answers(tc testCase) (answers, error) {
	var infos []fwk.NodeInfo
	for _, n := range tc.nodes {
		info := framework.NewNodeInfo()
		info.SetNode(n)
		infos = append(infos, info)
	}
	all := make(answers, len(tc.pods))
	for i, pod := range tc.pods {
		all[i] = map[string]bool{}
		for _, n := range tc.nodes {
			all[i][n.Name] = true
		}
		for _, plugin := range p {
			if err := narrow(plugin, pod, infos, all[i]); err != nil {
				return nil, fmt.Errorf("plugin %s, pod %s: %w", plugin.Name(), pod.Name, err)
			}
		}
		for name, ok := range all[i] {
			if !ok {
				delete(all[i], name)
			}
		}
	}
	return all, nil
}

// narrow takes out of the nodes those that the plugin keeps the pod off.
func narrow(plugin filter, pod *corev1.Pod, infos []fwk.NodeInfo, left map[string]bool) error {
	ctx, state := context.Background(), framework.NewCycleState()
	result, status := plugin.PreFilter(ctx, state, pod, infos)
	switch {
	case status.IsSkip():
		return nil
	case status.IsRejected():
		clear(left)
		return nil
	case !status.IsSuccess():
		return status.AsError()
	}
	for _, info := range infos {
		name := info.Node().Name
		if !result.AllNodes() && !result.NodeNames.Has(name) {
			left[name] = false
			continue
		}
		status := plugin.Filter(ctx, state, pod, info)
		if !status.IsSuccess() && !status.IsRejected() {
			return status.AsError()
		}
		left[name] = left[name] && status.IsSuccess()
	}
	return nil
}

// ours asks internal/nodes.
func ours(c *nodes.Catalogue, tc testCase) (answers, error) {
	i := inventory(c, tc)
	all := make(answers, len(tc.pods))
	for p, pod := range tc.pods {
		all[p] = map[string]bool{}
		for _, pool := range i.Reach(nodes.PlacementOf(&pod.Spec)) {
			for _, n := range pool.Nodes {
				if all[p][n.Name()] {
					return nil, fmt.Errorf("pod %s reaches node %s twice", pod.Name, n.Name())
				}
				all[p][n.Name()] = true
			}
			if len(pool.Nodes) == 0 {
				return nil, fmt.Errorf("pod %s reaches a pool without nodes", pod.Name)
			}
		}
	}
	return all, nil
}

func inventory(c *nodes.Catalogue, tc testCase) *nodes.Inventory {
	var list []*nodes.Node
	for _, n := range tc.nodes {
		list = append(list, c.NewNode(n))
	}
	return nodes.NewInventory(list)
}

// differ describes the first pod and node of which two answers are not the same, "" if there are none.
func differ(tc testCase, got, want answers) string {
	for p, pod := range tc.pods {
		for _, n := range tc.nodes {
			if got[p][n.Name] != want[p][n.Name] {
				return fmt.Sprintf("pod %s on node %s: ours %t, the scheduler's %t", pod.Name, n.Name, got[p][n.Name], want[p][n.Name])
			}
		}
	}
	return ""
}

// mismatch asks both about the case and describes the difference, if any.
func mismatch(t *testing.T, p plugins, c *nodes.Catalogue, tc testCase) string {
	want, err := p.answers(tc)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ours(c, tc)
	if err != nil {
		return err.Error()
	}
	return differ(tc, got, want)
}

func catalogue(t *testing.T) *nodes.Catalogue {
	t.Helper()
	c, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// podsInCase is how many pods are asked about in each cluster.
const podsInCase = 24

// Every node that a pod reaches is one that the scheduler lets it on, and the other way round.
func TestReachDifferential(t *testing.T) {
	n, s := 6_000, seed(t)
	if *casesFlag > 0 {
		n = *casesFlag
	} else if testing.Short() {
		n /= 20
	}
	p, c, begin := newPlugins(t), catalogue(t), time.Now()
	pairs, reached, pools, all, some := 0, 0, 0, 0, 0
	for number := range n {
		tc := randomCase(sequence(s, number), podsInCase)
		want, err := p.answers(tc)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ours(c, tc)
		if err != nil || differ(tc, got, want) != "" {
			tc = shrink(tc, func(smaller testCase) bool { return mismatch(t, p, c, smaller) != "" })
			t.Fatalf("case %d of seed %d: %s\n%s", number, s, mismatch(t, p, c, tc), tc)
		}
		all += len(tc.nodes)
		pools += len(inventory(c, tc).Pools())
		pairs += len(tc.nodes) * len(tc.pods)
		for _, nodes := range want {
			reached += len(nodes)
			if len(nodes) > 0 && len(nodes) < len(tc.nodes) {
				some++
			}
		}
	}
	t.Logf("%d cases in %v: %d nodes in %d pools, %d pairs of pod and node, %d of them reached; %d of %d pods reach some nodes and not others",
		n, time.Since(begin).Round(time.Millisecond), all, pools, pairs, reached, some, n*podsInCase)
	if reached < pairs/10 || reached > pairs*9/10 {
		t.Errorf("%d of %d pairs are reached: the generator is too tame", reached, pairs)
	}
	if pools > all*9/10 {
		t.Errorf("%d nodes are in %d pools: the generator has no equal nodes", all, pools)
	}
	if some < n*podsInCase/10 {
		t.Errorf("only %d pods reach some nodes and not others", some)
	}
}

// NewNode leaves out the taints that come and go by themselves, and nothing else of what the scheduler reads.
func TestOnlyPassingTaintsAreLeftOut(t *testing.T) {
	p, c := newPlugins(t), catalogue(t)
	passing := []string{
		corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable, corev1.TaintNodeMemoryPressure,
		corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable, corev1.TaintNodeOutOfService,
		"node.cloudprovider.kubernetes.io/uninitialized", "node.cloudprovider.kubernetes.io/shutdown",
	}
	lasting := []string{
		"node.kubernetes.io", "node.kubernetes.example/not-ready", "x.node.kubernetes.io/not-ready", "Node.kubernetes.io/not-ready",
		"node-role.kubernetes.io/control-plane", "node.cloudprovider.kubernetes.io", "cloudprovider.kubernetes.io/uninitialized", "kubernetes.io/not-ready",
		"not-ready", "node.kubernetes.io.example/x",
	}
	for _, key := range append(append([]string{}, passing...), lasting...) {
		for _, effect := range taintEffects {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: key, Value: "v", Effect: effect}}}}
			tc := testCase{nodes: []*corev1.Node{node}, pods: []*corev1.Pod{
				{ObjectMeta: metav1.ObjectMeta{Name: "tolerates-nothing"}},
				{ObjectMeta: metav1.ObjectMeta{Name: "tolerates-it"}, Spec: corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: key, Operator: corev1.TolerationOpExists}}}},
			}}
			want, err := p.answers(tc)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ours(c, tc)
			if err != nil {
				t.Fatal(err)
			}
			if want[0]["n"] != (effect == corev1.TaintEffectPreferNoSchedule) || !want[1]["n"] {
				t.Fatalf("%s:%s: the scheduler's own answer is %v", key, effect, want)
			}
			if strings.HasPrefix(key, "node.kubernetes.io/") || strings.HasPrefix(key, "node.cloudprovider.kubernetes.io/") {
				want[0] = want[1]
			}
			if d := differ(tc, got, want); d != "" {
				t.Errorf("%s:%s: %s", key, effect, d)
			}
		}
	}
	// A taint that stays is not lost beside one that is left out.
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: passing[0], Effect: corev1.TaintEffectNoExecute}, {Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}, {Key: passing[1], Effect: corev1.TaintEffectNoSchedule},
	}}}
	if got := c.NewNode(node).Object.Spec.Taints; len(got) != 1 || got[0].Key != "dedicated" {
		t.Errorf("of the taints stay %v; must be dedicated alone", got)
	}
	if len(node.Spec.Taints) != 3 {
		t.Error("NewNode changes the node that it is given")
	}
}
