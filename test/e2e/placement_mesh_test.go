package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestPlacementMesh: pods that istiod injects, of guards that are about the mesh alone.
func TestPlacementMesh(t *testing.T) {
	meshPlane(t)
	p := &placement{t: t, admin: clientFor(t, controlplane.Admin), dev: clientFor(t, controlplane.Developer)}
	var err error
	p.clientset, err = kubernetes.NewForConfig(plane.RestConfig(controlplane.Admin))
	must(t, err)
	shared := kindOfNodes{pool: "t3", instanceType: "t3.large", region: "eu-north-1"}
	own := kindOfNodes{pool: "m5", instanceType: "m5.xlarge", region: "eu-north-1"}
	join(t, shared.node(0), shared.node(1), shared.node(2), own.node(0), own.node(1))
	start(t)
	for name, steering := range map[string]v1alpha1.Steering{steered: v1alpha1.SteeringRequired, unsteeredBy: v1alpha1.SteeringNone} {
		guard(t, placementGuard(name, func(n *v1alpha1.NodePools) { n.Scope, n.Steering = v1alpha1.PlacementMesh, steering }))
		enforcing(t, name)
	}
	p.class(t, "t3-00", "burstable")
	p.class(t, "m5-00", "dedicated")
	t.Run("workloads", p.injectedWorkloads)
	t.Run("bindings", p.injectedBindings)
	t.Run("the mesh's own", p.meshOwn)
}

// injected demands that Istio has put a proxy into the pod.
func injected(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	if istioContainer(t, pod, "istio-proxy").Image == "auto" {
		t.Errorf("pod %s has no image of its proxy", pod.Name)
	}
}

func (p *placement) injectedWorkloads(t *testing.T) {
	namespace := meshNamespace(t, "injected", map[string]string{"istio-injection": "enabled", placementBy: steered})
	byPod := meshNamespace(t, "by-pod", map[string]string{placementBy: steered})
	ask := func(o *corev1.Pod, inject string) *corev1.Pod {
		o.Labels["sidecar.istio.io/inject"] = inject
		return o
	}
	for _, w := range []toPlace{
		{name: "plain", kind: "Deployment", pods: 4, bound: 4},
		{name: "either", kind: "StatefulSet", pods: 3, edit: terms(among("pool", "t3"), among("pool", "m5")), bound: 3},
	} {
		must(t, p.dev.Create(t.Context(), w.workload(namespace)))
		eventually(t, 30*time.Second, func() error { return p.placed(t, namespace, &w) })
	}
	must(t, p.dev.Create(t.Context(), ask(newPod(byPod, nil), "true")))
	eventually(t, 30*time.Second, func() error { return p.placed(t, byPod, &toPlace{name: "app", pods: 1, bound: 1}) })
	for _, in := range []string{namespace, byPod} {
		for _, pod := range p.pods(t, in) {
			injected(t, &pod)
		}
		p.nowhereBad(t, in)
	}

	bad := &toPlace{name: "bad", kind: "Deployment", pods: 1, edit: inPool("t3")}
	t.Log(refused(t, p.dev.Create(t.Context(), bad.workload(namespace)), `3 nodes such as "t3-00" are burstable (instance type t3.large)`, "[MV405]"))
	refused(t, p.dev.Create(t.Context(), newPod(namespace, inPool("t3"))), "[MV405]")
	refused(t, p.dev.Create(t.Context(), ask(newPod(byPod, inPool("t3")), "true")), "[MV405]")
	// Those outside of the mesh are nobody's business.
	for _, o := range []*corev1.Pod{ask(newPod(namespace, inPool("t3")), "false"), newPod(byPod, inPool("t3"))} {
		must(t, p.dev.Create(t.Context(), o))
		eventually(t, 30*time.Second, func() error {
			must(t, p.admin.Get(t.Context(), client.ObjectKeyFromObject(o), o))
			if !strings.HasPrefix(o.Spec.NodeName, "t3-") {
				return fmt.Errorf("pod %s is on node %q", o.Name, o.Spec.NodeName)
			}
			return nil
		})
		if o.Spec.Affinity != nil {
			t.Errorf("pod %s is steered: %v", o.Name, o.Spec.Affinity)
		}
	}
}

func (p *placement) injectedBindings(t *testing.T) {
	namespace := meshNamespace(t, "unsteered", map[string]string{"istio-injection": "enabled", placementBy: unsteeredBy})
	scheduler := p.customScheduler(t)
	for _, inject := range []string{"true", "false"} {
		o := newPod(namespace, func(s *corev1.PodSpec) { s.SchedulerName = "custom" })
		o.Labels["sidecar.istio.io/inject"] = inject
		must(t, p.dev.Create(t.Context(), o))
		bind := func(node string) error {
			return scheduler.SubResource("binding").Create(t.Context(), o, &corev1.Binding{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: o.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}})
		}
		if inject == "true" {
			injected(t, o)
			refused(t, bind("t3-00"), "[MV401]")
			must(t, bind("m5-00"))
		} else {
			must(t, bind("t3-00"))
		}
	}
}

// meshOwn: a gateway in the root namespace, and istiod, are no exception.
func (p *placement) meshOwn(t *testing.T) {
	gateway := newPod("istio-system", inPool("t3"))
	gateway.Labels["sidecar.istio.io/inject"] = "true"
	refused(t, p.admin.Create(t.Context(), gateway.DeepCopy()), "[MV405]")
	gateway.Spec.NodeSelector = nil
	must(t, p.admin.Create(t.Context(), gateway))
	injected(t, gateway)
	eventually(t, 30*time.Second, func() error {
		must(t, p.admin.Get(t.Context(), client.ObjectKeyFromObject(gateway), gateway))
		if !strings.HasPrefix(gateway.Spec.NodeName, "m5-") {
			return fmt.Errorf("pod %s is on node %q", gateway.Name, gateway.Spec.NodeName)
		}
		return nil
	})
}
