package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func storedNode(name, instanceType string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelInstanceTypeStable: instanceType}}}
}

func nodeGuard(t *testing.T) []facts.Guard {
	t.Helper()
	guards := defaultGuards(t)
	guards[0].NodePools = v1alpha1.DefaultGuard().Spec.NodePools
	return guards
}

func onNode(node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web"}, Spec: corev1.PodSpec{NodeName: node}}
}

// What a pod is put on is read where the cache does not know enough, and nothing else is.
func TestReadOfNodes(t *testing.T) {
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web"}, Target: corev1.ObjectReference{Name: "n1"}}
	for name, c := range map[string]struct {
		guards []facts.Guard
		object any
		reads  []string // beyond those for every live read
		node   string   // that is known
		bound  bool
	}{
		"a binding":                   {nodeGuard(t), binding, []string{"get *v1.Node /n1", "get *v1.Pod prod/web"}, "n1", true},
		"a pod that names its node":   {nodeGuard(t), onNode("n1"), []string{"get *v1.Node /n1"}, "n1", false},
		"a pod that names none":       {nodeGuard(t), onNode(""), nil, "", false},
		"a template":                  {nodeGuard(t), &facts.Workload{Template: &corev1.PodTemplateSpec{Spec: corev1.PodSpec{NodeName: "n1"}}}, []string{"get *v1.Node /n1"}, "n1", false},
		"nobody asks about the nodes": {defaultGuards(t), binding, nil, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := reading(t, "11", storedNamespace("prod", guardedLabels(), "10"), storedNode("n1", "t3.large"), onNode(""))
			guard := v1alpha1.DefaultGuard()
			if c.guards[0].NodePools == nil {
				guard.Spec.NodePools = nil
			}
			if err := server.Create(t.Context(), guard); err != nil {
				t.Fatal(err)
			}
			got, err := s.ReadLive(t.Context(), &facts.Review{Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Namespace: "prod", Object: c.object})
			if err != nil {
				t.Fatal(err)
			}
			var reads []string
			for _, r := range server.reads {
				if strings.Contains(r, "*v1.Node") || strings.Contains(r, "*v1.Pod") {
					reads = append(reads, r)
				}
			}
			slices.Sort(reads)
			if !slices.Equal(reads, c.reads) {
				t.Errorf("reads %q; must be %q", reads, c.reads)
			}
			if (got.Bound != nil) != c.bound || !got.NodesComplete {
				t.Errorf("bound %v, complete %t", got.Bound, got.NodesComplete)
			}
			if n, known := got.Node("n1"); c.node != "" && (!known || n == nil || nodes.Classify(c.guards[0].NodePools, n).Class != nodes.Burstable) {
				t.Errorf("node %v, known %t", n, known)
			}
		})
	}
}

func TestReadOfWhatIsNotThere(t *testing.T) {
	s, server := reading(t, "11", storedNamespace("prod", guardedLabels(), "10"), v1alpha1.DefaultGuard())
	review := &facts.Review{
		Kind: corev1.SchemeGroupVersion.WithKind("Binding"), Namespace: "prod",
		Object: &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "web"}, Target: corev1.ObjectReference{Name: "gone"}},
	}
	s.nodes.set(storedNode("gone", "m5.large")) // the cache has not heard of it yet
	got, err := s.ReadLive(t.Context(), review)
	if err != nil {
		t.Fatal(err)
	}
	if n, known := got.Node("gone"); n != nil || !known || got.Bound != nil {
		t.Errorf("node %v, known %t, pod %v; must be none", n, known, got.Bound)
	}
	for _, kind := range []string{"*v1.Node", "*v1.Pod"} {
		server.fail = func(_ string, of any) error {
			if fmt.Sprintf("%T", of) == kind {
				return errors.New("out of order")
			}
			return nil
		}
		if _, err := s.ReadLive(t.Context(), review); err == nil || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("%s cannot be read: %v", kind, err)
		}
	}
}

// What a node is at the moment at which a pod is put on it counts, and of the pod nothing
// is read as long as it does not matter. Pods that run keep what the cache knows.
func TestReadOfWhatIsPutOnNodes(t *testing.T) {
	for name, c := range map[string]struct {
		operation admissionv1.Operation
		object    any
		reads     []string
		class     nodes.Class
	}{
		"a binding":             {admissionv1.Create, &corev1.Binding{Target: corev1.ObjectReference{Name: "n1"}}, []string{"get *v1.Node /n1"}, nodes.Burstable},
		"a pod that names it":   {admissionv1.Create, onNode("n1"), []string{"get *v1.Node /n1"}, nodes.Burstable},
		"a pod that names none": {admissionv1.Create, onNode(""), nil, nodes.Dedicated},
		"a pod that runs":       {admissionv1.Update, onNode("n1"), nil, nodes.Dedicated},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := reading(t, "11", storedNode("n1", "t3.large"))
			s.index.setGuards(nodeGuard(t), 1)
			s.index.setNamespace("prod", guardedLabels(), false, "10")
			s.nodes.set(storedNode("n1", "m5.large")) // before it was replaced
			review := &facts.Review{Operation: c.operation, Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Namespace: "prod", Object: c.object}
			got, err := s.Read(t.Context(), review)
			if err != nil || got.Live || !slices.Equal(server.reads, c.reads) {
				t.Fatalf("%v, reads %q; must be %q", err, server.reads, c.reads)
			}
			if n, known := got.Node("n1"); !known || nodes.Classify(got.Guards[0].NodePools, n).Class != c.class {
				t.Errorf("node %+v; must be %s", n, c.class)
			}
			if n, known := got.Node("n2"); known || n != nil {
				t.Errorf("node n2 is known: %v", n)
			}
			server.fail = func(string, any) error { return errors.New("out of order") }
			if _, err := s.Read(t.Context(), review); (err != nil) != (c.reads != nil) {
				t.Errorf("the node cannot be read: %v", err)
			}
		})
	}
}

// The pods of a node are read only where a change of it could matter to them.
func TestReadOfANodeThatChanges(t *testing.T) {
	fine, shared, abroad := storedNode("n1", "m5.large"), storedNode("n1", "t3.large"), storedNode("n1", "m5.large")
	for _, n := range []*corev1.Node{fine, shared} {
		n.Labels[corev1.LabelTopologyRegion] = "home"
	}
	for name, c := range map[string]struct {
		before, after *corev1.Node
		pods          int
	}{
		"becomes burstable":        {fine, shared, 1},
		"is burstable":             {shared, shared, 0},
		"leaves its region":        {shared, abroad, 1},
		"ceases to be burstable":   {shared, fine, 0},
		"stays what it is":         {fine, fine, 0},
		"a volume is not for pods": {nil, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := reading(t, "11", onNode("n1"))
			guards := nodeGuard(t)
			guards[0].NodePools.AllowedRegions = []string{"home"}
			s.index.setGuards(guards, 1)
			s.index.setNamespace("prod", guardedLabels(), false, "10")
			review := &facts.Review{Kind: corev1.SchemeGroupVersion.WithKind("Node"), Name: "n1"}
			if c.after == nil {
				review.Kind.Kind = "PersistentVolume"
			} else {
				review.Object, review.OldObject = c.after, c.before
			}
			got, err := s.Read(t.Context(), review)
			if err != nil {
				t.Fatal(err)
			}
			if server.count() != c.pods || !got.Live || got.Namespaces["prod"] == nil {
				t.Errorf("%d reads, live %t, namespaces %v", server.count(), got.Live, got.Namespaces)
			}
		})
	}
}

func TestNodeIndex(t *testing.T) {
	x := newNodeIndex(catalogue(t))
	if !x.facts(nil).Nodes.Empty() || x.facts(nil).Nodes == nil {
		t.Error("no nodes are not the same as not knowing of any")
	}
	n := storedNode("n1", "m5.large")
	if !x.set(n) || x.set(n) {
		t.Error("it is told again of what has not changed")
	}
	same := x.facts(nil).Nodes
	heartbeat := n.DeepCopy()
	heartbeat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	heartbeat.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}
	if x.set(heartbeat) || x.facts(nil).Nodes != same {
		t.Error("how a node fares makes the inventory anew")
	}
	if !x.set(storedNode("n1", "t3.large")) || x.facts(nil).Nodes == same {
		t.Error("another instance type is not noticed")
	}
	x.remove("n1")
	if n := x.facts(nil).Nodes.Node("n1"); n != nil {
		t.Error("a node that is gone is still known")
	}
}

func TestSlimNode(t *testing.T) {
	in := storedNode("n1", "m5.large")
	in.Annotations = map[string]string{"other": "x", v1alpha1.AnnotationSteal: "1.0", v1alpha1.ClassSourceAnnotation: "steal", v1alpha1.AnnotationMeasuredAt: "now"}
	in.Spec = corev1.NodeSpec{PodCIDR: "10.0.0.0/24", Taints: []corev1.Taint{{Key: "a"}}}
	in.Status.Images = []corev1.ContainerImage{{Names: []string{"x"}}}
	out, err := slimNode(in)
	if err != nil {
		t.Fatal(err)
	}
	n := out.(*corev1.Node)
	if len(n.Annotations) != 3 || n.Spec.PodCIDR != "" || len(n.Spec.Taints) != 1 || n.Status.Images != nil || n.Labels == nil {
		t.Errorf("%+v", n)
	}
	if out, err := slimNode("else"); err != nil || out != "else" {
		t.Errorf("%v, %v", out, err)
	}
}

func TestPodsOnNodeAndVolumes(t *testing.T) {
	ended := onNode("n1")
	ended.Name, ended.Status.Phase = "ended", corev1.PodSucceeded
	claimed := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "claimed"}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "prod"}, NodeAffinity: &corev1.VolumeNodeAffinity{}}}
	free := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "free"}, Spec: corev1.PersistentVolumeSpec{NodeAffinity: &corev1.VolumeNodeAffinity{}}}
	anywhere := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "anywhere"}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "prod"}}}
	s, server := reading(t, "11", []client.Object{onNode("n1"), ended, claimed, free, anywhere}...)
	pods, err := s.PodsOnNode(t.Context(), "n1")
	if err != nil || len(pods) != 1 || pods[0].Name != "web" {
		t.Errorf("%v, %v", pods, err)
	}
	volumes, err := s.Volumes(t.Context())
	if err != nil || len(volumes) != 1 || volumes[0].Name != "claimed" {
		t.Errorf("%v, %v", volumes, err)
	}
	server.fail = func(string, any) error { return errors.New("out of order") }
	if _, err := s.PodsOnNode(t.Context(), "n1"); err == nil {
		t.Error("pods that cannot be read are none")
	}
	if _, err := s.Volumes(t.Context()); err == nil {
		t.Error("volumes that cannot be read are none")
	}
}
