package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// do performs the operation of the case as a dry run.
func do(t *testing.T, c, admin client.Client, p *playedCase) error {
	object := p.object(t)
	dryRun := client.NewDryRunClient(c)
	switch p.Want.Operation {
	case "CREATE":
		if object.GetKind() == "Binding" {
			return bind(t, dryRun, object, p.Want.Subresource)
		}
		return dryRun.Create(t.Context(), object)
	case "DELETE":
		return dryRun.Delete(t.Context(), object)
	case "UPDATE":
		now := object.DeepCopy()
		must(t, admin.Get(t.Context(), client.ObjectKeyFromObject(object), now))
		change(t, now, object, p.Want.Subresource)
		if p.Want.Subresource != "" {
			return dryRun.SubResource(p.Want.Subresource).Update(t.Context(), now)
		}
		return dryRun.Update(t.Context(), now)
	}
	t.Fatalf("operation %q", p.Want.Operation)
	return nil
}

// change gives an object as it is what the case changes of it, and leaves the rest
// as the API server has it.
func change(t *testing.T, now, object *unstructured.Unstructured, subresource string) {
	t.Helper()
	now.SetLabels(object.GetLabels())
	now.SetAnnotations(object.GetAnnotations())
	take := func(fields ...string) {
		value, found, err := unstructured.NestedFieldCopy(object.Object, fields...)
		must(t, err)
		if found {
			must(t, unstructured.SetNestedField(now.Object, value, fields...))
		}
	}
	switch object.GetKind() {
	case "Namespace":
		labels := now.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[corev1.LabelMetadataName] = now.GetName()
		now.SetLabels(labels)
	case "Node":
	case "PersistentVolume":
		take("spec", "nodeAffinity")
		take("spec", "claimRef")
	case "GuardException", "MeshGuard":
		now.Object["spec"] = object.Object["spec"]
	case "ConfigMap":
		now.Object["data"] = object.Object["data"]
	case "Pod": // of which little can be changed
		take("spec", "ephemeralContainers")
		for _, list := range []string{"initContainers", "containers"} {
			changeContainers(t, now, object, list, subresource)
		}
	case "CronJob":
		take("spec", "jobTemplate")
	default:
		if strings.HasSuffix(object.GroupVersionKind().Group, ".istio.io") {
			now.Object["spec"] = object.Object["spec"]
			return
		}
		take("spec", "template")
		take("spec", "replicas")
	}
}

// changeContainers changes what can be changed of containers: resources by the
// subresource for it, images otherwise.
func changeContainers(t *testing.T, now, object *unstructured.Unstructured, list, subresource string) {
	t.Helper()
	want, _, err := unstructured.NestedSlice(object.Object, "spec", list)
	must(t, err)
	have, found, err := unstructured.NestedSlice(now.Object, "spec", list)
	must(t, err)
	if !found {
		return
	}
	for _, h := range have {
		for _, w := range want {
			if h, w := h.(map[string]any), w.(map[string]any); h["name"] == w["name"] {
				field := "image"
				if subresource == "resize" {
					field = "resources"
				}
				if w[field] != nil {
					h[field] = w[field]
				}
			}
		}
	}
	must(t, unstructured.SetNestedSlice(now.Object, have, "spec", list))
}
