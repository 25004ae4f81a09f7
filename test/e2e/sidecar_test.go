package e2e

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestSidecar: what becomes of proxies besides the webhooks that everybody has, as the
// replica registers itself.
func TestSidecar(t *testing.T) {
	meshPlane(t)
	t.Run("registered", func(t *testing.T) {
		start(t)
		t.Run("resize", sidecarResize)
		t.Run("autoscaler", sidecarAutoscaler)
		t.Run("templates", sidecarTemplates)
		t.Run("quota", sidecarQuota)
		t.Run("limit range", sidecarLimitRange)
	})
	t.Run("out of reach", sidecarOutOfReach)
}

// four are the requests of CPU and memory of a container, and its limits of both, as
// the API server writes them.
type four [4]string

func fourOf(c *corev1.Container) four {
	r := c.Resources
	return four{r.Requests.Cpu().String(), r.Requests.Memory().String(), r.Limits.Cpu().String(), r.Limits.Memory().String()}
}

func (f four) String() string {
	return fmt.Sprintf("%s/%s, %s/%s", f[0], f[1], f[2], f[3])
}

// istioContainer returns a container of Istio's, in whichever list it is.
func istioContainer(t testing.TB, pod *corev1.Pod, name string) *corev1.Container {
	t.Helper()
	for _, list := range [...][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	t.Fatalf("pod %s has no container %s", pod.Name, name)
	return nil
}

// classic is the annotation of pods whose proxy is an ordinary container.
func classic() map[string]string { return map[string]string{"sidecar.istio.io/nativeSidecar": "false"} }

// sidecarGuard is a guard of sidecar-resources alone.
func sidecarGuard(t testing.TB, name string, labels map[string]string, block string) *unstructured.Unstructured {
	return guardOf(t, name, labels, "sidecarResources", block)
}

// guardOf is a guard of one policy alone, with its block as users write it: numbers that
// are no strings must reach the API server as such.
func guardOf(t testing.TB, name string, labels map[string]string, field, block string) *unstructured.Unstructured {
	t.Helper()
	var parameters any
	must(t, yaml.Unmarshal([]byte(block), &parameters))
	selector := map[string]any{}
	for k, v := range labels {
		selector[k] = v
	}
	g := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
		"namespaceSelector": map[string]any{"matchLabels": selector},
		field:               parameters,
	}}}
	g.SetAPIVersion("meshvakt.io/v1alpha1")
	g.SetKind("MeshGuard")
	g.SetName(name)
	return g
}

// sidecarNamespace puts a guard in force, and returns a namespace with injection that
// it selects.
func sidecarNamespace(t testing.TB, name, block string) string {
	t.Helper()
	labels := map[string]string{"sidecars": name}
	create(t, clientFor(t, controlplane.Admin), sidecarGuard(t, name, labels, block))
	enforcing(t, name)
	return meshNamespace(t, name, map[string]string{"istio-injection": "enabled", "sidecars": name})
}

// startWithoutMutation starts a replica that leaves it to the test to register the
// webhook that changes pods.
func startWithoutMutation(t testing.TB) *replica {
	t.Helper()
	return start(t, "--mutation=false")
}

// podWebhook registers a webhook that may change new pods of namespaces with
// injection.
func podWebhook(name string, c admissionregistrationv1.WebhookClientConfig, again admissionregistrationv1.ReinvocationPolicyType) *admissionregistrationv1.MutatingWebhookConfiguration {
	none, ignore := admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Ignore
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: name + ".example.com", ClientConfig: c, ReinvocationPolicy: &again,
			SideEffects: &none, FailurePolicy: &ignore, AdmissionReviewVersions: []string{"v1"},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
}

// meshvaktWebhook registers the replica for changing pods, under the name and with the
// reinvocation policy that the test wants.
func meshvaktWebhook(t testing.TB, name string, again admissionregistrationv1.ReinvocationPolicyType) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	c := registered(t, clientFor(t, controlplane.Admin)).Webhooks[0].ClientConfig
	url := strings.TrimSuffix(*c.URL, "/validate") + "/mutate"
	c.URL = &url
	return podWebhook(name, c, again)
}

// otherParty is a mutating webhook of somebody else.
type otherParty struct {
	admissionregistrationv1.WebhookClientConfig
}

// newOtherParty serves what changes pods, until the test is over. The path that it was
// asked on tells registrations apart.
func newOtherParty(t testing.TB, change func(path string, pod *corev1.Pod) []objects.Operation) otherParty {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		var pod corev1.Pod
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		patch, err := json.Marshal(change(r.URL.Path, &pod))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		patchType := admissionv1.PatchTypeJSONPatch
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true, Patch: patch, PatchType: &patchType}
		review.Request = nil
		_ = json.NewEncoder(w).Encode(review) // the API server reports what does not arrive
	}))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return otherParty{admissionregistrationv1.WebhookClientConfig{URL: &server.URL, CABundle: ca}}
}

// on is the configuration of the server for one of its paths.
func (o otherParty) on(path string) admissionregistrationv1.WebhookClientConfig {
	url := *o.URL + path
	return admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: o.CABundle}
}

// replaced creates the configuration, in place of one that is there.
func replaced(t testing.TB, config *admissionregistrationv1.MutatingWebhookConfiguration) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	must(t, client.IgnoreNotFound(admin.Delete(t.Context(), config.DeepCopy())))
	must(t, admin.Create(t.Context(), config))
	t.Cleanup(func() {
		if err := client.IgnoreNotFound(admin.Delete(context.Background(), config)); err != nil {
			t.Error(err)
		}
	})
}

// istioAsksAgain sets the reinvocation policy of Istio's injector.
func istioAsksAgain(t testing.TB, again admissionregistrationv1.ReinvocationPolicyType) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	var config admissionregistrationv1.MutatingWebhookConfiguration
	must(t, admin.Get(t.Context(), client.ObjectKey{Name: "istio-sidecar-injector"}, &config))
	patch := client.MergeFrom(config.DeepCopy())
	for i := range config.Webhooks {
		config.Webhooks[i].ReinvocationPolicy = &again
	}
	must(t, admin.Patch(t.Context(), &config, patch))
}

// refusalCodes are the codes in a refusal, each once, in order.
func refusalCodes(err error) string {
	codes := codePattern().FindAllString(err.Error(), -1)
	slices.Sort(codes)
	return strings.Join(slices.Compact(codes), " ")
}

func codePattern() *regexp.Regexp { return regexp.MustCompile(`MV\d{3}`) }

// typed is the pod that a template stands for, to be read once it is created.
func typed(t testing.TB, namespace string, template map[string]any) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(podOf(namespace, template).Object, pod))
	return pod
}
