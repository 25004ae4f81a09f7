package controller

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

func TestTimeLeft(t *testing.T) {
	for left, want := range map[time.Duration]struct {
		text  string
		again time.Duration
	}{
		49*time.Hour + time.Minute:     {"2d", time.Hour + time.Minute + time.Millisecond},
		24 * time.Hour:                 {"1d", time.Millisecond},
		24*time.Hour - 1:               {"23h", time.Hour - 1 + time.Millisecond},
		time.Hour:                      {"1h", time.Millisecond},
		time.Hour - 1:                  {"59m", time.Minute - 1 + time.Millisecond},
		time.Minute:                    {"1m", time.Millisecond},
		59*time.Second + 5*time.Second: {"1m", 4*time.Second + time.Millisecond},
		time.Minute - 1:                {"<1m", time.Minute - 1},
		1:                              {"<1m", 1},
	} {
		if text, again := timeLeft(left); text != want.text || again != want.again {
			t.Errorf("%s: %q, again after %s; want %q, %s", left, text, again, want.text, want.again)
		}
	}
}

// The life of an exception, as its status and its events tell it.
func TestExceptionStatus(t *testing.T) {
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	guard.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 720 * time.Hour}, Approval: v1alpha1.ApprovalTwoPerson}
	began := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	ends := began.Add(50 * time.Hour)
	exception := &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "x", CreationTimestamp: metav1.Time{Time: began}},
		Spec: v1alpha1.GuardExceptionSpec{
			Policies: []v1alpha1.ExceptedPolicy{{Name: "strict-mtls"}}, Reason: "r", Reference: "t", ExpiresAt: metav1.Time{Time: ends}, Requester: "anna",
		},
	}
	s := newSetting(t, interceptor.Funcs{}, guard, namespaceOf("prod", true), exception)
	recorder := events.NewFakeRecorder(10)
	now := began
	e := &Exceptions{Client: s.client, Source: s.source, Events: recorder, Now: func() time.Time { return now }}
	key := client.ObjectKeyFromObject(exception)
	for _, step := range []struct {
		at          time.Time
		edit        func(*v1alpha1.GuardExceptionSpec)
		state       v1alpha1.ExceptionState
		left, event string
	}{
		{began, nil, v1alpha1.ExceptionPending, "2d", ""},
		{began, func(s *v1alpha1.GuardExceptionSpec) { s.Approved, s.Approver = true, "berit" }, v1alpha1.ExceptionActive, "2d", "Normal ExceptionActive the exception applies until 2026-06-03T14:00:00Z"},
		{ends.Add(-24 * time.Hour), nil, v1alpha1.ExceptionActive, "1d", ""},
		{ends.Add(-24*time.Hour + time.Millisecond), nil, v1alpha1.ExceptionActive, "23h", "Warning ExceptionExpiring the exception ends within a day"},
		{ends.Add(-22 * time.Hour), nil, v1alpha1.ExceptionActive, "22h", ""},
		{ends.Add(-59 * time.Minute), nil, v1alpha1.ExceptionActive, "59m", "Warning ExceptionExpiring the exception ends within the hour"},
		{ends.Add(-time.Second), nil, v1alpha1.ExceptionActive, "<1m", ""},
		{ends, nil, v1alpha1.ExceptionExpired, "", "Warning ExceptionExpired the exception has ended; what runs by it breaks strict-mtls"},
		{ends.Add(time.Hour), nil, v1alpha1.ExceptionExpired, "", ""},
	} {
		now = step.at
		var got v1alpha1.GuardException
		if err := s.client.Get(t.Context(), key, &got); err != nil {
			t.Fatal(err)
		}
		if step.edit != nil {
			step.edit(&got.Spec)
			if err := s.client.Update(t.Context(), &got); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time nothing is new
			result, err := e.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
			if err != nil || (result.RequeueAfter == 0) != (step.left == "") || result.RequeueAfter > ends.Sub(now) && step.left != "" && result.RequeueAfter > time.Millisecond {
				t.Fatalf("at %s: %+v, %v", now, result, err)
			}
		}
		if err := s.client.Get(t.Context(), key, &got); err != nil || got.Status.State != step.state || got.Status.TimeLeft != step.left {
			t.Errorf("at %s: %+v, %v; want %s with %q left", now, got.Status, err, step.state, step.left)
		}
		if strings.Contains(got.Status.Message, "anna") {
			t.Errorf("the message names a user: %s", got.Status.Message)
		}
		event := ""
		if len(recorder.Events) > 0 {
			event = <-recorder.Events
		}
		if !strings.HasPrefix(event, step.event) || step.event == "" && event != "" || len(recorder.Events) > 0 {
			t.Errorf("at %s: event %q, want %q and no other", now, event, step.event)
		}
	}
}

func TestExceptionThatNobodyTakes(t *testing.T) {
	for name, c := range map[string]struct {
		edit    func(*v1alpha1.MeshGuard)
		guarded bool
		message string
	}{
		"nobody guards the namespace": {nil, false, "no MeshGuard selects"},
		"the guard takes none":        {func(g *v1alpha1.MeshGuard) { g.Spec.Exceptions = nil }, true, `MeshGuard "default" takes no exceptions`},
		"it is too long": {func(g *v1alpha1.MeshGuard) {
			g.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: time.Hour}}
		}, true, `at most 1h0m0s, which would be until 2026-06-01T13:00:00Z`},
	} {
		t.Run(name, func(t *testing.T) {
			guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
			if c.edit != nil {
				c.edit(guard)
			}
			began := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
			exception := &v1alpha1.GuardException{
				ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "x", CreationTimestamp: metav1.Time{Time: began}},
				Spec:       v1alpha1.GuardExceptionSpec{Policies: []v1alpha1.ExceptedPolicy{{Name: "strict-mtls"}}, ExpiresAt: metav1.Time{Time: began.Add(2 * time.Hour)}},
			}
			s := newSetting(t, interceptor.Funcs{}, guard, namespaceOf("prod", c.guarded), exception)
			state, err := s.source.Cached("prod")
			if err != nil {
				t.Fatal(err)
			}
			status, again := exceptionStatus(&state, exception, began)
			if status.State != v1alpha1.ExceptionNotGranted || !strings.Contains(status.Message, c.message) || status.TimeLeft != "" || again != 2*time.Hour {
				t.Errorf("%+v, again after %s", status, again)
			}
		})
	}
}
