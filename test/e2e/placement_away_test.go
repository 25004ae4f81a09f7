package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// away: what goes on while Meshvakt is killed, and what waits for it.
func (p *placement) away(t *testing.T) {
	namespace := p.namespace(t, steered)
	gated := &toPlace{name: "gated", kind: "Deployment", pods: 3, edit: func(s *corev1.PodSpec) {
		s.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/gate"}}
	}}
	must(t, p.dev.Create(t.Context(), gated.workload(namespace)))
	eventually(t, 20*time.Second, func() error {
		if n := len(p.pods(t, namespace)); n < 3 {
			return fmt.Errorf("%d pods are there", n)
		}
		return nil
	})
	istiod := func() *corev1.Pod {
		o := newPod("istio-system", inPool("t3"))
		o.Labels["app"] = "istiod"
		return o
	}
	refused(t, p.admin.Create(t.Context(), istiod()), `MeshGuard "mesh-only"`, "[MV405]")
	must(t, p.admin.Create(t.Context(), newPod("istio-system", inPool("t3")))) // not of the mesh

	p.heartbeats(t, time.Second)
	must(t, p.replica.cmd.Process.Signal(syscall.SIGSTOP)) // it takes connections, and says nothing
	p.heartbeats(t, 2*time.Second)
	p.replica.kill()
	p.heartbeats(t, time.Second)

	if err := p.dev.Create(t.Context(), newPod(namespace, nil)); err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
		t.Errorf("a guarded pod that nobody judges: %v", err)
	}
	alone := istiod()
	must(t, p.admin.Create(t.Context(), alone))
	eventually(t, 20*time.Second, func() error {
		if err := p.admin.Get(t.Context(), client.ObjectKeyFromObject(alone), alone); err != nil {
			return err
		}
		if alone.Spec.NodeName == "" {
			return fmt.Errorf("istiod has no node")
		}
		return nil
	})
	for _, pod := range p.pods(t, namespace) { // the binding is all that is left to judge
		must(t, patch(t, p.dev, &pod, `{"spec":{"schedulingGates":null}}`))
	}
	gated.why = []string{"failed calling webhook"}
	eventually(t, 20*time.Second, func() error { return p.placed(t, namespace, gated) })

	p.serve()
	back := time.Now()
	eventually(t, 30*time.Second, func() error {
		if n := on(p.pods(t, namespace)); n < 3 {
			return fmt.Errorf("%d of 3 pods are bound", n)
		}
		return nil
	})
	t.Logf("the pods that waited are bound %s after Meshvakt was back", time.Since(back).Round(time.Millisecond))
	p.nowhereBad(t, namespace)
	must(t, p.dev.Create(t.Context(), newPod(namespace, nil)))
}

// heartbeats demands that how a node fares is written at once, and a change of its
// labels, of which we are told, soon.
func (p *placement) heartbeats(t *testing.T, soon time.Duration) {
	t.Helper()
	kubelet, err := client.New(plane.NodeConfig("m5-06"), client.Options{Scheme: scheme})
	must(t, err)
	for what, text := range map[string]string{
		"its status": fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"NoKubelet","message":"%d"}]}}`, time.Now().UnixNano()),
		"a label":    fmt.Sprintf(`{"metadata":{"labels":{"example.com/beat":"t%d"}}}`, time.Now().UnixNano()),
	} {
		began := time.Now()
		must(t, kubelet.Status().Patch(t.Context(), nodeObject("m5-06"), client.RawPatch("application/strategic-merge-patch+json", []byte(text))))
		took := time.Since(began)
		if took > time.Second && what != "a label" || took > soon {
			t.Errorf("a kubelet waits %s for %s", took, what)
		}
		t.Logf("a kubelet has written %s after %s", what, took.Round(time.Millisecond))
	}
}
