package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// vector is one way out of the mesh, or, among the twins, the harmless thing that
// looks most like it.
type vector struct {
	name  string
	istio string // what Istio makes of it

	labels, annotations map[string]string
	spec                string // merged over the plain pod's, strategically

	code string // of the reason, without brackets; "" for twins
	// podBy says who else refuses the pod before Meshvakt is asked: "istio" or
	// "kubernetes".
	podBy string
	// podCode is the code for the pod where it is not that of the template.
	podCode string
	// podOnly: what the pod will be like cannot be told from the template.
	podOnly bool
	// templateOnly: as a pod it is harmless, or is another vector.
	templateOnly bool
}

const plainPod = `
metadata: {labels: {app: web}}
spec:
  containers:
  - name: app
    image: registry.example/web:1
    ports: [{containerPort: 8080}]
`

// template merges the vector over the plain pod.
func (v *vector) template(t testing.TB) map[string]any {
	t.Helper()
	base, err := yaml.YAMLToJSON([]byte(plainPod))
	must(t, err)
	overlay, metadata := map[string]any{}, map[string]any{}
	if v.labels != nil { // null would remove those of the plain pod
		metadata["labels"] = v.labels
	}
	if v.annotations != nil {
		metadata["annotations"] = v.annotations
	}
	overlay["metadata"] = metadata
	var spec map[string]any
	must(t, yaml.Unmarshal([]byte(v.spec), &spec))
	if spec != nil {
		overlay["spec"] = spec
	}
	patch, err := json.Marshal(overlay)
	must(t, err)
	merged, err := strategicpatch.StrategicMergePatch(base, patch, corev1.PodTemplateSpec{})
	must(t, err)
	var template map[string]any
	must(t, json.Unmarshal(merged, &template))
	return template
}

// podOf returns the pod that the template stands for.
func podOf(namespace string, template map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(template)}
	u.SetAPIVersion("v1")
	u.SetKind("Pod")
	u.SetNamespace(namespace)
	u.SetGenerateName("vector-")
	return u
}

// workloadOf returns an object of the kind that makes pods of the template.
func workloadOf(apiVersion, kind, namespace string, template map[string]any) *unstructured.Unstructured {
	template = runtime.DeepCopyJSON(template)
	spec := map[string]any{"template": template}
	matchLabels := map[string]any{"app": "web"}
	podSpec, _ := template["spec"].(map[string]any)
	switch kind {
	case "CronJob":
		podSpec["restartPolicy"] = "Never"
		spec = map[string]any{"schedule": "0 0 1 1 *", "jobTemplate": map[string]any{"spec": map[string]any{"template": template}}}
	case "Job":
		podSpec["restartPolicy"] = "Never"
	case "ReplicationController":
		spec["selector"] = matchLabels
	default:
		spec["selector"] = map[string]any{"matchLabels": matchLabels}
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetAPIVersion(apiVersion)
	u.SetKind(kind)
	u.SetNamespace(namespace)
	u.SetGenerateName("vector-")
	return u
}

// meshPlane gives the test a control plane with istiod and Meshvakt in it. What
// the chart installs besides the webhook does not answer for it here.
func meshPlane(t *testing.T) {
	t.Helper()
	ownPlane(t, controlplane.Options{Istio: true, Log: os.Stderr})
	for _, kind := range []string{"validatingadmissionpolicybindings", "validatingadmissionpolicies"} {
		_, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "delete", kind, "-l", "app.kubernetes.io/instance=meshvakt")
		must(t, err)
	}
	must(t, plane.Apply(t.Context(), []byte(rolloutsAndDebugging)))
}

// rolloutsAndDebugging is what the developer of a real cluster has besides the
// role edit: Argo's Rollouts, here with the least of a schema, and kubectl debug.
const rolloutsAndDebugging = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {plural: rollouts, singular: rollout, kind: Rollout, listKind: RolloutList}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: rollouts-and-debugging}
rules:
- {apiGroups: [argoproj.io], resources: [rollouts], verbs: ["*"]}
- {apiGroups: [""], resources: [pods/ephemeralcontainers], verbs: [get, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: rollouts-and-debugging}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: rollouts-and-debugging}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: developer}]
`

// meshGuards puts a guard of sidecars in force, and one that accepts ambient too.
func meshGuards(t testing.TB) {
	t.Helper()
	sidecar := v1alpha1.DefaultGuard()
	sidecar.Spec.MeshMembership = &v1alpha1.MeshMembership{Outbound: v1alpha1.OutboundExclusions{
		Ports: []int32{3306}, CIDRs: []string{"192.0.2.0/24"},
	}}
	guard(t, sidecar)
	both := v1alpha1.DefaultGuard()
	both.Name = "both-planes"
	both.Spec.NamespaceSelector = metav1.LabelSelector{MatchLabels: map[string]string{"planes": "both"}}
	both.Spec.MeshMembership = &v1alpha1.MeshMembership{DataPlanes: []v1alpha1.DataPlane{v1alpha1.DataPlaneSidecar, v1alpha1.DataPlaneAmbient}}
	guard(t, both)
	enforcing(t, sidecar.Name)
	enforcing(t, both.Name)
}

// meshNamespace creates a namespace that is STRICT, and has these labels. Those that Istio goes by it has from the
// beginning: one that the API server's cache does not have yet is read for its labels, while of one that is there the
// labels before the last change may count for a moment, in which the injector is not asked.
func meshNamespace(t testing.TB, prefix string, labels map[string]string) string {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	ns := namespace(unique(prefix), false)
	for key, value := range labels {
		if strings.HasPrefix(key, "istio") {
			ns.Labels[key] = value
		}
	}
	must(t, admin.Create(t.Context(), ns))
	must(t, admin.Create(t.Context(), policy(ns.Name, "default", "STRICT")))
	serviceAccount(t, ns.Name)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	must(t, err)
	must(t, admin.Patch(t.Context(), ns, client.RawPatch("application/merge-patch+json", patch)))
	return ns.Name
}

// Labels of namespaces in the mesh that one of the guards selects.
func sidecarLabels() map[string]string {
	return map[string]string{"istio-injection": "enabled", v1alpha1.GuardedLabel: v1alpha1.GuardedValue}
}

func ambientLabels() map[string]string {
	return map[string]string{"istio.io/dataplane-mode": "ambient", "planes": "both"}
}

// TestMembership tries every way out of the mesh that is known of Istio, and
// those that its makers may not have thought of, as somebody who may do anything
// in a namespace but has no say over its guard.
func TestMembership(t *testing.T) {
	meshPlane(t)
	start(t)
	meshGuards(t)
	sidecar, ambient := meshNamespace(t, "sidecar", sidecarLabels()), meshNamespace(t, "ambient", ambientLabels())
	for _, group := range []struct {
		name      string
		namespace string
		vectors   []vector
	}{
		{"annotations", sidecar, annotationVectors()},
		{"volumes", sidecar, volumeVectors()},
		{"proxy config", sidecar, proxyConfigVectors()},
		{"proxy metadata", sidecar, proxyMetadataVectors()},
		{"overrides", sidecar, overrideVectors()},
		{"pod spec", sidecar, podSpecVectors()},
		{"ambient", ambient, ambientVectors()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for _, v := range group.vectors {
				t.Run(v.name, func(t *testing.T) { attack(t, group.namespace, &v) })
			}
		})
	}
	t.Run("twins", func(t *testing.T) {
		for _, v := range append(annotationTwins(), podSpecTwins()...) {
			t.Run(v.name, func(t *testing.T) { land(t, sidecar, &v) })
		}
		for _, v := range ambientTwins() {
			t.Run("ambient/"+v.name, func(t *testing.T) { land(t, ambient, &v) })
		}
		t.Run("controllers make the pods", func(t *testing.T) {
			podsAreMade(t, sidecar)
			podsAreMade(t, ambient)
		})
	})
	t.Run("kinds", func(t *testing.T) { membershipKinds(t, sidecar) })
	t.Run("operations", func(t *testing.T) { membershipOperations(t, sidecar) })
	t.Run("ambient operations", func(t *testing.T) { ambientOperations(t, ambient) })
	t.Run("namespaces", membershipNamespaces)
	t.Run("never touched", func(t *testing.T) { membershipNeverTouched(t, sidecar) })
}

// attack demands that the vector lands neither as a pod nor in a Deployment, and
// that the answer says why.
func attack(t *testing.T, namespace string, v *vector) {
	if v.code == "" || v.istio == "" {
		t.Fatal("incomplete vector")
	}
	template := v.template(t)
	dev := clientFor(t, controlplane.Developer)
	if !v.templateOnly {
		t.Run("Pod", func(t *testing.T) {
			err := dev.Create(t.Context(), podOf(namespace, template))
			switch {
			case v.podBy == "istio":
				refusedBy(t, err, "sidecar-injector.istio.io")
			case v.podBy == "kubernetes":
				refusedBy(t, err, "is invalid")
			case v.podCode != "":
				refused(t, err, "["+v.podCode+"]")
			default:
				refused(t, err, "["+v.code+"]")
			}
		})
	}
	if !v.podOnly {
		t.Run("Deployment", func(t *testing.T) {
			refused(t, dev.Create(t.Context(), workloadOf("apps/v1", "Deployment", namespace, template)), "["+v.code+"]", "spec.template.")
		})
	}
}

// refusedBy demands that somebody else refused the request.
func refusedBy(t testing.TB, err error, who string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), who) {
		t.Fatalf("got %v; want a refusal by %s", err, who)
	}
}

// land demands that the twin is admitted in both forms.
func land(t *testing.T, namespace string, v *vector) {
	template := v.template(t)
	dev := clientFor(t, controlplane.Developer)
	if !v.templateOnly {
		if err := dev.Create(t.Context(), podOf(namespace, template)); err != nil {
			t.Errorf("as a pod: %v", err)
		}
	}
	d := workloadOf("apps/v1", "Deployment", namespace, template)
	// So that no other twin's Deployment takes these pods for its own.
	own := unique("twin")
	must(t, unstructured.SetNestedField(d.Object, own, "spec", "template", "metadata", "labels", "twin"))
	must(t, unstructured.SetNestedField(d.Object, own, "spec", "selector", "matchLabels", "twin"))
	if err := dev.Create(t.Context(), d); err != nil {
		t.Errorf("as a Deployment: %v", err)
	}
}

// podsAreMade waits until all ReplicaSets have the pods they want, and demands
// that none was refused one by Meshvakt.
func podsAreMade(t testing.TB, namespace string) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	eventually(t, 60*time.Second, func() error {
		var sets appsv1.ReplicaSetList
		var deployments appsv1.DeploymentList
		if err := errors.Join(admin.List(t.Context(), &sets, client.InNamespace(namespace)), admin.List(t.Context(), &deployments, client.InNamespace(namespace))); err != nil {
			return err
		}
		if len(sets.Items) < len(deployments.Items) {
			return fmt.Errorf("%d ReplicaSets of %d Deployments", len(sets.Items), len(deployments.Items))
		}
		for _, s := range sets.Items {
			if s.Status.Replicas != *s.Spec.Replicas {
				return fmt.Errorf("ReplicaSet %s has %d of %d pods: %v", s.Name, s.Status.Replicas, *s.Spec.Replicas, s.Status.Conditions)
			}
		}
		return nil
	})
	noRefusals(t, namespace)
}

// noRefusals demands that no controller was refused a pod by Meshvakt.
func noRefusals(t testing.TB, namespace string) {
	t.Helper()
	var events corev1.EventList
	must(t, clientFor(t, controlplane.Admin).List(t.Context(), &events, client.InNamespace(namespace)))
	for _, e := range events.Items {
		if strings.Contains(e.Message, "meshvakt.io") {
			t.Errorf("%s %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Message)
		}
	}
}

// templateKind is a kind that makes pods, and where its template is.
type templateKind struct{ apiVersion, kind, at string }

// templateKinds are all but Deployment, with which everything is tried.
func templateKinds() []templateKind {
	return []templateKind{
		{"apps/v1", "DaemonSet", "spec.template."},
		{"apps/v1", "ReplicaSet", "spec.template."},
		{"apps/v1", "StatefulSet", "spec.template."},
		{"argoproj.io/v1alpha1", "Rollout", "spec.template."},
		{"batch/v1", "CronJob", "spec.jobTemplate.spec.template."},
		{"batch/v1", "Job", "spec.template."},
		{"v1", "ReplicationController", "spec.template."},
	}
}

// membershipKinds tries a few vectors in everything that makes pods.
func membershipKinds(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	vectors := []vector{
		{labels: map[string]string{"sidecar.istio.io/inject": "false"}, code: "MV202"},
		{annotations: map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "8080"}, code: "MV206"},
		{annotations: map[string]string{"proxy.istio.io/config": "{proxyMetadata: {SKIP_RULE_APPLY: 'true'}}"}, code: "MV214"},
		{spec: "{hostNetwork: true}", code: "MV205"},
		{spec: "{containers: [{name: app, securityContext: {privileged: true}}]}", code: "MV222"},
	}
	for _, kind := range templateKinds() {
		t.Run(kind.kind, func(t *testing.T) {
			must(t, dev.Create(t.Context(), workloadOf(kind.apiVersion, kind.kind, namespace, (&vector{}).template(t)), client.DryRunAll))
			for _, v := range vectors {
				err := dev.Create(t.Context(), workloadOf(kind.apiVersion, kind.kind, namespace, v.template(t)))
				refused(t, err, "["+v.code+"]", kind.at)
			}
		})
	}
	// The schema of a custom resource lets pass what nobody can read as a template.
	for _, template := range []string{
		`{metadata: {annotations: {"traffic.sidecar.istio.io/excludeInboundPorts": 8080}}, spec: {containers: []}}`,
		`{metadata: {annotations: ["traffic.sidecar.istio.io/excludeInboundPorts"]}}`,
		`{spec: {hostNetwork: "true"}}`,
		`{spec: {containers: {name: app}}}`,
		`[]`,
		`"hostNetwork"`,
	} {
		var value any
		must(t, yaml.Unmarshal([]byte(template), &value))
		u := workloadOf("argoproj.io/v1alpha1", "Rollout", namespace, (&vector{}).template(t))
		must(t, unstructured.SetNestedField(u.Object, value, "spec", "template"))
		if err := dev.Create(t.Context(), u); err == nil || !strings.Contains(err.Error(), "meshvakt.io") {
			t.Errorf("a Rollout with template %s: %v; want a refusal by Meshvakt", template, err)
		}
	}
}

// applied runs kubectl as the developer with a manifest in JSON.
func applied(ctx context.Context, t testing.TB, o runtime.Object, args ...string) error {
	t.Helper()
	manifest, err := json.Marshal(o)
	must(t, err)
	_, _, err = plane.Kubectl(ctx, controlplane.Developer, string(bytes.TrimSpace(manifest)), append(args, "-f", "-")...)
	return err
}

// refusedText demands a refusal by Meshvakt in what kubectl wrote.
func refusedText(t testing.TB, err error, code string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "denied the request: violates MeshGuard") || !strings.Contains(err.Error(), "["+code+"]") {
		t.Errorf("got %v; want a refusal by Meshvakt with [%s]", err, code)
	}
}

// gone waits until the pod is no more.
func gone(t testing.TB, o client.Object) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	eventually(t, 30*time.Second, func() error {
		err := admin.Get(t.Context(), client.ObjectKeyFromObject(o), o)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("%s is still there: %w", o.GetName(), err)
	})
}
