package nodes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// newNode reads labels "key=value" and taints "key=value:effect".
func newNode(t testing.TB, c *Catalogue, name string, says ...string) *Node {
	t.Helper()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}, Annotations: map[string]string{}}}
	for _, s := range says {
		key, value, _ := strings.Cut(s, "=")
		if key == v1alpha1.AnnotationSteal || key == v1alpha1.ClassSourceAnnotation {
			o.Annotations[key] = value
			continue
		}
		if value, effect, ok := strings.Cut(value, ":"); ok {
			o.Spec.Taints = append(o.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
			continue
		}
		o.Labels[key] = value
	}
	return c.NewNode(o)
}

func catalogue(t testing.TB) *Catalogue {
	t.Helper()
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func names(pools []Pool) string {
	var all []string
	for _, p := range pools {
		var of []string
		for _, n := range p.Nodes {
			of = append(of, n.Name())
		}
		all = append(all, strings.Join(of, ","))
	}
	return strings.Join(all, " ")
}

func TestPools(t *testing.T) {
	c := catalogue(t)
	i := NewInventory([]*Node{
		newNode(t, c, "b", "pool=x"),
		newNode(t, c, "a", "pool=x"),
		newNode(t, c, "c", "pool=x", "only=c:NoSchedule"),
		newNode(t, c, "d", "pool=x", "node.kubernetes.io/not-ready=:NoSchedule"),
		newNode(t, c, "e", "pool=x", v1alpha1.AnnotationSteal+"=0.9"),
		newNode(t, c, "f", "pool=x", v1alpha1.AnnotationSteal+"=0.1"),
		newNode(t, c, "g", "pool=y"),
	})
	if got := names(i.Pools()); got != "a,b,d c e,f g" {
		t.Errorf("pools %s", got)
	}
	if i.Node("c").Name() != "c" || i.Node("none") != nil {
		t.Error("nodes are not found by their names")
	}
	var none *Inventory
	if !none.Empty() || none.Pools() != nil || none.Node("a") != nil || none.Reach(Placement{}) != nil {
		t.Error("there is something in no inventory")
	}
}

// A label that each node has its own value of must not make a pool of each.
func TestManyNodesAreFewPools(t *testing.T) {
	c := catalogue(t)
	var list []*Node
	for n := range 5000 {
		list = append(list, newNode(t, c, fmt.Sprintf("n%04d", n),
			fmt.Sprintf("pool=p%d", n%40), fmt.Sprintf("provider.example/id=%d", n), fmt.Sprintf("topology.kubernetes.io/zone=z%d", n%3)))
	}
	i := NewInventory(list)
	if n := len(i.Pools()); n != 120 {
		t.Errorf("%d pools; must be 120, 40 in 3 zones each", n)
	}
	for _, p := range []Placement{
		{NodeSelector: map[string]string{"provider.example/id": "77"}},
		{NodeSelector: map[string]string{corev1.LabelHostname: "n0077"}},
		{Required: nameTerm("n0077")},
	} {
		if got := names(i.Reach(p)); got != "n0077" {
			t.Errorf("%v reaches %q; must be n0077 alone", p, got)
		}
	}
	if got := i.Reach(Placement{NodeSelector: map[string]string{"pool": "p7"}}); len(got) != 3 {
		t.Errorf("reaches %d pools; must be 3", len(got))
	}
	if got := i.Reach(Placement{Required: nameTerm("gone")}); got != nil {
		t.Errorf("reaches %s; must be nothing", names(got))
	}
}

func nameTerm(name string) *corev1.NodeSelector {
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{name}}},
	}}}
}

func TestClassify(t *testing.T) {
	c := catalogue(t)
	five := int32(5)
	label := &v1alpha1.NodeLabel{Key: "cpu", Burstable: []string{"shared"}, Dedicated: []string{"own", ""}}
	steal := func(percent string) string { return v1alpha1.AnnotationSteal + "=" + percent }
	stolen := v1alpha1.ClassSourceAnnotation + "=steal:2,5"
	for name, x := range map[string]struct {
		guard v1alpha1.NodePools
		node  []string
		class Class
		from  Source
	}{
		"nothing":                 {v1alpha1.NodePools{}, nil, Unknown, FromNothing},
		"catalogue":               {v1alpha1.NodePools{}, []string{"node.kubernetes.io/instance-type=t3.large"}, Burstable, FromInstanceType},
		"older label":             {v1alpha1.NodePools{}, []string{"beta.kubernetes.io/instance-type=t3.large"}, Burstable, FromInstanceType},
		"newer label counts":      {v1alpha1.NodePools{}, []string{"beta.kubernetes.io/instance-type=t3.large", "node.kubernetes.io/instance-type=strange"}, Unknown, FromNothing},
		"label":                   {v1alpha1.NodePools{NodeLabel: label}, []string{"cpu=shared"}, Burstable, FromLabel},
		"label before catalogue":  {v1alpha1.NodePools{NodeLabel: label}, []string{"cpu=own", "node.kubernetes.io/instance-type=t3.large"}, Dedicated, FromLabel},
		"empty value":             {v1alpha1.NodePools{NodeLabel: label}, []string{"cpu=", "node.kubernetes.io/instance-type=t3.large"}, Dedicated, FromLabel},
		"label of another value":  {v1alpha1.NodePools{NodeLabel: label}, []string{"cpu=else", "node.kubernetes.io/instance-type=t3.large"}, Burstable, FromInstanceType},
		"no label":                {v1alpha1.NodePools{NodeLabel: label}, nil, Unknown, FromNothing},
		"own type":                {types("STRANGE.*", "Dedicated"), []string{"node.kubernetes.io/instance-type=strange.1"}, Dedicated, FromInstanceType},
		"own type over catalogue": {types("t3.large", "Dedicated"), []string{"node.kubernetes.io/instance-type=t3.large"}, Dedicated, FromInstanceType},
		"no type is not any type": {types("*", "Dedicated"), nil, Unknown, FromNothing},
		"steal":                   {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("5.0")}, Burstable, FromSteal},
		"less steal":              {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("4.9")}, Unknown, FromNothing},
		"steal nobody asks about": {v1alpha1.NodePools{}, []string{steal("99.0")}, Unknown, FromNothing},
		"steal, label before":     {v1alpha1.NodePools{MaxStealPercent: &five, NodeLabel: label}, []string{steal("99.0"), "cpu=own"}, Dedicated, FromLabel},
		"steal over type":         {withSteal(types("m", "Dedicated"), &five), []string{steal("7"), "node.kubernetes.io/instance-type=m"}, Burstable, FromSteal},
		"burstable, no steal":     {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("0"), "node.kubernetes.io/instance-type=t3.large"}, Burstable, FromInstanceType},
		"fallen, not by half":     {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("3.0"), stolen}, Burstable, FromSteal},
		"fallen by half":          {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("2.9"), stolen}, Unknown, FromNothing},
		"fallen for another":      {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("3.0"), v1alpha1.ClassSourceAnnotation + "=steal:2,50"}, Unknown, FromNothing},
		"no number":               {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("much"), stolen}, Unknown, FromNothing},
		"no percentage":           {v1alpha1.NodePools{MaxStealPercent: &five}, []string{steal("1e9"), stolen}, Unknown, FromNothing},
	} {
		got := Classify(&x.guard, newNode(t, c, "n", x.node...))
		if got.Class != x.class || got.Source != x.from || got.Why == "" {
			t.Errorf("%s: %+v; must be %s from %s", name, got, x.class, x.from)
		}
	}
}

func types(pattern, class string) v1alpha1.NodePools {
	return v1alpha1.NodePools{InstanceTypes: []v1alpha1.InstanceTypeClass{{Types: []string{pattern}, Class: v1alpha1.NodeClass(class)}}}
}

func withSteal(n v1alpha1.NodePools, threshold *int32) v1alpha1.NodePools {
	n.MaxStealPercent = threshold
	return n
}

func TestWorst(t *testing.T) {
	order := []Class{Dedicated, Unknown, Burstable}
	for _, a := range order {
		for _, b := range order {
			if got := Worst(a, b); got != order[max(slices.Index(order, a), slices.Index(order, b))] {
				t.Errorf("of %s and %s: %s", a, b, got)
			}
		}
	}
}

// Nodes that are judged by a label are never of one pool, however many values it has.
func TestJudgedLabelsPartPools(t *testing.T) {
	c := catalogue(t)
	var list []*Node
	for n, instanceType := range []string{"t3.large", "m5.large", "m5.xlarge", "m6i.large", "m6i.xlarge", "c5.large", "c5.xlarge", "r5.large", "r5.xlarge"} {
		list = append(list, newNode(t, c, fmt.Sprint("n", n), "node.kubernetes.io/instance-type="+instanceType, fmt.Sprint("topology.kubernetes.io/region=r", n), fmt.Sprint("cpu=", n), fmt.Sprint("id=", n)))
	}
	burstable := func(i *Inventory) (names []string) {
		for _, p := range i.Pools() {
			if Classify(&v1alpha1.NodePools{}, p.First()).Class == Burstable {
				for _, n := range p.Nodes {
					names = append(names, n.Name())
				}
			}
		}
		return names
	}
	i := NewInventory(list)
	if got := burstable(i); !slices.Equal(got, []string{"n0"}) {
		t.Errorf("burstable %q; must be n0 alone", got)
	}
	if len(i.Pools()) != 9 {
		t.Errorf("%d pools; must be one for each region", len(i.Pools()))
	}
	same := make([]*Node, 0, len(list))
	for n := range list {
		same = append(same, newNode(t, c, fmt.Sprint("n", n), fmt.Sprint("cpu=", n), "karpenter.k8s.aws/instance-family="+map[bool]string{true: "t3", false: fmt.Sprint("m", n)}[n == 0]))
	}
	for judged, want := range map[string]int{"": 2, "cpu": 9} { // n0 is burstable by the label of Karpenter
		if got := len(NewInventory(same, judged).Pools()); got != want {
			t.Errorf("with judged label %q %d pools; must be %d", judged, got, want)
		}
	}
	if got := burstable(NewInventory(same)); !slices.Equal(got, []string{"n0"}) {
		t.Errorf("burstable %q; must be n0 alone", got)
	}
}
