package webhook

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// object is an object of a review, read in passing: what it says of its own type
// and its metadata. The rest is checked to be JSON in which no name stands twice,
// and left where it is: what kind of object it is, the request may say later.
type object struct {
	apiVersion, kind string
	meta             objectMeta
	whole            span
	spec, status     span
}

// span is a place in the body, empty for what is not there, and for an object that
// is null.
type span struct{ start, end int64 }

func (s span) of(body []byte) []byte { return body[s.start:s.end] }

// objectMeta is what policies read of metadata.
type objectMeta struct {
	Name              string            `json:"name"`
	GenerateName      string            `json:"generateName"`
	Namespace         string            `json:"namespace"`
	Labels            map[string]string `json:"labels"`
	Annotations       map[string]string `json:"annotations"`
	DeletionTimestamp *metav1.Time      `json:"deletionTimestamp"`
}

func (o *object) present() bool { return o.whole.end > o.whole.start }

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
	o.whole.start = d.InputOffset() - 1
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
		case "spec":
			o.spec, err = skip(d)
		case "status":
			o.status, err = skip(d)
		default:
			_, err = skip(d)
		}
		if err != nil {
			return err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	o.whole.end = d.InputOffset()
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

// value is the object as policies take it. Pods come by the thousand, and most of
// what they carry, status and the notes about who set which field, no policy reads;
// namespaces have nothing but metadata. What else is judged is decoded whole.
func (o *object) value(kind schema.GroupKind, body []byte, decode decoder) (any, error) {
	meta := metav1.ObjectMeta{
		Name:              o.meta.Name,
		GenerateName:      o.meta.GenerateName,
		Namespace:         o.meta.Namespace,
		Labels:            o.meta.Labels,
		DeletionTimestamp: o.meta.DeletionTimestamp,
	}
	switch kind {
	case schema.GroupKind{Kind: "Pod"}:
		meta.Annotations = o.meta.Annotations
		return o.pod(meta, body)
	case schema.GroupKind{Kind: "Namespace"}:
		return &corev1.Namespace{ObjectMeta: meta}, nil
	}
	return decode(kind, o.whole.of(body))
}

func (o *object) pod(meta metav1.ObjectMeta, body []byte) (*corev1.Pod, error) {
	p := &corev1.Pod{ObjectMeta: meta}
	// Names that stand twice were refused when the body was read.
	if err := objects.PodSpec(o.spec.of(body), &p.Spec); err != nil {
		return nil, err
	}
	var status struct {
		Phase corev1.PodPhase `json:"phase"`
	}
	if o.status.end > o.status.start {
		if err := json.Unmarshal(o.status.of(body), &status, jsontext.AllowDuplicateNames(true)); err != nil {
			return nil, fmt.Errorf("decode status of Pod: %w", err)
		}
	}
	p.Status.Phase = status.Phase
	return p, nil
}

// skip passes over a value, checking it. Unlike SkipValue, which goes by tokens, this
// takes it in one go.
func skip(d *jsontext.Decoder) (span, error) {
	value, err := d.ReadValue()
	end := d.InputOffset()
	return span{end - int64(len(value)), end}, err
}
