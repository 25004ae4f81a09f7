package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// bindings is what a scheduler of one's own needs besides the role edit.
const bindings = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: binding}
rules:
- {apiGroups: [""], resources: [bindings, pods/binding], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: binding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: binding}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: developer}]
`

// who sends the request of the case: nodes and volumes are not the developers' business.
func (p *playedCase) who(t *testing.T) controlplane.User {
	t.Helper()
	switch p.object(t).GetKind() {
	case "Node", "PersistentVolume":
		return controlplane.Admin
	}
	if p.Want.User != "" {
		return controlplane.User(p.Want.User)
	}
	if p.Want.MayUnguard {
		return controlplane.Platform
	}
	return controlplane.Developer
}

// measuredNow dates the measurement of a node: what is older than two hours is removed.
func measuredNow(o *unstructured.Unstructured) {
	annotations := o.GetAnnotations()
	if o.GetKind() != "Node" || annotations[v1alpha1.AnnotationSteal] == "" {
		return
	}
	annotations[v1alpha1.AnnotationMeasuredAt] = time.Now().UTC().Format(time.RFC3339)
	o.SetAnnotations(annotations)
}

// remember writes on nodes again what the leader has removed before there was a guard:
// that CPU steal has made them burstable.
func (y *corpusPlayer) remember(t *testing.T, c *playedCase) {
	t.Helper()
	for _, o := range c.objects {
		source, ok := o.GetAnnotations()[v1alpha1.ClassSourceAnnotation]
		if o.GetKind() != "Node" || !ok {
			continue
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.GetName()}}
		must(t, y.admin.Patch(t.Context(), node, mergePatch(fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.ClassSourceAnnotation, source))))
	}
}

// leaveNodes ends the pods of earlier batches that are still on a node of the same name,
// where the case is of what runs on it. No kubelet ends them here.
func (y *corpusPlayer) leaveNodes(t *testing.T, batch corpusBatch) {
	t.Helper()
	if batch[0].object(t).GetKind() != "Node" {
		return
	}
	own := map[string]bool{}
	for _, c := range batch {
		for _, o := range c.objects {
			own[o.GetNamespace()] = true
		}
	}
	eventually(t, 30*time.Second, func() error {
		var pods corev1.PodList
		must(t, y.admin.List(t.Context(), &pods))
		left := 0
		for i := range pods.Items {
			if pod := &pods.Items[i]; pod.Spec.NodeName != "" && !own[pod.Namespace] {
				left++
				must(t, client.IgnoreNotFound(y.admin.Delete(t.Context(), pod, client.GracePeriodSeconds(0))))
			}
		}
		if left > 0 {
			return fmt.Errorf("%d pods of earlier batches are on nodes", left)
		}
		return nil
	})
}

// unscheduled keeps the scheduler away from a pod of the state: whether it has a node is
// what the case says.
func unscheduled(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	must(t, unstructured.SetNestedField(o.Object, "nobody", "spec", "schedulerName"))
}

// bind sends a Binding, as a scheduler does, or by the older resource for it. That there
// is no such pod, the API server says after everybody has been asked.
func bind(t *testing.T, dryRun client.Client, o *unstructured.Unstructured, subresource string) error {
	t.Helper()
	if subresource == "" {
		return client.IgnoreNotFound(dryRun.Create(t.Context(), o))
	}
	pod := &unstructured.Unstructured{}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetNamespace(o.GetNamespace())
	pod.SetName(o.GetName())
	return client.IgnoreNotFound(dryRun.SubResource(subresource).Create(t.Context(), pod, o))
}
