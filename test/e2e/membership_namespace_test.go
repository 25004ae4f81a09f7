package e2e

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// membershipNamespaces: the labels of a namespace decide for all its pods.
func membershipNamespaces(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	t.Run("pods outside the mesh keep the guard away", func(t *testing.T) {
		ns := meshNamespace(t, "outside", nil)
		var names []string
		for range 3 {
			p := podOf(ns, (&vector{}).template(t))
			must(t, dev.Create(t.Context(), p))
			names = append(names, p.GetName())
		}
		must(t, relabel(t.Context(), dev, nsObject(ns), "istio-injection", "enabled"))
		refused(t, relabel(t.Context(), dev, nsObject(ns), v1alpha1.GuardedLabel, "true"), append(names, "[MV232]", "3 running pods")...)
		must(t, dev.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)))
		for _, name := range names {
			gone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
		}
		must(t, relabel(t.Context(), dev, nsObject(ns), v1alpha1.GuardedLabel, "true"))
	})
	t.Run("pods in the mesh do not", func(t *testing.T) {
		ns := meshNamespace(t, "inside", map[string]string{"istio-injection": "enabled"})
		must(t, dev.Create(t.Context(), podOf(ns, (&vector{}).template(t))))
		must(t, relabel(t.Context(), dev, nsObject(ns), v1alpha1.GuardedLabel, "true"))
	})
	for name, labels := range map[string]map[string]string{
		"injection off":                 {"istio-injection": "disabled"},
		"an odd value":                  {"istio-injection": "true"},
		"other capitals":                {"istio-injection": "Enabled"},
		"an empty value":                {"istio-injection": ""},
		"a dead revision":               {"istio.io/rev": "canary"},
		"a revision, and injection off": {"istio.io/rev": "default", "istio-injection": "disabled"},
		"ambient where it is no option": {"istio.io/dataplane-mode": "ambient", "istio-injection": "disabled"},
	} {
		t.Run("new namespace: "+name, func(t *testing.T) {
			admin := clientFor(t, controlplane.Admin)
			ns := nsObject(unique("labels"))
			must(t, admin.Create(t.Context(), ns))
			must(t, admin.Create(t.Context(), policy(ns.Name, "default", "STRICT")))
			ns.Labels = labels
			ns.Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
			refused(t, dev.Update(t.Context(), ns), "[MV20")
		})
	}
	t.Run("guarded namespace", func(t *testing.T) {
		ns := meshNamespace(t, "guarded", sidecarLabels())
		for _, patch := range []string{
			`{"istio-injection":null}`,
			`{"istio-injection":"disabled"}`,
			`{"istio-injection":"ENABLED"}`,
			`{"istio-injection":null,"istio.io/rev":"canary"}`,
			`{"istio-injection":null,"istio.io/dataplane-mode":"ambient"}`,
		} {
			refused(t, dev.Patch(t.Context(), nsObject(ns), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":`+patch+`}}`))), "[MV2")
		}
		refused(t, relabel(t.Context(), dev, nsObject(ns), v1alpha1.GuardedLabel, ""), "MV105")
		for _, patch := range []string{
			`{"istio-injection":null,"istio.io/rev":"default"}`,
			`{"istio-injection":"enabled","istio.io/rev":null}`,
			`{"istio.io/rev":"canary"}`, // which istio-injection overrules
			`{"istio.io/dataplane-mode":"ambient"}`,
			`{"team":"blue"}`,
		} {
			must(t, dev.Patch(t.Context(), nsObject(ns), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":`+patch+`}}`))))
		}
	})
	t.Run("ambient namespace", func(t *testing.T) {
		ns := meshNamespace(t, "leaves", ambientLabels())
		p := podOf(ns, (&vector{}).template(t))
		must(t, dev.Create(t.Context(), p))
		for _, value := range []string{"", "none", "Ambient"} {
			refused(t, relabel(t.Context(), dev, nsObject(ns), "istio.io/dataplane-mode", value), "[MV231]", p.GetName())
		}
		must(t, relabel(t.Context(), dev, nsObject(ns), "istio-injection", "disabled")) // means nothing to ambient
	})
}

// membershipNeverTouched: nothing that keeps a cluster running is ever refused.
func membershipNeverTouched(t *testing.T, namespace string) {
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	bad := (&vector{spec: "{hostNetwork: true}"}).template(t)
	t.Run("mirror pods", func(t *testing.T) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Unschedulable: true}}
		create(t, admin, node)
		kubelet, err := client.New(plane.NodeConfig(node.Name), client.Options{Scheme: scheme})
		must(t, err)
		mirror := podOf(namespace, bad)
		mirror.SetAnnotations(map[string]string{corev1.MirrorPodAnnotationKey: "x"})
		mirror.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true)}})
		must(t, unstructured.SetNestedField(mirror.Object, node.Name, "spec", "nodeName"))
		eventually(t, 10*time.Second, func() error { return kubelet.Create(t.Context(), mirror.DeepCopy(), client.DryRunAll) }) // the API server gets to know the node
	})
	t.Run("what has ended", func(t *testing.T) {
		ns := meshNamespace(t, "ended", nil)
		p := podOf(ns, bad)
		must(t, dev.Create(t.Context(), p))
		ended := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"phase":"Succeeded"}}`))
		must(t, admin.Status().Patch(t.Context(), p, ended))
		must(t, relabel(t.Context(), dev, nsObject(ns), "istio-injection", "enabled"))
		must(t, relabel(t.Context(), dev, nsObject(ns), v1alpha1.GuardedLabel, "true"))
		must(t, relabel(t.Context(), dev, p, "tier", "web"))
		must(t, dev.Delete(t.Context(), p))
	})
	t.Run("kube-system and namespaces without a guard", func(t *testing.T) {
		for _, ns := range []string{"kube-system", "default"} {
			p := podOf(ns, bad)
			must(t, admin.Create(t.Context(), p, client.DryRunAll))
			must(t, admin.Create(t.Context(), workloadOf("apps/v1", "DaemonSet", ns, bad), client.DryRunAll))
		}
	})
}
