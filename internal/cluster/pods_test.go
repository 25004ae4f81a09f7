package cluster

import (
	"maps"
	"slices"
	"testing"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// An object of Istio's is judged with the labels of the namespaces it names; the
// settings of Istio concern all.
func TestReadLiveOfIstioObjects(t *testing.T) {
	stored := []client.Object{v1alpha1.DefaultGuard()}
	for _, name := range []string{"istio-system", "prod", "named", "other"} {
		stored = append(stored, storedNamespace(name, guardedLabels(), "4"), storedPolicy(name, "default", "STRICT", "5"))
	}
	s, server := reading(t, "20", stored...)
	rule := func(namespace, host string) *facts.Review {
		return &facts.Review{
			Kind: schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "DestinationRule"}, Namespace: namespace, Name: "x",
			Object: &facts.IstioObject{Spec: &networkingv1alpha3.DestinationRule{Host: host}},
		}
	}
	for name, c := range map[string]struct {
		review *facts.Review
		want   []string
	}{
		"what names another namespace":               {rule("prod", "db.named.svc.cluster.local"), []string{"istio-system", "named", "prod"}},
		"what names one that is not there":           {rule("prod", "db.gone.svc.cluster.local"), []string{"istio-system", "prod"}},
		"what names none":                            {rule("prod", "example.com"), []string{"istio-system", "prod"}},
		"what is in the root namespace and names it": {rule("istio-system", "x.istio-system.svc.cluster.local"), []string{"istio-system"}},
		"the settings of Istio":                      {about("ConfigMap", "istio-system", "istio"), []string{"istio-system", "named", "other", "prod"}},
		"a ConfigMap of others":                      {about("ConfigMap", "prod", "istio"), []string{"istio-system", "prod"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.Read(t.Context(), c.review)
			if err != nil || !got.Live {
				t.Fatalf("live %t, %v", got.Live, err)
			}
			if names := slices.Sorted(maps.Keys(got.Namespaces)); !slices.Equal(names, c.want) {
				t.Errorf("read %q; want %q", names, c.want)
			}
			for name, ns := range got.Namespaces {
				if len(ns.PeerAuthentications) != 1 && name != "named" || ns.Labels == nil {
					t.Errorf("%s is %s", name, describe(ns))
				}
			}
			if ns := got.Namespaces["named"]; c.review.Kind.Kind == "DestinationRule" && ns != nil && ns.PeerAuthentications != nil {
				t.Error("of a named namespace only the labels are read")
			}
		})
	}
	if server.count() == 0 {
		t.Error("nothing was read")
	}
}
