package policies_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	schedulinghelpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// TestPlacementOfRandomPods holds node-pools against its definition: where pods can land
// is found out node by node with Kubernetes' own helpers, in random clusters under
// random guards, where every node carries the class that it must.
//
//   - A pod that has been steered can land on those nodes that it could land on before
//     and that no guard refuses. Where the class that is written on nodes is not that of
//     the guard, it may still land on nodes that are refused for their class, unless they
//     tell that by other labels; and it never loses a node on which it may run.
//   - Steering again changes nothing.
//   - Steering changes no judgement.
//   - A pod is refused exactly if there are nodes on which it can land and the guard
//     refuses all of them; or for what it asks for, if there is no such node, and then
//     none could be thought of on which it may run.
//   - A pod of a DaemonSet is not refused for where it can land.
//   - A DaemonSet is refused exactly if it can land on a node that the guard refuses.
func TestPlacementOfRandomPods(t *testing.T) {
	t.Parallel()
	const clusters, podsEach = 1_000, 6
	random := rand.New(rand.NewPCG(20261126, 8))
	seen, possible := map[string]int{}, possibleLabels()
	for range clusters {
		w := newNodeWorld(t, random)
		w.possible = possible
		for range podsEach {
			pod := w.pod()
			steered := w.steered(t, pod)
			w.checkSteering(t, pod, steered, seen)
			if again := w.steered(t, steered); !sameJSON(t, again, steered) {
				t.Fatalf("steers again\n%s", w.describe(t, pod, steered, again))
			}
			d, after := w.judged(t, w.review(pod)), w.judged(t, w.review(steered))
			if !reflect.DeepEqual(d.Findings, after.Findings) {
				t.Fatalf("steering changes the judgement\nfrom %q\n  to %q\n%s", texts(&d), texts(&after), w.describe(t, pod, steered))
			}
			w.checkRefusal(t, pod, &d, seen)
			w.checkDaemonSet(t, pod, seen)
		}
	}
	const pods = clusters * podsEach
	for _, kind := range []string{
		"loses a node", "keeps all nodes", "loses all nodes", "is not to be steered", "class of another guard", "refused",
		"not refused", "refused for what it asks for", "reaches no node", "has been steered by its author", "DaemonSet refused", "DaemonSet passes", "of a DaemonSet",
	} {
		if seen[kind] < pods/200 {
			t.Errorf("%s: only %d of %d pods", kind, seen[kind], pods)
		}
	}
	t.Log(seen)
}

func (w *nodeWorld) review(pod *corev1.Pod) *facts.Review {
	return &facts.Review{
		Operation: admissionv1.Create, Namespace: "prod", Name: pod.Name, Object: pod, Cluster: w.cluster, Submitted: true,
		Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Resource: corev1.SchemeGroupVersion.WithResource("pods"),
	}
}

func (w *nodeWorld) judged(t *testing.T, r *facts.Review) policies.Decision {
	t.Helper()
	d, err := policies.Evaluate(policies.All(), r)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// steered applies what Meshvakt changes, as the API server does.
func (w *nodeWorld) steered(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	changes, err := policies.Mutate(policies.All(), w.review(pod))
	if err != nil {
		t.Fatal(err)
	}
	raw := marshal(t, pod)
	operations, err := objects.Patch(raw, changes)
	if err != nil {
		t.Fatal(err)
	}
	if len(operations) == 0 {
		return pod
	}
	patch, err := jsonpatch.DecodePatch(marshal(t, operations))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = patch.Apply(raw); err != nil {
		t.Fatal(err)
	}
	out := &corev1.Pod{}
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// The definition.

// lands reports whether the scheduler could put the pod on the node, once that fares well.
func lands(pod *corev1.Pod, n *corev1.Node) bool {
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(n); !ok || err != nil {
		return false
	}
	_, untolerated := schedulinghelpers.FindMatchingUntoleratedTaint(logr.Discard(), n.Spec.Taints, pod.Spec.Tolerations, func(t *corev1.Taint) bool {
		return t.Effect != corev1.TaintEffectPreferNoSchedule && !strings.HasPrefix(t.Key, "node.kubernetes.io/")
	}, true)
	return !untolerated
}

// written is the class that is written on the node: the worst of those of all guards.
func (w *nodeWorld) written(n *corev1.Node) nodes.Class {
	var worst nodes.Class
	for _, g := range w.cluster.Guards {
		class := nodes.Classify(g.NodePools, w.catalogue.NewNode(n)).Class
		if worst == "" {
			worst = class
		}
		worst = nodes.Worst(worst, class)
	}
	return worst
}

func (w *nodeWorld) refused(g *facts.Guard, n *corev1.Node) bool {
	return len(nodes.Refused(g.NodePools, w.catalogue.NewNode(n))) > 0
}

// classRefused reports whether the guard lets no pod on nodes of the class.
func classRefused(g *facts.Guard, c nodes.Class) bool {
	return c == nodes.Burstable || c == nodes.Unknown && g.NodePools.Unknown == v1alpha1.UnknownDeny
}

// tells reports whether what is written on nodes tells for each whether the guard
// refuses it for its class.
func (w *nodeWorld) tells(g *facts.Guard) bool {
	return !slices.ContainsFunc(w.objects, func(n *corev1.Node) bool {
		own := nodes.Classify(g.NodePools, w.catalogue.NewNode(n)).Class
		return classRefused(g, own) != classRefused(g, w.written(n))
	})
}

// tellsItself reports whether a node that the guard refuses says so by labels other than
// the one with the class: by where it is, by the guard's label, or by a type of which
// no node that is there may be used.
func (w *nodeWorld) tellsItself(g *facts.Guard, n *corev1.Node) bool {
	refusals := nodes.Refused(g.NodePools, w.catalogue.NewNode(n))
	if slices.ContainsFunc(refusals, func(f nodes.Refusal) bool { return f.Cause == nodes.CausePlace }) {
		return true
	}
	if l := g.NodePools.NodeLabel; l != nil && slices.Contains(l.Burstable, n.Labels[l.Key]) && n.Labels[l.Key] != "" {
		return true
	}
	t := n.Labels[corev1.LabelInstanceTypeStable]
	return t != "" && classRefused(g, w.catalogue.TypeClass(g.NodePools, t)) && !slices.ContainsFunc(w.objects, func(o *corev1.Node) bool {
		return o.Labels[corev1.LabelInstanceTypeStable] == t && !classRefused(g, nodes.Classify(g.NodePools, w.catalogue.NewNode(o)).Class)
	})
}

// about are the guards of the pod.
func (w *nodeWorld) about(pod *corev1.Pod) []*facts.Guard {
	var list []*facts.Guard
	for i := range w.cluster.Guards {
		if g := &w.cluster.Guards[i]; g.Selector.Matches(labels.Set{}) && pod.Labels["sidecar.istio.io/inject"] != "false" {
			list = append(list, g)
		}
	}
	return list
}

// steering are those of them that steer it.
func (w *nodeWorld) steering(pod *corev1.Pod) []*facts.Guard {
	return slices.DeleteFunc(w.about(pod), func(g *facts.Guard) bool { return g.NodePools.Steering != v1alpha1.SteeringRequired })
}

// What is checked.

func (w *nodeWorld) checkSteering(t *testing.T, pod, steered *corev1.Pod, seen map[string]int) {
	t.Helper()
	steer := w.steering(pod)
	if len(steer) == 0 || pod.Spec.NodeName != "" || len(w.objects) == 0 {
		seen["is not to be steered"]++
		if !sameJSON(t, pod, steered) {
			t.Fatalf("is steered, which it must not be\n%s", w.describe(t, pod, steered))
		}
		return
	}
	before, lost := 0, 0
	for _, n := range w.objects {
		was, is := lands(pod, n), lands(steered, n)
		refused := slices.ContainsFunc(steer, func(g *facts.Guard) bool { return w.refused(g, n) })
		known := slices.ContainsFunc(steer, func(g *facts.Guard) bool { return w.refused(g, n) && (w.tells(g) || w.tellsItself(g, n)) })
		switch {
		case is && !was, was && !refused && !is, is && known:
			t.Fatalf("node %s: lands before %v and steered %v, is refused %v, and so that steering can know %v\n%s", n.Name, was, is, refused, known, w.describe(t, pod, steered))
		case refused && !known:
			seen["class of another guard"]++
		}
		if was {
			before++
		}
		if was && !is {
			lost++
		}
	}
	switch {
	case lost == 0:
		seen["keeps all nodes"]++
	case lost == before:
		seen["loses all nodes"]++
	default:
		seen["loses a node"]++
	}
}

// checkRefusal holds the judgement of a pod whose node is not chosen against the nodes.
func (w *nodeWorld) checkRefusal(t *testing.T, pod *corev1.Pod, d *policies.Decision, seen map[string]int) {
	t.Helper()
	if pod.Spec.NodeName != "" {
		return
	}
	if len(pod.OwnerReferences) > 0 {
		seen["of a DaemonSet"]++
		if len(d.Findings) > 0 {
			t.Fatalf("a pod of a DaemonSet is refused, and must wait: %q\n%s", texts(d), w.describe(t, pod))
		}
		return
	}
	if w.likeSteered(t, pod) {
		seen["has been steered by its author"]++
		return
	}
	reached := slices.DeleteFunc(slices.Clone(w.objects), func(n *corev1.Node) bool { return !lands(pod, n) })
	if len(reached) == 0 {
		seen["reaches no node"]++
	}
	for _, g := range w.about(pod) {
		want := len(reached) > 0 && !slices.ContainsFunc(reached, func(n *corev1.Node) bool { return !w.refused(g, n) })
		got := finding(d, g, "OnlyRefusedNodes")
		if (got != nil) != want && (len(reached) > 0 || got == nil) {
			t.Fatalf("guard %s: refused %v, must be %v\n%s", g.Name, got != nil, want, w.describe(t, pod))
		}
		switch {
		case want:
			seen["refused"]++
		case got != nil:
			seen["refused for what it asks for"]++
			if n := w.imagined(pod, g); n != nil {
				t.Fatalf("guard %s: %s\nbut there could be a node %v\n%s", g.Name, got.Text(), n.Labels, w.describe(t, pod))
			}
		default:
			seen["not refused"]++
		}
	}
}

// likeSteered reports whether a term of the author's is already what steering would make
// of another: then it counts as that.
func (w *nodeWorld) likeSteered(t *testing.T, pod *corev1.Pod) bool {
	t.Helper()
	if pod.Spec.Affinity == nil || len(w.steering(pod)) == 0 || len(w.objects) == 0 {
		return false
	}
	after := required(w.steered(t, pod))
	for i, term := range required(pod) {
		if len(term.MatchExpressions) > 0 && len(term.MatchExpressions) == len(after[i].MatchExpressions) {
			return true
		}
	}
	return false
}

func required(pod *corev1.Pod) []corev1.NodeSelectorTerm {
	return pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
}

// finding is what has been found for a reason under a guard, nil if nothing has.
func finding(d *policies.Decision, g *facts.Guard, reason string) *policies.Ruling {
	i := slices.IndexFunc(d.Findings, func(f policies.Ruling) bool { return f.Reason.Name == reason && slices.Contains(f.Guards, g.Name) })
	if i < 0 {
		return nil
	}
	return &d.Findings[i]
}

// imagined is a node that could be there one day, on which the pod could land and which
// the guard does not refuse; nil if none can be thought of.
func (w *nodeWorld) imagined(pod *corev1.Pod, g *facts.Guard) *corev1.Node {
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	names := append(slices.Clone(nodeValues(corev1.LabelHostname)), "new")
	names = slices.DeleteFunc(names, func(name string) bool { return w.cluster.Nodes.Node(name) != nil })
	for _, name := range names {
		for _, one := range w.possible {
			n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: one}}
			n.Labels[corev1.LabelHostname] = name
			for _, classed := range []bool{false, true} {
				delete(n.Labels, v1alpha1.ClassLabel)
				if classed && len(w.cluster.Guards) == 1 { // that of one guard says little about that of another
					n.Labels[v1alpha1.ClassLabel] = nodes.ClassLabelValue(w.written(n))
				}
				if ok, err := affinity.Match(n); ok && err == nil && !w.refused(g, n) {
					return n
				}
			}
		}
	}
	return nil
}

// checkDaemonSet holds the judgement of a DaemonSet of such pods against the nodes.
func (w *nodeWorld) checkDaemonSet(t *testing.T, pod *corev1.Pod, seen map[string]int) {
	t.Helper()
	if pod.Spec.NodeName != "" {
		return
	}
	r := w.review(pod)
	r.Kind, r.Submitted = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DaemonSet"}, false
	r.Object = &facts.Workload{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "prod"}, Path: "spec.template", Pods: 1,
		Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
	}
	d := w.judged(t, r)
	for _, g := range w.about(pod) {
		want := slices.ContainsFunc(w.objects, func(n *corev1.Node) bool { return lands(pod, n) && w.refused(g, n) })
		if got := finding(&d, g, "DaemonSetOnRefusedNodes") != nil; got != want {
			t.Fatalf("guard %s: the DaemonSet is refused %v, must be %v\n%s", g.Name, got, want, w.describe(t, pod))
		}
		seen[map[bool]string{true: "DaemonSet refused", false: "DaemonSet passes"}[want]]++
	}
}

func (w *nodeWorld) describe(t *testing.T, pods ...*corev1.Pod) string {
	t.Helper()
	var b strings.Builder
	for _, g := range w.cluster.Guards {
		fmt.Fprintf(&b, "guard %s of all %v %s\n", g.Name, g.Selector.Matches(labels.Set{}), marshal(t, g.NodePools))
	}
	for _, n := range w.objects {
		fmt.Fprintf(&b, "node %s %v %v %s\n", n.Name, n.Labels, n.Annotations, marshal(t, n.Spec.Taints))
	}
	for _, p := range pods {
		fmt.Fprintf(&b, "pod %s\n", marshal(t, p))
	}
	return b.String()
}
