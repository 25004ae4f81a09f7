package facts_test

import (
	"fmt"
	"slices"
	"testing"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func TestRuleReach(t *testing.T) {
	prod, every := facts.Reach{Namespace: "prod"}, facts.Reach{Every: true}
	for host, want := range map[string]facts.Reach{
		"web":                              {Namespace: "own"},
		"web.prod":                         {},
		"web.prod.svc":                     {},
		"web.prod.svc.cluster.local":       prod,
		"WEB.Prod.svc.cluster.local.":      prod,
		"web-0.web.prod.svc.cluster.local": prod,
		"web.prod.svc.clusterset.local":    prod,
		"web.prod.svc.corp.example":        prod,
		"web.svc.svc.cluster.local":        {Namespace: "svc"},
		"prod.svc.cluster.local":           {},
		".svc.cluster.local":               {},
		"*":                                every,
		"*.local":                          every,
		"*.svc.cluster.local":              every,
		"*vc.cluster.local":                every,
		"*.svc.corp.example":               every,
		"*.prod.svc.cluster.local":         prod,
		"*b.prod.svc.cluster.local":        prod,
		"*.web.prod.svc.cluster.local":     prod,
		"*od.svc.cluster.local":            {Suffix: "od"},
		"*.example.com":                    {},
		"api.stripe.com":                   {},
		"10.0.0.1":                         {},
		"fd00::1":                          {},
		"::1":                              {},
		"":                                 {},
	} {
		if got := facts.RuleReach(host, "own"); got != want {
			t.Errorf("%q: %+v; must be %+v", host, got, want)
		}
	}
}

func TestEntryReach(t *testing.T) {
	for host, want := range map[string]facts.Reach{
		"web":                        {},
		"web.prod":                   {Namespace: "prod", Short: true},
		"*.prod":                     {Namespace: "prod", Short: true},
		"web.prod.svc":               {Namespace: "prod"},
		"*.prod.svc":                 {Namespace: "prod"},
		"*.svc":                      {Every: true},
		"web.prod.svc.cluster.local": {Namespace: "prod"},
		"*.svc.cluster.local":        {Every: true},
		"api.stripe.com":             {},
		"*.stripe.com":               {},
		".com":                       {},
		"10.0.0.1":                   {},
	} {
		if got := facts.EntryReach(host); got != want {
			t.Errorf("%q: %+v; must be %+v", host, got, want)
		}
	}
}

func review(object, old any) *facts.Review {
	return &facts.Review{
		Namespace: "own", Object: object, OldObject: old,
		Cluster: facts.Cluster{ControlPlanes: []mesh.ControlPlane{mesh.DefaultControlPlane()}},
	}
}

func entry(hosts ...string) *facts.IstioObject {
	return &facts.IstioObject{Spec: &networkingv1alpha3.ServiceEntry{Hosts: hosts}}
}

func TestOtherNamespaces(t *testing.T) {
	rule := func(host string) *facts.IstioObject {
		return &facts.IstioObject{Spec: &networkingv1alpha3.DestinationRule{Host: host}}
	}
	settings := func(name, key, text string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{key: text}}
	}
	for name, c := range map[string]struct {
		object, old any
		want        []string
	}{
		"own":            {rule("web"), nil, nil},
		"root":           {rule("web.istio-system.svc.cluster.local"), nil, nil},
		"other":          {rule("web.b.svc.cluster.local"), rule("web.a.svc.cluster.local"), []string{"b", "a"}},
		"deleted":        {nil, rule("web.a.svc.cluster.local"), []string{"a"}},
		"wildcard":       {rule("*.local"), nil, nil},
		"outside":        {rule("api.stripe.com"), nil, nil},
		"entry":          {entry("web.b", "web.a.svc.cluster.local", "x.b.svc"), nil, []string{"b", "a"}},
		"mesh settings":  {settings("istio", "mesh", "rootNamespace: new"), settings("istio", "mesh", "rootNamespace: old"), []string{"new", "old"}},
		"other settings": {settings("istio-ca-root-cert", "root-cert.pem", "x"), nil, nil},
		"unreadable":     {settings("istio", "mesh", "{"), nil, nil},
		"pod":            {&corev1.Pod{}, nil, nil},
	} {
		if got := review(c.object, c.old).OtherNamespaces(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q; must be %q", name, got, c.want)
		}
	}
}

func TestOtherNamespacesAreBounded(t *testing.T) {
	var hosts []string
	for i := range 100 {
		hosts = append(hosts, fmt.Sprintf("web.ns-%03d.svc.cluster.local", i))
	}
	r := review(entry(hosts...), nil)
	names := r.OtherNamespaces()
	if len(names) != 64 || names[0] != "ns-000" || names[63] != "ns-063" {
		t.Fatalf("%d namespaces: %q", len(names), names)
	}
}
