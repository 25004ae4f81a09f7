package canonical

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// form is what is common to all objects. Of says what Spec is.
type form struct {
	Kind      string            `json:"kind"`
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Spec      any               `json:"spec,omitempty"`
}

// Of returns the canonical form of an object: one of those in facts.Review.Object, or what the caches hold of the
// same, or an object of Meshvakt's own of any kind.
func Of(object any) ([]byte, error) {
	f, err := formOf(object)
	if err != nil {
		return nil, err
	}
	text, err := write(f)
	if err != nil {
		return nil, fmt.Errorf("write the canonical form of %s: %w", f.Kind, err)
	}
	return text, nil
}

func write(value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	v := jsontext.Value(text)
	if err := v.Canonicalize(); err != nil {
		return nil, err
	}
	return v, nil
}

func formOf(object any) (form, error) {
	switch o := object.(type) {
	case *mesh.PeerAuthentication:
		return policy(o), nil
	case *objects.PeerAuthentication:
		// What cannot be read counts as DISABLE here as everywhere.
		m, _ := o.Mesh()
		return policy(m), nil
	case *facts.Namespace:
		return namespace(o.Name, o.Labels, o.ProxyUID), nil
	case *corev1.Namespace:
		return namespace(o.Name, o.Labels, mesh.ProxyUID(o.Annotations)), nil
	case *metav1.PartialObjectMetadata:
		if o.GroupVersionKind().GroupKind() == (schema.GroupKind{Kind: "Namespace"}) {
			return namespace(o.Name, o.Labels, mesh.ProxyUID(o.Annotations)), nil
		}
	case *corev1.ConfigMap:
		return configMap(o), nil
	case *corev1.Pod:
		return pod(&o.ObjectMeta, &o.Spec), nil
	case *facts.Workload:
		return workload(o), nil
	case *corev1.Node:
		return node(o), nil
	case *corev1.PersistentVolume:
		f := headed("PersistentVolume", &o.ObjectMeta)
		f.Spec = o.Spec.NodeAffinity
		return f, nil
	case *corev1.Binding:
		f := headed("Binding", &o.ObjectMeta)
		f.Spec = o.Target.Name
		return f, nil
	case *facts.IstioObject:
		return istio(o)
	case *v1alpha1.MeshGuard:
		g := o.DeepCopy()
		v1alpha1.SetDefaults(g) // a guard may be older than some of them
		f := headed("MeshGuard", &o.ObjectMeta)
		f.Spec = g.Spec
		return f, nil
	case *v1alpha1.GuardException:
		f := headed("GuardException", &o.ObjectMeta)
		f.Spec = o.Spec
		return f, nil
	case runtime.Object:
		return own(o)
	}
	return form{}, fmt.Errorf("no canonical form of a %T is known", object)
}

func headed(kind string, m *metav1.ObjectMeta) form {
	return form{Kind: kind, Namespace: m.Namespace, Name: m.Name, Labels: m.Labels}
}

// policy leaves out when the policy was created, which never changes while its UID is the same.
func policy(p *mesh.PeerAuthentication) form {
	type spec struct {
		Revision    *string           `json:"revision,omitempty"`
		SelectorSet bool              `json:"selectorSet,omitempty"`
		Selector    map[string]string `json:"selector,omitempty"`
		Mode        string            `json:"mode"`
		Ports       map[string]string `json:"ports,omitempty"`
	}
	s := spec{SelectorSet: p.SelectorSet, Selector: p.Selector, Mode: p.Mode.String()}
	if p.HasRevision {
		s.Revision = &p.Revision
	}
	for port, mode := range p.Ports {
		if s.Ports == nil {
			s.Ports = make(map[string]string, len(p.Ports))
		}
		s.Ports[strconv.FormatUint(uint64(port), 10)] = mode.String()
	}
	return form{Kind: "PeerAuthentication", Namespace: p.Namespace, Name: p.Name, Spec: s}
}

func namespace(name string, labels map[string]string, proxyUID int64) form {
	type spec struct {
		ProxyUID int64 `json:"proxyUID"`
	}
	return form{Kind: "Namespace", Name: name, Labels: labels, Spec: spec{cmp.Or(proxyUID, mesh.DefaultProxyUID)}}
}

// configMap keeps of one that has settings of Istio's what the caches keep of it.
func configMap(cm *corev1.ConfigMap) form {
	f := headed("ConfigMap", &cm.ObjectMeta)
	switch {
	case mesh.IsInjector(cm.Name, cm.Data):
		config, values := mesh.SlimInjector(cm.Data)
		f.Spec = map[string]string{"config": config, "values": values}
	case mesh.IsControlPlane(cm.Name, cm.Data):
		f.Spec = map[string]string{"mesh": cm.Data["mesh"]}
	}
	return f
}

type podForm struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Spec        *corev1.PodSpec   `json:"spec"`
}

func pod(m *metav1.ObjectMeta, spec *corev1.PodSpec) form {
	f := headed("Pod", m)
	f.Spec = podForm{Annotations: m.Annotations, Spec: spec}
	return f
}

// workload has no kind of its own: the type is the same for all that makes pods.
func workload(w *facts.Workload) form {
	type spec struct {
		Annotations map[string]string `json:"annotations,omitempty"`
		Pods        int32             `json:"pods"`
		Template    *podForm          `json:"template,omitempty"`
	}
	s := spec{Annotations: w.Annotations, Pods: w.Pods}
	if t := w.Template; t != nil {
		s.Template = &podForm{t.Labels, t.Annotations, &t.Spec}
	}
	f := headed("Workload", &w.ObjectMeta)
	f.Spec = s
	return f
}

func node(n *corev1.Node) form {
	type spec struct {
		Annotations map[string]string `json:"annotations,omitempty"`
		Taints      []corev1.Taint    `json:"taints,omitempty"`
	}
	var s spec
	for _, key := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.ClassSourceAnnotation} {
		if v, ok := n.Annotations[key]; ok {
			if s.Annotations == nil {
				s.Annotations = map[string]string{}
			}
			s.Annotations[key] = v
		}
	}
	for _, t := range n.Spec.Taints {
		t.TimeAdded = nil
		s.Taints = append(s.Taints, t)
	}
	f := headed("Node", &n.ObjectMeta)
	f.Spec = s
	return f
}

func istio(o *facts.IstioObject) (form, error) {
	f := headed("Istio", &o.ObjectMeta)
	if o.Spec == nil {
		return f, nil
	}
	f.Kind = string(o.Spec.ProtoReflect().Descriptor().Name())
	text, err := protojson.Marshal(o.Spec)
	if err != nil {
		// What JSON has no room for, such as a duration out of its range, was let in by the API server all the same.
		if f.Spec, err = (proto.MarshalOptions{Deterministic: true}).Marshal(o.Spec); err != nil {
			return form{}, fmt.Errorf("write the spec of a %s: %w", f.Kind, err)
		}
		return f, nil
	}
	f.Spec = json.RawMessage(text)
	return f, nil
}

// own is an object of Meshvakt's of any kind: all of it, but for what the API server and tools write about it.
func own(o runtime.Object) (form, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return form{}, fmt.Errorf("read a %T: %w", o, err)
	}
	m, ok := o.(metav1.Object)
	if !ok {
		return form{}, fmt.Errorf("no canonical form of a %T is known", o)
	}
	content = maps.Clone(content)
	for _, name := range []string{"apiVersion", "kind", "metadata", "status"} {
		delete(content, name)
	}
	kind := o.GetObjectKind().GroupVersionKind().Kind
	if kind == "" { // as what comes from a typed client has none
		kind = fmt.Sprintf("%T", o)
		kind = kind[strings.LastIndexByte(kind, '.')+1:]
	}
	return form{Kind: kind, Namespace: m.GetNamespace(), Name: m.GetName(), Labels: m.GetLabels(), Spec: content}, nil
}

// Guards is the canonical form of what guards demand together, in any order: of the guards in force a record has the
// digest of this.
func Guards(guards []facts.Guard) ([]byte, error) {
	type guard struct {
		Name             string                     `json:"name"`
		Selector         string                     `json:"selector"`
		StrictMTLS       *v1alpha1.StrictMTLS       `json:"strictMTLS"`
		MeshMembership   *v1alpha1.MeshMembership   `json:"meshMembership"`
		SidecarResources *v1alpha1.SidecarResources `json:"sidecarResources"`
		NodePools        *v1alpha1.NodePools        `json:"nodePools"`
		Exceptions       *v1alpha1.Exceptions       `json:"exceptions"`
		Remediation      v1alpha1.Remediation       `json:"remediation"`
	}
	list := make([]guard, 0, len(guards))
	for i := range guards {
		g := &guards[i]
		list = append(list, guard{g.Name, g.Selector.String(), g.StrictMTLS, g.MeshMembership, g.SidecarResources, g.NodePools, g.Exceptions, g.Remediation})
	}
	slices.SortFunc(list, func(a, b guard) int { return cmp.Compare(a.Name, b.Name) })
	text, err := write(list)
	if err != nil {
		return nil, fmt.Errorf("write the canonical form of the guards: %w", err)
	}
	return text, nil
}
