package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// class waits until a node has a class, and says how long that took.
func (p *placement) class(t testing.TB, node, want string) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, 20*time.Second, func() error {
		var n corev1.Node
		if err := p.admin.Get(t.Context(), client.ObjectKey{Name: node}, &n); err != nil {
			return err
		}
		if got := n.Labels[v1alpha1.ClassLabel]; got != want {
			return fmt.Errorf("node %s has class %q; must be %q", node, got, want)
		}
		return nil
	})
	return time.Since(began)
}

// patch patches an object as somebody.
func patch(t testing.TB, c client.Client, o client.Object, text string) error {
	t.Helper()
	return c.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(text)))
}

func nodeObject(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func guardObject(name string) *v1alpha1.MeshGuard {
	return &v1alpha1.MeshGuard{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// withReason is a patch of a guard that says why, as one must by which it may be weakened.
func withReason(patch string) string {
	return fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}},%s`, v1alpha1.ChangeReasonAnnotation, unique("reason"), strings.TrimPrefix(patch, "{"))
}

// classes: what stands on nodes is the class, whoever writes what there.
func (p *placement) classes(t *testing.T) {
	t.Run("somebody else writes", p.classIsPutBack)
	t.Run("kubelets", p.kubeletsMayNot)
	t.Run("steal", p.steal)
	t.Run("guards change", p.classFollowsGuards)
}

func (p *placement) classIsPutBack(t *testing.T) {
	for _, value := range []string{`"dedicated"`, `"unknown"`, `"other"`, "null"} {
		must(t, patch(t, p.admin, nodeObject("t3-02"), `{"metadata":{"labels":{"`+v1alpha1.ClassLabel+`":`+value+`}}}`))
		t.Logf("%s on a burstable node is put right after %s", value, p.class(t, "t3-02", "burstable").Round(time.Millisecond))
	}
	must(t, patch(t, p.admin, nodeObject("m5-02"), `{"metadata":{"labels":{"`+v1alpha1.ClassLabel+`":"burstable"},"annotations":{"`+v1alpha1.ClassSourceAnnotation+`":"steal"}}}`))
	p.class(t, "m5-02", "dedicated")
	must(t, patch(t, p.admin, nodeObject("m5-02"), `{"metadata":{"annotations":{"`+v1alpha1.ClassSourceAnnotation+`":"label"}}}`))
	p.source(t, "m5-02", "instance-type")
}

// source waits until a node says what its class comes from.
func (p *placement) source(t testing.TB, node, want string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		var n corev1.Node
		if err := p.admin.Get(t.Context(), client.ObjectKey{Name: node}, &n); err != nil {
			return err
		}
		if got := n.Annotations[v1alpha1.ClassSourceAnnotation]; got != want {
			return fmt.Errorf("the class of node %s comes from %q; must be %q", node, got, want)
		}
		return nil
	})
}

// kubeletsMayNot: whoever runs a node cannot make it another.
func (p *placement) kubeletsMayNot(t *testing.T) {
	kubelet, err := client.New(plane.NodeConfig("t3-03"), client.Options{Scheme: scheme})
	must(t, err)
	label := `{"metadata":{"labels":{"` + v1alpha1.ClassLabel + `":"dedicated"}}}`
	for name, err := range map[string]error{
		"of its own node":              patch(t, kubelet, nodeObject("t3-03"), label),
		"of its own node, by status":   kubelet.Status().Patch(t.Context(), nodeObject("t3-03"), client.RawPatch("application/merge-patch+json", []byte(label))),
		"of another node":              patch(t, kubelet, nodeObject("t3-04"), label),
		"of its own node, removed":     patch(t, kubelet, nodeObject("t3-03"), `{"metadata":{"labels":{"`+v1alpha1.ClassLabel+`":null}}}`),
		"of a node that joins anew":    kubelet.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "t3-99", Labels: map[string]string{v1alpha1.ClassLabel: "dedicated"}}}),
		"of its own node, with others": patch(t, kubelet, nodeObject("t3-03"), `{"metadata":{"labels":{"kubernetes.io/os":"linux","`+v1alpha1.ClassLabel+`":"dedicated"}}}`),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("a kubelet changes the class %s: %v", name, err)
		}
	}
	must(t, kubelet.Status().Patch(t.Context(), nodeObject("t3-03"), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"example.com/of-kubelet":"yes"}}}`))))
	p.class(t, "t3-03", "burstable")
}

// measure puts on a node what the probe does.
func (p *placement) measure(t testing.TB, node, percent string, at time.Time) {
	t.Helper()
	must(t, patch(t, p.admin, nodeObject(node), fmt.Sprintf(`{"metadata":{"annotations":{%q:%q,%q:%q,%q:"{}"}}}`,
		v1alpha1.AnnotationSteal, percent, v1alpha1.AnnotationMeasuredAt, at.UTC().Format(time.RFC3339), v1alpha1.AnnotationResult)))
}

// steal: from the threshold of 5 % on a node is burstable, and until it is at half of
// that, in whole percent.
func (p *placement) steal(t *testing.T) {
	const node = "m5-03"
	now := time.Now()
	p.measure(t, node, "4.9", now)
	p.settled(t, node)
	p.class(t, node, "dedicated")
	namespace := p.namespace(t, steered)
	at := func() *corev1.Pod { return newPod(namespace, func(s *corev1.PodSpec) { s.NodeName = node }) }
	must(t, p.dev.Create(t.Context(), at()))

	p.measure(t, node, "7.0", now)
	p.class(t, node, "burstable")
	p.source(t, node, "steal:5")
	t.Log(refused(t, p.dev.Create(t.Context(), at()), `node "m5-03" is burstable (CPU steal of 7 %, until it has fallen to 2 %)`, "[MV401]"))
	p.measure(t, node, "3.0", now)
	p.settled(t, node)
	p.class(t, node, "burstable")
	refused(t, p.dev.Create(t.Context(), at()), `(CPU steal of 3 %, until`, "[MV401]")
	p.measure(t, node, "1.0", now)
	p.class(t, node, "dedicated")
	p.source(t, node, "instance-type")
	must(t, p.dev.Create(t.Context(), at()))
	p.measure(t, node, "3.0", now)
	p.settled(t, node)
	p.class(t, node, "dedicated")

	// What is older when it is written makes the node burstable for a blink at most.
	p.measure(t, node, "9.0", time.Now().Add(-2*time.Hour+5*time.Second))
	p.class(t, node, "burstable")
	eventually(t, 20*time.Second, func() error { // once it is two hours old
		var n corev1.Node
		must(t, p.admin.Get(t.Context(), client.ObjectKey{Name: node}, &n))
		for key := range n.Annotations {
			if strings.HasPrefix(key, "probe.meshvakt.io/") {
				return fmt.Errorf("node %s still has %s", node, key)
			}
		}
		return nil
	})
	p.class(t, node, "dedicated")
}

// settled waits until what was done to a node has been seen to: things that are done
// later to another are.
func (p *placement) settled(t testing.TB, node string) {
	t.Helper()
	other := "n2-00"
	if node == other {
		other = "n2-01"
	}
	must(t, patch(t, p.admin, nodeObject(other), `{"metadata":{"labels":{"`+v1alpha1.ClassLabel+`":null}}}`))
	p.class(t, other, "dedicated")
}

func (p *placement) classFollowsGuards(t *testing.T) {
	must(t, patch(t, p.admin, nodeObject("m5-04"), `{"metadata":{"labels":{"example.com/other":"shared"}}}`))
	each := func(text string) {
		for _, g := range placementGuards() {
			must(t, patch(t, p.admin, guardObject(g.Name), withReason(text)))
		}
	}
	each(`{"spec":{"nodePools":{"nodeLabel":{"key":"example.com/other"}}}}`)
	p.class(t, "m5-04", "burstable")
	each(`{"spec":{"nodePools":{"nodeLabel":{"key":"` + cpuLabel + `"},"instanceTypes":[{"types":["m5.*","m7g.*"],"class":"Dedicated"},{"types":["N2-*"],"class":"Burstable"}]}}}`)
	p.class(t, "m5-04", "dedicated")
	p.class(t, "n2-07", "burstable")
	namespace := p.namespace(t, steered)
	refused(t, p.dev.Create(t.Context(), newPod(namespace, inPool("n2"))), "8 nodes such as", "are burstable (instance type n2-standard-4)", "[MV405]")
	// Where guards disagree, the worst counts.
	must(t, patch(t, p.admin, guardObject(meshOnly), withReason(`{"spec":{"nodePools":{"instanceTypes":[{"types":["*"],"class":"Burstable"}]}}}`)))
	p.class(t, "m5-11", "burstable")
	// The label is of no use then, and pods are steered by types.
	typed := []corev1.NodeSelectorRequirement{{Key: corev1.LabelInstanceTypeStable, Operator: corev1.NodeSelectorOpExists}}
	plain := &toPlace{name: "plain", kind: "Deployment", pods: 10, edit: terms(typed), bound: 10}
	must(t, p.dev.Create(t.Context(), plain.workload(namespace)))
	eventually(t, 20*time.Second, func() error { return p.placed(t, namespace, plain) })
	for _, pod := range p.pods(t, namespace) {
		if strings.HasPrefix(pod.Spec.NodeName, "n2-") {
			t.Errorf("a pod is on %s, which is burstable by the guard", pod.Spec.NodeName)
		}
	}
	p.nowhereBad(t, namespace)
	each(`{"spec":{"nodePools":{"instanceTypes":[{"types":["m5.*","m7g.*","n2-*"],"class":"Dedicated"}]}}}`)
	p.class(t, "m5-11", "dedicated")
	p.class(t, "n2-07", "dedicated")
	p.class(t, "t3-09", "burstable")

	// A guard without the policy writes nothing on nodes.
	each(`{"spec":{"nodePools":null,"strictMTLS":{"validationActions":["Audit"]}}}`)
	began := time.Now()
	eventually(t, 20*time.Second, func() error {
		for _, n := range p.nodes(t) {
			_, label := n.Labels[v1alpha1.ClassLabel]
			_, annotation := n.Annotations[v1alpha1.ClassSourceAnnotation]
			if label || annotation {
				return fmt.Errorf("node %s still has its class", n.Name)
			}
		}
		return nil
	})
	t.Logf("the classes are gone %s after the last guard of nodes", time.Since(began).Round(time.Millisecond))
	eventually(t, 10*time.Second, func() error {
		if c := p.compliance(t, steered); c != nil {
			return fmt.Errorf("the condition is left: %+v", c)
		}
		return nil
	})
	for _, g := range placementGuards() {
		have := guardObject(g.Name)
		eventually(t, 10*time.Second, func() error { // its status changes meanwhile
			must(t, p.admin.Get(t.Context(), client.ObjectKeyFromObject(have), have))
			have.Spec = g.Spec
			metav1.SetMetaDataAnnotation(&have.ObjectMeta, v1alpha1.ChangeReasonAnnotation, "as it was before")
			return p.admin.Update(t.Context(), have)
		})
	}
	p.class(t, "t3-09", "burstable")
	p.class(t, "m5-11", "dedicated")
}

// compliance is the condition of a guard by which it says where pods and volumes are.
func (p *placement) compliance(t testing.TB, guard string) *metav1.Condition {
	t.Helper()
	g := guardObject(guard)
	must(t, p.admin.Get(t.Context(), client.ObjectKeyFromObject(g), g))
	return meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionPlacementCompliant)
}

// complies waits until the condition of a guard is so and says so.
func (p *placement) complies(t testing.TB, guard string, status metav1.ConditionStatus, contains ...string) string {
	t.Helper()
	message := ""
	eventually(t, 20*time.Second, func() error {
		c := p.compliance(t, guard)
		if c == nil || c.Status != status {
			return fmt.Errorf("MeshGuard %s has the condition %+v", guard, c)
		}
		for _, text := range contains {
			if !strings.Contains(c.Message, text) {
				return fmt.Errorf("the condition of MeshGuard %s says %q; must hold %q", guard, c.Message, text)
			}
		}
		message = c.Message
		return nil
	})
	return message
}

// stir changes a node, so that guards are held against what runs without waiting for
// the next minute.
func (p *placement) stir(t testing.TB) {
	t.Helper()
	must(t, patch(t, p.admin, nodeObject("n2-02"), fmt.Sprintf(`{"metadata":{"labels":{"example.com/stirred":"t%d"}}}`, time.Now().UnixNano())))
}

// nodeChanges: a node becomes burstable under pods. They stay, and it is told.
func (p *placement) nodeChanges(t *testing.T) {
	namespace := p.namespace(t, meshOnly)
	p.stir(t)
	p.complies(t, meshOnly, metav1.ConditionTrue)
	const node = "m5-05"
	for i := range 3 {
		o := newPod(namespace, func(s *corev1.PodSpec) { s.NodeName = node })
		o.GenerateName, o.Name = "", fmt.Sprintf("runs-%d", i)
		if i < 2 {
			o.Labels["istio.io/dataplane-mode"] = "ambient"
		}
		must(t, p.dev.Create(t.Context(), o))
	}
	out, warning, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "label", "node", node, cpuLabel+"=shared")
	must(t, err)
	t.Logf("kubectl label: %s%s", out, warning)
	for _, text := range []string{
		`metadata.labels: the node comes to be burstable (label example.com/cpu=shared), where pods may not run by MeshGuard "mesh-only", and 2 pods such as "` + namespace + `/runs-0" run there; what runs stays [MV408]`,
		"drain the node",
	} {
		if !strings.Contains(warning, text) {
			t.Errorf("the warning lacks %q", text)
		}
	}
	t.Log(p.complies(t, meshOnly, metav1.ConditionFalse, "2 pods run where they may not: ", namespace+"/runs-0 on node m5-05, which is burstable (label example.com/cpu=shared)", namespace+"/runs-1 on node m5-05"))
	eventually(t, 10*time.Second, func() error {
		list, err := p.clientset.EventsV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == "PodsMisplaced" && e.Regarding.Name == meshOnly && e.Type == corev1.EventTypeWarning && strings.Contains(e.Note, namespace+"/runs-0") {
				return nil
			}
		}
		return fmt.Errorf("no event tells of the pods among %d", len(list.Items))
	})
	p.deletePods(t, namespace)
	p.stir(t)
	p.complies(t, meshOnly, metav1.ConditionTrue)
	must(t, patch(t, p.admin, nodeObject(node), `{"metadata":{"labels":{"`+cpuLabel+`":null}}}`))
	p.class(t, node, "dedicated")
}

// volumes outside of the regions are told of.
func (p *placement) volumes(t *testing.T) {
	namespace := p.namespace(t, steered)
	volume := func(name, region string) string {
		return `
apiVersion: v1
kind: PersistentVolume
metadata: {name: ` + name + `}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  csi: {driver: csi.example.com, volumeHandle: ` + name + `}
  claimRef: {namespace: ` + namespace + `, name: data}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: topology.kubernetes.io/region, operator: In, values: [` + region + `]}]
`
	}
	_, warning, err := plane.Kubectl(t.Context(), controlplane.Admin, volume("inside", "eu-north-1"), "create", "-f", "-")
	must(t, err)
	if warning != "" {
		t.Errorf("a volume within the regions: %s", warning)
	}
	for _, region := range []string{"us-east-1", "ap-south-1"} { // no node is in the latter
		out, warning, err := plane.Kubectl(t.Context(), controlplane.Admin, volume("outside-"+region, region), "create", "-f", "-")
		must(t, err)
		t.Logf("kubectl create: %s%s", out, warning)
		if text := `spec.nodeAffinity: a volume of namespace "` + namespace + `" is in region "` + region + `"; must be where pods may run by MeshGuard "steered" [MV409]`; !strings.Contains(warning, text) {
			t.Errorf("the warning lacks %q", text)
		}
	}
	p.stir(t)
	t.Log(p.complies(t, steered, metav1.ConditionFalse, "2 volumes are where they must not be: ", "outside-us-east-1 of "+namespace+`/data, which is in region "us-east-1"`, "outside-ap-south-1 of "+namespace))
	_, _, err = plane.Kubectl(t.Context(), controlplane.Admin, "", "delete", "pv", "outside-us-east-1", "outside-ap-south-1", "inside", "--wait=false")
	must(t, err)
	_, _, err = plane.Kubectl(t.Context(), controlplane.Admin, "", "patch", "pv", "outside-us-east-1", "outside-ap-south-1", "inside", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	if err != nil && !strings.Contains(err.Error(), "NotFound") {
		t.Fatal(err)
	}
	p.stir(t)
	p.complies(t, steered, metav1.ConditionTrue)
}

// uninstall takes the classes off the nodes again, with the rights of the chart's hook.
func (p *placement) uninstall(t *testing.T) {
	p.replica.stop()
	if len(p.classified(t)) == 0 {
		t.Fatal("no node has a class")
	}
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=test/tools/helm/go.mod", "helm",
		"template", "meshvakt", "charts/meshvakt", "--namespace", ownNamespace, "--show-only", "templates/uninstall.yaml")
	cmd.Dir = "../.."
	rendered, err := cmd.Output()
	must(t, err)
	var keep []string
	for _, doc := range strings.Split(string(rendered), "\n---") {
		if !strings.Contains(doc, "\nkind: Job") {
			keep = append(keep, doc)
		}
	}
	must(t, plane.Apply(t.Context(), []byte(strings.Join(keep, "\n---"))))
	kubeconfig, err := plane.ServiceAccountKubeconfig(t.Context(), ownNamespace, "meshvakt-uninstall")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "uninstall", "--kubeconfig", kubeconfig).CombinedOutput()
	if err != nil {
		t.Fatalf("meshvakt uninstall: %v\n%s", err, out)
	}
	if left := p.classified(t); len(left) > 0 {
		t.Errorf("nodes with a class are left: %q", left)
	}
}

// classified are the names of nodes on which anything of Meshvakt's stands.
func (p *placement) classified(t testing.TB) []string {
	t.Helper()
	var names []string
	for _, n := range p.nodes(t) {
		_, label := n.Labels[v1alpha1.ClassLabel]
		_, annotation := n.Annotations[v1alpha1.ClassSourceAnnotation]
		if label || annotation {
			names = append(names, n.Name)
		}
	}
	return names
}
