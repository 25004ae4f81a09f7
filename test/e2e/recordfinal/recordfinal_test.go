// Package recordfinal keeps what the corpus of the policies says of injected pods
// in line with what the real istiod makes of them.
package recordfinal

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

var update = flag.Bool("update", false, "rewrite the goldens and the recorded files final.yaml")

const (
	corpus = "../../../policies/testdata"
	policy = "mesh-membership"
)

// plainPod is the pod whose injected forms are the goldens.
const plainPod = `
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: prod
  labels: {app: web}
spec:
  serviceAccountName: default
  containers:
  - name: web
    image: registry.example.com/web:1.0
    ports: [{containerPort: 8080}]
`

// The goldens: how the plain pod comes out.
const (
	native = "native" // istio-init, and the proxy as a native sidecar
	legacy = "legacy" // istio-init, and the proxy among the containers
	cni    = "cni"    // istio-validation, where istio-cni captures, and a native sidecar
)

// TestRecordFinal submits the pods of the corpus to a control plane with istiod,
// as dry runs, and compares what comes out with the goldens and with final.yaml.
// With -update it writes them.
func TestRecordFinal(t *testing.T) {
	plane := controlplane.Start(t, controlplane.Options{Istio: true})
	r := &recorder{plane: plane, admin: clientFor(t, plane, controlplane.Admin), developer: clientFor(t, plane, controlplane.Developer), namespaces: map[string]string{}}
	t.Run(native, func(t *testing.T) { r.golden(t, native, nil) })
	t.Run(legacy, func(t *testing.T) {
		r.golden(t, legacy, map[string]string{"sidecar.istio.io/nativeSidecar": "false"})
	})
	recorded := r.cases(t, false)
	r.captureByCNI(t)
	t.Run(cni, func(t *testing.T) { r.golden(t, cni, nil) })
	recorded += r.cases(t, true)
	t.Logf("%d pods of the corpus are injected", recorded)
}

func clientFor(t *testing.T, plane *controlplane.ControlPlane, user controlplane.User) client.Client {
	t.Helper()
	c, err := client.New(plane.RestConfig(user), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// recorder asks the control plane.
type recorder struct {
	plane            *controlplane.ControlPlane
	admin, developer client.Client
	namespaces       map[string]string // by what they are to be like
}

// golden compares or writes one golden.
func (r *recorder) golden(t *testing.T, name string, annotations map[string]string) {
	pod := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(plainPod), pod); err != nil {
		t.Fatal(err)
	}
	pod.SetAnnotations(annotations)
	labels := map[string]string{"istio-injection": "enabled", "meshvakt.io/guarded": "true"}
	got, injected := r.submit(t, pod, &metav1.ObjectMeta{Name: "prod", Labels: labels})
	if !injected {
		t.Fatal("the plain pod is not injected")
	}
	if !*update {
		want, err := policytest.Injected(corpus, name)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, got, want)
		return
	}
	text, err := yaml.JSONToYAML(got)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(corpus, "injected", name+".yaml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	head := "# The plain pod as istiod injects it. Recorded; see package policytest.\n"
	if err := os.WriteFile(path, append([]byte(head), text...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// cases compares or writes final.yaml of the cases that need istio-cni, or of
// those that do not, and returns how many are injected.
func (r *recorder) cases(t *testing.T, byCNI bool) (recorded int) {
	for _, c := range policytest.Load(t, corpus) {
		byHand := c.Final != nil && c.Final.ByHand
		if c.Policy != policy || byHand || c.Want.OfflineOnly != "" || !c.Submits(t) {
			continue
		}
		namespace, usesCNI, ok := r.setting(t, &c)
		if !ok || usesCNI != byCNI {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			pod := &unstructured.Unstructured{}
			if err := pod.UnmarshalJSON(c.ObjectDocument(t).JSON); err != nil {
				t.Fatal(err)
			}
			got, injected := r.submit(t, pod, namespace)
			switch {
			case !injected && c.Final != nil:
				t.Error("istiod does not inject the pod; it must not have a final.yaml")
			case injected && *update:
				write(t, &c, baseOf(t, got, byCNI), got)
			case injected && c.Final == nil:
				t.Error("final.yaml is missing; -update writes it")
			case injected:
				compare(t, got, c.Final.JSON)
			}
			if injected {
				recorded++
			}
		})
	}
	return recorded
}

// setting is the namespace of the pod, and whether istio-cni captures in it. Not
// ok are states with settings of Istio that this control plane does not have.
func (r *recorder) setting(t *testing.T, c *policytest.Case) (namespace *metav1.ObjectMeta, usesCNI, ok bool) {
	t.Helper()
	in := c.ObjectDocument(t).Namespace
	for _, d := range c.ClusterDocuments(t) {
		switch d.Kind.Kind {
		case "Namespace":
			if d.Name != in {
				continue
			}
			var ns corev1.Namespace
			if err := json.Unmarshal(d.JSON, &ns); err != nil {
				t.Fatal(err)
			}
			namespace = &metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations}
		case "ConfigMap":
			var cm corev1.ConfigMap
			if err := json.Unmarshal(d.JSON, &cm); err != nil {
				t.Fatal(err)
			}
			injector, err := mesh.ParseInjector(cm.Name, cm.Labels, cm.Data)
			if err != nil {
				t.Fatal(err)
			}
			usesCNI, injector.CNI = injector.CNI, false
			injector.Resources = mesh.Resources{} // which this policy does not ask about
			if !reflect.DeepEqual(injector, r.injector(t)) {
				return nil, false, false
			}
		case "MutatingWebhookConfiguration":
			return nil, false, false
		}
	}
	return namespace, usesCNI, namespace != nil
}

// injector is what is read of the injector's configuration, apart from who captures.
func (r *recorder) injector(t *testing.T) mesh.Injector {
	t.Helper()
	cm := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: controlplane.IstioNamespace, Name: "istio-sidecar-injector"}
	if err := r.admin.Get(t.Context(), key, cm); err != nil {
		t.Fatal(err)
	}
	injector, err := mesh.ParseInjector(cm.Name, cm.Labels, cm.Data)
	if err != nil {
		t.Fatal(err)
	}
	injector.CNI, injector.Resources = false, mesh.Resources{}
	return injector
}

// submit returns what the API server makes of the pod in a namespace like this
// one, without what is different each time.
func (r *recorder) submit(t *testing.T, pod *unstructured.Unstructured, like *metav1.ObjectMeta) (raw []byte, injected bool) {
	t.Helper()
	namespace := r.namespace(t, like)
	pod.SetNamespace(namespace)
	if err := r.developer.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Fatalf("submit the pod: %v", err)
	}
	for _, field := range []string{"uid", "creationTimestamp", "resourceVersion", "managedFields"} {
		unstructured.RemoveNestedField(pod.Object, "metadata", field)
	}
	raw, err := json.Marshal(pod.Object)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(raw), namespace, like.Name)
	text = regexp.MustCompile(`\bkube-api-access-[a-z0-9]{5}\b`).ReplaceAllString(text, "kube-api-access-00000")
	_, injected = pod.GetAnnotations()["sidecar.istio.io/status"]
	return []byte(text), injected
}

// namespace creates a namespace like this one. The first of a name gets it, for
// Istio leaves some namespaces alone by their names; the name of any other can be
// told from all other words of a pod.
func (r *recorder) namespace(t *testing.T, like *metav1.ObjectMeta) string {
	t.Helper()
	text, err := json.Marshal(like)
	if err != nil {
		t.Fatal(err)
	}
	if name := r.namespaces[string(text)]; name != "" {
		return name
	}
	ns := &corev1.Namespace{ObjectMeta: *like.DeepCopy()}
	if slices.Contains(slices.Collect(maps.Values(r.namespaces)), ns.Name) {
		ns.Name = fmt.Sprintf("%s-recorded-%d", like.Name, len(r.namespaces))
	}
	if err := r.admin.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := r.plane.WaitNamespace(ctx, ns.Name); err != nil {
		t.Fatal(err)
	}
	r.namespaces[string(text)] = ns.Name
	return ns.Name
}

// captureByCNI sets what the chart sets where istio-cni is installed, and waits
// until istiod has read it.
func (r *recorder) captureByCNI(t *testing.T) {
	t.Helper()
	injector := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: controlplane.IstioNamespace, Name: "istio-sidecar-injector"}
	if err := r.admin.Get(t.Context(), key, injector); err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := json.Unmarshal([]byte(injector.Data["values"]), &values); err != nil {
		t.Fatal(err)
	}
	if err := unstructured.SetNestedField(values, true, "pilot", "cni", "enabled"); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	injector.Data["values"] = string(text)
	if err := r.admin.Update(t.Context(), injector); err != nil {
		t.Fatal(err)
	}
	err = wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, 60*time.Second, true, func(ctx context.Context) (bool, error) {
		probe := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "probe", Labels: map[string]string{"sidecar.istio.io/inject": "true"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}},
		}
		if err := r.admin.Create(ctx, probe, client.DryRunAll); err != nil {
			return false, err
		}
		return len(probe.Spec.InitContainers) > 0 && probe.Spec.InitContainers[0].Name == "istio-validation", nil
	})
	if err != nil {
		t.Fatalf("istiod goes on without istio-cni: %v", err)
	}
}

// baseOf is the golden that a pod is most like.
func baseOf(t *testing.T, raw []byte, byCNI bool) string {
	t.Helper()
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		t.Fatal(err)
	}
	for _, c := range pod.Spec.Containers {
		if c.Name == "istio-proxy" {
			return legacy
		}
	}
	if byCNI {
		return cni
	}
	return native
}

// write writes final.yaml, in the shortest form that gives this pod.
func write(t *testing.T, c *policytest.Case, base string, pod []byte) {
	t.Helper()
	golden, err := policytest.Injected(corpus, base)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := difference(golden, pod)
	if err != nil {
		t.Fatal(err)
	}
	c.WriteFinal(t, base, patch)
}

// difference is the patch that makes the pod of the golden. Merging lists by their
// keys reads best, but puts new elements where it likes and loses those whose key
// stands twice; what is lost by it is replaced as a whole.
func difference(golden, pod []byte) ([]byte, error) {
	merge, err := strategicpatch.CreateTwoWayMergePatch(golden, pod, corev1.Pod{})
	if err != nil {
		return nil, err
	}
	var short map[string]any
	if err := json.Unmarshal(merge, &short); err != nil {
		return nil, err
	}
	dropOrder(short)
	var whole map[string]any
	if err := json.Unmarshal(pod, &whole); err != nil {
		return nil, err
	}
	for _, field := range []string{"metadata", "spec", "status"} {
		if object, ok := whole[field].(map[string]any); ok {
			object["$patch"] = "replace"
		}
	}
	for _, patch := range []map[string]any{short, nil, whole} {
		raw := merge
		if patch != nil {
			if raw, err = json.Marshal(patch); err != nil {
				return nil, err
			}
		}
		got, err := strategicpatch.StrategicMergePatch(golden, raw, corev1.Pod{})
		if err == nil && same(got, pod) {
			return raw, nil
		}
	}
	return nil, errors.New("no patch of the golden gives the pod")
}

// dropOrder takes out what a patch says about the order of lists.
func dropOrder(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if strings.HasPrefix(key, "$setElementOrder/") {
				delete(v, key)
				continue
			}
			dropOrder(value)
		}
	case []any:
		for _, value := range v {
			dropOrder(value)
		}
	}
}

func same(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// compare demands that the pod is what is recorded.
func compare(t *testing.T, got, want []byte) {
	t.Helper()
	if same(got, want) {
		return
	}
	change, err := strategicpatch.CreateTwoWayMergePatch(want, got, corev1.Pod{})
	t.Errorf("the pod is another than recorded; -update rewrites it, verify the diff. What changed: %s %v", change, err)
}
