package admissionpolicy

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// TestLargeObjects: expressions have a budget, and one that exceeds it refuses the
// request. Nothing that the API server stores may be that expensive.
func TestLargeObjects(t *testing.T) {
	const limit = 1_500_000 // bytes that etcd takes
	container := func(i, variables int) corev1.Container {
		c := corev1.Container{Name: fmt.Sprintf("c%d", i), Image: "registry.example/app:1", Args: []string{"--serve"}}
		for n := range variables {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("E%d", n), Value: strings.Repeat("x", 100)})
		}
		for n := range 10 {
			c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: int32(2000 + 10*i + n), Protocol: corev1.ProtocolTCP})
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: fmt.Sprintf("v%d", n), MountPath: fmt.Sprintf("/data/%d", n)})
		}
		return c
	}
	for name, spec := range map[string]func(*corev1.PodTemplateSpec){
		"one container with all variables": func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers = append(p.Spec.Containers, container(0, 10_000))
		},
		"100 containers": func(p *corev1.PodTemplateSpec) {
			for i := range 100 {
				p.Spec.Containers = append(p.Spec.Containers, container(i, 60))
			}
		},
		"large annotations": func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers = append(p.Spec.Containers, container(0, 1))
			p.Annotations = map[string]string{
				"proxy.istio.io/config":                         "{tracing: {}, extraStatTags: [" + strings.Repeat("a,", 60_000) + "]}",
				"sidecar.istio.io/userVolumeMount":              `{"a": {"mountPath": "/etc/certs", "x": "` + strings.Repeat(" ", 100_000) + `"}}`,
				"traffic.sidecar.istio.io/excludeOutboundPorts": strings.Repeat("3306,", 4000),
			}
		},
		"overrides": func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers = append(p.Spec.Containers, container(0, 1))
			p.Annotations = map[string]string{"proxy.istio.io/overrides": `{"containers": [` + strings.Repeat(" ", 99_000) + `]}`}
		},
		"many ranges": func(p *corev1.PodTemplateSpec) {
			p.Spec.Containers = append(p.Spec.Containers, container(0, 1))
			p.Annotations = map[string]string{
				"traffic.sidecar.istio.io/excludeOutboundIPRanges": strings.Repeat("10.63.0.1/32,", 200),
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEvaluator(t, false)
			p := corev1.PodTemplateSpec{}
			p.Labels = map[string]string{"app": "large"}
			spec(&p)
			u, err := untyped(&corev1.PodTemplate{Template: p}, schema.GroupVersionKind{Version: "v1", Kind: "PodTemplate"})
			if err != nil {
				t.Fatal(err)
			}
			text, err := u.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			u.Object = map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"namespace": "prod", "name": "large"},
				"spec": map[string]any{"template": u.Object["template"], "selector": map[string]any{}}}
			guard := v1alpha1.DefaultGuard()
			guard.Spec.MeshMembership.Outbound.Ports = []int32{3306}
			for n := range 64 { // as many as a guard may have
				guard.Spec.MeshMembership.Outbound.CIDRs = append(guard.Spec.MeshMembership.Outbound.CIDRs, fmt.Sprintf("10.%d.0.0/16", n))
			}
			old := u.DeepCopy()
			r := &request{object: u, old: old, operation: admission.Update, user: "developer", guard: guard, namespace: &corev1.Namespace{}}
			labels := u.Object["spec"].(map[string]any)["template"].(map[string]any)["metadata"].(map[string]any)["labels"].(map[string]any)
			labels["changed"] = "true"
			v, err := e.evaluate(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes cost %d", len(text), v.cost)
			if len(text) > limit || !v.judged || v.denied() {
				t.Errorf("%d bytes, judged %t: %s", len(text), v.judged, v.message)
			}
		})
	}
}
