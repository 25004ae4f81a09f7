package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

const kept = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: meshvakt, labels: {meshvakt.io/installation: one}}
rules:
  - {apiGroups: [""], resources: [nodes], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: meshvakt, labels: {meshvakt.io/installation: one}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: meshvakt}
subjects:
  - {kind: ServiceAccount, namespace: meshvakt-system, name: meshvakt}
`

const watched = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: meshvakt-approve, labels: {meshvakt.io/installation: one}}
rules:
  - {apiGroups: [meshvakt.io], resources: [guardexceptions], verbs: [approve]}
`

func installedConfigMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-own-objects", Labels: map[string]string{MarkLabel: "one"}},
		Data:       map[string]string{KeyKept: kept, KeyWatched: watched},
	}
}

type tally map[string]int

func (c tally) OwnObjectRepaired(kind, action string) { c[kind+" "+action]++ }

// setting is a cluster with everything installed, and a Keeper of it.
type setting struct {
	keeper *Keeper
	client client.Client
	counts tally
	events *events.FakeRecorder
	now    time.Time
}

var (
	role    = Ref{Kind: "ClusterRole", Name: "meshvakt"}
	binding = Ref{Kind: "ClusterRoleBinding", Name: "meshvakt"}
	approve = Ref{Kind: "ClusterRole", Name: "meshvakt-approve"}
	config  = Ref{Kind: "ConfigMap", Namespace: "meshvakt-system", Name: "meshvakt-own-objects"}
)

func newSetting(t *testing.T, funcs interceptor.Funcs) *setting {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, rbacv1.AddToScheme, v1alpha1.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	cm := installedConfigMap()
	s := &setting{counts: tally{}, events: events.NewFakeRecorder(100), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	objects := []client.Object{cm}
	for _, manifest := range []string{kept, watched} {
		list, err := decode(manifest)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			objects = append(objects, o)
		}
	}
	s.client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(funcs).Build()
	clock := func() time.Time { return s.now }
	ledger := NewLedger(s.events, s.counts, slog.New(slog.DiscardHandler), clock)
	s.keeper = &Keeper{
		Client: s.client, Live: s.client, ConfigMap: client.ObjectKeyFromObject(cm), Digest: Digest(cm.Data), Manager: "helm",
		Ledger: ledger, Log: slog.New(slog.DiscardHandler), Now: clock,
	}
	if err := s.keeper.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// reconcile looks at an object once.
func (s *setting) reconcile(t *testing.T, ref Ref) (time.Duration, error) {
	t.Helper()
	result, err := s.keeper.Reconcile(t.Context(), ref)
	return result.RequeueAfter, err
}

// settled demands that an object is as installed.
func (s *setting) settled(t *testing.T, ref Ref) {
	t.Helper()
	if wait, err := s.reconcile(t, ref); err != nil || wait != resync {
		t.Errorf("%s: looks again after %s, %v; must be as installed", ref, wait, err)
	}
	if reason, message := s.keeper.Ledger.Degradation(); reason == "OwnObjectsNotAsInstalled" {
		t.Errorf("%s: %s", ref, message)
	}
}

func (s *setting) role(t *testing.T) *rbacv1.ClusterRole {
	t.Helper()
	var r rbacv1.ClusterRole
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: "meshvakt"}, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func failing(err error) interceptor.Funcs {
	return interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		if key.Name == "meshvakt" && fmt.Sprintf("%T", o) == "*unstructured.Unstructured" {
			return err
		}
		return c.Get(ctx, key, o, opts...)
	}}
}
