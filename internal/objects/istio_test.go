package objects_test

import (
	"strings"
	"testing"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func istioKind(kind string) schema.GroupKind {
	return schema.GroupKind{Group: "networking.istio.io", Kind: kind}
}

func TestDecodesIstio(t *testing.T) {
	for _, kind := range []string{"DestinationRule", "EnvoyFilter", "ProxyConfig", "ServiceEntry", "Sidecar", "WorkloadEntry"} {
		if !objects.Decodes(istioKind(kind)) {
			t.Errorf("%s is not decoded", kind)
		}
		for _, raw := range []string{`{"metadata":{"name":"x"}}`, `{"metadata":{"name":"x"},"spec":null}`, `{"metadata":{"name":"x"},"spec":{}}`} {
			o, err := objects.Decode(istioKind(kind), []byte(raw))
			if err != nil {
				t.Errorf("%s %s: %v", kind, raw, err)
				continue
			}
			if got := o.(*facts.IstioObject); got.Name != "x" || got.Spec == nil {
				t.Errorf("%s %s: %+v", kind, raw, got)
			}
		}
	}
	for _, kind := range []schema.GroupKind{istioKind("Gateway"), {Group: "example.com", Kind: "Sidecar"}, {Kind: "Secret"}} {
		if objects.Decodes(kind) {
			t.Errorf("%s is decoded", kind)
		}
	}
}

func TestDecodeDestinationRule(t *testing.T) {
	raw := `{"metadata":{"namespace":"prod","name":"web","labels":{"a":"b"}},
		"spec":{"host":"web","unknown":{"deep":[1]},"trafficPolicy":{"tls":{"mode":"SIMPLE","insecureSkipVerify":true},"portLevelSettings":[{"port":{"number":8080},"tls":{}}]}}}`
	o, err := objects.Decode(istioKind("DestinationRule"), []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	got := o.(*facts.IstioObject)
	rule := got.Spec.(*networkingv1alpha3.DestinationRule)
	tls := rule.GetTrafficPolicy().GetTls()
	if got.Namespace != "prod" || got.Labels["a"] != "b" || rule.GetHost() != "web" || tls.GetMode() != networkingv1alpha3.ClientTLSSettings_SIMPLE || !tls.GetInsecureSkipVerify().GetValue() {
		t.Errorf("%+v", rule)
	}
	if port := rule.GetTrafficPolicy().GetPortLevelSettings()[0]; port.GetTls().GetMode() != networkingv1alpha3.ClientTLSSettings_DISABLE {
		t.Errorf("tls without a mode is %s", port.GetTls().GetMode())
	}
}

// TestDecodeIstioRefusesDoubledNames: at any depth, also in what Istio's types do
// not have, and in both spellings of a field.
func TestDecodeIstioRefusesDoubledNames(t *testing.T) {
	for _, raw := range []string{
		`{"spec":{"host":"a","host":"b"}}`,
		`{"spec":{"host":"a"},"spec":{"host":"b"}}`,
		`{"metadata":{"name":"a","name":"b"},"spec":{"host":"a"}}`,
		`{"spec":{"host":"a","unknown":{"x":1,"x":2}}}`,
		`{"spec":{"trafficPolicy":{"tls":{"mode":"DISABLE","mode":"ISTIO_MUTUAL"}}}}`,
		`{"spec":{"trafficPolicy":{},"traffic_policy":{}}}`,
	} {
		if _, err := objects.Decode(istioKind("DestinationRule"), []byte(raw)); err == nil || !strings.Contains(err.Error(), "DestinationRule") {
			t.Errorf("%s: error %v", raw, err)
		}
	}
	filter := `{"spec":{"configPatches":[{"applyTo":"LISTENER","patch":{"operation":"MERGE","value":{"a":{"b":1,"b":2}}}}]}}`
	if _, err := objects.Decode(istioKind("EnvoyFilter"), []byte(filter)); err == nil {
		t.Error("a name stands twice in the value of a patch")
	}
}

func TestDecodeStoredIstio(t *testing.T) {
	raw := []byte(`{"metadata":{"name":"web"},"spec":{"host":["no","string"]}}`)
	if _, err := objects.Decode(istioKind("DestinationRule"), raw); err == nil {
		t.Error("a spec that cannot be read is let in")
	}
	o, err := objects.DecodeStored(istioKind("DestinationRule"), raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := o.(*facts.IstioObject); got.Name != "web" || got.Spec.(*networkingv1alpha3.DestinationRule).GetHost() != "" {
		t.Errorf("%+v", got)
	}
}

func TestDecodeConfigMap(t *testing.T) {
	kind := schema.GroupKind{Kind: "ConfigMap"}
	if !objects.Decodes(kind) {
		t.Fatal("not decoded")
	}
	o, err := objects.Decode(kind, []byte(`{"metadata":{"name":"istio","labels":{"istio.io/rev":"v1"}},"data":{"mesh":"rootNamespace: x"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := o.(*corev1.ConfigMap); got.Name != "istio" || got.Labels["istio.io/rev"] != "v1" || got.Data["mesh"] != "rootNamespace: x" {
		t.Errorf("%+v", got)
	}
	if _, err := objects.Decode(kind, []byte(`{"data":{"mesh":"a","mesh":"b"}}`)); err == nil {
		t.Error("a key stands twice")
	}
}
