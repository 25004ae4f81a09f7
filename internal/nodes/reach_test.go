package nodes

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What the scheduler's plugins answer is compared in test/conformance/scheduler; here is
// what was once wrong, and what is not theirs.
func TestReach(t *testing.T) {
	c := catalogue(t)
	i := NewInventory([]*Node{
		newNode(t, c, "a1", "pool=a"), newNode(t, c, "a2", "pool=a"),
		newNode(t, c, "b1", "pool=b", "level=4:NoSchedule"),
		newNode(t, c, "c1", "pool=c", "level=4:PreferNoSchedule"),
	})
	tolerate := func(operator corev1.TolerationOperator, value string) Placement {
		return Placement{Tolerations: []corev1.Toleration{{Key: "level", Operator: operator, Value: value}}}
	}
	terms := func(names ...string) Placement {
		s := &corev1.NodeSelector{}
		for _, name := range names {
			s.NodeSelectorTerms = append(s.NodeSelectorTerms, nameTerm(name).NodeSelectorTerms...)
		}
		return Placement{Required: s}
	}
	for name, x := range map[string]struct {
		pod  Placement
		want string
	}{
		"asks for nothing":           {Placement{}, "a1,a2 c1"},
		"tolerates":                  {tolerate(corev1.TolerationOpEqual, "4"), "a1,a2 b1 c1"},
		"more than":                  {tolerate(corev1.TolerationOpGt, "3"), "a1,a2 b1 c1"},
		"less than":                  {tolerate(corev1.TolerationOpLt, "5"), "a1,a2 b1 c1"},
		"not less than":              {tolerate(corev1.TolerationOpLt, "4"), "a1,a2 c1"},
		"no terms":                   {terms(), ""},
		"named":                      {terms("a2"), "a2"},
		"named, not tolerated":       {terms("b1"), ""},
		"named twice, another order": {terms("c1", "a2", "c1"), "a2 c1"},
	} {
		if got := names(i.Reach(x.pod)); got != x.want {
			t.Errorf("%s: reaches %q; must be %q", name, got, x.want)
		}
	}
	if got := names(i.Pools()); !strings.HasPrefix(got, "a1,a2 ") {
		t.Errorf("the pools are %q after they were asked about", got)
	}
}
