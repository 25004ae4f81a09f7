package objects

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// istioSpec returns an empty spec for a kind of Istio's networking API, nil for
// other kinds. All versions of a kind have one schema.
func istioSpec(kind schema.GroupKind) proto.Message {
	if kind.Group != "networking.istio.io" {
		return nil
	}
	switch kind.Kind {
	case "DestinationRule":
		return &networkingv1alpha3.DestinationRule{}
	case "EnvoyFilter":
		return &networkingv1alpha3.EnvoyFilter{}
	case "ProxyConfig":
		return &networkingv1beta1.ProxyConfig{}
	case "ServiceEntry":
		return &networkingv1alpha3.ServiceEntry{}
	case "Sidecar":
		return &networkingv1alpha3.Sidecar{}
	case "WorkloadEntry":
		return &networkingv1alpha3.WorkloadEntry{}
	case "WorkloadGroup":
		return &networkingv1alpha3.WorkloadGroup{}
	}
	return nil
}

// decodeIstio reads the metadata, and leaves the spec to the decoder that Istio
// uses. That one refuses doubled names too, but only those of the messages it
// knows; the first pass over the text refuses all.
//
// A spec of an object that is in the cluster already counts as empty when it
// cannot be read: then everything in the new one is new.
func decodeIstio(kind schema.GroupKind, raw []byte, stored bool) (any, error) {
	var o struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              jsontext.Value `json:"spec"`
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind.Kind, err)
	}
	spec := istioSpec(kind)
	if len(o.Spec) > 0 && string(o.Spec) != "null" {
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(o.Spec, spec); err != nil {
			if !stored {
				return nil, fmt.Errorf("decode spec of %s %s/%s: %w", kind.Kind, o.Namespace, o.Name, err)
			}
			spec = istioSpec(kind)
		}
	}
	return &facts.IstioObject{ObjectMeta: o.ObjectMeta, Spec: spec}, nil
}
