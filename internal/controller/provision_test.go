package controller

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
)

func TestProvisioner(t *testing.T) {
	provision := guardWith("default", guardedSelector(), v1alpha1.OnMissingProvision)
	leaving := namespaceOf("prod", true)
	leaving.DeletionTimestamp, leaving.Finalizers = &metav1.Time{Time: metav1.Now().Time}, []string{"example.com/wait"}
	for name, c := range map[string]struct {
		stored  []client.Object
		creates bool
	}{
		"a namespace without a policy gets one":      {[]client.Object{provision, namespaceOf("prod", true)}, true},
		"one under a PERMISSIVE mesh gets one":       {[]client.Object{provision, namespaceOf("prod", true), namespaceOf("istio-system", false), policyOf("istio-system", "default", "PERMISSIVE")}, true},
		"one that is STRICT gets none":               {[]client.Object{provision, namespaceOf("prod", true), policyOf("prod", "mine", "STRICT")}, false},
		"one that is STRICT by the mesh gets none":   {[]client.Object{provision, namespaceOf("prod", true), namespaceOf("istio-system", false), policyOf("istio-system", "default", "STRICT")}, false},
		"one with a policy of its own is left alone": {[]client.Object{provision, namespaceOf("prod", true), policyOf("prod", "default", "PERMISSIVE")}, false},
		"one that nobody guards is left alone":       {[]client.Object{provision, namespaceOf("prod", false)}, false},
		"one whose guard holds is left alone":        {[]client.Object{guardWith("default", guardedSelector(), v1alpha1.OnMissingHold), namespaceOf("prod", true)}, false},
		"one that is being deleted is left alone":    {[]client.Object{provision, leaving}, false},
		"one that does not exist is left alone":      {[]client.Object{provision}, false},
		"a second guard that provisions is enough":   {[]client.Object{guardWith("a", guardedSelector(), v1alpha1.OnMissingReject), guardWith("b", guardedSelector(), v1alpha1.OnMissingProvision), namespaceOf("prod", true)}, true},
		"a guard for others does not provision it":   {[]client.Object{guardWith("a", guardedSelector(), v1alpha1.OnMissingReject), guardWith("b", metav1.LabelSelector{MatchLabels: map[string]string{"x": "y"}}, v1alpha1.OnMissingProvision), namespaceOf("prod", true)}, false},
		"one without any guard in the cluster rests": {[]client.Object{namespaceOf("prod", true)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			created := 0
			s := newSetting(t, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				created++
				return c.Create(ctx, o, opts...)
			}}, c.stored...)
			recorder, told := events.NewFakeRecorder(5), remedied{}
			p := &Provisioner{Client: s.client, Source: s.source, Events: recorder, Remedies: &told, Log: slog.New(slog.DiscardHandler), Now: time.Now}
			for range 2 { // the cache does not know of the creation yet
				if got, err := p.Reconcile(t.Context(), request("prod")); err != nil || got.RequeueAfter != 0 {
					t.Fatalf("got %+v, %v", got, err)
				}
			}
			if created != map[bool]int{true: 1}[c.creates] || len(recorder.Events) != created {
				t.Fatalf("created %d with %d events; want it created: %t", created, len(recorder.Events), c.creates)
			}
			if len(told) != created {
				t.Errorf("told %+v; want one for each that was created", told)
			}
			if !c.creates {
				return
			}
			var got objects.PeerAuthentication
			if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: "prod", Name: "default"}, &got); err != nil {
				t.Fatal(err)
			}
			if got.Spec.MTLS == nil || got.Spec.MTLS.Mode != "STRICT" || got.Spec.Selector != nil || got.Labels["app.kubernetes.io/managed-by"] != "meshvakt" {
				t.Errorf("created %+v", got)
			}
			if told[0].Outcome != RemedyDone || !told[0].Provisioned || told[0].Object.GetNamespace() != "prod" || told[0].Found.IsZero() || !told[0].After.IsZero() || told[0].At.Before(told[0].Found) {
				t.Errorf("told %+v", told[0])
			}
			if event := <-recorder.Events; !strings.Contains(event, "Normal Provisioned") {
				t.Errorf("event %q", event)
			}
		})
	}
}

// The cache may be behind what a user has created a moment ago.
func TestProvisionerReadsLive(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, guardWith("default", guardedSelector(), v1alpha1.OnMissingProvision), namespaceOf("prod", true))
	if err := s.client.Create(t.Context(), policyOf("prod", "mine", "STRICT")); err != nil {
		t.Fatal(err)
	}
	p := &Provisioner{Client: s.client, Source: s.source, Events: events.NewFakeRecorder(5), Log: slog.New(slog.DiscardHandler), Now: time.Now}
	if _, err := p.Reconcile(t.Context(), request("prod")); err != nil {
		t.Fatal(err)
	}
	var list objects.PeerAuthenticationList
	if err := s.client.List(t.Context(), &list); err != nil || len(list.Items) != 1 {
		t.Errorf("%d policies, %v; the one that is there is enough", len(list.Items), err)
	}
}

func TestProvisionerErrors(t *testing.T) {
	resource := schema.GroupResource{Group: "security.istio.io", Resource: "peerauthentications"}
	terminating := apierrors.NewForbidden(resource, "default", errors.New("namespace prod is being terminated"))
	terminating.ErrStatus.Details.Causes = append(terminating.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
	for name, c := range map[string]struct {
		err   error
		retry bool
	}{
		"somebody was faster":            {apierrors.NewAlreadyExists(resource, "default"), false},
		"the namespace is gone":          {apierrors.NewNotFound(resource, "default"), false},
		"the namespace is being deleted": {terminating, false},
		"a right is missing":             {apierrors.NewForbidden(resource, "default", errors.New("RBAC")), true},
		"the API server is down":         {errors.New("connection refused"), true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetting(t, interceptor.Funcs{Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return c.err }},
				guardWith("default", guardedSelector(), v1alpha1.OnMissingProvision), namespaceOf("prod", true))
			recorder, told := events.NewFakeRecorder(5), remedied{}
			p := &Provisioner{Client: s.client, Source: s.source, Events: recorder, Remedies: &told, Log: slog.New(slog.DiscardHandler), Now: time.Now}
			if _, err := p.Reconcile(t.Context(), request("prod")); (err != nil) != c.retry || c.retry && !errors.Is(err, c.err) {
				t.Errorf("got %v; want it to be tried again: %t", err, c.retry)
			}
			if len(recorder.Events) > 0 {
				t.Error("an event tells of what has not happened")
			}
			if c.retry && (len(told) != 1 || told[0].Outcome != RemedyFailed) || !c.retry && len(told) > 0 {
				t.Errorf("told %+v", told)
			}
		})
	}
}
