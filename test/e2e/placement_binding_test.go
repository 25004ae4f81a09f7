package e2e

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

const schedulerName = "system:kube-scheduler"

// apartTaint keeps the pods of other tests, which run at the same time, off nodes.
func apartTaint() corev1.Taint {
	return corev1.Taint{Key: "example.com/apart", Effect: corev1.TaintEffectNoSchedule}
}

func inPoolApart(pool string) func(*corev1.PodSpec) {
	return edits(inPool(pool), func(s *corev1.PodSpec) {
		s.Tolerations = []corev1.Toleration{{Key: apartTaint().Key, Operator: corev1.TolerationOpExists}}
	})
}

// Without steering, the scheduler chooses nodes that are refused, and pods wait until it
// chooses others.
func (p *placement) unsteered(t *testing.T) {
	bad := kindOfNodes{pool: "lone", instanceType: "t3.small", region: "eu-north-1", taints: []corev1.Taint{apartTaint()}}
	full, large := bad, bad
	full.instanceType, full.cpu = "m5.large", "10m"
	large.instanceType, large.cpu = "m5.16xlarge", "64"
	join(t, bad.node(0), bad.node(1), full.node(2))
	namespace, others := p.namespace(t, unsteeredBy), p.namespace(t, unguarded)
	fill := func(node, cpu string) {
		must(t, p.admin.Create(t.Context(), newPod(others, edits(cpus(cpu), func(s *corev1.PodSpec) { s.NodeName = node }))))
	}
	why := []string{"denied the request: violates MeshGuard", `target.name: node "lone-0`, "is burstable (instance type t3.small)", `must be one on which pods may run by MeshGuard "unsteered" [MV401]`}
	// Not a Deployment: the scheduler would spread its pods, and prefer the bad nodes for
	// having none of them.
	w := &toPlace{name: "waiting", kind: "Job", pods: 6, edit: inPoolApart("lone"), why: why}
	began := time.Now()
	must(t, p.dev.Create(t.Context(), w.workload(namespace)))
	eventually(t, 20*time.Second, func() error { return p.placed(t, namespace, w) })
	waitUntil(t, began.Add(watchTime))
	must(t, p.placed(t, namespace, w))
	n := attempts(t, schedulerName, "pods", "binding", namespace, began)
	t.Logf("the scheduler tries to bind %d pods %d times in %s, %.1f times a minute each", w.pods, n, watchTime, float64(n)/float64(w.pods)*float64(time.Minute/watchTime))
	if n > 10*int(w.pods) {
		t.Errorf("%d attempts to bind %d pods in %s", n, w.pods, watchTime)
	}
	t.Log(p.told(t, namespace, p.pods(t, namespace)[0].Name, "FailedScheduling")[0])

	fill("lone-00", "6") // the scheduler likes the emptier one
	fill("lone-01", "6")
	joined := time.Now()
	join(t, large.node(3))
	w.bound = int(w.pods)
	eventually(t, 30*time.Second, func() error { return p.placed(t, namespace, w) })
	t.Logf("the last pod is bound %s after a node joined on which it may run", time.Since(joined).Round(time.Millisecond))

	fill("lone-03", "60")
	more := &toPlace{name: "more", kind: "Job", pods: 3, edit: inPoolApart("lone"), why: why}
	must(t, p.dev.Create(t.Context(), more.workload(namespace)))
	eventually(t, 20*time.Second, func() error { return p.placed(t, namespace, more) })
	cordoned := time.Now()
	for _, name := range []string{"lone-00", "lone-01"} {
		_, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "cordon", name)
		must(t, err)
	}
	more.bound = int(more.pods)
	eventually(t, 30*time.Second, func() error { return p.placed(t, namespace, more) })
	t.Logf("the last pod is bound %s after the bad nodes were cordoned", time.Since(cordoned).Round(time.Millisecond))
	p.nowhereBad(t, namespace)
}

// waitsForNodes: where the guard says so, pods wait for a pool that is scaled to zero.
func (p *placement) waitsForNodes(t *testing.T) {
	bad := kindOfNodes{pool: "zero", instanceType: "t3.small", region: "eu-north-1", taints: []corev1.Taint{apartTaint()}}
	good := bad
	good.instanceType = "m5.large"
	join(t, bad.node(0))
	namespace := p.namespace(t, waiting)
	w := &toPlace{name: "patient", kind: "Deployment", pods: 3, edit: inPoolApart("zero"), why: []string{"didn't match Pod's node affinity/selector"}}
	text, err := yaml.Marshal(w.workload(namespace))
	must(t, err)
	_, warning, err := plane.Kubectl(t.Context(), controlplane.Developer, "apiVersion: apps/v1\nkind: Deployment\n"+string(text), "create", "-f", "-")
	must(t, err)
	if !saysAll(warning, []string{`node "zero-00" is burstable (instance type t3.small); they wait for others [MV405]`}) {
		t.Errorf("the author is told %q", warning)
	}
	eventually(t, 20*time.Second, func() error { return p.placed(t, namespace, w) })
	joined := time.Now()
	join(t, good.node(1))
	w.bound = int(w.pods)
	eventually(t, 30*time.Second, func() error { return p.placed(t, namespace, w) })
	t.Logf("the last pod is bound %s after a node joined on which it may run", time.Since(joined).Round(time.Millisecond))
	p.nowhereBad(t, namespace)
}

// waitUntil lets time pass that is part of what is tested.
func waitUntil(t testing.TB, when time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(when)):
	case <-t.Context().Done():
	}
}

// Pods that name their node themselves do without the scheduler.
func (p *placement) named(t *testing.T) {
	namespace := p.namespace(t, steered)
	at := func(node string) *corev1.Pod {
		return newPod(namespace, func(s *corev1.PodSpec) { s.NodeName = node })
	}
	message := refused(t, p.dev.Create(t.Context(), at("t3-00")),
		`spec.nodeName: node "t3-00" is burstable (instance type t3.large); must be one on which pods may run by MeshGuard "steered" [MV401]`)
	t.Log(message)
	refused(t, p.dev.Create(t.Context(), at("unlabelled-00")), `node "unlabelled-00" is of unknown class`, "[MV402]")
	refused(t, p.dev.Create(t.Context(), at("abroad-00")), `node "abroad-00" is in region "us-east-1"`, "[MV403]")
	t.Log(refused(t, p.dev.Create(t.Context(), at("nowhere")), `spec.nodeName: there is no node "nowhere"`, "[MV404]"))
	must(t, p.dev.Create(t.Context(), at("m5-00")))
	critical := newPod(namespace, func(s *corev1.PodSpec) { s.NodeName, s.PriorityClassName = "t3-00", "system-cluster-critical" })
	refused(t, p.admin.Create(t.Context(), critical), "[MV401]")
	w := &toPlace{name: "named", kind: "Deployment", pods: 1, edit: func(s *corev1.PodSpec) { s.NodeName = "t3-00" }}
	refused(t, p.dev.Create(t.Context(), w.workload(namespace)), `spec.template.spec.nodeName: node "t3-00"`, "[MV401]")
	// A node that has joined a moment ago is known.
	fresh := kindOfNodes{pool: "fresh", instanceType: "m5.xlarge", region: "eu-north-1", taints: []corev1.Taint{apartTaint()}}
	_, err := p.clientset.CoreV1().Nodes().Create(t.Context(), fresh.node(0), metav1.CreateOptions{})
	must(t, err)
	must(t, p.dev.Create(t.Context(), at("fresh-00")))
	// And one that is another now.
	must(t, p.clientset.CoreV1().Nodes().Delete(t.Context(), "fresh-00", metav1.DeleteOptions{}))
	refused(t, p.dev.Create(t.Context(), at("fresh-00")), "[MV404]")
}

// Bindings are those of whichever scheduler.
func (p *placement) bindings(t *testing.T) {
	scheduler := p.customScheduler(t)
	waits := func(guard string, labels map[string]string) *corev1.Pod {
		o := newPod(p.namespace(t, guard), func(s *corev1.PodSpec) { s.SchedulerName = "custom" })
		for k, v := range labels {
			o.Labels[k] = v
		}
		must(t, p.dev.Create(t.Context(), o))
		return o
	}
	to := func(o *corev1.Pod, node string) *corev1.Binding {
		return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	}
	for name, bind := range map[string]func(*corev1.Pod, string) error{
		"POST pods/NAME/binding": func(o *corev1.Pod, node string) error {
			return scheduler.SubResource("binding").Create(t.Context(), o, to(o, node))
		},
		"POST bindings": func(o *corev1.Pod, node string) error { return scheduler.Create(t.Context(), to(o, node)) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, guard := range []string{steered, unsteeredBy} {
				o := waits(guard, nil)
				refused(t, bind(o, "t3-00"), `target.name: node "t3-00" is burstable (instance type t3.large); must be one on which pods may run by MeshGuard "`+guard+`" [MV401]; let it run on another, such as`)
				refused(t, bind(o, "unlabelled-00"), "[MV402]")
				refused(t, bind(o, "abroad-00"), "[MV403]")
				refused(t, bind(o, "nowhere"), `target.name: there is no node "nowhere"`, "[MV404]")
				must(t, bind(o, "m5-00"))
				if got := p.pods(t, o.Namespace); got[0].Spec.NodeName != "m5-00" {
					t.Errorf("bound to %q", got[0].Spec.NodeName)
				}
			}
			outside := waits(meshOnly, nil)
			must(t, bind(outside, "t3-00"))
			refused(t, relabel(t.Context(), p.dev, outside, "istio.io/dataplane-mode", "ambient"), `node "t3-00" is burstable`, `MeshGuard "mesh-only" [MV401]`)
			inMesh := waits(meshOnly, map[string]string{"istio.io/dataplane-mode": "ambient"})
			refused(t, bind(inMesh, "t3-00"), `MeshGuard "mesh-only" [MV401]`)
			must(t, bind(inMesh, "m5-00"))
			must(t, bind(waits(unguarded, nil), "t3-00"))
		})
	}
}

// customScheduler is somebody who may bind pods and nothing else.
func (p *placement) customScheduler(t *testing.T) client.Client {
	t.Helper()
	namespace := p.namespace(t, unguarded)
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "custom-scheduler"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"pods/binding", "bindings"}, Verbs: []string{"create"},
	}}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "default"}},
	}
	create(t, p.admin, role, binding)
	config, err := plane.ServiceAccountConfig(t.Context(), namespace, "default")
	must(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	return c
}

// whoeverRuns: pods of the kubelets themselves, and those that matter to the cluster.
func (p *placement) whoeverRuns(t *testing.T) {
	namespace := p.namespace(t, steered)
	kubelet, err := client.New(plane.NodeConfig("t3-01"), client.Options{Scheme: scheme})
	must(t, err)
	var node corev1.Node
	must(t, p.admin.Get(t.Context(), client.ObjectKey{Name: "t3-01"}, &node))
	mirror := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: "static-t3-01", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "hash"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true)}},
		},
		Spec: corev1.PodSpec{NodeName: "t3-01", Containers: []corev1.Container{{Name: "static", Image: "registry.example/static:1"}}},
	}
	must(t, kubelet.Create(t.Context(), mirror))
	critical := &toPlace{name: "critical", kind: "Deployment", pods: 3, edit: func(s *corev1.PodSpec) { s.PriorityClassName = "system-cluster-critical" }, bound: 3}
	must(t, p.admin.Create(t.Context(), critical.workload(namespace)))
	eventually(t, 20*time.Second, func() error { return p.placed(t, namespace, critical) })
	bad := &toPlace{name: "critical-bad", kind: "Deployment", pods: 1, edit: edits(critical.edit, inPool("t3"))}
	refused(t, p.admin.Create(t.Context(), bad.workload(namespace)), "[MV405]")
}
