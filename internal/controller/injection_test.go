package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// Injectors have no protection but being watched: the condition and one event say
// that they are gone, and the condition that they are back.
func TestStandingTellsOfInjection(t *testing.T) {
	injector := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name:              "namespace.sidecar-injector.istio.io",
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}
	membership := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	membership.Spec.MeshMembership = v1alpha1.DefaultGuard().Spec.MeshMembership
	stored := []client.Object{membership, guardWith("strict", guardedSelector(), v1alpha1.OnMissingReject), injector}
	for i := range 11 {
		ns := namespaceOf(fmt.Sprintf("ns-%02d-%s", i, strings.Repeat("x", 50)), true)
		ns.Labels["istio-injection"] = "enabled"
		stored = append(stored, ns)
	}
	s := newSetting(t, interceptor.Funcs{}, stored...)
	recorder := events.NewFakeRecorder(5)
	standing := &Standing{Client: s.client, Source: s.source, Events: recorder, Now: time.Now, Canary: &Canary{verdict: CanaryVerdict{Known: true, Answered: true}}}
	expect := func(guard string, status metav1.ConditionStatus, message string) {
		t.Helper()
		if _, err := standing.Reconcile(t.Context(), request(guard)); err != nil {
			t.Fatal(err)
		}
		var got v1alpha1.MeshGuard
		if err := s.client.Get(t.Context(), client.ObjectKey{Name: guard}, &got); err != nil {
			t.Fatal(err)
		}
		c := meta.FindStatusCondition(got.Status.Conditions, "InjectionAvailable")
		if status == "" && c == nil {
			return
		}
		if c == nil || c.Status != status || c.ObservedGeneration != 3 || !strings.Contains(c.Message, message) {
			t.Fatalf("MeshGuard %s: %+v; want %s, %q", guard, c, status, message)
		}
	}
	expect("default", metav1.ConditionTrue, "all 11 guarded namespaces")
	expect("strict", "", "")
	if len(recorder.Events) != 0 {
		t.Errorf("told of nothing: %s", <-recorder.Events)
	}

	s.cache.forget(injector)
	for range 2 {
		expect("default", metav1.ConditionFalse, "11 of 11 guarded namespaces")
	}
	expect("default", metav1.ConditionFalse, "(no MutatingWebhookConfiguration of an injector answers) and 1 more")
	expect("strict", "", "")
	if len(recorder.Events) != 1 {
		t.Fatalf("%d events; want one", len(recorder.Events))
	}
	if e := <-recorder.Events; !strings.HasPrefix(e, "Warning NamespaceNotInjected 11 of 11") || len(e) > 1100 {
		t.Errorf("event of %d bytes: %s", len(e), e)
	}

	s.cache.tell(injector)
	expect("default", metav1.ConditionTrue, "all 11")
	if len(recorder.Events) != 0 {
		t.Error("good news need no event")
	}

	// A guard that enforces it no longer says no more about it.
	var guard v1alpha1.MeshGuard
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &guard); err != nil {
		t.Fatal(err)
	}
	guard.Spec.MeshMembership = nil
	if err := s.client.Update(t.Context(), &guard); err != nil {
		t.Fatal(err)
	}
	expect("default", "", "")
	if c := guard.Status.Conditions; !slices.ContainsFunc(c, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionCompliant }) {
		t.Errorf("conditions %v", c)
	}
}
