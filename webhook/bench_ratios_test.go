//go:build unix

package webhook_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/meshvakt/meshvakt/webhook"
)

// deployments are reviews of the Deployments that the recorded pods may have come
// from: without what Istio and the API server put into a pod, which is not in its
// template.
func deployments(tb testing.TB) [][]byte {
	tb.Helper()
	var list [][]byte
	for _, body := range recorded(tb, "Pod") {
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil {
			tb.Fatal(err)
		}
		var pod corev1.Pod
		if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
			tb.Fatal(err)
		}
		list = append(list, deploymentReview(tb, review, &pod))
	}
	return list
}

func deploymentReview(tb testing.TB, review admissionv1.AdmissionReview, pod *corev1.Pod) []byte {
	tb.Helper()
	name := pod.Labels["app"]
	replicas := int32(1)
	d := appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pod.Namespace, UID: pod.UID, Generation: 1, CreationTimestamp: pod.CreationTimestamp, Labels: map[string]string{"app": name}, ManagedFields: pod.ManagedFields},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name, "version": pod.Labels["version"]}},
				Spec:       pod.Spec,
			},
		},
	}
	spec := &d.Spec.Template.Spec
	spec.InitContainers, spec.Volumes, spec.Tolerations, spec.NodeName = nil, nil, nil, ""
	for i := range spec.Containers {
		spec.Containers[i].VolumeMounts = slices.DeleteFunc(spec.Containers[i].VolumeMounts, func(m corev1.VolumeMount) bool {
			return strings.HasPrefix(m.Name, "kube-api-access-")
		})
	}
	q := review.Request
	q.Kind = metav1.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	q.Resource = metav1.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	q.RequestKind, q.RequestResource, q.Name = &q.Kind, &q.Resource, name
	raw, err := json.Marshal(d)
	if err != nil {
		tb.Fatal(err)
	}
	q.Object = runtime.RawExtension{Raw: raw}
	body, err := json.Marshal(review)
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// reviewsOf are the reviews of a kind that are measured.
func reviewsOf(tb testing.TB, kind string) [][]byte {
	tb.Helper()
	if kind == "Deployment" {
		return deployments(tb)
	}
	return recorded(tb, kind)
}

// BenchmarkRatios holds the webhook against the baselines by the CPU time of the
// server, for every kind of object. The contenders take turns, so that whatever else
// the machine does hits them alike; an operation is one turn of each, of a thousand
// reviews.
func BenchmarkRatios(b *testing.B) {
	protocols(b, func(b *testing.B, s *benchServer) {
		for _, kind := range []string{"Pod", "Deployment", "Namespace"} {
			b.Run(kind, func(b *testing.B) { ratios(b, s, webhook.PathValidate, reviewsOf(b, kind)) })
		}
		b.Run("Mutation", func(b *testing.B) { ratios(b, s, webhook.PathMutate, reviewsOf(b, "Pod")) })
	})
}

func ratios(b *testing.B, s *benchServer, path string, reviews [][]byte) {
	b.Helper()
	spent := map[string]usage{}
	times := 1 + 1000/len(reviews)
	for _, c := range contenders(path) {
		for _, body := range reviews {
			s.mustJudge(b, c, body)
		}
		s.spend(b, c.path, reviews, 1+times/5)
	}
	for b.Loop() {
		for _, c := range contenders(path) {
			spent[c.name] = spent[c.name].plus(s.spend(b, c.path, reviews, times))
		}
	}
	cpu := func(name string) float64 { return float64(spent[name].CPU.Nanoseconds()) }
	b.ReportMetric(cpu("meshvakt")/cpu("constant"), "x-constant")
	b.ReportMetric(cpu("meshvakt")/cpu("encodingjson"), "x-encodingjson")
	for _, c := range contenders(path) {
		b.ReportMetric(cpu(c.name)/float64(b.N*times*len(reviews)), c.name+"-cpu-ns")
	}
}
