package cluster

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What bounds a namespace is read for those who can be told, and holds up nobody.
func TestQuotasAreForAuthors(t *testing.T) {
	controlled := metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Controller: new(bool)}}}
	*controlled.OwnerReferences[0].Controller = true
	guard, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		t.Fatal(err)
	}
	without := guard
	without.SidecarResources = nil
	for name, c := range map[string]struct {
		object any
		guard  facts.Guard
		fails  bool
		want   int
	}{
		"a template":                {&facts.Workload{}, guard, false, 1},
		"a pod":                     {&corev1.Pod{}, guard, false, 1},
		"a pod of a controller":     {&corev1.Pod{ObjectMeta: controlled}, guard, false, 0},
		"a guard that does not ask": {&facts.Workload{}, without, false, 0},
		"it cannot be read":         {&facts.Workload{}, guard, true, 0},
	} {
		s, _ := reading(t, "20")
		scheme := runtime.NewScheme()
		if err := corev1.AddToScheme(scheme); err != nil {
			t.Fatal(err)
		}
		bounds := metav1.ObjectMeta{Namespace: "prod", Name: "bounds"}
		s.cfg.Live = fake.NewClientBuilder().WithScheme(scheme).WithObjects(&corev1.LimitRange{ObjectMeta: bounds}, &corev1.ResourceQuota{ObjectMeta: bounds}).
			WithInterceptorFuncs(interceptor.Funcs{List: func(ctx context.Context, w client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if c.fails {
					return errors.New("forbidden")
				}
				return w.List(ctx, list, opts...)
			}}).Build()
		shared := &facts.Namespace{Name: "prod", Labels: guardedLabels()}
		cluster := facts.Cluster{Guards: []facts.Guard{c.guard}, Namespaces: map[string]*facts.Namespace{"prod": shared}}
		s.addQuotas(t.Context(), &facts.Review{Namespace: "prod", Object: c.object}, &cluster)
		if got := cluster.Namespaces["prod"]; len(got.LimitRanges) != c.want || len(got.Quotas) != c.want {
			t.Errorf("%s: %d LimitRanges and %d quotas, want %d", name, len(got.LimitRanges), len(got.Quotas), c.want)
		}
		if shared.Quotas != nil {
			t.Errorf("%s: written to what others read", name)
		}
	}
}
