package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestInjectorGoes takes away what no webhook can protect, the configuration of
// Istio's injector: pods are refused from then on, and the guard says why.
func TestInjectorGoes(t *testing.T) {
	ownPlane(t, controlplane.Options{Istio: true, Log: t.Output()})
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	create(t, admin, policy("istio-system", "default", "STRICT"))
	start(t)
	guard(t, v1alpha1.DefaultGuard())
	enforcing(t, "default")
	ns := injectedNamespace("prod", true)
	create(t, dev, ns)
	serviceAccount(t, ns.Name)
	available := func(status metav1.ConditionStatus, message string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			var g v1alpha1.MeshGuard
			if err := admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &g); err != nil {
				return err
			}
			c := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionInjectionAvailable)
			if c == nil || c.Status != status || !strings.Contains(c.Message, message) {
				return fmt.Errorf("condition %+v; want %s, %q", c, status, message)
			}
			return nil
		})
	}
	available(metav1.ConditionTrue, "all 1 guarded namespaces")
	create(t, dev, pod(ns.Name, map[string]string{"app": "web"}))
	t.Run("conditions are cheap enough for the largest objects", func(t *testing.T) { updateLarge(t, dev, ns.Name) })

	var config admissionregistrationv1.MutatingWebhookConfiguration
	must(t, admin.Get(t.Context(), client.ObjectKey{Name: "istio-sidecar-injector"}, &config))
	must(t, admin.Delete(t.Context(), config.DeepCopy()))
	available(metav1.ConditionFalse, ns.Name+" (no MutatingWebhookConfiguration")
	eventually(t, 30*time.Second, func() error {
		var events eventsv1.EventList
		if err := admin.List(t.Context(), &events); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Regarding.Kind == "MeshGuard" && e.Type == corev1.EventTypeWarning && strings.Contains(e.Note, ns.Name) {
				return nil
			}
		}
		return fmt.Errorf("no warning among %d events", len(events.Items))
	})
	refused(t, dev.Create(t.Context(), pod(ns.Name, map[string]string{"app": "late"})), "no webhook of an injector answers")

	config.ResourceVersion, config.UID = "", ""
	must(t, admin.Create(t.Context(), &config))
	available(metav1.ConditionTrue, "all 1 guarded namespaces")
	create(t, dev, pod(ns.Name, map[string]string{"app": "later"}))
}

// updateLarge changes an object whose template is nearly as large as an object can
// be: the API server evaluates the conditions over both sides.
func updateLarge(t *testing.T, c client.Client, namespace string) {
	p := pod(namespace, map[string]string{"app": "large"})
	for i := range 2000 {
		p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprintf("E%d", i), Value: strings.Repeat("x", 400)})
	}
	replicas := int32(0)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unique("large")},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: p.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec},
		},
	}
	create(t, c, d)
	harmless := d.DeepCopy()
	harmless.Labels = map[string]string{"a": "b"}
	must(t, c.Patch(t.Context(), harmless, client.MergeFrom(d)))
	worse := harmless.DeepCopy()
	worse.Spec.Template.Annotations = map[string]string{"traffic.sidecar.istio.io/excludeInboundPorts": "8080"}
	refused(t, c.Patch(t.Context(), worse, client.MergeFrom(harmless)), "excludeInboundPorts")
}
