package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/meshvakt/meshvakt/internal/nodes"
)

// mutant is our answer with one rule wrong. The mistake is made outside internal/nodes: by changing what our side is
// told of a pod or a node, or which nodes it takes for equal.
type mutant struct {
	name string
	pod  func(*corev1.Pod)
	node func(*corev1.Node)
	// alike is the same for nodes that are all taken for what the first of them is.
	alike func(*nodes.Inventory, *corev1.Node) string
	plain bool // see plainCase
}

// answers are those of our side with the mistake.
func (m *mutant) answers(c *nodes.Catalogue, tc testCase) (answers, error) {
	changed := tc.clone()
	for _, p := range changed.pods {
		if m.pod != nil {
			m.pod(p)
		}
	}
	for _, n := range changed.nodes {
		if m.node != nil {
			m.node(n)
		}
	}
	all, err := ours(c, changed)
	if m.alike == nil || err != nil {
		return all, err
	}
	i := inventory(c, tc)
	for p := range all {
		first := map[string]bool{}
		for _, n := range tc.nodes {
			key := m.alike(i, n)
			if _, ok := first[key]; !ok {
				first[key] = all[p][n.Name]
			}
			all[p][n.Name] = first[key]
		}
	}
	return all, nil
}

// required changes the required affinity of pods that have one; nil takes it away.
func required(change func(*corev1.NodeSelector) *corev1.NodeSelector) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = change(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		}
	}
}

func term(change func(*corev1.NodeSelectorTerm)) func(*corev1.Pod) {
	return required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
		for i := range s.NodeSelectorTerms {
			change(&s.NodeSelectorTerms[i])
		}
		return s
	})
}

func expression(change func(*corev1.NodeSelectorRequirement)) func(*corev1.Pod) {
	return term(func(t *corev1.NodeSelectorTerm) {
		for i := range t.MatchExpressions {
			change(&t.MatchExpressions[i])
		}
	})
}

func toleration(change func(*corev1.Toleration)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for i := range p.Spec.Tolerations {
			change(&p.Spec.Tolerations[i])
		}
	}
}

func noToleration(drop func(corev1.Toleration) bool) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Tolerations = slices.DeleteFunc(p.Spec.Tolerations, drop) }
}

func noTaint(drop func(corev1.Taint) bool) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, drop) }
}

func isEmpty(t corev1.NodeSelectorTerm) bool {
	return len(t.MatchExpressions) == 0 && len(t.MatchFields) == 0
}

func unparsable(t corev1.NodeSelectorTerm) bool {
	_, err := nodeaffinity.NewNodeSelector(&corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{t}})
	return err != nil
}

func affinityMutants() []mutant {
	return []mutant{
		{name: "nodeSelector is ignored", pod: func(p *corev1.Pod) { p.Spec.NodeSelector = nil }},
		{name: "one label of the nodeSelector is enough", pod: func(p *corev1.Pod) {
			for _, key := range slices.Sorted(maps.Keys(p.Spec.NodeSelector))[min(1, len(p.Spec.NodeSelector)):] {
				delete(p.Spec.NodeSelector, key)
			}
		}},
		{name: "nodeSelector is one of the terms", pod: func(p *corev1.Pod) {
			required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
				var t corev1.NodeSelectorTerm
				for key, value := range p.Spec.NodeSelector {
					t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{value}})
				}
				s.NodeSelectorTerms, p.Spec.NodeSelector = append(s.NodeSelectorTerms, t), nil
				return s
			})(p)
		}},
		{name: "affinity is ignored", pod: func(p *corev1.Pod) { p.Spec.Affinity = nil }},
		{name: "preferred is required", pod: func(p *corev1.Pod) {
			if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution != nil {
				t := a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].Preference
				a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{t}}
			}
		}},
		{name: "no terms ask for nothing", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			if len(s.NodeSelectorTerms) == 0 {
				return nil
			}
			return s
		})},
		{name: "an empty term matches every node", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			if slices.ContainsFunc(s.NodeSelectorTerms, isEmpty) {
				return nil
			}
			return s
		})},
		{name: "terms are ANDed", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			var all corev1.NodeSelectorTerm
			for _, t := range s.NodeSelectorTerms {
				all.MatchExpressions, all.MatchFields = append(all.MatchExpressions, t.MatchExpressions...), append(all.MatchFields, t.MatchFields...)
			}
			s.NodeSelectorTerms = []corev1.NodeSelectorTerm{all}
			return s
		})},
		{name: "only the first term counts", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			s.NodeSelectorTerms = s.NodeSelectorTerms[:min(1, len(s.NodeSelectorTerms))]
			return s
		})},
		{name: "a term that cannot be parsed spoils the others", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			if slices.ContainsFunc(s.NodeSelectorTerms, unparsable) {
				return &corev1.NodeSelector{}
			}
			return s
		})},
		{name: "what cannot be parsed is left out of its term", pod: term(func(t *corev1.NodeSelectorTerm) {
			t.MatchExpressions = slices.DeleteFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool {
				return unparsable(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{r}})
			})
		})},
		{name: "expressions are ORed", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			var each []corev1.NodeSelectorTerm
			for _, t := range s.NodeSelectorTerms {
				for _, r := range t.MatchExpressions {
					each = append(each, corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{r}, MatchFields: t.MatchFields})
				}
				if len(t.MatchExpressions) == 0 {
					each = append(each, t)
				}
			}
			s.NodeSelectorTerms = each
			return s
		})},
		{name: "NotIn asks for the label", pod: term(func(t *corev1.NodeSelectorTerm) {
			for _, r := range slices.Clone(t.MatchExpressions) {
				if r.Operator == corev1.NodeSelectorOpNotIn {
					t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: r.Key, Operator: corev1.NodeSelectorOpExists})
				}
			}
		})},
		{name: "In takes the first value only", pod: expression(func(r *corev1.NodeSelectorRequirement) {
			if r.Operator == corev1.NodeSelectorOpIn && len(r.Values) > 1 {
				r.Values = r.Values[:1]
			}
		})},
		{name: "Gt is at least, Lt is at most", pod: expression(func(r *corev1.NodeSelectorRequirement) {
			if r.Operator != corev1.NodeSelectorOpGt && r.Operator != corev1.NodeSelectorOpLt || len(r.Values) != 1 {
				return
			}
			step := map[corev1.NodeSelectorOperator]int64{corev1.NodeSelectorOpGt: -1, corev1.NodeSelectorOpLt: 1}[r.Operator]
			if n, err := strconv.ParseInt(r.Values[0], 10, 64); err == nil && n+step >= 0 {
				r.Values = []string{strconv.FormatInt(n+step, 10)}
			}
		})},
		{name: "what is no number is 0", pod: expression(func(r *corev1.NodeSelectorRequirement) {
			if (r.Operator == corev1.NodeSelectorOpGt || r.Operator == corev1.NodeSelectorOpLt) && len(r.Values) == 1 {
				n, _ := strconv.ParseUint(r.Values[0], 10, 63)
				r.Values[0] = strconv.FormatUint(n, 10)
			}
		})},
		{name: "a label that is no number is 0", node: func(n *corev1.Node) {
			if _, err := strconv.ParseInt(n.Labels["cores"], 10, 64); n.Labels["cores"] != "" && err != nil {
				n.Labels["cores"] = "0"
			}
		}},
		{name: "an empty label is none", node: func(n *corev1.Node) {
			maps.DeleteFunc(n.Labels, func(_, value string) bool { return value == "" })
		}},
		{name: "the host name is the node's name", node: func(n *corev1.Node) { n.Labels[corev1.LabelHostname] = n.Name }},
	}
}

func nameMutants() []mutant {
	return []mutant{
		{name: "names are ignored", pod: term(func(t *corev1.NodeSelectorTerm) { t.MatchFields = nil })},
		{name: "a node that is named needs no labels", pod: term(func(t *corev1.NodeSelectorTerm) {
			if len(t.MatchFields) > 0 {
				t.MatchExpressions = nil
			}
		})},
		{name: "a node that is named needs no toleration", pod: func(p *corev1.Pod) {
			required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
				if !slices.ContainsFunc(s.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool { return len(t.MatchFields) == 0 }) {
					p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists})
				}
				return s
			})(p)
		}},
		{name: "one named term names for all", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			for _, t := range s.NodeSelectorTerms {
				if len(t.MatchFields) > 0 {
					return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{t}}
				}
			}
			return s
		})},
		{name: "NotIn does not keep off the node", pod: term(func(t *corev1.NodeSelectorTerm) {
			t.MatchFields = slices.DeleteFunc(t.MatchFields, func(r corev1.NodeSelectorRequirement) bool { return r.Operator == corev1.NodeSelectorOpNotIn })
		})},
		{name: "the first of several names counts", pod: term(func(t *corev1.NodeSelectorTerm) {
			for i := range t.MatchFields {
				t.MatchFields[i].Values = t.MatchFields[i].Values[:min(1, len(t.MatchFields[i].Values))]
			}
		})},
		{name: "several names are several terms", pod: required(func(s *corev1.NodeSelector) *corev1.NodeSelector {
			for _, t := range slices.Clone(s.NodeSelectorTerms) {
				for i, r := range t.MatchFields {
					for _, name := range r.Values[min(1, len(r.Values)):] {
						other := *t.DeepCopy()
						other.MatchFields[i].Values = []string{name}
						s.NodeSelectorTerms = append(s.NodeSelectorTerms, other)
					}
				}
			}
			return s
		})},
		{name: "the first of several fields counts", pod: term(func(t *corev1.NodeSelectorTerm) { t.MatchFields = t.MatchFields[:min(1, len(t.MatchFields))] })},
		{name: "any field is the name", pod: term(func(t *corev1.NodeSelectorTerm) {
			for i := range t.MatchFields {
				t.MatchFields[i].Key = metav1.ObjectNameField
			}
		})},
	}
}

func taintMutants() []mutant {
	return []mutant{
		{name: "tolerations are ignored", pod: func(p *corev1.Pod) { p.Spec.Tolerations = nil }},
		{name: "the first toleration counts", pod: func(p *corev1.Pod) { p.Spec.Tolerations = p.Spec.Tolerations[:min(1, len(p.Spec.Tolerations))] }},
		{name: "Gt and Lt tolerate nothing", pod: func(p *corev1.Pod) {
			p.Spec.Tolerations = slices.DeleteFunc(slices.Clone(p.Spec.Tolerations), func(t corev1.Toleration) bool {
				return t.Operator == corev1.TolerationOpGt || t.Operator == corev1.TolerationOpLt
			})
		}},
		{name: "no operator is Exists", pod: toleration(func(t *corev1.Toleration) {
			if t.Operator == "" {
				t.Operator = corev1.TolerationOpExists
			}
		})},
		{name: "an operator that is not known is Equal", pod: toleration(func(t *corev1.Toleration) {
			if !slices.Contains(tolerationOperators, t.Operator) {
				t.Operator = corev1.TolerationOpEqual
			}
		})},
		{name: "Exists compares the value", pod: toleration(func(t *corev1.Toleration) {
			if t.Operator == corev1.TolerationOpExists {
				t.Operator = corev1.TolerationOpEqual
			}
		})},
		{name: "the value is ignored", pod: toleration(func(t *corev1.Toleration) {
			if t.Operator == corev1.TolerationOpEqual {
				t.Operator = corev1.TolerationOpExists
			}
		})},
		{name: "no key tolerates nothing", pod: noToleration(func(t corev1.Toleration) bool { return t.Key == "" })},
		{name: "no key asks for Exists", pod: noToleration(func(t corev1.Toleration) bool { return t.Key == "" && t.Operator != corev1.TolerationOpExists })},
		{name: "the key is ignored", pod: toleration(func(t *corev1.Toleration) { t.Key = "" })},
		{name: "the effect of a toleration is ignored", pod: toleration(func(t *corev1.Toleration) { t.Effect = "" })},
		{name: "no effect is NoSchedule", pod: toleration(func(t *corev1.Toleration) {
			if t.Effect == "" {
				t.Effect = corev1.TaintEffectNoSchedule
			}
		})},
		{name: "seconds are no toleration", pod: noToleration(func(t corev1.Toleration) bool { return t.TolerationSeconds != nil })},
		{name: "the first taint counts", node: func(n *corev1.Node) { n.Spec.Taints = n.Spec.Taints[:min(1, len(n.Spec.Taints))] }},
		{name: "NoSchedule keeps nobody off", node: noTaint(func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoSchedule })},
		{name: "NoExecute keeps nobody off", node: noTaint(func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute })},
		{name: "PreferNoSchedule keeps off", node: func(n *corev1.Node) {
			for i := range n.Spec.Taints {
				if n.Spec.Taints[i].Effect == corev1.TaintEffectPreferNoSchedule {
					n.Spec.Taints[i].Effect = corev1.TaintEffectNoSchedule
				}
			}
		}},
		{name: "taints of the control plane are left out", node: noTaint(func(t corev1.Taint) bool { return t.Key == "node-role.kubernetes.io/control-plane" })},
	}
}

// groupMutants take nodes for equal that are not. All but the first are asked about plain cases, so that nothing else
// than the mistake tells the nodes apart.
func groupMutants() []mutant {
	all := []mutant{
		{name: "a pool is reached whole or not at all", alike: func(i *nodes.Inventory, n *corev1.Node) string {
			at := slices.IndexFunc(i.Pools(), func(p nodes.Pool) bool { return slices.Contains(p.Nodes, i.Node(n.Name)) })
			return strconv.Itoa(at)
		}},
		{name: "taints tell no pools apart", plain: true, alike: said(func(n *corev1.Node) { n.Spec.Taints = nil })},
		{name: "keys of taints tell no pools apart", plain: true, alike: said(func(n *corev1.Node) {
			for i := range n.Spec.Taints {
				n.Spec.Taints[i].Key = ""
			}
		})},
		{name: "values of taints tell no pools apart", plain: true, alike: said(func(n *corev1.Node) {
			for i := range n.Spec.Taints {
				n.Spec.Taints[i].Value = ""
			}
		})},
		{name: "effects of taints tell no pools apart", plain: true, alike: said(func(n *corev1.Node) {
			for i := range n.Spec.Taints {
				n.Spec.Taints[i].Effect = ""
			}
		})},
		{name: "a label that is not there is an empty one", plain: true, alike: said(func(n *corev1.Node) {
			for _, key := range labelKeys {
				n.Labels[key] = n.Labels[key] + ""
			}
		})},
	}
	for _, key := range append([]string{rackLabel}, labelKeys...) {
		all = append(all, mutant{name: key + " tells no pools apart", plain: true, alike: said(func(n *corev1.Node) { delete(n.Labels, key) })})
	}
	return all
}

// said is all that a node says, once it is changed.
func said(change func(*corev1.Node)) func(*nodes.Inventory, *corev1.Node) string {
	return func(_ *nodes.Inventory, n *corev1.Node) string {
		n = n.DeepCopy()
		change(n)
		slices.SortFunc(n.Spec.Taints, func(a, b corev1.Taint) int { return cmp.Compare(a.ToString(), b.ToString()) })
		return fmt.Sprint(n.Labels, n.Spec.Taints)
	}
}

// plainCase is a random one in which nodes have no labels of their own and pods name no nodes.
func plainCase(s uint64, number int) testCase {
	tc := randomCase(sequence(s, number), podsInCase)
	for _, n := range tc.nodes {
		delete(n.Labels, corev1.LabelHostname)
		delete(n.Labels, idLabel)
	}
	for _, p := range tc.pods {
		term(func(t *corev1.NodeSelectorTerm) { t.MatchFields = nil })(p)
	}
	return tc
}

// detected returns the first case that shows the mistake, -1 if none of so many does.
func (m *mutant) detected(t *testing.T, s uint64, within int) (number int, difference string) {
	p, c := newPlugins(t), catalogue(t)
	for number := range within {
		tc := randomCase(sequence(s, number), podsInCase)
		if m.plain {
			tc = plainCase(s, number)
		}
		want, err := p.answers(tc)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.answers(c, tc)
		if err != nil {
			t.Fatal(err)
		}
		if d := differ(tc, got, want); d != "" {
			return number, d
		}
	}
	return -1, ""
}

// A comparison that finds nothing proves nothing unless it would find something.
func TestMutantsAreDetected(t *testing.T) {
	const within = 5000
	s := seed(t)
	for _, m := range slices.Concat(affinityMutants(), nameMutants(), taintMutants(), groupMutants()) {
		t.Run(m.name, func(t *testing.T) {
			number, difference := m.detected(t, s, within)
			if number < 0 {
				t.Fatalf("not detected within %d cases", within)
			}
			t.Logf("detected by case %d: %s", number, difference)
		})
	}
}

// A mutant without its mistake is not detected: what shows the others is the mistake, not the way it is made.
func TestNoMutantIsNotDetected(t *testing.T) {
	s := seed(t)
	for _, m := range []mutant{
		{name: "nothing changed", pod: term(func(*corev1.NodeSelectorTerm) {}), node: func(*corev1.Node) {}},
		{name: "equal nodes taken for equal", plain: true, alike: said(func(*corev1.Node) {})},
	} {
		if number, difference := m.detected(t, s, 200); number >= 0 {
			t.Errorf("%s: detected by case %d: %s", m.name, number, difference)
		}
	}
}
