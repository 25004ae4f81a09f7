package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

type outcomes map[string]int

func (o outcomes) CanaryAnswered(outcome string) { o[outcome]++ }

// refusal is an answer of the API server.
func refusal(webhook, code, name string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden,
		Message: fmt.Sprintf("admission webhook %q denied the request: violates\nspec.approved: true [%s]", webhook, code),
		Details: &metav1.StatusDetails{Name: name},
	}}
}

func TestAnswersOfACanary(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(name string) error
		want   string
	}{
		"refused by us":             {func(n string) error { return refusal("own.meshvakt.io", "MV505", n) }, CanaryRefused},
		"let pass":                  {func(string) error { return nil }, CanaryLetPass},
		"an answer of another time": {func(string) error { return refusal("own.meshvakt.io", "MV505", "meshvakt-canary-0") }, CanaryOther},
		"another webhook":           {func(n string) error { return refusal("policy.example.com", "MV505", n) }, CanaryOther},
		"another reason":            {func(n string) error { return refusal("own.meshvakt.io", "MV502", n) }, CanaryOther},
		"no right to ask": {func(n string) error {
			return apierrors.NewForbidden(schema.GroupResource{Resource: "guardexceptions"}, n, errors.New("no right"))
		}, CanaryOther},
		"the webhook does not answer": {func(string) error {
			return apierrors.NewInternalError(errors.New(`failed calling webhook "own.meshvakt.io": connection refused`))
		}, CanaryNoAnswer},
		"the API server does not answer": {func(string) error { return context.DeadlineExceeded }, CanaryNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			if got, message := read("meshvakt-canary-1", c.answer("meshvakt-canary-1")); got != c.want || (got == CanaryRefused) != (message == "") {
				t.Errorf("got %s, %q; want %s", got, message, c.want)
			}
		})
	}
}

// setCanary returns a canary whose requests are answered by answer.
func setCanary(t *testing.T, now *time.Time, answer *func(name string) error) (*Canary, outcomes) {
	t.Helper()
	counted := outcomes{}
	c := fake.NewClientBuilder().WithScheme(newScheme(t)).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			var applied client.CreateOptions
			for _, opt := range opts {
				opt.ApplyToCreate(&applied)
			}
			if len(applied.DryRun) == 0 {
				t.Error("a canary that is no dry run would be stored")
			}
			return (*answer)(o.GetName())
		},
	}).Build()
	return &Canary{Client: c, Namespace: "meshvakt-system", Count: counted, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return *now }}, counted
}

// One lost answer proves nothing; that a canary is let pass does at once.
func TestVerdictOfTheCanary(t *testing.T) {
	now := today
	ours := func(n string) error { return refusal("own.meshvakt.io", "MV505", n) }
	passed := func(string) error { return nil }
	lost := func(string) error { return context.DeadlineExceeded }
	answer := ours
	canary, counted := setCanary(t, &now, &answer)
	changes := 0
	canary.OnChange(func() { changes++ })
	for i, step := range []struct {
		after    time.Duration
		answer   func(string) error
		answered bool
		reason   string
	}{
		{0, lost, false, CanaryNoAnswer},
		{2 * time.Second, ours, true, ""},
		{20 * time.Second, ours, true, ""},
		{20 * time.Second, lost, true, ""},
		{20 * time.Second, lost, true, ""},
		{6 * time.Second, lost, false, CanaryNoAnswer},
		{2 * time.Second, ours, true, ""},
		{20 * time.Second, passed, false, CanaryLetPass},
		{2 * time.Second, lost, false, CanaryLetPass},
		{2 * time.Second, ours, true, ""},
	} {
		now, answer = now.Add(step.after), step.answer
		canary.ask(t.Context())
		if v := canary.Verdict(); !v.Known || v.Answered != step.answered || v.Reason != step.reason {
			t.Errorf("step %d: verdict %+v; want answered %t, reason %q", i, v, step.answered, step.reason)
		}
	}
	if changes != 6 {
		t.Errorf("told %d times of a change; want 6", changes)
	}
	if counted[CanaryRefused] != 4 || counted[CanaryLetPass] != 1 || counted[CanaryNoAnswer] != 5 {
		t.Errorf("counted %v", counted)
	}
	now = now.Add(3 * time.Second)
	if age, known := canary.Age(); !known || age != 3*time.Second {
		t.Errorf("age %s, %t", age, known)
	}
}

// The policy that judges canaries refuses them whether or not the mutating webhook has
// corrected what it can.
func TestCanariesAreRefused(t *testing.T) {
	canary, err := newCanary("meshvakt-system", today)
	if err != nil {
		t.Fatal(err)
	}
	for _, requester := range []string{canary.Spec.Requester, "system:serviceaccount:meshvakt-system:meshvakt"} {
		canary.Spec.Requester = requester
		r := &facts.Review{
			Operation: "CREATE", Kind: v1alpha1.GroupVersion().WithKind("GuardException"), Namespace: canary.Namespace, Name: canary.Name,
			Resource: v1alpha1.GroupVersion().WithResource("guardexceptions"), Object: canary, DryRun: true, Now: today,
			Cluster: facts.Cluster{Namespaces: map[string]*facts.Namespace{canary.Namespace: {Name: canary.Namespace}}},
		}
		r.User.Username = "system:serviceaccount:meshvakt-system:meshvakt"
		d, err := policies.Evaluate(policies.All(), r)
		if err != nil {
			t.Fatal(err)
		}
		if text := fmt.Sprint(d.Findings); d.Outcome != policies.Deny || !strings.Contains(text, "MV505") {
			t.Errorf("%s: %s %s", requester, d.Outcome, text)
		}
		if !IsCanary(r, "meshvakt-system") || IsCanary(r, "prod") {
			t.Error("a canary is not told from what users write, or the other way round")
		}
	}
}

func TestEnforcingNeedsTheCanary(t *testing.T) {
	condition := func(status metav1.ConditionStatus, reason string) metav1.Condition {
		return metav1.Condition{Type: v1alpha1.ConditionEnforcing, Status: status, Reason: reason}
	}
	answered := CanaryVerdict{Known: true, Answered: true}
	madeFor := func(guards string) *admissionregistrationv1.ValidatingWebhookConfiguration {
		c := webhookWith("default.guard.meshvakt.io")
		c.Annotations = map[string]string{guardsAnnotation: guards}
		return c
	}
	for name, c := range map[string]struct {
		before  *metav1.Condition
		config  *admissionregistrationv1.ValidatingWebhookConfiguration
		verdict CanaryVerdict
		want    metav1.Condition
	}{
		"answered":                       {nil, webhookWith("default.guard.meshvakt.io"), CanaryVerdict{Known: true, Answered: true}, condition("True", "Registered")},
		"let pass":                       {nil, webhookWith("default.guard.meshvakt.io"), CanaryVerdict{Known: true, Reason: CanaryLetPass, Message: "x"}, condition("False", CanaryLetPass)},
		"not asked yet":                  {nil, webhookWith("default.guard.meshvakt.io"), CanaryVerdict{}, condition("False", "NotAskedYet")},
		"answered, no entry":             {nil, webhookWith(), CanaryVerdict{Known: true, Answered: true}, condition("False", "NotRegistered")},
		"answered, for this guard":       {nil, madeFor("other=u-0,default=u-1"), answered, condition("True", "Registered")},
		"answered, for the guard before": {nil, madeFor("default=u-0,other=u-1"), answered, condition("False", "NotRegistered")},
		"another leader": {
			&metav1.Condition{Type: v1alpha1.ConditionEnforcing, Status: "True", Reason: "Registered"},
			webhookWith("default.guard.meshvakt.io"), CanaryVerdict{}, condition("True", "Registered"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
			g.UID = "u-1"
			if c.before != nil {
				g.Status.Conditions = []metav1.Condition{*c.before}
			}
			enforcing(g, c.config, c.verdict)
			got := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionEnforcing)
			if got == nil || got.Status != c.want.Status || got.Reason != c.want.Reason {
				t.Errorf("got %+v; want %+v", got, c.want)
			}
		})
	}
}
