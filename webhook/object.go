package webhook

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// object is an object of a review, read in passing: what it says of its own type
// and its metadata, which is all that policies read of namespaces. The rest is
// checked to be JSON in which no name stands twice, and left where it is.
type object struct {
	apiVersion, kind string
	meta             objectMeta
	start, end       int64 // in the body; equal for none and for null
}

// objectMeta is what policies read of metadata.
type objectMeta struct {
	Name              string            `json:"name"`
	GenerateName      string            `json:"generateName"`
	Namespace         string            `json:"namespace"`
	Labels            map[string]string `json:"labels"`
	DeletionTimestamp *metav1.Time      `json:"deletionTimestamp"`
}

func (o *object) present() bool { return o.end > o.start }

// UnmarshalJSONFrom reads the object and leaves the decoder behind it.
func (o *object) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	switch d.PeekKind() {
	case 'n':
		return d.SkipValue()
	case '{':
	default:
		return fmt.Errorf("object is a JSON %s; must be an object", d.PeekKind())
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	o.start = d.InputOffset() - 1
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return err
		}
		switch name.String() {
		case "apiVersion":
			err = json.UnmarshalDecode(d, &o.apiVersion)
		case "kind":
			err = json.UnmarshalDecode(d, &o.kind)
		case "metadata":
			err = json.UnmarshalDecode(d, &o.meta)
		default:
			// Unlike SkipValue, which goes by tokens, this takes it in one go.
			_, err = d.ReadValue()
		}
		if err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	o.end = d.InputOffset()
	return nil
}

// agrees holds the object against what the request says of it. An object need
// not name its type.
func (o *object) agrees(r *facts.Review, rule rule) error {
	switch {
	case o.apiVersion != "" && o.apiVersion != r.Kind.GroupVersion().String(), o.kind != "" && o.kind != r.Kind.Kind:
		return fmt.Errorf("object is a %q %q; must be what request.kind says, %s", o.apiVersion, o.kind, r.Kind)
	case rule.namespaced && o.meta.Namespace != r.Namespace:
		return fmt.Errorf("object is in namespace %q; must be in request.namespace %q", o.meta.Namespace, r.Namespace)
	case o.meta.Name != "" && r.Name != "" && o.meta.Name != r.Name:
		return fmt.Errorf("object is named %q; must be named as request.name, %q", o.meta.Name, r.Name)
	}
	return nil
}

// decoder reads an object of a kind that policies judge.
type decoder func(schema.GroupKind, []byte) (any, error)

// value is the object as policies take it. Namespaces have nothing but metadata;
// what else is judged is decoded whole.
func (o *object) value(kind schema.GroupKind, body []byte, decode decoder) (any, error) {
	if (kind == schema.GroupKind{Kind: "Namespace"}) {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name:              o.meta.Name,
			GenerateName:      o.meta.GenerateName,
			Namespace:         o.meta.Namespace,
			Labels:            o.meta.Labels,
			DeletionTimestamp: o.meta.DeletionTimestamp,
		}}, nil
	}
	return decode(kind, body[o.start:o.end])
}
