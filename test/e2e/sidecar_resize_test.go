package e2e

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// resizing is what the developer needs besides the role edit to resize pods in place.
const resizing = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: resizing}
rules:
- {apiGroups: [""], resources: [pods/resize], verbs: [get, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: resizing}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: resizing}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: developer}]
`

// sidecarResize: a running proxy is resized in place within the guard's bounds, and not
// beyond.
func sidecarResize(t *testing.T) {
	must(t, plane.Apply(t.Context(), []byte(resizing)))
	ns := sidecarNamespace(t, "resize", "{minimum: {cpu: 50m, memory: 64Mi}, maximum: {cpu: 3, memory: 2Gi}}")
	for kind, annotations := range map[string]map[string]string{"native": nil, "classic": classic()} {
		t.Run(kind, func(t *testing.T) {
			pod := typed(t, ns, (&vector{annotations: annotations}).template(t))
			create(t, clientFor(t, controlplane.Developer), pod)
			for _, c := range []struct {
				list, name, value, code, message string
				want                             four
			}{
				{"limits", "memory", "3Gi", "MV304", `limits.memory of istio-proxy is "3Gi"; must be at most "2Gi" by MeshGuard "resize"`, four{}},
				{"limits", "cpu", "64", "MV304", `limits.cpu of istio-proxy is "64"; must be at most "3" by MeshGuard "resize"`, four{}},
				{"requests", "cpu", "10m", "MV303", `requests.cpu of istio-proxy is "10m"; must be at least "50m" by MeshGuard "resize"`, four{}},
				{"limits", "memory", "1536Mi", "", "", four{"100m", "128Mi", "2", "1536Mi"}},
				{"requests", "cpu", "60m", "", "", four{"60m", "128Mi", "2", "1536Mi"}},
			} {
				t.Run(c.list+" "+c.name+" "+c.value, func(t *testing.T) {
					patch := resizePatch(t, pod, c.list, c.name, c.value)
					dev := clientFor(t, controlplane.Developer)
					err := dev.SubResource("resize").Patch(t.Context(), pod.DeepCopy(), client.RawPatch("application/strategic-merge-patch+json", patch))
					_, stderr, errKubectl := plane.Kubectl(t.Context(), controlplane.Developer, "",
						"-n", ns, "patch", "pod", pod.Name, "--subresource", "resize", "--patch", string(patch))
					if c.code != "" {
						refused(t, err, "["+c.code+"]", c.message, "resize the container to what the guard allows")
						refusedText(t, errKubectl, c.code)
						return
					}
					must(t, err)
					if errKubectl != nil {
						t.Errorf("kubectl: %v\n%s", errKubectl, stderr)
					}
					must(t, dev.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
					if got := fourOf(istioContainer(t, pod, "istio-proxy")); got != c.want {
						t.Errorf("after the resize istio-proxy has %s; want %s", got, c.want)
					}
				})
			}
		})
	}
}

// resizePatch sets one number of the proxy, in the list that it is in.
func resizePatch(t testing.TB, pod *corev1.Pod, list, name, value string) []byte {
	t.Helper()
	containers := "containers"
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == "istio-proxy" {
			containers = "initContainers"
		}
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{containers: []any{map[string]any{
		"name": "istio-proxy", "resources": map[string]any{list: map[string]any{name: value}},
	}}}})
	must(t, err)
	return patch
}
