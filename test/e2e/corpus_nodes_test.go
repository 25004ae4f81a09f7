package e2e

import (
	"testing"
	"time"

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
