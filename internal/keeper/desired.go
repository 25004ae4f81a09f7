package keeper

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// MarkLabel is on every own object, and differs from one installation or upgrade to the
// next.
const MarkLabel = "meshvakt.io/installation"

// The keys of the ConfigMap: objects that are put back, and objects that are only looked
// after, because putting them back would take rights that Meshvakt must not have.
const (
	KeyKept    = "kept.yaml"
	KeyWatched = "watched.yaml"
)

// Ref names an own object.
type Ref struct {
	Kind, Namespace, Name string
}

// Desired are the own objects as installed. It is not written to after it was read.
type Desired struct {
	Mark    string
	objects map[Ref]desired
}

type desired struct {
	want *unstructured.Unstructured
	kept bool
}

// errOtherDigest is returned for a ConfigMap that is not the one this process belongs to.
var errOtherDigest = errors.New("its content has another digest than this process was started with")

// Digest is that of the data of a ConfigMap, as the chart computes it.
func Digest(data map[string]string) string {
	sum := sha256.Sum256([]byte(data[KeyKept] + "\n" + data[KeyWatched]))
	return hex.EncodeToString(sum[:])
}

// Read returns what is in the ConfigMap, and the ConfigMap itself, which is kept too.
func Read(cm *corev1.ConfigMap, digest string) (*Desired, error) {
	if Digest(cm.Data) != digest {
		return nil, errOtherDigest
	}
	d := &Desired{objects: map[Ref]desired{}}
	for _, part := range []struct {
		key  string
		kept bool
	}{{KeyKept, true}, {KeyWatched, false}} {
		list, err := decode(cm.Data[part.key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part.key, err)
		}
		for _, o := range list {
			if err := d.add(o, part.kept); err != nil {
				return nil, fmt.Errorf("%s: %w", part.key, err)
			}
		}
	}
	if len(d.objects) == 0 {
		return nil, errors.New("no objects in it")
	}
	own := &unstructured.Unstructured{Object: map[string]any{}}
	own.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	own.SetNamespace(cm.Namespace)
	own.SetName(cm.Name)
	// Not what it says now, which anybody may have written since.
	own.SetLabels(map[string]string{MarkLabel: d.Mark})
	data := map[string]any{}
	for k, v := range cm.Data {
		data[k] = v
	}
	own.Object["data"] = data
	return d, d.add(own, true)
}

func (d *Desired) add(o *unstructured.Unstructured, kept bool) error {
	ref := Ref{o.GetKind(), o.GetNamespace(), o.GetName()}
	mark := o.GetLabels()[MarkLabel]
	switch _, known := d.objects[ref]; {
	case o.GetKind() == "" || o.GetName() == "":
		return errors.New("an object without kind or name")
	case known:
		return fmt.Errorf("%s is there twice", ref)
	case mark == "":
		return fmt.Errorf("%s has no label %s", ref, MarkLabel)
	case d.Mark != "" && mark != d.Mark:
		return fmt.Errorf("%s has mark %q; must be %q like the others", ref, mark, d.Mark)
	}
	d.Mark = mark
	d.objects[ref] = desired{o, kept}
	return nil
}

// Kinds lists the kinds that can be among the own objects, for metrics.
func Kinds() []string {
	return []string{
		"ClusterRole", "ClusterRoleBinding", "ConfigMap", "CustomResourceDefinition", "MeshGuard", "MutatingWebhookConfiguration",
		"NetworkPolicy", "PodDisruptionBudget", "ResourceQuota", "Role", "RoleBinding", "Service", "ServiceAccount", "ValidatingAdmissionPolicy",
		"ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration",
	}
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

func (d desired) gvk() schema.GroupVersionKind { return d.want.GroupVersionKind() }

func (d desired) key() client.ObjectKey { return client.ObjectKeyFromObject(d.want) }

// decode splits a manifest into objects. Numbers come as the API server's do.
func decode(manifest string) ([]*unstructured.Unstructured, error) {
	var list []*unstructured.Unstructured
	reader := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(manifest)), 4096)
	for {
		o := &unstructured.Unstructured{}
		switch err := reader.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, fmt.Errorf("decode: %w", err)
		}
		if len(o.Object) == 0 {
			continue
		}
		data, err := o.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("encode %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		if err := o.UnmarshalJSON(data); err != nil {
			return nil, fmt.Errorf("decode %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		list = append(list, o)
	}
}

// path joins the names of fields as messages state them.
func path(at, name string) string {
	return strings.TrimPrefix(at+"."+name, ".")
}
