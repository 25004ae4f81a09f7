package webhook

import (
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// object is the place of an object in a review, empty for one that is null or not
// there. Reading the review checks it to be JSON in which no name stands twice, and
// leaves it where it is: what kind of object it is, the request may say later.
type object struct{ start, end int64 }

func (o *object) present() bool { return o.end > o.start }

// UnmarshalJSONFrom passes over the object. Unlike SkipValue, which goes by tokens,
// ReadValue takes it in one go.
func (o *object) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	kind := d.PeekKind()
	value, err := d.ReadValue()
	switch {
	case err != nil:
		return err
	case kind == 'n':
		return nil
	case kind != '{':
		return fmt.Errorf("object is a JSON %s; must be an object", kind)
	}
	o.end = d.InputOffset()
	o.start = o.end - int64(len(value))
	return nil
}

// decoder reads a whole object of a kind that policies judge.
type decoder func(schema.GroupKind, []byte) (any, error)

// value is the object as policies take it, if it is what the request says of it.
func (o *object) value(r *facts.Review, rule rule, body []byte, decode decoder) (any, error) {
	text := body[o.start:o.end]
	head, value, err := objects.Checked(r.Kind.GroupKind(), text)
	if err != nil {
		return nil, err
	}
	if err := agrees(head, r, rule); err != nil || value != nil {
		return value, err
	}
	return decode(r.Kind.GroupKind(), text)
}

// agrees holds the object against what the request says of it. An object need
// not name its type.
func agrees(o objects.Head, r *facts.Review, rule rule) error {
	switch {
	case o.APIVersion != "" && o.APIVersion != r.Kind.GroupVersion().String(), o.Kind != "" && o.Kind != r.Kind.Kind:
		return fmt.Errorf("object is a %q %q; must be what request.kind says, %s", o.APIVersion, o.Kind, r.Kind)
	case rule.namespaced && o.Namespace != r.Namespace:
		return fmt.Errorf("object is in namespace %q; must be in request.namespace %q", o.Namespace, r.Namespace)
	case o.Name != "" && r.Name != "" && o.Name != r.Name:
		return fmt.Errorf("object is named %q; must be named as request.name, %q", o.Name, r.Name)
	}
	return nil
}
