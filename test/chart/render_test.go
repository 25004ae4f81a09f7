package chart

import (
	"slices"
	"strings"
	"testing"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/celpack"
)

func TestGolden(t *testing.T) {
	for name, path := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			golden(t, "testdata/"+name+".golden.yaml", withoutCopies(render(t, "--values", path)))
		})
	}
}

// A field that is misspelt, or is not where the template puts it, is lost on the
// way without a word; a strict decoder tells.
func TestEveryObjectDecodesStrictly(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
		rbacv1.AddToScheme, certmanagerv1.AddToScheme, v1alpha1.AddToScheme, admissionregistrationv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Strict: true})
	// Generated, and types that nobody else needs as a dependency.
	untyped := []string{"apiextensions.k8s.io", "monitoring.coreos.com"}
	for name, path := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, o := range documents(t, render(t, "--values", path)) {
				id := o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
				if seen[id] {
					t.Errorf("%s is rendered twice", id)
				}
				seen[id] = true
				for k, v := range o.GetLabels() {
					if len(v) > 63 {
						t.Errorf("%s: label %s: %q is too long", id, k, v)
					}
				}
				if clusterScoped := o.GetNamespace() == ""; clusterScoped && !strings.HasPrefix(o.GetKind(), "Cluster") &&
					o.GetKind() != "CustomResourceDefinition" && o.GetKind() != "MeshGuard" && !strings.HasPrefix(o.GetKind(), "ValidatingAdmissionPolicy") {
					t.Errorf("%s names no namespace", id)
				}
				group := o.GroupVersionKind().Group
				if group == untyped[0] || group == untyped[1] {
					continue
				}
				data, err := o.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err := strict.Decode(data, nil, nil); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			}
		})
	}
}

// find returns the one object of a kind and name.
func find[T any](t *testing.T, list []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, o := range list {
		if o.GetKind() == kind && o.GetName() == name {
			typed := new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, typed); err != nil {
				t.Fatal(err)
			}
			return typed
		}
	}
	t.Fatalf("no %s %s is rendered", kind, name)
	return nil
}

func TestPods(t *testing.T) {
	for name, path := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			list := documents(t, render(t, "--values", path))
			for _, w := range workloads(t, list) {
				podsAreRight(t, name, list, w)
			}
		})
	}
}

// workload is a Deployment or StatefulSet of replicas.
type workload struct {
	kind     string
	selector *metav1.LabelSelector
	pod      corev1.PodTemplateSpec
}

func workloads(t *testing.T, list []*unstructured.Unstructured) (found []workload) {
	t.Helper()
	for _, o := range list {
		if o.GetName() != "meshvakt" {
			continue
		}
		switch o.GetKind() {
		case "Deployment":
			d := find[appsv1.Deployment](t, list, o.GetKind(), o.GetName())
			if d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 {
				t.Error("an upgrade would take replicas away before there are new ones")
			}
			found = append(found, workload{o.GetKind(), d.Spec.Selector, d.Spec.Template})
		case "StatefulSet":
			s := find[appsv1.StatefulSet](t, list, o.GetKind(), o.GetName())
			found = append(found, workload{o.GetKind(), s.Spec.Selector, s.Spec.Template})
		}
	}
	if len(found) == 0 {
		t.Fatal("there are no replicas")
	}
	return found
}

func podsAreRight(t *testing.T, name string, list []*unstructured.Unstructured, w workload) {
	t.Helper()
	pod := w.pod
	if pod.Labels["sidecar.istio.io/inject"] != "false" || pod.Labels["istio.io/dataplane-mode"] != "none" {
		t.Errorf("the pods are not kept out of the mesh: %v", pod.Labels)
	}
	selector, err := metav1.LabelSelectorAsSelector(w.selector)
	if err != nil {
		t.Fatal(err)
	}
	service := find[corev1.Service](t, list, "Service", "meshvakt")
	for k, v := range service.Spec.Selector {
		if pod.Labels[k] != v {
			t.Errorf("the Service selects %s=%s, which the pods do not have", k, v)
		}
	}
	var drain, shutdown int64
	for _, arg := range pod.Spec.Containers[0].Args {
		scan(arg, "--drain-delay=%ds", &drain)
		scan(arg, "--shutdown-timeout=%ds", &shutdown)
	}
	if grace := *pod.Spec.TerminationGracePeriodSeconds; drain == 0 || shutdown == 0 || grace <= drain+shutdown {
		t.Errorf("grace period %d s; must be above drain delay %d s and shutdown timeout %d s", grace, drain, shutdown)
	}
	if name == "secret" {
		return // renders no Job
	}
	job := find[batchv1.Job](t, list, "Job", "meshvakt-uninstall")
	if selector.Matches(labelSet(job.Spec.Template.Labels)) {
		t.Errorf("the %s would take the pod of the uninstall Job for one of its own", w.kind)
	}
	if job.Spec.Template.Spec.Containers[0].Image != pod.Spec.Containers[0].Image {
		t.Error("the uninstall Job runs another image")
	}
}

// The default MeshGuard is the one that `meshvakt check` assumes where none is
// given.
func TestDefaultGuard(t *testing.T) {
	got := find[v1alpha1.MeshGuard](t, documents(t, render(t)), "MeshGuard", v1alpha1.DefaultGuardName)
	want := v1alpha1.DefaultGuard()
	if !equal(got.Spec, want.Spec) {
		t.Errorf("the chart's MeshGuard demands\n%+v\nand the built-in one\n%+v", got.Spec, want.Spec)
	}
}

// The policy is the one that the rules make, with the labels of the release. Where it
// is turned off there is none.
func TestAdmissionPolicy(t *testing.T) {
	got := find[admissionregistrationv1.ValidatingAdmissionPolicy](t, documents(t, render(t)), "ValidatingAdmissionPolicy", celpack.PolicyName)
	if want := celpack.Policy().Spec; !equality.Semantic.DeepEqual(got.Spec, want) {
		t.Error("the chart's policy is not the one of policies/celpack; run make generate")
	}
	if got.Labels["app.kubernetes.io/instance"] != "meshvakt" {
		t.Errorf("labels %v", got.Labels)
	}
	for _, o := range documents(t, render(t, "--set", "admissionPolicies.enabled=false")) {
		if o.GetKind() == "ValidatingAdmissionPolicy" {
			t.Errorf("turned off, it renders %s", o.GetName())
		}
	}
}

func TestMutationCanBeTurnedOff(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "--mutation=true"},
		{[]string{"--set", "webhook.mutation=false"}, "--mutation=false"},
	} {
		d := find[appsv1.Deployment](t, documents(t, render(t, c.args...)), "Deployment", "meshvakt")
		if args := d.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, c.want) {
			t.Errorf("%q: arguments %q lack %s", c.args, args, c.want)
		}
	}
}

// A first installation has to create the guard by a hook; see the template. Where
// the API server knows MeshGuards, it must be part of the release.
func TestGuardIsAHookOnlyAtFirst(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		hook bool
	}{
		{"install", nil, true},
		{"upgrade", []string{"--is-upgrade"}, false},
		{"MeshGuards known", []string{"--api-versions", "meshvakt.io/v1alpha1/MeshGuard"}, false},
		{"CRDs from elsewhere", []string{"--set", "crds.install=false"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			guard := find[v1alpha1.MeshGuard](t, documents(t, render(t, c.args...)), "MeshGuard", "default")
			if _, is := guard.Annotations["helm.sh/hook"]; is != c.hook {
				t.Errorf("annotations %v; hook must be %t", guard.Annotations, c.hook)
			}
			if policy := guard.Annotations["helm.sh/hook-delete-policy"]; c.hook && policy != "hook-failed" {
				t.Errorf("hook-delete-policy %q would delete the guard", policy)
			}
		})
	}
}

func TestLint(t *testing.T) {
	for name, path := range valueSets(t) {
		if out, _, err := helm(t, "lint", "--strict", chart, "--values", path); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
