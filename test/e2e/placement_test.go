package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestPlacement: pods and the nodes they get, with the scheduler and the controllers of
// Kubernetes at work, on a cluster that has nodes of every kind.
func TestPlacement(t *testing.T) {
	p := newPlacement(t)
	alone := p.throughput(t, unguarded)
	old := p.beforeGuards(t)
	p.serve()
	p.guards(t)
	t.Logf("%d pods get nodes at %.0f pods/s without Meshvakt, %.0f pods/s with it", throughputPods, alone, p.throughput(t, steered))
	// These wait for controllers most of the time.
	t.Run("at work", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T){
			"workloads": p.workloads, "without steering": p.unsteered, "waiting": p.waitsForNodes, "nodes that are named": p.named, "bindings": p.bindings,
			"DaemonSets": p.daemonSets, "from before the guard": func(t *testing.T) { p.fromBefore(t, old) }, "who runs pods": p.whoeverRuns,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	})
	t.Run("classes", p.classes)
	t.Run("a node changes", p.nodeChanges)
	t.Run("volumes", p.volumes)
	t.Run("race", p.race)
	t.Run("away", p.away)
	t.Run("uninstall", p.uninstall)
}

// The guards of the tests, by which namespaces are labelled.
const (
	unguarded   = "nobody"
	steered     = "steered"         // pods are told to keep away from nodes
	unsteeredBy = "unsteered"       // only their binding is judged
	meshOnly    = "mesh-only"       // those in the mesh
	waiting     = "waiting"         // pods wait where no node is for them
	placementBy = "placement"       // the label of namespaces
	cpuLabel    = "example.com/cpu" // by which nodes may state their class: shared or own
)

// placement is the cluster of TestPlacement.
type placement struct {
	admin, dev client.Client
	clientset  kubernetes.Interface
	t          *testing.T // of TestPlacement, with which replicas end
	address    string     // of the webhook
	replica    *replica
}

// kindOfNodes is a node pool as the tests make it.
type kindOfNodes struct {
	pool         string
	count        int
	instanceType string // "" for no such label
	region       string
	arch         string // "" for amd64
	cpu          string // "" for 8
	taints       []corev1.Taint
}

func paymentsTaint() corev1.Taint {
	return corev1.Taint{Key: "dedicated", Value: "payments", Effect: corev1.TaintEffectNoSchedule}
}

func nodePools() []kindOfNodes {
	return []kindOfNodes{
		{pool: "t3", count: 10, instanceType: "t3.large", region: "eu-north-1"},
		{pool: "t3-big", count: 4, instanceType: "t3.2xlarge", region: "eu-north-1", cpu: "32"},
		{pool: "e2-medium", count: 8, instanceType: "e2-medium", region: "europe-north1"},
		{pool: "m5", count: 12, instanceType: "m5.xlarge", region: "eu-north-1"},
		{pool: "n2", count: 8, instanceType: "n2-standard-4", region: "europe-north1"},
		{pool: "payments", count: 6, instanceType: "m5.2xlarge", region: "eu-north-1", taints: []corev1.Taint{paymentsTaint()}},
		{pool: "abroad", count: 6, instanceType: "m5.xlarge", region: "us-east-1"},
		{pool: "unlabelled", count: 4, region: "eu-north-1"},
		{pool: "arm64", count: 6, instanceType: "m7g.large", region: "eu-north-1", arch: "arm64"},
	}
}

// offLimits says why no pod of the guards may run on a node, "" when they may. It is
// the test's own reading of the guards, by what stands on the node.
func offLimits(n *corev1.Node) string {
	if region := n.Labels[corev1.LabelTopologyRegion]; region != "eu-north-1" && region != "europe-north1" {
		return "in region " + region
	}
	switch n.Labels[cpuLabel] {
	case "shared":
		return "shared by its label"
	case "own":
		return ""
	}
	switch t := n.Labels[corev1.LabelInstanceTypeStable]; {
	case t == "":
		return "of no known type"
	case strings.HasPrefix(t, "t3.") || t == "e2-medium":
		return "of type " + t
	}
	return ""
}

// placementGuard is a guard of where pods run alone, by the rules of offLimits.
func placementGuard(name string, edit func(*v1alpha1.NodePools)) *v1alpha1.MeshGuard {
	steal := int32(5)
	g := &v1alpha1.MeshGuard{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.MeshGuardSpec{
			NamespaceSelector: metav1.LabelSelector{MatchLabels: map[string]string{placementBy: name}},
			NodePools: &v1alpha1.NodePools{
				Scope:           v1alpha1.PlacementAll,
				NodeLabel:       &v1alpha1.NodeLabel{Key: cpuLabel, Burstable: []string{"shared"}, Dedicated: []string{"own"}},
				InstanceTypes:   []v1alpha1.InstanceTypeClass{{Types: []string{"m5.*", "m7g.*", "n2-*"}, Class: v1alpha1.NodeDedicated}},
				MaxStealPercent: &steal,
				Unknown:         v1alpha1.UnknownDeny,
				AllowedRegions:  []string{"eu-north-1", "europe-north1"},
			},
		},
	}
	if edit != nil {
		edit(g.Spec.NodePools)
	}
	return g
}

// placementGuards are the guards of the tests, which come to the same classes.
func placementGuards() []*v1alpha1.MeshGuard {
	return []*v1alpha1.MeshGuard{
		placementGuard(steered, nil),
		placementGuard(unsteeredBy, func(n *v1alpha1.NodePools) { n.Steering = v1alpha1.SteeringNone }),
		placementGuard(meshOnly, func(n *v1alpha1.NodePools) {
			n.Scope, n.Steering = v1alpha1.PlacementMesh, v1alpha1.SteeringNone
		}),
		placementGuard(waiting, func(n *v1alpha1.NodePools) { n.OnNoNode = v1alpha1.OnNoNodeWait }),
	}
}

// newPlacement boots the cluster. The binary is the one of the package, so that it may
// have the race detector in it.
func newPlacement(t *testing.T) *placement {
	t.Helper()
	sharedPlane, sharedKubeconfig := plane, serviceAccountKubeconfig
	var err error
	// By themselves they do next to nothing for most of a second.
	fast := []string{"--kube-api-qps=1000", "--kube-api-burst=1000"}
	plane, serviceAccountKubeconfig, err = setUp(t.Context(), controlplane.Options{SchedulerArgs: fast, ControllerManagerArgs: fast, Log: os.Stderr})
	must(t, err)
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
		plane, serviceAccountKubeconfig = sharedPlane, sharedKubeconfig
	})
	p := &placement{t: t, admin: clientFor(t, controlplane.Admin), dev: clientFor(t, controlplane.Developer), address: freeAddress(t)}
	p.clientset, err = kubernetes.NewForConfig(plane.RestConfig(controlplane.Admin))
	must(t, err)
	var nodes []*corev1.Node
	for _, k := range nodePools() {
		for i := range k.count {
			nodes = append(nodes, k.node(i))
		}
	}
	joined := time.Now()
	join(t, nodes...)
	t.Logf("%d nodes have joined after %s", len(nodes), time.Since(joined).Round(time.Millisecond))
	return p
}

// node is one of the pool, in the zone that its turn is.
func (k *kindOfNodes) node(i int) *corev1.Node {
	name, arch, cpu := fmt.Sprintf("%s-%02d", k.pool, i), "amd64", "8"
	if k.arch != "" {
		arch = k.arch
	}
	if k.cpu != "" {
		cpu = k.cpu
	}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"pool":                     k.pool,
			corev1.LabelHostname:       name,
			corev1.LabelArchStable:     arch,
			corev1.LabelOSStable:       "linux",
			corev1.LabelTopologyRegion: k.region,
			corev1.LabelTopologyZone:   k.region + string("abc"[i%3]),
		}},
		Spec: corev1.NodeSpec{Taints: k.taints},
		Status: corev1.NodeStatus{Capacity: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse(cpu),
			corev1.ResourceMemory: resource.MustParse("32Gi"),
			corev1.ResourcePods:   resource.MustParse("110"),
		}},
	}
	if k.instanceType != "" {
		n.Labels[corev1.LabelInstanceTypeStable] = k.instanceType
	}
	return n
}

// join lets nodes join, several at a time, and waits until they can take pods.
func join(t testing.TB, nodes ...*corev1.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	next := make(chan *corev1.Node)
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for n := range next {
				if _, err := plane.AddNode(ctx, n); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, n := range nodes {
		next <- n
	}
	close(next)
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// serve starts a replica where the last one was, so that the API server finds it.
func (p *placement) serve() {
	p.t.Helper()
	p.replica = startReplica(p.t, "--listen", p.address, "--webhook-url", "https://"+p.address).ready(p.t.Context())
}

// guards puts the guards in force, and says how long it took until the nodes had their
// class.
func (p *placement) guards(t *testing.T) {
	t.Helper()
	began := time.Now()
	guard(t, placementGuard(steered, nil))
	eventually(t, 20*time.Second, func() error {
		list, err := p.clientset.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{LabelSelector: "!" + v1alpha1.ClassLabel})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d nodes have no class, such as %s", len(list.Items), list.Items[0].Name)
		}
		return err
	})
	t.Logf("all nodes have their class %s after the guard was created", time.Since(began).Round(time.Millisecond))
	for _, g := range placementGuards() {
		if g.Name != steered {
			guard(t, g)
		}
		enforcing(t, g.Name)
	}
	p.classesAreRight(t)
}

// classesAreRight demands that all nodes have the class that they should.
func (p *placement) classesAreRight(t testing.TB) {
	t.Helper()
	for _, n := range p.nodes(t) {
		why, want := offLimits(&n), "dedicated"
		switch {
		case why == "of no known type":
			want = "unknown"
		case strings.HasPrefix(why, "of type"), why == "shared by its label":
			want = "burstable"
		}
		if got := n.Labels[v1alpha1.ClassLabel]; got != want {
			t.Errorf("node %s has class %q; must be %q", n.Name, got, want)
		}
	}
}

func (p *placement) nodes(t testing.TB) []corev1.Node {
	t.Helper()
	list, err := p.clientset.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	must(t, err)
	return list.Items
}

// namespace creates a namespace of a guard.
func (p *placement) namespace(t testing.TB, guard string) string {
	t.Helper()
	ns := namespace(unique("at"), false)
	ns.Labels[placementBy] = guard
	must(t, p.admin.Create(t.Context(), ns))
	serviceAccount(t, ns.Name)
	return ns.Name
}

// pods are those of a namespace.
func (p *placement) pods(t testing.TB, namespace string, labels ...client.ListOption) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	must(t, p.admin.List(t.Context(), &list, append(labels, client.InNamespace(namespace))...))
	return list.Items
}

// nowhereBad demands that no pod of the namespace is on a node that is off limits.
func (p *placement) nowhereBad(t testing.TB, namespace string) {
	t.Helper()
	bad := map[string]string{}
	for _, n := range p.nodes(t) {
		bad[n.Name] = offLimits(&n)
	}
	for _, pod := range p.pods(t, namespace) {
		if why := bad[pod.Spec.NodeName]; why != "" {
			t.Errorf("pod %s is on node %s, which is %s", pod.Name, pod.Spec.NodeName, why)
		}
	}
}

// on counts the pods that have a node.
func on(pods []corev1.Pod) int {
	return len(slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool { return p.Spec.NodeName == "" }))
}

// newPod is a pod with requests, which can be told where to go.
func newPod(namespace string, edit func(*corev1.PodSpec)) *corev1.Pod {
	o := pod(namespace, map[string]string{"app": "app"})
	o.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m")}
	if edit != nil {
		edit(&o.Spec)
	}
	return o
}

// inPool lets a pod go to the nodes of a pool alone.
func inPool(pool string) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"pool": pool} }
}

const throughputPods = 500

// throughput is how many pods a second get a node, from the first that is created to
// the last that is bound.
func (p *placement) throughput(t testing.TB, guard string) float64 {
	t.Helper()
	namespace := p.namespace(t, guard)
	began := time.Now()
	p.createPods(t, throughputPods, func(int) *corev1.Pod { return newPod(namespace, nil) })
	eventually(t, 60*time.Second, func() error {
		list, err := p.clientset.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName="})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods have no node", len(list.Items))
		}
		return err
	})
	rate := throughputPods / time.Since(began).Seconds()
	if guard != unguarded {
		p.nowhereBad(t, namespace)
	}
	p.deletePods(t, namespace)
	return rate
}

// createPods creates pods, several at a time.
func (p *placement) createPods(t testing.TB, n int, pod func(i int) *corev1.Pod) {
	t.Helper()
	next := make(chan int)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := range next {
				if err := p.admin.Create(t.Context(), pod(i)); err != nil {
					t.Errorf("create pod %d: %v", i, err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	workers.Wait()
}

// deletePods deletes all pods of a namespace at once.
func (p *placement) deletePods(t testing.TB, namespace string) {
	t.Helper()
	must(t, p.admin.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace), client.GracePeriodSeconds(0)))
}

// attempts counts what the API server has refused to a user in a namespace since.
func attempts(t testing.TB, user, resource, subresource, namespace string, since time.Time) int {
	t.Helper()
	events, err := plane.Audited(func(e controlplane.AuditEvent) bool {
		return e.User.Username == user && e.Verb == "create" && e.ObjectRef.Resource == resource && e.ObjectRef.Subresource == subresource &&
			e.ObjectRef.Namespace == namespace && e.ResponseStatus.Code == 403 && e.Received.After(since)
	})
	must(t, err)
	return len(events)
}

// told are the events of an object with a reason, newest text first.
func (p *placement) told(t testing.TB, namespace, object, reason string) []string {
	t.Helper()
	list, err := p.clientset.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + object + ",reason=" + reason})
	must(t, err)
	var texts []string
	for i := range list.Items {
		texts = append(texts, list.Items[i].Message)
	}
	slices.Reverse(texts)
	return texts
}

// watchTime is how long the tests look at what is tried again and again.
const watchTime = 30 * time.Second
