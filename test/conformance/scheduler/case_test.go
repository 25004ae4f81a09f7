package scheduler

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// testCase is one cluster and pods that are new in it.
type testCase struct {
	nodes []*corev1.Node
	pods  []*corev1.Pod
}

// Labels of which nearly every node can have a value of its own.
const (
	idLabel   = "provider.example/id"
	rackLabel = "rack"
)

// The universe is small, so that what pods ask for is what nodes have. Numbers come in the spellings that the
// scheduler's parsers tell apart: with a leading zero, beyond 64 bits, with a sign, which no label value can have.
var (
	nodeLabels = map[string][]string{
		"pool":  {"a", "b", "c", ""},
		"zone":  {"z1", "z2"},
		"cores": {"4", "8", "08", "16", "0", "4x", "", "9223372036854775807", "99999999999999999999"},
		"tier":  {"", "x"},
	}
	labelKeys    = slices.Sorted(maps.Keys(nodeLabels))
	numbers      = []string{"4", "8", "08", "7", "0", "-1", "4x", "", "+4", "9223372036854775806", "9223372036854775807", "99999999999999999999"}
	taintKeys    = []string{"dedicated", "gpu", "cores", "node-role.kubernetes.io/control-plane", "node.kubernetes.example/x"}
	taintValues  = []string{"", "a", "b", "4", "8", "4x"}
	taintEffects = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule}
	operators    = []corev1.NodeSelectorOperator{
		corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn, corev1.NodeSelectorOpExists,
		corev1.NodeSelectorOpDoesNotExist, corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt,
	}
	tolerationOperators = []corev1.TolerationOperator{
		"", corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt,
	}
	steals = []string{"", "", "", "3", "7.5"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// one reports true once in so many times.
func one(r *rand.Rand, in int) bool { return r.IntN(in) == 0 }

// sequence is what case n of a seed is drawn from.
func sequence(seed uint64, n int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(n))) }

// randomCase makes a cluster of a few nodes, or now and then of some dozens, and so many pods.
func randomCase(r *rand.Rand, pods int) testCase {
	most := 12
	if one(r, 4) {
		most = 48
	}
	g := generator{Rand: r, racks: 1 + r.IntN(most), ids: pick(r, []int{0, 1, 2, 100})}
	var tc testCase
	for range 1 + r.IntN(most) {
		tc.nodes = append(tc.nodes, g.node(tc.nodes))
	}
	g.nodes = tc.nodes
	for p := range pods {
		tc.pods = append(tc.pods, g.pod(fmt.Sprintf("p%d", p)))
	}
	return tc
}

// generator draws from the universe, and from the nodes that it has drawn.
type generator struct {
	*rand.Rand
	nodes []*corev1.Node
	// racks is how many values the label rack has, so that it comes down on either side of what makes a label one
	// of a node's own; one node in ids has no provider id, 0 for all.
	racks, ids int
}

// node is a new one, or one like another, or one that differs from another in one thing only.
func (g *generator) node(others []*corev1.Node) *corev1.Node {
	name := fmt.Sprintf("n%d", len(others))
	n := g.newNode()
	if len(others) > 0 && !one(g.Rand, 3) {
		n = pick(g.Rand, others).DeepCopy()
		if one(g.Rand, 2) {
			g.change(n)
		}
	}
	n.Name = name
	g.own(n.Labels, corev1.LabelHostname, name, 12)
	g.own(n.Labels, idLabel, "id-"+name, g.ids)
	g.Shuffle(len(n.Spec.Taints), func(i, j int) { n.Spec.Taints[i], n.Spec.Taints[j] = n.Spec.Taints[j], n.Spec.Taints[i] })
	return n
}

// own gives the node a value of its own, but for one node in so many: that has none, or another's.
func (g *generator) own(labels map[string]string, key, value string, except int) {
	switch {
	case except == 0 || one(g.Rand, except) && one(g.Rand, 2):
		delete(labels, key)
	case one(g.Rand, except):
		// The label of the node that it was copied from stays.
	default:
		labels[key] = value
	}
}

func (g *generator) newNode() *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{}}}
	for range g.IntN(6) {
		g.change(n)
	}
	return n
}

// change changes one label, taint or measurement of the node.
func (g *generator) change(n *corev1.Node) {
	switch key := pick(g.Rand, labelKeys); g.IntN(8) {
	case 0:
		n.Annotations[v1alpha1.AnnotationSteal] = pick(g.Rand, steals)
	case 1:
		n.Labels[rackLabel] = fmt.Sprintf("r%d", g.IntN(g.racks))
	case 2:
		delete(n.Labels, key)
	case 3, 4:
		n.Labels[key] = pick(g.Rand, nodeLabels[key])
	default:
		g.taint(n)
	}
}

// taint changes a part of a taint, takes the taint away, or adds one.
func (g *generator) taint(n *corev1.Node) {
	t := corev1.Taint{Key: pick(g.Rand, taintKeys), Value: pick(g.Rand, taintValues), Effect: pick(g.Rand, taintEffects)}
	if len(n.Spec.Taints) > 0 && one(g.Rand, 2) {
		old := n.Spec.Taints[0]
		n.Spec.Taints = n.Spec.Taints[1:]
		switch g.IntN(4) {
		case 0:
			return
		case 1:
			t.Value, t.Effect = old.Value, old.Effect
		case 2:
			t.Key, t.Effect = old.Key, old.Effect
		case 3:
			t.Key, t.Value = old.Key, old.Value
		}
	}
	// The API server has each key once with each effect.
	n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(o corev1.Taint) bool { return o.MatchTaint(&t) })
	n.Spec.Taints = append(n.Spec.Taints, t)
}

func (g *generator) pod(name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
	switch g.IntN(8) {
	case 0:
		p.Spec.NodeSelector = map[string]string{}
	case 1, 2:
		p.Spec.NodeSelector = map[string]string{}
		for range 1 + g.IntN(2) {
			key, value := g.label()
			p.Spec.NodeSelector[key] = value
		}
	}
	switch g.IntN(8) {
	case 0:
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{}}
	case 1:
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 1, Preference: g.term(false)}},
		}}
	case 2, 3, 4, 5, 6:
		required, named := &corev1.NodeSelector{}, one(g.Rand, 3)
		for range min(g.IntN(5), g.IntN(5)) {
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, g.term(named))
		}
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: required}}
	}
	if one(g.Rand, 4) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists})
	}
	for range g.IntN(5) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, g.toleration())
	}
	return p
}

// label is one that some node has, or else any.
func (g *generator) label() (key, value string) {
	if n := pick(g.Rand, g.nodes); len(n.Labels) > 0 && !one(g.Rand, 4) {
		key = pick(g.Rand, slices.Sorted(maps.Keys(n.Labels)))
		return key, n.Labels[key]
	}
	key = pick(g.Rand, labelKeys)
	return key, pick(g.Rand, nodeLabels[key])
}

// term asks for a node by its name always, or else sometimes.
func (g *generator) term(named bool) corev1.NodeSelectorTerm {
	var t corev1.NodeSelectorTerm
	if one(g.Rand, 12) {
		t.MatchExpressions, t.MatchFields = []corev1.NodeSelectorRequirement{}, []corev1.NodeSelectorRequirement{}
	}
	if one(g.Rand, 12) {
		return t
	}
	if named {
		t.MatchFields = append(t.MatchFields, corev1.NodeSelectorRequirement{
			Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{g.name()},
		})
	}
	if one(g.Rand, 4) {
		t.MatchFields = append(t.MatchFields, g.field())
	}
	for range g.IntN(3) {
		t.MatchExpressions = append(t.MatchExpressions, g.expression())
	}
	return t
}

// name is that of a node, or of one that is not there.
func (g *generator) name() string {
	if one(g.Rand, 8) {
		return pick(g.Rand, []string{"gone", "", "N0"})
	}
	return pick(g.Rand, g.nodes).Name
}

func (g *generator) field() corev1.NodeSelectorRequirement {
	f := corev1.NodeSelectorRequirement{Key: metav1.ObjectNameField, Operator: pick(g.Rand, operators[:2]), Values: []string{g.name()}}
	if one(g.Rand, 8) {
		f.Operator = pick(g.Rand, operators)
	}
	if one(g.Rand, 8) {
		// To the scheduler, a node has no other field, and what it has not is empty.
		f.Key, f.Values = pick(g.Rand, []string{"metadata.namespace", "name", ""}), []string{pick(g.Rand, []string{"", "", g.name()})}
	}
	switch g.IntN(12) {
	case 0:
		f.Values = append(f.Values, g.name())
	case 1:
		f.Values = nil
	}
	return f
}

func (g *generator) expression() corev1.NodeSelectorRequirement {
	key, value := g.label()
	e := corev1.NodeSelectorRequirement{Key: key, Operator: pick(g.Rand, operators)}
	switch e.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		e.Values = []string{value}
		for range g.IntN(3) {
			_, other := g.label()
			e.Values = append(e.Values, other)
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		e.Key, e.Values = "cores", []string{pick(g.Rand, numbers)}
	}
	switch g.IntN(40) {
	case 0:
		e.Values = append(e.Values, "4")
	case 1:
		e.Values = nil
	case 2:
		e.Operator = pick(g.Rand, []corev1.NodeSelectorOperator{"", "Near", "in"})
	case 3:
		e.Key = pick(g.Rand, []string{"", "not a key", metav1.ObjectNameField, "Pool"})
	}
	return e
}

func (g *generator) toleration() corev1.Toleration {
	t := corev1.Toleration{
		Key: pick(g.Rand, taintKeys), Operator: pick(g.Rand, tolerationOperators), Value: pick(g.Rand, taintValues),
		Effect: pick(g.Rand, append([]corev1.TaintEffect{"", ""}, taintEffects...)),
	}
	if taints := pick(g.Rand, g.nodes).Spec.Taints; len(taints) > 0 && !one(g.Rand, 4) {
		taint := pick(g.Rand, taints)
		t.Key, t.Value = taint.Key, taint.Value
	}
	if t.Operator == corev1.TolerationOpGt || t.Operator == corev1.TolerationOpLt {
		t.Value = pick(g.Rand, numbers)
	}
	if one(g.Rand, 12) {
		t.Key = ""
	}
	if one(g.Rand, 20) {
		t.Operator = "Near"
	}
	if one(g.Rand, 20) {
		t.Effect = "Never"
	}
	if one(g.Rand, 8) {
		t.TolerationSeconds = new(int64)
	}
	return t
}

func (tc testCase) clone() testCase {
	var c testCase
	for _, n := range tc.nodes {
		c.nodes = append(c.nodes, n.DeepCopy())
	}
	for _, p := range tc.pods {
		c.pods = append(c.pods, p.DeepCopy())
	}
	return c
}

// shrink takes away what the case fails without, until every part that is left is needed.
func shrink(tc testCase, fails func(testCase) bool) testCase {
	for again := true; again; {
		again = false
		for cut := 0; ; cut++ {
			smaller := tc.clone()
			if !smaller.cut(cut) {
				break
			}
			if fails(smaller) {
				tc, again, cut = smaller, true, cut-1
			}
		}
	}
	return tc
}

// cut takes the part of a number out of the case; false when there is none of this number.
func (tc *testCase) cut(number int) bool {
	at := number
	if cutOne(&tc.nodes, &at) || cutOne(&tc.pods, &at) {
		return true
	}
	for _, n := range tc.nodes {
		if cutKey(n.Labels, &at) || cutKey(n.Annotations, &at) || cutOne(&n.Spec.Taints, &at) {
			return true
		}
	}
	for _, p := range tc.pods {
		if cutKey(p.Spec.NodeSelector, &at) || cutOne(&p.Spec.Tolerations, &at) {
			return true
		}
		if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil || p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
			continue
		}
		if at--; at < 0 {
			p.Spec.Affinity = nil
			return true
		}
		required := p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		if cutOne(&required.NodeSelectorTerms, &at) {
			return true
		}
		for i := range required.NodeSelectorTerms {
			t := &required.NodeSelectorTerms[i]
			if cutOne(&t.MatchExpressions, &at) || cutOne(&t.MatchFields, &at) {
				return true
			}
		}
	}
	return false
}

// cutOne takes element at out of the list; when there is none, it counts the list off.
func cutOne[T any](list *[]T, at *int) bool {
	if *at < len(*list) {
		*list = slices.Delete(*list, *at, *at+1)
		return true
	}
	*at -= len(*list)
	return false
}

func cutKey(m map[string]string, at *int) bool {
	keys := slices.Sorted(maps.Keys(m))
	if *at < len(keys) {
		delete(m, keys[*at])
		return true
	}
	*at -= len(keys)
	return false
}

// String is the case as manifests.
func (tc testCase) String() string {
	var b strings.Builder
	for _, n := range tc.nodes {
		b.WriteString("---\n" + manifest("Node", n.ObjectMeta, corev1.NodeSpec{Taints: n.Spec.Taints}))
	}
	for _, p := range tc.pods {
		spec := map[string]any{"nodeSelector": p.Spec.NodeSelector, "affinity": p.Spec.Affinity, "tolerations": p.Spec.Tolerations}
		b.WriteString("---\n" + manifest("Pod", p.ObjectMeta, spec))
	}
	return b.String()
}

func manifest(kind string, meta metav1.ObjectMeta, spec any) string {
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": spec})
	if err != nil {
		return err.Error()
	}
	return string(text)
}
