package controller

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func webhookWith(entries ...string) *admissionregistrationv1.ValidatingWebhookConfiguration {
	c := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: WebhookName}}
	for _, e := range entries {
		c.Webhooks = append(c.Webhooks, admissionregistrationv1.ValidatingWebhook{Name: e})
	}
	return c
}

func TestFillStatus(t *testing.T) {
	guarded := map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}
	space := func(name string, labels map[string]string, terminating bool, modes ...mesh.Mode) *facts.Namespace {
		ns := &facts.Namespace{Name: name, Labels: labels, Terminating: terminating}
		for i, m := range modes {
			ns.PeerAuthentications = append(ns.PeerAuthentications, &mesh.PeerAuthentication{Namespace: name, Name: fmt.Sprint(i), Mode: m})
		}
		return ns
	}
	excused := func(ns *facts.Namespace) *facts.Namespace {
		x, err := facts.NewException(exceptionFrom("strict-mtls")) // until one o'clock
		if err != nil {
			t.Fatal(err)
		}
		ns.Exceptions = append(ns.Exceptions, x)
		return ns
	}
	var eleven []*facts.Namespace
	for i := range 11 {
		eleven = append(eleven, space(fmt.Sprintf("ns-%02d", i), guarded, false))
	}
	for name, c := range map[string]struct {
		namespaces                          []*facts.Namespace
		entries                             []string
		edit                                func(*v1alpha1.MeshGuard)
		counts                              v1alpha1.NamespaceCounts
		enforcing, compliant                bool
		enforcingReason, compliantReason    string
		compliantMessage, absentFromMessage string
	}{
		"nothing is guarded": {
			namespaces: []*facts.Namespace{space("dev", nil, false)}, entries: []string{"default.guard.meshvakt.io"},
			enforcing: true, enforcingReason: "Registered", compliant: true, compliantReason: "AllStrict", compliantMessage: "all 0 guarded",
		},
		"all are STRICT": {
			namespaces: []*facts.Namespace{space("prod", guarded, false, mesh.ModeStrict), space("dev", nil, false)}, entries: []string{"default.guard.meshvakt.io"},
			counts:    v1alpha1.NamespaceCounts{Guarded: 1, Strict: 1},
			enforcing: true, enforcingReason: "Registered", compliant: true, compliantReason: "AllStrict", compliantMessage: "all 1 guarded",
		},
		"one is not STRICT": {
			namespaces: []*facts.Namespace{space("prod", guarded, false, mesh.ModeStrict), space("stage", guarded, false, mesh.ModePermissive)}, entries: []string{"default.guard.meshvakt.io"},
			counts:    v1alpha1.NamespaceCounts{Guarded: 2, Strict: 1, NotStrict: 1},
			enforcing: true, enforcingReason: "Registered", compliantReason: "NamespaceNotStrict", compliantMessage: "1 of 2 guarded namespaces are not STRICT: stage",
		},
		"one is not STRICT by an exception": {
			namespaces: []*facts.Namespace{space("prod", guarded, false, mesh.ModeStrict), excused(space("stage", guarded, false, mesh.ModePermissive))}, entries: []string{"default.guard.meshvakt.io"},
			edit: func(g *v1alpha1.MeshGuard) {
				g.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 24 * time.Hour}, Approval: v1alpha1.ApprovalNone}
			},
			counts:    v1alpha1.NamespaceCounts{Guarded: 2, Strict: 1, NotStrict: 1},
			enforcing: true, enforcingReason: "Registered", compliant: true, compliantReason: "AllStrict", compliantMessage: "all 2 guarded namespaces are STRICT, but for what exceptions let be otherwise in stage",
		},
		"an exception that the guard does not take": {
			namespaces: []*facts.Namespace{excused(space("stage", guarded, false, mesh.ModePermissive))}, entries: []string{"default.guard.meshvakt.io"},
			edit:      func(g *v1alpha1.MeshGuard) { g.Spec.Exceptions = nil },
			counts:    v1alpha1.NamespaceCounts{Guarded: 1, NotStrict: 1},
			enforcing: true, enforcingReason: "Registered", compliantReason: "NamespaceNotStrict", compliantMessage: "1 of 1 guarded namespaces are not STRICT: stage",
		},
		"STRICT is not demanded": {
			namespaces: []*facts.Namespace{space("stage", guarded, false, mesh.ModePermissive)}, entries: []string{"default.guard.meshvakt.io"},
			edit:      func(g *v1alpha1.MeshGuard) { g.Spec.StrictMTLS = nil },
			counts:    v1alpha1.NamespaceCounts{Guarded: 1, NotStrict: 1},
			enforcing: true, enforcingReason: "Registered", compliant: true, compliantReason: "StrictNotDemanded", compliantMessage: "does not demand STRICT, which 0 of 1",
		},
		"ten are named and the others counted": {
			namespaces: eleven, entries: []string{"default.guard.meshvakt.io"},
			counts:    v1alpha1.NamespaceCounts{Guarded: 11, NotStrict: 11},
			enforcing: true, enforcingReason: "Registered", compliantReason: "NamespaceNotStrict",
			compliantMessage: "ns-00, ns-01, ns-02, ns-03, ns-04, ns-05, ns-06, ns-07, ns-08, ns-09 and 1 more", absentFromMessage: "ns-10",
		},
		"what is being deleted or never guarded does not count": {
			namespaces: []*facts.Namespace{space("going", guarded, true), space("kube-system", guarded, false)}, entries: []string{"default.guard.meshvakt.io"},
			enforcing: true, enforcingReason: "Registered", compliant: true, compliantReason: "AllStrict",
		},
		"the entry of another guard is not its own": {
			entries:         []string{"other.guard.meshvakt.io", "namespaces.meshvakt.io", "x.default.guard.meshvakt.io"},
			enforcingReason: "NotRegistered", compliant: true, compliantReason: "AllStrict",
		},
		"nothing is registered": {enforcingReason: "NotRegistered", compliant: true, compliantReason: "AllStrict"},
		"the selector cannot be read": {
			namespaces: []*facts.Namespace{space("prod", guarded, false)}, entries: []string{"default.guard.meshvakt.io"},
			edit: func(g *v1alpha1.MeshGuard) {
				g.Spec.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Gt"}}
				g.Status.Namespaces = v1alpha1.NamespaceCounts{Guarded: 9, Strict: 9}
			},
			enforcingReason: "InvalidSelector", compliantReason: "InvalidSelector", compliantMessage: "Gt",
		},
	} {
		t.Run(name, func(t *testing.T) {
			guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
			if c.edit != nil {
				c.edit(guard)
			}
			state := &facts.Cluster{ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()}, Unguardable: facts.SystemNamespaces(), Namespaces: map[string]*facts.Namespace{}}
			for _, ns := range c.namespaces {
				state.Namespaces[ns.Name] = ns
			}
			fillStatus(guard, state, webhookWith(c.entries...), CanaryVerdict{Known: true, Answered: true}, time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC))
			if guard.Status.ObservedGeneration != 3 || guard.Status.Namespaces != c.counts {
				t.Errorf("status %+v; want counts %+v", guard.Status, c.counts)
			}
			for kind, want := range map[string]struct {
				holds  bool
				reason string
			}{v1alpha1.ConditionEnforcing: {c.enforcing, c.enforcingReason}, v1alpha1.ConditionCompliant: {c.compliant, c.compliantReason}} {
				got := meta.FindStatusCondition(guard.Status.Conditions, kind)
				if got == nil || (got.Status == metav1.ConditionTrue) != want.holds || got.Reason != want.reason || got.ObservedGeneration != 3 || got.Message == "" {
					t.Errorf("%s is %+v; want %t, %s", kind, got, want.holds, want.reason)
				}
			}
			message := meta.FindStatusCondition(guard.Status.Conditions, v1alpha1.ConditionCompliant).Message
			if !strings.Contains(message, c.compliantMessage) || c.absentFromMessage != "" && strings.Contains(message, c.absentFromMessage) {
				t.Errorf("message %q", message)
			}
		})
	}
}

// The status is written when it has changed, and only then: writing is an event
// that would lead to writing.
func TestStandingWritesOnce(t *testing.T) {
	writes := 0
	var fail error
	s := newSetting(t, interceptor.Funcs{SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, o client.Object, opts ...client.SubResourceUpdateOption) error {
		writes++
		if fail != nil {
			return fail
		}
		return c.SubResource(sub).Update(ctx, o, opts...)
	}}, guardWith("default", guardedSelector(), v1alpha1.OnMissingReject), namespaceOf("prod", true), webhookWith("default.guard.meshvakt.io"))
	standing := &Standing{Client: s.client, Source: s.source, Events: events.NewFakeRecorder(5), Now: time.Now, Canary: &Canary{verdict: CanaryVerdict{Known: true, Answered: true}}}
	for range 3 {
		if _, err := standing.Reconcile(t.Context(), request("default")); err != nil {
			t.Fatal(err)
		}
	}
	if writes != 1 {
		t.Errorf("%d writes; want 1", writes)
	}
	var got v1alpha1.MeshGuard
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &got); err != nil {
		t.Fatal(err)
	}
	if got.Status.Namespaces.NotStrict != 1 || !meta.IsStatusConditionTrue(got.Status.Conditions, v1alpha1.ConditionEnforcing) {
		t.Errorf("status %+v", got.Status)
	}
	s.cache.tell(policyOf("prod", "default", "STRICT"))
	fail = errors.New("down")
	if _, err := standing.Reconcile(t.Context(), request("default")); !errors.Is(err, fail) {
		t.Errorf("got %v; a write that failed must be tried again", err)
	}
	if _, err := standing.Reconcile(t.Context(), request("gone")); err != nil {
		t.Errorf("a guard that is gone: %v", err)
	}
}
