package preflight

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

func testTime() time.Time { return time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC) }

func namespace(name string, labels map[string]string) corev1.Namespace {
	ns := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}}}
	for k, v := range labels {
		ns.Labels[k] = v
	}
	return ns
}

func guardedLabels() map[string]string {
	return map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue, "istio-injection": "enabled"}
}

// ready are facts of a cluster in which nothing is in the way and Meshvakt runs.
func ready(t testing.TB) *Facts {
	t.Helper()
	served := map[schema.GroupResource][]string{
		{Group: "security.istio.io", Resource: "peerauthentications"}: {"v1", "v1beta1"},
		{Group: v1alpha1.Group, Resource: "meshguards"}:               {"v1alpha1"},
		{Group: v1alpha1.Group, Resource: "guardexceptions"}:          {"v1alpha1"},
	}
	guard := *v1alpha1.DefaultGuard()
	guard.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionEnforcing, Status: metav1.ConditionTrue}}
	labels := map[string]string{"app.kubernetes.io/name": "meshvakt", "app.kubernetes.io/component": "webhook"}
	own := appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt", Labels: labels}}
	own.Spec.Replicas, own.Status.ReadyReplicas = new(int32(3)), 3
	own.Spec.Template.Labels = map[string]string{"app.kubernetes.io/name": "meshvakt", "app.kubernetes.io/component": "webhook", "sidecar.istio.io/inject": "false"}
	istiod := appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod", Labels: map[string]string{"istio.io/rev": "default"}}}
	istiod.Spec.Template.Spec.Containers = []corev1.Container{{Name: "discovery", Image: "docker.io/istio/pilot:1.31.1"}}
	istiod.Status.ReadyReplicas = 1
	budget := policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt"}}
	budget.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	budget.Status.DisruptionsAllowed = 1
	return &Facts{
		Now: testTime(), Version: Answer[string]{Value: "v1.37.2"},
		Served: Answer[map[schema.GroupResource][]string]{Value: served},
		Names:  Names{Namespace: "meshvakt-system", IstioNamespace: "istio-system", Validating: "meshvakt", Mutating: "before-istio.meshvakt.io"},
		Namespaces: Answer[[]corev1.Namespace]{Value: []corev1.Namespace{
			namespace("istio-system", nil), namespace("kube-system", nil), namespace("kube-node-lease", nil), namespace("meshvakt-system", nil), namespace("policy", nil),
			namespace("payments", guardedLabels()),
		}},
		ControlPlanes: Answer[[]mesh.ControlPlane]{Value: []mesh.ControlPlane{mesh.DefaultControlPlane()}},
		Injectors:     Answer[[]mesh.Injector]{Value: []mesh.Injector{{Revision: "default"}}},
		Istiods:       Answer[[]appsv1.Deployment]{Value: []appsv1.Deployment{istiod}},
		Policies:      Answer[[]*mesh.PeerAuthentication]{Value: []*mesh.PeerAuthentication{{Namespace: "istio-system", Name: "default", Mode: mesh.ModeStrict}}},
		Mutating: Answer[[]admissionregistrationv1.MutatingWebhookConfiguration]{Value: []admissionregistrationv1.MutatingWebhookConfiguration{
			mutating("before-istio.meshvakt.io", "default.guard.meshvakt.io", nil), mutating("istio-sidecar-injector", "namespace.sidecar-injector.istio.io", nil),
		}},
		Validating: Answer[[]admissionregistrationv1.ValidatingWebhookConfiguration]{Value: []admissionregistrationv1.ValidatingWebhookConfiguration{
			validating("meshvakt", "default.guard.meshvakt.io", func(w *admissionregistrationv1.ValidatingWebhook) {
				w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}}
				w.ClientConfig.Service = &admissionregistrationv1.ServiceReference{Namespace: "meshvakt-system", Name: "meshvakt"}
				w.ClientConfig.CABundle = certificate(t, testTime().Add(time.Hour))
			}),
		}},
		Endpoints: Answer[map[Service]int]{Value: map[Service]int{{"meshvakt-system", "meshvakt"}: 3}},
		Nodes:     Answer[[]corev1.Node]{Value: []corev1.Node{node("a", "m5.large")}},
		Guards:    Answer[[]v1alpha1.MeshGuard]{Value: []v1alpha1.MeshGuard{guard}},
		Judged:    []v1alpha1.MeshGuard{guard},
		Own:       Answer[[]appsv1.Deployment]{Value: []appsv1.Deployment{own}},
		Budgets:   Answer[[]policyv1.PodDisruptionBudget]{Value: []policyv1.PodDisruptionBudget{budget}},
	}
}

func node(name, instanceType string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyRegion: "eu-north-1"}}}
	if instanceType != "" {
		n.Labels[corev1.LabelInstanceTypeStable] = instanceType
	}
	return n
}

// certificate is one that is valid until the time.
func certificate(t testing.TB, until time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.Add(-48 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// aboutPods is the rule of most webhooks.
func aboutPods(resources ...string) []admissionregistrationv1.RuleWithOperations {
	if len(resources) == 0 {
		resources = []string{"pods"}
	}
	return []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"v1"}, Resources: resources},
	}}
}

func mutating(configuration, name string, edit func(*admissionregistrationv1.MutatingWebhook)) admissionregistrationv1.MutatingWebhookConfiguration {
	w := admissionregistrationv1.MutatingWebhook{Name: name, Rules: aboutPods(), NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}}}
	if edit != nil {
		edit(&w)
	}
	return admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: configuration}, Webhooks: []admissionregistrationv1.MutatingWebhook{w}}
}

func validating(configuration, name string, edit func(*admissionregistrationv1.ValidatingWebhook)) admissionregistrationv1.ValidatingWebhookConfiguration {
	w := admissionregistrationv1.ValidatingWebhook{Name: name, Rules: aboutPods()}
	if edit != nil {
		edit(&w)
	}
	return admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: configuration}, Webhooks: []admissionregistrationv1.ValidatingWebhook{w}}
}

// checkOf makes the report and returns one of its checks.
func checkOf(t testing.TB, f *Facts, id string) Check {
	t.Helper()
	r := New(f, emptyForecast(), nil)
	at := slices.IndexFunc(r.Checks, func(c Check) bool { return c.ID == id })
	if at < 0 {
		t.Fatalf("there is no check %s", id)
	}
	return r.Checks[at]
}

func emptyForecast() *Forecast {
	return &Forecast{Guards: []string{"default"}, Source: "a test", Namespaces: NamespaceCounts{All: 6, Guarded: 1}}
}
