package cluster

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// sibling is the nth pod of a controller, in memory of its own.
func sibling(n int) *corev1.Pod {
	access := fmt.Sprintf("kube-api-access-%d", n)
	user := int64(1337)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("web-%d", n), Labels: map[string]string{"app": strings.Clone("web")}},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%d", n),
			Volumes:  []corev1.Volume{{Name: access}, {Name: strings.Clone("istio-envoy"), VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
			Containers: []corev1.Container{{
				Name: strings.Clone("istio-proxy"), Env: []corev1.EnvVar{{Name: strings.Clone("A"), Value: strings.Clone("b")}},
				VolumeMounts:    []corev1.VolumeMount{{Name: access, MountPath: strings.Clone("/var/run")}},
				Resources:       corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}},
				SecurityContext: &corev1.SecurityContext{RunAsUser: &user},
			}},
		},
	}
}

// Pods of one controller hold once what they have in common, and each is what it
// was.
func TestShare(t *testing.T) {
	one, two := sibling(1), sibling(2)
	two.Spec.Containers[0].Env = append(two.Spec.Containers[0].Env, corev1.EnvVar{Name: "C", Value: "own"})
	two.Spec.Containers = append(two.Spec.Containers, corev1.Container{Name: "own"})
	want := two.DeepCopy()
	share(reflect.ValueOf(two).Elem(), reflect.ValueOf(one).Elem())
	if !reflect.DeepEqual(two, want) || !reflect.DeepEqual(one, sibling(1)) {
		t.Fatalf("changed into\n%+v and\n%+v", two, one)
	}
	a, b := &one.Spec.Containers[0], &two.Spec.Containers[0]
	if a.SecurityContext != b.SecurityContext || reflect.ValueOf(a.Resources.Limits).Pointer() != reflect.ValueOf(b.Resources.Limits).Pointer() ||
		one.Spec.Volumes[1].EmptyDir != two.Spec.Volumes[1].EmptyDir || unsafe.StringData(a.VolumeMounts[0].MountPath) != unsafe.StringData(b.VolumeMounts[0].MountPath) {
		t.Error("what is equal is held twice")
	}
	if &a.Env[0] == &b.Env[0] || unsafe.StringData(a.Env[0].Value) != unsafe.StringData(b.Env[0].Value) {
		t.Error("lists that differ must stay apart, and what is in them be held once")
	}
}

// An object of Istio's is judged with the labels of the namespaces it names; the
// settings of Istio concern all.
func TestReadLiveOfIstioObjects(t *testing.T) {
	stored := []client.Object{v1alpha1.DefaultGuard()}
	for _, name := range []string{"istio-system", "prod", "named", "other"} {
		stored = append(stored, storedNamespace(name, guardedLabels(), "4"), storedPolicy(name, "default", "STRICT", "5"))
	}
	s, server := reading(t, "20", stored...)
	rule := func(namespace, host string) *facts.Review {
		return &facts.Review{
			Kind: schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "DestinationRule"}, Namespace: namespace, Name: "x",
			Object: &facts.IstioObject{Spec: &networkingv1alpha3.DestinationRule{Host: host}},
		}
	}
	for name, c := range map[string]struct {
		review *facts.Review
		want   []string
	}{
		"what names another namespace":               {rule("prod", "db.named.svc.cluster.local"), []string{"istio-system", "named", "prod"}},
		"what names one that is not there":           {rule("prod", "db.gone.svc.cluster.local"), []string{"istio-system", "prod"}},
		"what names none":                            {rule("prod", "example.com"), []string{"istio-system", "prod"}},
		"what is in the root namespace and names it": {rule("istio-system", "x.istio-system.svc.cluster.local"), []string{"istio-system"}},
		"the settings of Istio":                      {about("ConfigMap", "istio-system", "istio"), []string{"istio-system", "named", "other", "prod"}},
		"a ConfigMap of others":                      {about("ConfigMap", "prod", "istio"), []string{"istio-system", "prod"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.Read(t.Context(), c.review)
			if err != nil || !got.Live {
				t.Fatalf("live %t, %v", got.Live, err)
			}
			if names := slices.Sorted(maps.Keys(got.Namespaces)); !slices.Equal(names, c.want) {
				t.Errorf("read %q; want %q", names, c.want)
			}
			for name, ns := range got.Namespaces {
				if len(ns.PeerAuthentications) != 1 && name != "named" || ns.Labels == nil {
					t.Errorf("%s is %s", name, describe(ns))
				}
			}
			if ns := got.Namespaces["named"]; c.review.Kind.Kind == "DestinationRule" && ns != nil && ns.PeerAuthentications != nil {
				t.Error("of a named namespace only the labels are read")
			}
		})
	}
	if server.count() == 0 {
		t.Error("nothing was read")
	}
}
