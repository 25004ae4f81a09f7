package policies_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// nodeWorld is a random cluster, dense in what decides about nodes.
type nodeWorld struct {
	*rand.Rand
	catalogue *nodes.Catalogue
	cluster   facts.Cluster
	objects   []*corev1.Node
	// possible are all labels that a node could have besides its name and its class.
	possible []map[string]string
}

func possibleLabels() []map[string]string {
	list := []map[string]string{{}}
	for _, key := range nodeKeys() {
		for _, one := range slices.Clone(list) {
			for _, v := range nodeValues(key) {
				with := maps.Clone(one)
				with[key] = v
				list = append(list, with)
			}
		}
	}
	return list
}

const cpuLabel, poolLabel = "example.com/cpu", "example.com/pool"

func nodeValues(key string) []string {
	switch key {
	case corev1.LabelTopologyRegion:
		return []string{"north", "south", "west"}
	case corev1.LabelTopologyZone:
		return []string{"north-a", "north-b", "south-a"}
	case corev1.LabelInstanceTypeStable:
		return []string{"t3.large", "t3.xlarge", "m5.large", "c7g.large", "strange"}
	case cpuLabel:
		return []string{"shared", "own", "reserved"}
	case v1alpha1.ClassLabel:
		return []string{"burstable", "unknown", "dedicated"}
	case corev1.LabelHostname:
		return []string{"n0", "n1", "n2", "n3"}
	}
	return []string{"1", "2", "3"}
}

func nodeKeys() []string {
	return []string{corev1.LabelTopologyRegion, corev1.LabelTopologyZone, corev1.LabelInstanceTypeStable, cpuLabel, poolLabel}
}

func newNodeWorld(t *testing.T, random *rand.Rand) *nodeWorld {
	t.Helper()
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	w := &nodeWorld{Rand: random, catalogue: catalogue}
	w.cluster.Catalogue, w.cluster.NodesComplete = catalogue, true
	w.cluster.ControlPlanes, w.cluster.Injection = []mesh.ControlPlane{mesh.DefaultControlPlane()}, mesh.DefaultInjection("default")
	w.cluster.Namespaces = map[string]*facts.Namespace{"prod": {Name: "prod", Labels: map[string]string{"istio-injection": "enabled"}}}
	for i := range 1 + w.IntN(3) {
		g := facts.Guard{Name: fmt.Sprintf("g%d", i), Selector: labels.Everything(), NodePools: w.guard()}
		if i > 0 && w.chance(3) {
			g.Selector = labels.Nothing() // of other namespaces
		}
		w.cluster.Guards = append(w.cluster.Guards, g)
	}
	var list []*nodes.Node
	for i := range w.IntN(9) {
		n := w.node(fmt.Sprintf("n%d", i))
		if written := w.written(n); written != "" {
			n.Labels[v1alpha1.ClassLabel] = nodes.ClassLabelValue(written)
		}
		w.objects, list = append(w.objects, n), append(list, catalogue.NewNode(n))
	}
	w.cluster.Nodes = nodes.NewInventory(list, facts.NodeLabels(w.cluster.Guards)...)
	return w
}

// chance is true once in n times.
func (w *nodeWorld) chance(n int) bool { return w.IntN(n) == 0 }

// some are values of a label, each once in two times, and at least one.
func (w *nodeWorld) some(key string) []string {
	all := nodeValues(key)
	list := slices.DeleteFunc(slices.Clone(all), func(string) bool { return w.chance(2) })
	if len(list) == 0 {
		list = []string{all[w.IntN(len(all))]}
	}
	return list
}

func (w *nodeWorld) guard() *v1alpha1.NodePools {
	g := &v1alpha1.MeshGuard{Spec: v1alpha1.MeshGuardSpec{NodePools: &v1alpha1.NodePools{}}}
	n := g.Spec.NodePools
	if w.chance(2) {
		n.AllowedRegions = w.some(corev1.LabelTopologyRegion)
		if w.chance(3) {
			n.AllowedZones = w.some(corev1.LabelTopologyZone)
		}
	}
	if w.chance(3) {
		n.NodeLabel = &v1alpha1.NodeLabel{Key: cpuLabel, Burstable: []string{"shared"}, Dedicated: []string{"own"}}
	}
	if w.chance(4) {
		class := []v1alpha1.NodeClass{v1alpha1.NodeBurstable, v1alpha1.NodeDedicated}[w.IntN(2)]
		n.InstanceTypes = []v1alpha1.InstanceTypeClass{{Types: w.some(corev1.LabelInstanceTypeStable), Class: class}}
	}
	if w.chance(3) {
		five := int32(5)
		n.MaxStealPercent = &five
	}
	if w.chance(3) {
		n.Unknown = v1alpha1.UnknownDeny
	}
	if w.chance(6) {
		n.Steering = v1alpha1.SteeringNone
	} else if w.chance(5) {
		n.OnNoNode = v1alpha1.OnNoNodeWait
	}
	v1alpha1.SetDefaults(g)
	return n
}

func (w *nodeWorld) node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}, Annotations: map[string]string{}}}
	for _, key := range nodeKeys() {
		if !w.chance(6) {
			n.Labels[key] = nodeValues(key)[w.IntN(len(nodeValues(key)))]
		}
	}
	if w.chance(4) {
		n.Annotations[v1alpha1.AnnotationSteal] = []string{"1.5", "3.9", "9.0"}[w.IntN(3)]
		if w.chance(2) {
			n.Annotations[v1alpha1.ClassSourceAnnotation] = "steal:5"
		}
	}
	if w.chance(4) {
		effects := []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule}
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "only", Value: strconv.Itoa(w.IntN(2)), Effect: effects[w.IntN(3)]})
	}
	if w.chance(8) { // it fares badly at the moment
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	return n
}

// pod is one as its author submits it. Now and then he has read what Meshvakt would add.
func (w *nodeWorld) pod() *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "prod"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web"}}}}
	switch w.IntN(25) {
	case 0:
		pod.Labels = map[string]string{"sidecar.istio.io/inject": "false"}
	case 1:
		yes := true
		pod.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet", Name: "web", Controller: &yes}}
	case 2:
		if len(w.objects) > 0 {
			pod.Spec.NodeName = w.objects[w.IntN(len(w.objects))].Name
		}
	}
	for w.chance(3) {
		key := w.key()
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = map[string]string{}
		}
		pod.Spec.NodeSelector[key] = nodeValues(key)[w.IntN(len(nodeValues(key)))]
	}
	if !w.chance(3) {
		required := &corev1.NodeSelector{}
		for range 1 + w.IntN(3) {
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, w.term())
		}
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: required}}
	}
	if w.chance(3) {
		pod.Spec.Tolerations = []corev1.Toleration{{Key: "only", Operator: corev1.TolerationOpEqual, Value: strconv.Itoa(w.IntN(2))}}
	}
	return pod
}

func (w *nodeWorld) key() string {
	keys := append(nodeKeys(), v1alpha1.ClassLabel, corev1.LabelHostname)
	return keys[w.IntN(len(keys))]
}

func (w *nodeWorld) term() corev1.NodeSelectorTerm {
	var t corev1.NodeSelectorTerm
	for w.chance(2) {
		key := w.key()
		q := corev1.NodeSelectorRequirement{Key: key, Operator: []corev1.NodeSelectorOperator{
			corev1.NodeSelectorOpIn, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn, corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist, corev1.NodeSelectorOpGt,
		}[w.IntN(6)]}
		switch q.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			q.Values = w.some(key)
		case corev1.NodeSelectorOpGt:
			q.Key, q.Values = poolLabel, []string{"1"}
		default:
		}
		t.MatchExpressions = append(t.MatchExpressions, q)
	}
	if w.chance(6) { // as steering begins, or all of it
		t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: v1alpha1.ClassLabel, Operator: corev1.NodeSelectorOpNotIn, Values: []string{"burstable"}})
		if g := w.cluster.Guards[0].NodePools; w.chance(2) && len(g.AllowedRegions) > 0 {
			t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyRegion, Operator: corev1.NodeSelectorOpIn, Values: g.AllowedRegions})
		}
	}
	if w.chance(8) {
		t.MatchFields = []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{nodeValues(corev1.LabelHostname)[w.IntN(4)]}}}
	}
	return t
}
