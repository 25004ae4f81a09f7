package e2e

import (
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// packAmbient: in ambient a pod needs no sidecar, and must not leave.
func packAmbient(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	bare := func(overlay string) *unstructured.Unstructured {
		v := packVector{overlay: overlay}
		return podOf(namespace, v.templateOf(t))
	}
	must(t, dev.Create(t.Context(), bare("{}")))
	must(t, dev.Create(t.Context(), bare("{spec: {containers: [{name: web, securityContext: {runAsUser: 1337}}]}}")))
	must(t, dev.Create(t.Context(), (&packVector{overlay: "{}"}).final(t, namespace)))
	for overlay, code := range map[string]string{
		"{metadata: {labels: {istio.io/dataplane-mode: none}}}":                              "MV226",
		"{metadata: {annotations: {sidecar.istio.io/status: '{}'}}}":                         "MV226",
		"{metadata: {annotations: {ambient.istio.io/bypass-inbound-capture: 'true'}}}":       "MV227",
		"{metadata: {annotations: {ambient.istio.io/redirection: enabled}}}":                 "MV227",
		"{spec: {hostNetwork: true}}":                                                        "MV205",
		"{spec: {containers: [{name: web, securityContext: {capabilities: {add: [ALL]}}}]}}": "MV222",
		"{metadata: {labels: {security.istio.io/tlsMode: disabled}}}":                        "MV228",
	} {
		refusedByPack(t, dev.Create(t.Context(), bare(overlay)), "["+code+"]", `"both-planes"`)
	}
}

// packKinds tries a few vectors in everything that makes pods.
func packKinds(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	vectors := []packVector{
		{overlay: "{metadata: {labels: {sidecar.istio.io/inject: 'false'}}}", code: "MV202"},
		{overlay: "{metadata: {annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '8080'}}}", code: "MV206"},
		{overlay: "{spec: {hostNetwork: true}}", code: "MV205"},
		{overlay: "{spec: {containers: [{name: web, securityContext: {privileged: true}}]}}", code: "MV222"},
	}
	for _, kind := range templateKinds() {
		t.Run(kind.kind, func(t *testing.T) {
			must(t, dev.Create(t.Context(), workloadOf(kind.apiVersion, kind.kind, namespace, (&packVector{overlay: "{}"}).templateOf(t)), client.DryRunAll))
			for _, v := range vectors {
				refusedByPack(t, dev.Create(t.Context(), workloadOf(kind.apiVersion, kind.kind, namespace, v.templateOf(t))), "["+v.code+"]", kind.at)
			}
		})
	}
	// What a schema lets pass where there is nothing, or null, is harmless.
	rollout := func(spec map[string]any) *unstructured.Unstructured {
		u := workloadOf("argoproj.io/v1alpha1", "Rollout", namespace, map[string]any{})
		u.Object["spec"] = spec
		return u
	}
	for _, spec := range []map[string]any{
		{"workloadRef": map[string]any{"kind": "Deployment", "name": "web"}},
		{"template": nil},
		{"template": map[string]any{"metadata": nil, "spec": nil}},
		{"template": map[string]any{"metadata": map[string]any{"annotations": nil, "labels": nil}, "spec": map[string]any{
			"initContainers": nil, "securityContext": nil, "volumes": nil,
			"containers": []any{map[string]any{"name": "web", "securityContext": nil, "ports": nil, "env": nil, "args": nil, "volumeMounts": nil, "livenessProbe": nil}},
		}}},
	} {
		if err := dev.Create(t.Context(), rollout(spec), client.DryRunAll); err != nil {
			t.Errorf("a Rollout with %v: %v", spec, err)
		}
	}
}

// packSaysAll: everything that is wrong is said at once, however much that is.
func packSaysAll(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	several := packVector{overlay: "{metadata: {annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '8080'}}, spec: {hostNetwork: true, containers: [{name: web, securityContext: {privileged: true}}]}}"}
	refusedByPack(t, dev.Create(t.Context(), several.final(t, namespace)), `violates MeshGuard "default" (3 findings): `,
		`metadata.annotations[traffic.sidecar.istio.io/excludeInboundPorts]: "8080" takes port "8080" out of inbound capture`, "[MV206]; remove the annotation",
		"[MV205]; remove hostNetwork", `spec.containers[0].securityContext.privileged: true lets container "web" undo the capture of traffic; must be false [MV222]`)
	long := several.final(t, namespace)
	annotations := long.GetAnnotations()
	annotations["inject.istio.io/templates"] = strings.Repeat("mine\u2028,", 400)
	long.SetAnnotations(annotations)
	refusedByPack(t, dev.Create(t.Context(), long), `violates MeshGuard "default" (403 findings): `, " …")
}

// packChanges: what was wrong before does not refuse a change, what is new does.
func packChanges(t *testing.T) {
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	namespace := packNamespace(t, map[string]string{"istio-injection": "enabled"}) // not guarded yet
	bad := packVector{overlay: "{metadata: {annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '8080'}}}"}
	d := workloadOf("apps/v1", "Deployment", namespace, bad.templateOf(t))
	must(t, unstructured.SetNestedField(d.Object, int64(0), "spec", "replicas"))
	pod := bad.final(t, namespace)
	must(t, dev.Create(t.Context(), d))
	must(t, dev.Create(t.Context(), pod))
	ns := namespaceNamed(namespace)
	must(t, relabel(t.Context(), admin, ns, v1alpha1.GuardedLabel, v1alpha1.GuardedValue))
	packActive(t, namespace)

	patch := func(o *unstructured.Unstructured, text string) error {
		return dev.Patch(t.Context(), o.DeepCopy(), client.RawPatch("application/strategic-merge-patch+json", []byte(text)))
	}
	must(t, patch(d, `{"spec":{"replicas":1}}`))
	must(t, patch(d, `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"registry.example/web:2"}]}}}}`))
	must(t, patch(pod, `{"metadata":{"labels":{"team":"a"}}}`))
	refusedByPack(t, patch(d, `{"spec":{"template":{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":"8080,9090"}}}}}`), "(1 finding)", "[MV206]")
	refusedByPack(t, patch(d, `{"spec":{"template":{"spec":{"hostNetwork":true}}}}`), "(1 finding)", "[MV205]")
	refusedByPack(t, patch(pod, `{"metadata":{"labels":{"istio.io/test-vm":"true"}}}`), "(1 finding)", "[MV228]")
	must(t, patch(d, `{"spec":{"template":{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":null}}}}}`))
	refusedByPack(t, patch(d, `{"spec":{"template":{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeInboundPorts":"8080"}}}}}`), "[MV206]")
	// What ends is left alone, and so is what is deleted.
	must(t, dev.Delete(t.Context(), pod))
	must(t, dev.Delete(t.Context(), d))
}

func namespaceNamed(name string) *corev1.Namespace {
	ns := &corev1.Namespace{}
	ns.Name = name
	return ns
}

func packEphemeral(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	pod := (&packVector{overlay: "{}"}).final(t, namespace)
	must(t, dev.Create(t.Context(), pod))
	debug := func(container string) error {
		o := pod.DeepCopy()
		return dev.SubResource("ephemeralcontainers").Patch(t.Context(), o, client.RawPatch("application/strategic-merge-patch+json",
			[]byte(`{"spec":{"ephemeralContainers":[`+container+`]}}`)))
	}
	refusedByPack(t, debug(`{"name":"d1","image":"x","securityContext":{"runAsUser":1337}}`), "spec.ephemeralContainers[0].securityContext.runAsUser", "[MV221]")
	refusedByPack(t, debug(`{"name":"d2","image":"x","securityContext":{"capabilities":{"add":["NET_ADMIN"]}}}`), "[MV222]")
	refusedByPack(t, debug(`{"name":"d3","image":"x","targetContainerName":"istio-proxy","securityContext":{"capabilities":{"add":["SYS_PTRACE"]}}}`), "[MV222]")
	must(t, debug(`{"name":"d4","image":"x","targetContainerName":"web"}`))
}

// packRights: nobody in a namespace can touch the policy or its bindings.
func packRights(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	b := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}
	b.Name = "meshvakt-default"
	if err := dev.Delete(t.Context(), b); err == nil {
		t.Error("a developer may delete the binding")
	}
}

// TestBindingsFollowGuards: bindings come and go with guards, and are put back.
func TestBindingsFollowGuards(t *testing.T) {
	start(t)
	admin := clientFor(t, controlplane.Admin)
	g := v1alpha1.DefaultGuard()
	g.Name = unique("bound")
	g.Spec.NamespaceSelector.MatchLabels = map[string]string{"bound": g.Name}
	guard(t, g)
	key := client.ObjectKey{Name: "meshvakt-" + g.Name}
	var b admissionregistrationv1.ValidatingAdmissionPolicyBinding
	eventually(t, 30*time.Second, func() error { return admin.Get(t.Context(), key, &b) })
	uid := b.UID

	b.Spec.MatchResources.ExcludeResourceRules = []admissionregistrationv1.NamedRuleWithOperations{{
		RuleWithOperations: admissionregistrationv1.RuleWithOperations{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.OperationAll},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*"}},
		},
	}}
	must(t, admin.Update(t.Context(), &b))
	eventually(t, 30*time.Second, func() error {
		must(t, admin.Get(t.Context(), key, &b))
		if n := len(b.Spec.MatchResources.ExcludeResourceRules); n > 0 {
			return errStill("excludes objects")
		}
		return nil
	})
	must(t, admin.Delete(t.Context(), &b))
	eventually(t, 30*time.Second, func() error { return admin.Get(t.Context(), key, &b) })
	if b.UID == uid {
		t.Error("the binding was not made anew")
	}

	// A guard that only warns keeps nobody out.
	before := g.DeepCopy()
	metav1.SetMetaDataAnnotation(&g.ObjectMeta, v1alpha1.ChangeReasonAnnotation, "to see that the binding goes")
	g.Spec.MeshMembership.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
	must(t, admin.Patch(t.Context(), g, client.MergeFrom(before)))
	isGone := func() error {
		if err := admin.Get(t.Context(), key, &b); client.IgnoreNotFound(err) != nil || err == nil {
			return errStill("is there")
		}
		return nil
	}
	eventually(t, 30*time.Second, isGone)
	before = g.DeepCopy()
	g.Spec.MeshMembership.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Deny}
	must(t, admin.Patch(t.Context(), g, client.MergeFrom(before)))
	eventually(t, 30*time.Second, func() error { return admin.Get(t.Context(), key, &b) })
	must(t, deleteGuard(t.Context(), admin, g.Name))
	eventually(t, 30*time.Second, isGone)
}

type errStill string

func (e errStill) Error() string { return "the binding still " + string(e) }
