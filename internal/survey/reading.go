package survey

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/internal/preflight"
)

// reading is the facts in the making.
type reading struct {
	*Survey
	facts *preflight.Facts

	mu sync.Mutex
	// state are the objects that others are judged in, guarded by mu.
	state []check.Document
	// soft are the kinds of the state that could not be read and that a forecast can do
	// without, guarded by mu.
	soft             []softError
	exceptionsUnread bool // valid once all is read
	// unread are the resources of the state that could not be read, guarded by mu.
	unread []string
}

// softError is a part of the state that could not be read.
type softError struct {
	err  error
	note string
	// kinds are those whose objects are judged by it; none: all of them.
	kinds []string
}

// all reads what is not judged object by object.
func (r *reading) all(ctx context.Context) error {
	f := r.facts
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	read := func(do func(context.Context)) {
		group.Go(func() error { do(groupCtx); return groupCtx.Err() })
	}
	read(func(ctx context.Context) {
		f.Namespaces.Err = readInto(ctx, r, source{resource: "namespaces", kind: "Namespace"}, true, &f.Namespaces.Value, bareNamespace)
	})
	read(r.policies)
	read(r.settings)
	read(r.guards)
	read(func(ctx context.Context) {
		f.Nodes.Err = readInto(ctx, r, source{resource: "nodes", kind: "Node"}, true, &f.Nodes.Value, bareNode)
		r.miss(f.Nodes.Err, "where pods may land is not judged: the nodes could not be read", "Pod", "Deployment")
	})
	const admission = "admissionregistration.k8s.io"
	read(func(ctx context.Context) {
		f.Mutating.Err = readInto(ctx, r, source{group: admission, resource: "mutatingwebhookconfigurations", kind: "MutatingWebhookConfiguration"}, true, &f.Mutating.Value, nil)
		r.miss(f.Mutating.Err, "injection is taken to be as with Istio's default values: the MutatingWebhookConfigurations could not be read", "Pod", "Deployment", "Namespace")
	})
	read(func(ctx context.Context) {
		f.Validating.Err = readInto(ctx, r, source{group: admission, resource: "validatingwebhookconfigurations", kind: "ValidatingWebhookConfiguration"}, false, &f.Validating.Value, nil)
	})
	read(func(ctx context.Context) {
		f.Istiods.Err = readInto(ctx, r, source{group: "apps", resource: "deployments", kind: "Deployment", selector: "app=istiod"}, false, &f.Istiods.Value, nil)
	})
	read(func(ctx context.Context) {
		own := source{group: "apps", resource: "deployments", kind: "Deployment", namespace: f.Names.Namespace, selector: "app.kubernetes.io/name=meshvakt", wide: true}
		f.Own.Err = readInto(ctx, r, own, false, &f.Own.Value, nil)
	})
	read(func(ctx context.Context) {
		own := source{group: "apps", resource: "statefulsets", kind: "StatefulSet", namespace: f.Names.Namespace, selector: "app.kubernetes.io/name=meshvakt"}
		f.OwnSets.Err = readInto(ctx, r, own, false, &f.OwnSets.Value, nil)
	})
	read(func(ctx context.Context) {
		f.Budgets.Err = readInto(ctx, r, source{group: "policy", resource: "poddisruptionbudgets", kind: "PodDisruptionBudget", namespace: f.Names.Namespace}, false, &f.Budgets.Value, nil)
	})
	for resource, kind := range map[string]string{"limitranges": "LimitRange", "resourcequotas": "ResourceQuota"} {
		read(func(ctx context.Context) {
			var none []metav1.PartialObjectMetadata
			err := readInto(ctx, r, source{resource: resource, kind: kind}, true, &none, nil)
			r.miss(err, "what is left for sidecars is not judged: the "+resource+" could not be read", "Pod", "Deployment")
		})
	}
	read(func(ctx context.Context) {
		var none []metav1.PartialObjectMetadata
		err := readInto(ctx, r, source{group: v1alpha1.Group, resource: "guardexceptions", kind: "GuardException", version: v1alpha1.Version}, true, &none, nil)
		// What passes without exceptions passes with them.
		r.exceptionsUnread = err != nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	r.endpoints(ctx)
	return ctx.Err()
}

func (r *reading) miss(err error, note string, kinds ...string) {
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.soft = append(r.soft, softError{err, note, kinds})
	}
}

// source is a kind of objects, and where it is read.
type source struct {
	group, version, resource, kind string
	namespace, selector            string
	// wide: the right is asked for in all namespaces, though one alone is read.
	wide bool
}

func (s *source) right() preflight.Right {
	r := preflight.Right{Verb: "list", Group: s.group, Resource: s.resource, Namespace: s.namespace}
	if s.wide {
		r.Namespace = ""
	}
	return r
}

// readInto decodes all objects of a kind, and puts them into the state where they are part
// of that. bare, unless nil, takes from an object what nobody reads. A kind that the
// cluster does not have is none of its objects.
func readInto[T any](ctx context.Context, r *reading, s source, inState bool, list *[]T, bare func(*T)) error {
	version := r.versionOf(s.group, s.resource, []string{cmp.Or(s.version, "v1")})
	if version == "" {
		return nil
	}
	kind := schema.GroupVersionKind{Group: s.group, Version: version, Kind: s.kind}
	at := place{schema.GroupVersionResource{Group: s.group, Version: version, Resource: s.resource}, s.namespace, s.selector}
	var docs []check.Document
	err := r.list(ctx, at, s.right(), func(raw []byte) error {
		var one T
		if err := json.Unmarshal(raw, &one); err != nil {
			return fmt.Errorf("read a %s: %w", s.kind, err)
		}
		if bare != nil {
			bare(&one)
			var err error
			if raw, err = json.Marshal(&one); err != nil {
				return fmt.Errorf("write a %s: %w", s.kind, err)
			}
		}
		*list = append(*list, one)
		if !inState {
			return nil
		}
		d, err := document(kind, slices.Clone(raw))
		docs = append(docs, d)
		return err
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.unread = append(r.unread, s.resource)
		return err
	}
	r.state = append(r.state, docs...)
	return nil
}

func bareNamespace(ns *corev1.Namespace) {
	*ns = corev1.Namespace{ObjectMeta: bareMeta(&ns.ObjectMeta)}
	for key := range ns.Annotations {
		if !strings.HasPrefix(key, "openshift.io/") {
			delete(ns.Annotations, key)
		}
	}
}

func bareNode(n *corev1.Node) {
	*n = corev1.Node{ObjectMeta: bareMeta(&n.ObjectMeta), Spec: corev1.NodeSpec{Taints: n.Spec.Taints, Unschedulable: n.Spec.Unschedulable}}
}

func bareMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, Labels: m.Labels, Annotations: m.Annotations, DeletionTimestamp: m.DeletionTimestamp, CreationTimestamp: m.CreationTimestamp}
}

// policies reads the PeerAuthentications.
func (r *reading) policies(ctx context.Context) {
	f := r.facts
	s := source{group: "security.istio.io", resource: "peerauthentications", kind: "PeerAuthentication"}
	if s.version = r.versionOf(s.group, s.resource, []string{"v1", "v1beta1"}); s.version == "" {
		return
	}
	var list []objects.PeerAuthentication
	f.Policies.Err = readInto(ctx, r, s, true, &list, nil)
	for i := range list {
		// A mode that Istio's schema does not know counts as DISABLE.
		p, _ := list[i].Mesh()
		f.Policies.Value = append(f.Policies.Value, p)
	}
}

// settings reads what istiod and its injectors are configured with.
func (r *reading) settings(ctx context.Context) {
	f := r.facts
	var docs []check.Document
	at := place{GroupVersionResource: corev1.SchemeGroupVersion.WithResource("configmaps"), namespace: f.Names.IstioNamespace}
	var unreadable error
	err := r.list(ctx, at, preflight.Right{Verb: "list", Resource: "configmaps", Namespace: f.Names.IstioNamespace}, func(raw []byte) error {
		var cm corev1.ConfigMap
		if err := json.Unmarshal(raw, &cm); err != nil {
			return fmt.Errorf("read a ConfigMap: %w", err)
		}
		var err error
		switch {
		case mesh.IsControlPlane(cm.Name, cm.Data):
			err = parsed(&f.ControlPlanes.Value, &cm, mesh.ParseControlPlane)
		case mesh.IsInjector(cm.Name, cm.Data):
			err = parsed(&f.Injectors.Value, &cm, mesh.ParseInjector)
		default:
			return nil
		}
		// The others are read all the same.
		if unreadable = cmp.Or(unreadable, err); err != nil {
			return nil //nolint:nilerr // see above
		}
		d, err := document(corev1.SchemeGroupVersion.WithKind("ConfigMap"), slices.Clone(raw))
		docs = append(docs, d)
		return err
	})
	if err == nil {
		err = unreadable
	}
	f.ControlPlanes.Err, f.Injectors.Err = err, err
	r.miss(err, "control planes and injectors are taken to have Istio's default settings: their ConfigMaps could not be read")
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.unread = append(r.unread, "configmaps")
	}
	r.state = append(r.state, docs...)
}

// parsed adds what is in a ConfigMap to a list, if it can be read.
func parsed[T any](list *[]T, cm *corev1.ConfigMap, parse func(name string, labels, data map[string]string) (T, error)) error {
	one, err := parse(cm.Name, cm.Labels, cm.Data)
	if err == nil {
		*list = append(*list, one)
	}
	return err
}

// guards reads the MeshGuards, which are not part of the state: it depends which of them
// are judged by.
func (r *reading) guards(ctx context.Context) {
	f := r.facts
	s := source{group: v1alpha1.Group, version: v1alpha1.Version, resource: "meshguards", kind: "MeshGuard"}
	f.Guards.Err = readInto(ctx, r, s, false, &f.Guards.Value, v1alpha1.SetDefaults)
	slices.SortFunc(f.Guards.Value, func(a, b v1alpha1.MeshGuard) int { return strings.Compare(a.Name, b.Name) })
}

// endpoints counts who answers for the Services that webhooks name.
func (r *reading) endpoints(ctx context.Context) {
	f := r.facts
	f.Endpoints.Value = map[preflight.Service]int{}
	right := preflight.Right{Verb: "list", Group: discoveryv1.GroupName, Resource: "endpointslices"}
	for _, service := range preflight.WebhookServices(f) {
		at := place{discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), service.Namespace, discoveryv1.LabelServiceName + "=" + service.Name}
		ready := 0
		err := r.list(ctx, at, right, func(raw []byte) error {
			var slice discoveryv1.EndpointSlice
			if err := json.Unmarshal(raw, &slice); err != nil {
				return fmt.Errorf("read an EndpointSlice: %w", err)
			}
			for i := range slice.Endpoints {
				if c := slice.Endpoints[i].Conditions.Ready; c == nil || *c {
					ready += len(slice.Endpoints[i].Addresses)
				}
			}
			return nil
		})
		if err != nil {
			f.Endpoints.Err = err
			return
		}
		f.Endpoints.Value[service] = ready
	}
}
