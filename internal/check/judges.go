package check

import (
	"encoding/json"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// judges are the policies and the kinds that they judge. They are put together once for
// all objects: there may be tens of thousands.
type judges struct {
	policies []policies.Policy
	kinds    map[schema.GroupKind]judgedKind
}

type judgedKind struct {
	versions []string
	matches  []policies.Match
}

func newJudges() *judges {
	j := &judges{policies: policies.All(), kinds: map[schema.GroupKind]judgedKind{}}
	for _, p := range j.policies {
		for _, m := range p.Matches {
			kind := schema.GroupKind{Group: m.Group, Kind: m.Kind}
			k := j.kinds[kind]
			k.versions, k.matches = append(k.versions, m.Versions...), append(k.matches, m)
			j.kinds[kind] = k
		}
	}
	for kind, k := range j.kinds {
		slices.Sort(k.versions)
		k.versions = slices.Compact(k.versions)
		j.kinds[kind] = k
	}
	return j
}

// judged reports whether any policy reads objects of the kind.
func (j *judges) judged(kind schema.GroupKind) bool {
	_, is := j.kinds[kind]
	return is
}

// judgedOn reports whether any policy judges the operation on objects of the kind.
func (j *judges) judgedOn(kind schema.GroupKind, operation admissionv1.Operation) bool {
	return slices.ContainsFunc(j.kinds[kind].matches, func(m policies.Match) bool { return slices.Contains(m.Operations, operation) })
}

func (j *judges) resource(kind schema.GroupVersionKind, subresource string) schema.GroupVersionResource {
	for _, m := range j.kinds[kind.GroupKind()].matches {
		if m.Covers(subresource) {
			return kind.GroupVersion().WithResource(m.Resource)
		}
	}
	return schema.GroupVersionResource{}
}

// key is the identity of an object once it is in the cluster.
func (j *judges) key(d *Document) key {
	k := key{d.Kind.GroupKind(), d.Namespace, d.Name}
	switch {
	case clusterScoped(k.kind):
		k.namespace = ""
	case k.namespace == "" && j.judged(k.kind):
		k.namespace = metav1.NamespaceDefault
	}
	return k
}

// reads reports whether any policy reads the object. Of ConfigMaps those alone that
// are the settings of istiod, or what proxies trust: a chart has many others.
func (j *judges) reads(d *Document) bool {
	k := j.key(d)
	if !j.judged(k.kind) {
		return false
	}
	if k.kind != (schema.GroupKind{Kind: "ConfigMap"}) {
		return true
	}
	var m corev1.ConfigMap
	if err := json.Unmarshal(d.JSON, &m); err != nil {
		return true // and the error is told
	}
	return mesh.IsControlPlane(m.Name, m.Data) || mesh.IsInjector(m.Name, m.Data) || slices.Contains(policies.RootsConfigMaps(), m.Name)
}

// decode reads an object of a kind that policies judge, and settles what the API
// server would.
func (j *judges) decode(d *Document) (any, error) {
	if d.Stored {
		return decodeStored(d)
	}
	if versions := j.kinds[d.Kind.GroupKind()].versions; !slices.Contains(versions, d.Kind.Version) {
		return nil, d.errorf("apiVersion %q of %s; must be one of the versions %s", d.Kind.GroupVersion(), d.Kind.Kind, strings.Join(versions, ", "))
	}
	object, err := objects.Decode(d.Kind.GroupKind(), d.JSON)
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	switch o := object.(type) {
	case *corev1.Namespace:
		label(o)
	case *corev1.Pod:
		o.Namespace = j.key(d).namespace
	case *mesh.PeerAuthentication:
		o.Namespace = j.key(d).namespace
	case *corev1.ConfigMap:
		o.Namespace = j.key(d).namespace
	case *corev1.Binding:
		o.Namespace = j.key(d).namespace
	case *facts.Workload:
		o.Namespace = j.key(d).namespace
	case *facts.IstioObject:
		o.Namespace = j.key(d).namespace
	case *v1alpha1.MeshGuard:
		if errs := v1alpha1.Validate(o); len(errs) > 0 {
			return nil, d.errorf("MeshGuard: %w", errs.ToAggregate())
		}
	case *v1alpha1.GuardException:
		o.Namespace = j.key(d).namespace
		if errs := v1alpha1.ValidateException(o); len(errs) > 0 {
			return nil, d.errorf("GuardException: %w", errs.ToAggregate())
		}
	}
	return object, nil
}
