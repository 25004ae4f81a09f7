package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

func nsObject(name string) *corev1.Namespace { return namespace(name, false) }

// membershipOperations: every way in which the API server lets an object be
// changed, on what is in the mesh already.
func membershipOperations(t *testing.T, namespace string) {
	t.Run("changes of a running pod", func(t *testing.T) { podChanges(t, namespace) })
	t.Run("changes of a Deployment", func(t *testing.T) { deploymentChanges(t, namespace) })
	t.Run("debugging", func(t *testing.T) { debugging(t, namespace) })
	t.Run("pods as they are read back", func(t *testing.T) { readBack(t, namespace) })
	t.Run("fields that are not the author's", func(t *testing.T) { forgedFields(t, namespace) })
	t.Run("old bad pods", oldBadPods)
}

func podChanges(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	running := podOf(namespace, (&vector{}).template(t))
	must(t, dev.Create(t.Context(), running))
	const (
		merge     = types.MergePatchType
		strategic = types.StrategicMergePatchType
		jsonPatch = types.JSONPatchType
	)
	for _, c := range []struct {
		name        string
		kind        types.PatchType
		patch, code string
	}{
		{"ports excluded", merge, `{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":"8080"}}}`, "MV206"},
		{"ports excluded, strategically", strategic, `{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":"8080"}}}`, "MV206"},
		{"ports excluded, by JSON patch", jsonPatch, `[{"op":"add","path":"/metadata/annotations/traffic.sidecar.istio.io~1excludeInboundPorts","value":"8080"}]`, "MV206"},
		{"a configuration for the next start of the proxy", merge, `{"metadata":{"annotations":{"proxy.istio.io/config":"discoveryAddress: evil.example:15012"}}}`, "MV213"},
		{"a variable for the next start", merge, `{"metadata":{"annotations":{"proxy.istio.io/config":"{proxyMetadata: {DISABLE_ENVOY: 'true'}}"}}}`, "MV214"},
		{"another control plane", merge, `{"metadata":{"annotations":{"sidecar.istio.io/discoveryAddress":"evil.example:15012"}}}`, "MV220"},
		{"another status port", merge, `{"metadata":{"annotations":{"status.sidecar.istio.io/port":"8080"}}}`, "MV208"},
		{"injection off, after the fact", merge, `{"metadata":{"labels":{"sidecar.istio.io/inject":"false"}}}`, "MV202"},
		{"plaintext for the mesh's clients", merge, `{"metadata":{"labels":{"security.istio.io/tlsMode":"disabled"}}}`, "MV228"},
		{"a virtual machine", merge, `{"metadata":{"labels":{"istio.io/test-vm":""}}}`, "MV228"},
		{"the proxy's image", strategic, `{"spec":{"initContainers":[{"name":"istio-proxy","image":"evil.example/img:1"}]}}`, "MV217"},
		{"the image of istio-init", strategic, `{"spec":{"initContainers":[{"name":"istio-init","image":"evil.example/img:1"}]}}`, "MV217"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, dev.Patch(t.Context(), running.DeepCopy(), client.RawPatch(c.kind, []byte(c.patch))), "["+c.code+"]")
		})
	}
	t.Run("by update", func(t *testing.T) {
		fresh := running.DeepCopy()
		must(t, dev.Get(t.Context(), client.ObjectKeyFromObject(running), fresh))
		annotations := fresh.GetAnnotations()
		annotations["traffic.sidecar.istio.io/excludeInboundPorts"] = "8080"
		fresh.SetAnnotations(annotations)
		refused(t, dev.Update(t.Context(), fresh), "[MV206]")
	})
	t.Run("by kubectl", func(t *testing.T) {
		for _, args := range []string{
			"annotate pod %s traffic.sidecar.istio.io/excludeInboundPorts=8080",
			"annotate --overwrite pod %s istio.io/rev- sidecar.istio.io/status- traffic.sidecar.istio.io/excludeInboundPorts=8080",
		} {
			_, _, err := plane.Kubectl(t.Context(), controlplane.Developer, "", strings.Fields("-n "+namespace+" "+fmt.Sprintf(args, running.GetName()))...)
			refusedText(t, err, "MV206")
		}
	})
	for _, patch := range []string{
		`{"metadata":{"labels":{"tier":"web"}}}`,
		`{"metadata":{"annotations":{"team":"blue","traffic.sidecar.istio.io/includeInboundPorts":"*"}}}`,
		`{"metadata":{"finalizers":["example.com/keep"]}}`,
		`{"metadata":{"finalizers":null}}`,
		`{"spec":{"activeDeadlineSeconds":3600}}`,
	} {
		must(t, dev.Patch(t.Context(), running.DeepCopy(), client.RawPatch(merge, []byte(patch))))
	}
	must(t, dev.Patch(t.Context(), running.DeepCopy(), client.RawPatch(strategic, []byte(`{"spec":{"containers":[{"name":"app","image":"registry.example/web:2"}]}}`))))
}

func deploymentChanges(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	d := workloadOf("apps/v1", "Deployment", namespace, (&vector{}).template(t))
	d.SetGenerateName("")
	d.SetName(unique("changes"))
	must(t, dev.Create(t.Context(), d))
	bad := d.DeepCopy()
	bad.SetResourceVersion("")
	bad.SetManagedFields(nil)
	must(t, unstructured.SetNestedField(bad.Object, "8080", "spec", "template", "metadata", "annotations", "traffic.sidecar.istio.io/excludeInboundPorts"))
	for name, args := range map[string][]string{
		"apply":             {"apply"},
		"server-side apply": {"apply", "--server-side", "--force-conflicts", "--field-manager=ops"},
		"replace":           {"replace"},
	} {
		t.Run(name, func(t *testing.T) { refusedText(t, applied(t.Context(), t, bad, args...), "MV206") })
	}
	for _, args := range []string{
		`patch deployment %s -p {"spec":{"template":{"spec":{"hostNetwork":true}}}}`,
		`patch deployment %s --type=json -p [{"op":"add","path":"/spec/template/spec/hostNetwork","value":true}]`,
	} {
		_, _, err := plane.Kubectl(t.Context(), controlplane.Developer, "", strings.Fields("-n "+namespace+" "+fmt.Sprintf(args, d.GetName()))...)
		refusedText(t, err, "MV205")
	}
	rolledOut := func() { // there is nothing to undo before the controller has made a ReplicaSet of each change
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			var now appsv1.Deployment
			if err := dev.Get(t.Context(), client.ObjectKeyFromObject(d), &now); err != nil {
				return err
			}
			if now.Status.ObservedGeneration != now.Generation {
				return fmt.Errorf("generation %d is seen to; must be %d", now.Status.ObservedGeneration, now.Generation)
			}
			return nil
		})
	}
	rolledOut()
	for _, args := range []string{
		"scale deployment %s --replicas=2",
		"set image deployment/%s app=registry.example/web:2",
		"rollout restart deployment/%s",
		"rollout undo deployment/%s",
		"annotate deployment %s traffic.sidecar.istio.io/excludeInboundPorts=8080", // not the pods'
		"label deployment %s sidecar.istio.io/inject=false",
	} {
		_, _, err := plane.Kubectl(t.Context(), controlplane.Developer, "", strings.Fields("-n "+namespace+" "+fmt.Sprintf(args, d.GetName()))...)
		must(t, err)
		rolledOut()
	}
	must(t, dev.Delete(t.Context(), d))
	t.Run("server-side apply of a new pod", func(t *testing.T) {
		p := podOf(namespace, (&vector{spec: "{hostNetwork: true}"}).template(t))
		p.SetGenerateName("")
		p.SetName(unique("applied"))
		refusedText(t, applied(t.Context(), t, p, "apply", "--server-side"), "MV205")
	})
}

// debugging: the injector is not asked about ephemeral containers.
func debugging(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	running := podOf(namespace, (&vector{}).template(t))
	must(t, dev.Create(t.Context(), running))
	debug := func(args ...string) error {
		all := append([]string{"-n", namespace, "debug", running.GetName(), "--image=registry.example/debug:1", "--attach=false", "--quiet"}, args...)
		_, _, err := plane.Kubectl(t.Context(), controlplane.Developer, "", all...)
		return err
	}
	for name, args := range map[string][]string{
		"rights over the network":    {"--profile=netadmin"},
		"all rights":                 {"--profile=sysadmin"},
		"in the proxy's processes":   {"--profile=general", "--target=istio-proxy"},
		"in a copy, with all rights": {"--profile=sysadmin", "--copy-to=" + unique("copy")},
	} {
		t.Run(name, func(t *testing.T) { refusedText(t, debug(args...), "MV222") })
	}
	// A copy lacks the annotation by which Istio knows its own containers, and so
	// has them merged over the template as the user's.
	t.Run("in a copy", func(t *testing.T) {
		refusedText(t, debug("--profile=baseline", "--copy-to="+unique("copy")), "MV215")
	})
	patch := func(container string) error {
		return dev.SubResource("ephemeralcontainers").Patch(t.Context(), running.DeepCopy(),
			client.RawPatch("application/strategic-merge-patch+json", []byte(`{"spec":{"ephemeralContainers":[`+container+`]}}`)))
	}
	for _, c := range []struct{ name, container, code string }{
		{"as the proxy's user", `{"name":"d1","image":"registry.example/debug:1","securityContext":{"runAsUser":1337}}`, "MV221"},
		{"as the proxy's group", `{"name":"d2","image":"registry.example/debug:1","securityContext":{"runAsGroup":1337}}`, "MV221"},
		{"with NET_ADMIN", `{"name":"d3","image":"registry.example/debug:1","securityContext":{"capabilities":{"add":["net_admin"]}}}`, "MV222"},
		{"with the proxy's bootstrap", `{"name":"d4","image":"registry.example/debug:1","volumeMounts":[{"name":"istio-envoy","mountPath":"/mine"}]}`, "MV219"},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, patch(c.container), "["+c.code+"]") })
	}
	t.Run("harmless", func(t *testing.T) {
		must(t, debug("--profile=restricted"))
		must(t, debug("--profile=general", "--target=app"))
		must(t, debug("--profile=restricted", "--target=istio-proxy"))
	})
}

// readBack: what was injected once is created again from what kubectl get shows.
func readBack(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	for _, v := range []vector{
		{},
		{annotations: annotated("sidecar.istio.io/nativeSidecar", "false")},
		{spec: "{containers: [{name: istio-proxy, image: auto, resources: {limits: {memory: 300Mi}}}]}"},
		{spec: "{containers: [{name: app, readinessProbe: {httpGet: {path: /, port: 8080}}}]}"},
	} {
		first := podOf(namespace, v.template(t))
		must(t, dev.Create(t.Context(), first))
		again := first.DeepCopy()
		again.SetName(unique("again"))
		again.SetResourceVersion("")
		again.SetUID("")
		must(t, dev.Create(t.Context(), again))
		must(t, client.IgnoreNotFound(dev.Delete(t.Context(), first)))
		// And with what only looks like Istio's now.
		evil := again.DeepCopy()
		evil.SetName(unique("evil"))
		evil.SetResourceVersion("")
		evil.SetUID("")
		must(t, unstructured.SetNestedField(evil.Object, true, "spec", "hostNetwork"))
		if err := dev.Create(t.Context(), evil); err == nil {
			t.Error("a pod with Istio's containers on the node's network has landed")
		}
		labels := again.GetLabels()
		labels["sidecar.istio.io/inject"] = "false"
		frozen := again.DeepCopy()
		frozen.SetName(unique("frozen"))
		frozen.SetResourceVersion("")
		frozen.SetUID("")
		frozen.SetLabels(labels)
		refused(t, dev.Create(t.Context(), frozen), "[MV202]")
	}
}

// forgedFields: what the API server sets itself cannot make a pod look ended.
func forgedFields(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	template := (&vector{spec: "{hostNetwork: true}"}).template(t)
	for name, forge := range map[string]func(*unstructured.Unstructured) error{
		"phase": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, "Succeeded", "status", "phase")
		},
		"deletion": func(u *unstructured.Unstructured) error {
			return unstructured.SetNestedField(u.Object, "2020-01-01T00:00:00Z", "metadata", "deletionTimestamp")
		},
		"owner": func(u *unstructured.Unstructured) error {
			u.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "kube-proxy", UID: "0"}})
			return nil
		},
		"fixed name": func(u *unstructured.Unstructured) error { u.SetName(unique("fixed")); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := podOf(namespace, template)
			must(t, forge(p))
			refused(t, dev.Create(t.Context(), p), "[MV205]")
			d := workloadOf("apps/v1", "Deployment", namespace, template)
			if name != "phase" {
				must(t, forge(d))
			}
			refused(t, dev.Create(t.Context(), d), "[MV205]")
		})
	}
}

// oldBadPods came before the guard. They can be tended to and removed, and not
// made worse.
func oldBadPods(t *testing.T) {
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	ns := meshNamespace(t, "old", map[string]string{"istio-injection": "enabled"})
	template := (&vector{annotations: annotated("traffic.sidecar.istio.io/excludeInboundPorts", "9090")}).template(t)
	old := podOf(ns, template)
	must(t, admin.Create(t.Context(), old))
	d := workloadOf("apps/v1", "Deployment", ns, template)
	must(t, unstructured.SetNestedField(d.Object, int64(0), "spec", "replicas"))
	must(t, admin.Create(t.Context(), d))
	refused(t, relabel(t.Context(), dev, nsObject(ns), v1alpha1.GuardedLabel, "true"), "[MV232]", old.GetName())
	// Somebody switched the webhook off for a moment.
	g := v1alpha1.DefaultGuard()
	spec := v1alpha1.MeshGuard{}
	must(t, admin.Get(t.Context(), client.ObjectKey{Name: g.Name}, &spec))
	must(t, deleteGuard(t.Context(), admin, g.Name))
	eventually(t, 30*time.Second, func() error { return relabel(t.Context(), admin, nsObject(ns), v1alpha1.GuardedLabel, "true") })
	again := &v1alpha1.MeshGuard{ObjectMeta: metav1.ObjectMeta{Name: g.Name}, Spec: spec.Spec}
	must(t, admin.Create(t.Context(), again))
	// That pods are refused says nothing yet: the entry of the guard before may still be there, and is about to go.
	enforcing(t, g.Name)
	refused(t, dev.Create(t.Context(), podOf(ns, template), client.DryRunAll), "[MV206]")
	merge := func(o client.Object, patch any) error {
		data, err := json.Marshal(patch)
		must(t, err)
		return dev.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", data))
	}
	type m = map[string]any
	must(t, merge(old.DeepCopyObject().(client.Object), m{"metadata": m{"labels": m{"tier": "web"}, "finalizers": []string{"example.com/keep"}}}))
	must(t, merge(old.DeepCopyObject().(client.Object), m{"metadata": m{"finalizers": nil, "ownerReferences": nil}}))
	must(t, merge(old.DeepCopyObject().(client.Object), m{"spec": m{"activeDeadlineSeconds": 600}}))
	must(t, merge(d.DeepCopyObject().(client.Object), m{"spec": m{"replicas": 1}}))
	must(t, merge(d.DeepCopyObject().(client.Object), m{"spec": m{"template": m{"metadata": m{"labels": m{"tier": "web"}}}}}))
	refused(t, merge(old.DeepCopyObject().(client.Object), m{"metadata": m{"annotations": m{"traffic.sidecar.istio.io/excludeInboundPorts": "9090,8080"}}}), "[MV206]")
	refused(t, merge(d.DeepCopyObject().(client.Object), m{"spec": m{"template": m{"spec": m{"hostNetwork": true}}}}), "[MV205]")
	eventually(t, 30*time.Second, func() error {
		var events corev1.EventList
		if err := admin.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "FailedCreate" && strings.Contains(e.Message, "MV206") {
				return nil
			}
		}
		return errors.New("the ReplicaSet has got its pod, or no event")
	})
	must(t, merge(d.DeepCopyObject().(client.Object), m{"spec": m{"template": m{"metadata": m{"annotations": nil}}}}))
	must(t, dev.Delete(t.Context(), old))
	gone(t, old)
}
