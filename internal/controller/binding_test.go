package controller

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/celpack"
)

func binder(s *setting) *Binder {
	return &Binder{Client: s.client, Live: s.client, Source: s.source, Repairs: new(repairs), Log: slog.New(slog.DiscardHandler), Now: time.Now}
}

// member is a guard that enforces mesh-membership by the actions.
func member(name string, actions ...v1alpha1.ValidationAction) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Name, g.Spec.MeshMembership.ValidationActions = name, actions
	return g
}

func bindings(t *testing.T, s *setting) map[string]admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec {
	t.Helper()
	var list admissionregistrationv1.ValidatingAdmissionPolicyBindingList
	if err := s.client.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	specs := map[string]admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{}
	for _, b := range list.Items {
		specs[b.Name] = b.Spec
	}
	return specs
}

func reconcileBindings(t *testing.T, s *setting) {
	t.Helper()
	if _, err := binder(s).Reconcile(t.Context(), request(celpack.PolicyName)); err != nil {
		t.Fatal(err)
	}
}

// Bindings that somebody changes or deletes are told of, and wait for a policy that may be
// put back in a moment.
func TestBinderTellsOfRepairs(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, celpack.Policy(), member("denies", v1alpha1.Deny))
	b := binder(s)
	var told repairs
	b.Repairs = &told
	now := today
	b.Now = func() time.Time { return now }
	reconcile := func(bound int, want ...string) {
		t.Helper()
		told = nil
		if _, err := b.Reconcile(t.Context(), request(celpack.PolicyName)); err != nil {
			t.Fatal(err)
		}
		if got := len(bindings(t, s)); got != bound || !slices.Equal(told, want) {
			t.Errorf("%d bindings, told of %q; want %d and %q", got, told, bound, want)
		}
	}
	reconcile(1)
	reconcile(1)
	var found admissionregistrationv1.ValidatingAdmissionPolicyBinding
	get := func() {
		t.Helper()
		if err := s.client.Get(t.Context(), client.ObjectKey{Name: "meshvakt-denies"}, &found); err != nil {
			t.Fatal(err)
		}
	}
	get()
	found.Spec.ValidationActions = []admissionregistrationv1.ValidationAction{admissionregistrationv1.Audit}
	if err := s.client.Update(t.Context(), &found); err != nil {
		t.Fatal(err)
	}
	reconcile(1, "changed ValidatingAdmissionPolicyBinding meshvakt-denies")
	get()
	if err := s.client.Delete(t.Context(), &found); err != nil {
		t.Fatal(err)
	}
	reconcile(1, "created ValidatingAdmissionPolicyBinding meshvakt-denies")

	if err := s.client.Delete(t.Context(), celpack.Policy()); err != nil {
		t.Fatal(err)
	}
	reconcile(1)
	now = now.Add(policyMayReturn)
	reconcile(0)
	if err := s.client.Create(t.Context(), celpack.Policy()); err != nil {
		t.Fatal(err)
	}
	reconcile(1)
}

func TestBinderBindsWhatDenies(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, celpack.Policy(),
		member("denies", v1alpha1.Deny, v1alpha1.Audit), member("warns", v1alpha1.Warn),
		guardWith("strict-only", guardedSelector(), v1alpha1.OnMissingReject))
	reconcileBindings(t, s)
	got := bindings(t, s)
	if len(got) != 1 {
		t.Fatalf("bindings %v; must be one, for the guard that denies", got)
	}
	spec := got["meshvakt-denies"]
	if spec.PolicyName != celpack.PolicyName || spec.ParamRef == nil || spec.ParamRef.Name != "denies" || *spec.ParamRef.ParameterNotFoundAction != admissionregistrationv1.AllowAction {
		t.Errorf("binds %q with %+v", spec.PolicyName, spec.ParamRef)
	}
	if want := []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny, admissionregistrationv1.Audit}; !slices.Equal(spec.ValidationActions, want) {
		t.Errorf("actions %v; must be %v", spec.ValidationActions, want)
	}
	selector := spec.MatchResources.NamespaceSelector
	if selector.MatchLabels[v1alpha1.GuardedLabel] != v1alpha1.GuardedValue || len(selector.MatchExpressions) != 1 {
		t.Fatalf("selects %v; must be the guard's namespaces", selector)
	}
	never := selector.MatchExpressions[0]
	if never.Operator != metav1.LabelSelectorOpNotIn || !slices.Contains(never.Values, "kube-system") || !slices.Contains(never.Values, "meshvakt-system") {
		t.Errorf("does not leave out what is never guarded: %v", never)
	}
}

func TestBinderDeletesWhatNoGuardAsksFor(t *testing.T) {
	labelled := func(name, policy string) *admissionregistrationv1.ValidatingAdmissionPolicyBinding {
		return &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: BindingLabels()},
			Spec:       admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: policy},
		}
	}
	foreign := labelled("not-labelled", celpack.PolicyName)
	foreign.Labels = nil
	guard := member("denies", v1alpha1.Deny)
	s := newSetting(t, interceptor.Funcs{}, celpack.Policy(), guard,
		labelled("meshvakt-gone", celpack.PolicyName), labelled("other", "another-policy"), foreign)
	reconcileBindings(t, s)
	if got := namesOf(bindings(t, s)); !slices.Equal(got, []string{"meshvakt-denies", "not-labelled", "other"}) {
		t.Errorf("left: %q", got)
	}
	if err := s.client.Delete(t.Context(), guard); err != nil {
		t.Fatal(err)
	}
	reconcileBindings(t, s)
	if got := namesOf(bindings(t, s)); !slices.Equal(got, []string{"not-labelled", "other"}) {
		t.Errorf("left without the guard: %q", got)
	}
}

func namesOf(m map[string]admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) []string {
	return slices.Sorted(maps.Keys(m))
}

func TestBinderRepairs(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, celpack.Policy(), member("denies", v1alpha1.Deny))
	reconcileBindings(t, s)
	want := bindings(t, s)["meshvakt-denies"]
	for name, spoil := range map[string]func(*admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec){
		"another action": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
			s.ValidationActions = []admissionregistrationv1.ValidationAction{admissionregistrationv1.Audit}
		},
		"other namespaces": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
			s.MatchResources.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"no": "namespace"}}
		},
		"excluded objects": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
			s.MatchResources.ExcludeResourceRules = []admissionregistrationv1.NamedRuleWithOperations{{ResourceNames: []string{"mine"}}}
		},
		"another guard": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) { s.ParamRef.Name = "mild" },
	} {
		t.Run(name, func(t *testing.T) {
			var b admissionregistrationv1.ValidatingAdmissionPolicyBinding
			if err := s.client.Get(t.Context(), client.ObjectKey{Name: "meshvakt-denies"}, &b); err != nil {
				t.Fatal(err)
			}
			spoil(&b.Spec)
			if err := s.client.Update(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			reconcileBindings(t, s)
			if got := bindings(t, s)["meshvakt-denies"]; !equality.Semantic.DeepEqual(got, want) {
				t.Errorf("left as %+v", got)
			}
		})
	}
}

func TestBinderWithoutPolicy(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{}, member("denies", v1alpha1.Deny))
	reconcileBindings(t, s)
	if got := bindings(t, s); len(got) != 0 {
		t.Errorf("binds a policy that is not there: %v", got)
	}
	// Turned off while there are bindings.
	policy := celpack.Policy()
	if err := s.client.Create(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	reconcileBindings(t, s)
	if got := bindings(t, s); len(got) != 1 {
		t.Fatalf("bindings %v", got)
	}
	if err := s.client.Delete(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	reconcileBindings(t, s)
	if got := bindings(t, s); len(got) != 0 {
		t.Errorf("left without the policy: %v", got)
	}
}

// An API server that cannot be asked is no reason to take bindings away.
func TestBinderKeepsBindingsOnErrors(t *testing.T) {
	down := errors.New("down")
	fail := false
	s := newSetting(t, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, is := o.(*admissionregistrationv1.ValidatingAdmissionPolicy); is && fail {
				return down
			}
			return c.Get(ctx, key, o, opts...)
		},
	}, celpack.Policy(), member("denies", v1alpha1.Deny))
	reconcileBindings(t, s)
	fail = true
	if _, err := binder(s).Reconcile(t.Context(), request(celpack.PolicyName)); !errors.Is(err, down) {
		t.Errorf("got %v; want the API server's error", err)
	}
	if got := bindings(t, s); len(got) != 1 {
		t.Errorf("bindings %v", got)
	}
}

// Before Kubernetes 1.30 there is no such kind.
func TestOldAPIServers(t *testing.T) {
	old := meta.NewDefaultRESTMapper(nil)
	if bindable, err := Bindable(old); bindable || err != nil {
		t.Errorf("got %t, %v", bindable, err)
	}
	known := meta.NewDefaultRESTMapper([]schema.GroupVersion{admissionregistrationv1.SchemeGroupVersion})
	known.Add(admissionregistrationv1.SchemeGroupVersion.WithKind("ValidatingAdmissionPolicyBinding"), meta.RESTScopeRoot)
	if bindable, err := Bindable(known); !bindable || err != nil {
		t.Errorf("got %t, %v", bindable, err)
	}
	s := newSetting(t, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, is := list.(*admissionregistrationv1.ValidatingAdmissionPolicyBindingList); is {
				return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: admissionregistrationv1.GroupName, Kind: "ValidatingAdmissionPolicyBinding"}}
			}
			return c.List(ctx, list, opts...)
		},
	})
	if err := DeleteBindings(t.Context(), s.client); err != nil {
		t.Errorf("uninstalling from an old API server: %v", err)
	}
}
