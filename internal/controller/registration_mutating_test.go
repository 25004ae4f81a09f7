package controller

import (
	"bytes"
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

// guardOfResources demands nothing but resources of sidecars.
func guardOfResources(name string) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Name, g.Spec.StrictMTLS, g.Spec.MeshMembership, g.Spec.NodePools = name, nil, nil, nil
	return g
}

func builtMutating(t *testing.T, r *Registration) []admissionregistrationv1.MutatingWebhook {
	t.Helper()
	list, err := webhooksOf[admissionregistrationv1.MutatingWebhook](r.BuildMutating())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestBuildMutating(t *testing.T) {
	r := registrationOf(guardOfResources("b"), guardWith("strict", guardedSelector(), v1alpha1.OnMissingReject), guardOfResources("a"))
	r.Mutation = true
	list := builtMutating(t, r)
	if len(list) != 3 || list[0].Name != "own.meshvakt.io" || list[1].Name != "a.guard.meshvakt.io" || list[2].Name != "b.guard.meshvakt.io" {
		t.Fatalf("entries %+v, want that of our own objects and those of the guards that state resources, sorted", list)
	}
	path, port := "/mutate", int32(443)
	ignore, equivalent, none, again, scope, timeout := admissionregistrationv1.Ignore, admissionregistrationv1.Equivalent,
		admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.IfNeededReinvocationPolicy, admissionregistrationv1.NamespacedScope, int32(5)
	want := admissionregistrationv1.MutatingWebhook{
		Name: "a.guard.meshvakt.io",
		ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: []byte("CA"), Service: &admissionregistrationv1.ServiceReference{
			Namespace: "meshvakt-system", Name: "meshvakt", Path: &path, Port: &port,
		}},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}, Scope: &scope},
		}},
		FailurePolicy: &ignore, MatchPolicy: &equivalent, SideEffects: &none, ReinvocationPolicy: &again, TimeoutSeconds: &timeout,
		AdmissionReviewVersions: []string{"v1"},
		ObjectSelector:          &metav1.LabelSelector{},
		NamespaceSelector:       entryOf(t, built(t, r), "a.guard.meshvakt.io").NamespaceSelector,
	}
	if !reflect.DeepEqual(list[1], want) {
		t.Errorf("entry %+v\nwant  %+v", list[1], want)
	}
	r.Endpoint = Endpoint{URL: "https://127.0.0.1:1/"}
	if url := *builtMutating(t, r)[0].ClientConfig.URL; url != "https://127.0.0.1:1/mutate" {
		t.Errorf("URL %s", url)
	}
	r.Mutation = false
	if list := builtMutating(t, r); len(list) != 0 {
		t.Errorf("entries without mutation: %+v", list)
	}
}

// The API server calls mutating webhooks in the order of their configurations' names.
func TestMutatingComesBeforeIstio(t *testing.T) {
	for _, injector := range []string{"istio-revision-tag-default", "istio-sidecar-injector", "istio-sidecar-injector-1-28-istio-system"} {
		if strings.Compare(MutatingName, injector) >= 0 {
			t.Errorf("%s comes after %s", MutatingName, injector)
		}
	}
	own := &admissionregistrationv1.MutatingWebhookConfiguration{Webhooks: builtMutating(t, &Registration{
		Policies: registrationOf().Policies, Guards: []v1alpha1.MeshGuard{*guardOfResources("sidecar-injector")}, Mutation: true,
	})}
	if list, err := mesh.ParseInjectionWebhooks(own); err != nil || len(own.Webhooks) != 2 || len(list) != 0 {
		t.Errorf("our own webhook counts as %d injectors, %v", len(list), err)
	}
}

func TestRegistrarOfMutation(t *testing.T) {
	names := func(c *admissionregistrationv1.MutatingWebhookConfiguration) (list []string) {
		for _, w := range c.Webhooks {
			list = append(list, w.Name)
		}
		return list
	}
	foreign := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: MutatingName},
		Webhooks:   []admissionregistrationv1.MutatingWebhook{{Name: "foreign.example.com"}},
	}
	for name, c := range map[string]struct {
		stored   []client.Object
		mutation bool
		want     []string
		absent   bool
	}{
		"a guard that states resources":  {[]client.Object{guardOfResources("a")}, true, []string{"own.meshvakt.io", "a.guard.meshvakt.io"}, false},
		"what others added is replaced":  {[]client.Object{guardOfResources("a"), foreign}, true, []string{"own.meshvakt.io", "a.guard.meshvakt.io"}, false},
		"no guard that states resources": {[]client.Object{guardWith("a", guardedSelector(), v1alpha1.OnMissingReject)}, true, []string{"own.meshvakt.io"}, false},
		"mutation is off":                {[]client.Object{guardOfResources("a")}, false, nil, true},
		"mutation was on":                {[]client.Object{guardOfResources("a"), foreign}, false, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetting(t, interceptor.Funcs{}, c.stored...)
			r := registrar(t, s, newCA(t, 1))
			r.Mutation = c.mutation
			if _, err := r.Reconcile(t.Context(), reconcile.Request{}); err != nil {
				t.Fatal(err)
			}
			var got admissionregistrationv1.MutatingWebhookConfiguration
			err := s.client.Get(t.Context(), client.ObjectKey{Name: MutatingName}, &got)
			if apierrors.IsNotFound(err) != c.absent || err != nil && !c.absent {
				t.Fatalf("stored: %v, want absent %t", err, c.absent)
			}
			if !slices.Equal(names(&got), c.want) {
				t.Errorf("entries %q, want %q", names(&got), c.want)
			}
		})
	}
}

// Certificates go into service by the bundle of the validating configuration, so the
// mutating one must have it by then.
func TestRegistrarAppliesTheMutatingOneFirst(t *testing.T) {
	var applied []string
	s := newSetting(t, interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, config runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			applied = append(applied, *config.(interface{ GetName() *string }).GetName())
			return c.Apply(ctx, config, opts...)
		},
	}, guardOfResources("a"))
	for _, serial := range []int64{1, 2} {
		applied = nil
		r := registrar(t, s, newCA(t, serial))
		r.Mutation = true
		if _, err := r.Reconcile(t.Context(), reconcile.Request{}); err != nil {
			t.Fatal(err)
		}
		if want := []string{MutatingName, WebhookName}; !slices.Equal(applied, want) {
			t.Errorf("applied %q; want %q", applied, want)
		}
		var mutating admissionregistrationv1.MutatingWebhookConfiguration
		if err := s.client.Get(t.Context(), client.ObjectKey{Name: MutatingName}, &mutating); err != nil {
			t.Fatal(err)
		}
		if got, want := mutating.Webhooks[0].ClientConfig.CABundle, PublishedBundle(stored(t, s)); !bytes.Equal(got, want) {
			t.Errorf("CA bundle\n%s\nwant that of the validating configuration\n%s", got, want)
		}
	}
}
