package e2e

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// subresources are rights that nobody who plays a case has otherwise.
const subresources = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: corpus-subresources}
rules:
- {apiGroups: [""], resources: [pods/status, pods/resize, namespaces/status, namespaces/finalize], verbs: [update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: corpus-subresources}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: corpus-subresources}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: developer}]
`

// prepare gives the control plane what cases need that no test had use for. What
// the chart installs besides the webhook does not answer for it here.
func (y *corpusPlayer) prepare(t *testing.T) {
	t.Helper()
	for _, manifest := range []string{rolloutsAndDebugging, subresources, bindings} {
		must(t, plane.Apply(t.Context(), []byte(manifest)))
	}
	_, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "wait", "--for=condition=Established", "crd/rollouts.argoproj.io", "--timeout=60s")
	must(t, err)

	webhookAloneFor(t, y.admin)
}

// webhookAloneFor is webhookAlone until the test is over.
func webhookAloneFor(t *testing.T, admin client.Client) {
	t.Helper()
	pack := &admissionregistrationv1.ValidatingAdmissionPolicy{}
	must(t, admin.Get(t.Context(), client.ObjectKey{Name: celpack.PolicyName}, pack))
	webhookAlone(t)
	t.Cleanup(func() {
		pack.ResourceVersion, pack.UID = "", ""
		if err := admin.Create(context.Background(), pack); err != nil {
			t.Errorf("put ValidatingAdmissionPolicy %s back: %v", pack.Name, err)
		}
	})
}

// injectorSettings is what the chart writes with its default values, of what is
// read; the images are those of the recorded pods.
const injectorSettings = `{"global": {"hub": "registry.istio.io/testing", "tag": "latest", "proxy": {"image": "proxyv2", "statusPort": 15020, "includeInboundPorts": "*", "includeIPRanges": "*", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}}}, "proxy_init": {"image": "proxyv2"}}, "pilot": {"cni": {"enabled": false}}}`

// defaultInjection is what a case leaves out of how sidecars are injected: where
// other readers take it as Istio's default values make it, it has to be there.
func (p *playedCase) defaultInjection(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	if !slices.ContainsFunc(p.guards, func(g *v1alpha1.MeshGuard) bool {
		return g.Spec.MeshMembership != nil || g.Spec.SidecarResources != nil || g.Spec.NodePools != nil
	}) {
		return nil
	}
	has := func(kind, prefix string) bool {
		return slices.ContainsFunc(p.objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == kind && strings.HasPrefix(o.GetName(), prefix)
		})
	}
	settings, webhooks := has("ConfigMap", "istio-sidecar-injector"), has("MutatingWebhookConfiguration", "istio-")
	var list []*unstructured.Unstructured
	for _, plane := range p.Review(t).Cluster.ControlPlanes {
		if !settings {
			name := "istio-sidecar-injector"
			if plane.Revision != "default" {
				name += "-" + plane.Revision
			}
			list = append(list, unstructuredOf(t, &corev1.ConfigMap{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
				ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name},
				Data:       map[string]string{"config": "policy: enabled", "values": injectorSettings},
			}))
		}
		if !webhooks {
			list = append(list, unstructuredOf(t, defaultInjector(t, plane.Revision)))
		}
	}
	return list
}

// defaultInjector is the configuration of a revision with the selectors that other
// readers take for granted.
func defaultInjector(t *testing.T, revision string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	none, url := admissionregistrationv1.SideEffectClassNone, "https://127.0.0.1:1/inject"
	config := &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector-" + revision, Labels: map[string]string{"istio.io/rev": revision}},
	}
	for _, w := range mesh.DefaultInjection(revision).Webhooks {
		namespaces, err := metav1.ParseToLabelSelector(w.NamespaceSelector.String())
		must(t, err)
		objects, err := metav1.ParseToLabelSelector(w.ObjectSelector.String())
		must(t, err)
		config.Webhooks = append(config.Webhooks, admissionregistrationv1.MutatingWebhook{
			Name:                    w.Name,
			ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: &url},
			NamespaceSelector:       namespaces,
			ObjectSelector:          objects,
			SideEffects:             &none,
			AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		})
	}
	return config
}

func unstructuredOf(t *testing.T, o any) *unstructured.Unstructured {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	u := &unstructured.Unstructured{}
	must(t, u.UnmarshalJSON(text))
	return u
}

// uncalled keeps the API server from calling injectors, behind which nothing runs
// here. Meshvakt reads who would be called by the selectors.
func uncalled(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	if o.GetKind() != "MutatingWebhookConfiguration" {
		return
	}
	webhooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
	must(t, err)
	for _, w := range webhooks {
		w.(map[string]any)["matchConditions"] = []any{map[string]any{"name": "never", "expression": "false"}}
	}
	must(t, unstructured.SetNestedSlice(o.Object, webhooks, "webhooks"))
}

// createPod creates a pod and brings it into its phase, like a kubelet. One that is
// being deleted in the case stays because of its finalizers.
func (y *corpusPlayer) createPod(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	unscheduled(t, o)
	y.create(t, o)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName()}}
	phase, found, err := unstructured.NestedString(o.Object, "status", "phase")
	must(t, err)
	if found { // a patch, for the scheduler has its say as well
		must(t, y.admin.Status().Patch(t.Context(), pod, mergePatch(`{"status":{"phase":"`+phase+`"}}`)))
	}
	if o.GetDeletionTimestamp() == nil {
		return
	}
	must(t, y.admin.Delete(t.Context(), pod))
	t.Cleanup(func() {
		if err := y.admin.Patch(context.Background(), pod, mergePatch(`{"metadata":{"finalizers":null}}`)); err != nil {
			t.Errorf("let pod %s go: %v", pod.Name, err)
		}
	})
}
