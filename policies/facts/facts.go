// Package facts holds the plain values that policies judge: one admission
// request and the state of the cluster it meets.
//
// Whoever fills them (the webhook from caches and live reads, `meshvakt check`
// from files) owns their freshness. Policies treat every value here as
// immutable and share them between requests.
package facts

import (
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
)

// Review is one request to judge together with what the judgement needs.
type Review struct {
	UID         string
	Operation   admissionv1.Operation
	Kind        schema.GroupVersionKind
	Resource    schema.GroupVersionResource
	SubResource string
	Namespace   string // empty for cluster-scoped objects, so for a Namespace
	Name        string // empty on CREATE with generateName
	DryRun      bool
	User        authenticationv1.UserInfo

	// Object and OldObject are nil where the operation has none (DELETE has no
	// Object, CREATE no OldObject). Otherwise one of *corev1.Pod, *Workload,
	// *corev1.Namespace, *corev1.ConfigMap, *corev1.Binding, *corev1.Node,
	// *corev1.PersistentVolume, *IstioObject, *mesh.PeerAuthentication,
	// *v1alpha1.MeshGuard and *v1alpha1.GuardException, in agreement with Kind.
	Object, OldObject any

	// Submitted is true when a pod is judged as its author wrote it, so that
	// injection has to be predicted. Otherwise it is final: every mutating webhook
	// has run.
	Submitted bool

	// Now is the clock of the judgement.
	Now time.Time

	// MayUnguard names the guards that the requesting user may take namespaces
	// out of. It is filled for the guards that Unguards returns.
	MayUnguard map[string]bool

	// MayApprove says that the requesting user may approve exceptions. It is filled
	// where Approves says so.
	MayApprove bool

	// Cluster is the state before the request: it holds the old object on
	// UPDATE and DELETE, and not yet the new one on CREATE.
	Cluster Cluster
}

// DisplayName is the name to use in messages; objects that are to get a
// generated name show its prefix with a star.
func (r *Review) DisplayName() string {
	if r.Name != "" {
		return r.Name
	}
	for _, o := range []any{r.Object, r.OldObject} {
		switch o := o.(type) {
		case *corev1.Pod:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *corev1.Namespace:
			if o.Name != "" {
				return o.Name
			}
		case *mesh.PeerAuthentication:
			if o.Name != "" {
				return o.Name
			}
		case *Workload:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *IstioObject:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *corev1.ConfigMap:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *corev1.Binding:
			if o.Name != "" {
				return o.Name
			}
		case *corev1.Node:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *corev1.PersistentVolume:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *v1alpha1.GuardException:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		case *v1alpha1.MeshGuard:
			if name := givenName(&o.ObjectMeta); name != "" {
				return name
			}
		}
	}
	return "(unnamed)"
}

// NodeName is the node that the request puts a pod on, or the pods of a template; ""
// where the scheduler is to choose.
func (r *Review) NodeName() string {
	switch o := r.Object.(type) {
	case *corev1.Binding:
		return o.Target.Name
	case *corev1.Pod:
		return o.Spec.NodeName
	case *Workload:
		if o.Template != nil {
			return o.Template.Spec.NodeName
		}
	}
	return ""
}

// givenName is the name of an object, or what a generated one will begin with.
func givenName(m *metav1.ObjectMeta) string {
	if m.Name == "" && m.GenerateName != "" {
		return m.GenerateName + "*"
	}
	return m.Name
}

// Cluster is a snapshot of what policies read of the cluster. A partial
// snapshot (one namespace and the mesh root namespaces) serves requests whose
// outcome depends on nothing else; see Scope.
type Cluster struct {
	// ControlPlanes are the istiod revisions found, at least one: without a
	// trace of Istio it is mesh.DefaultControlPlane.
	ControlPlanes []mesh.ControlPlane

	Guards []Guard

	// Injection is how sidecars come into pods.
	Injection mesh.Injection

	// Namespaces by name. A missing name means that the namespace does not
	// exist, within the snapshot's scope.
	Namespaces map[string]*Namespace

	// Unguardable are namespaces that no guard can select, whatever it says:
	// Kubernetes' own and the one Meshvakt runs in.
	Unguardable []string

	// Live is true when the snapshot was read from the API server after the
	// request came in, false when it comes from a cache.
	Live bool

	NodeFacts
}

// NodeFacts are what is known of where pods run.
type NodeFacts struct {
	// Catalogue tells the classes of instance types that no node is of.
	Catalogue *nodes.Catalogue
	// Nodes are the nodes by pools, from a cache; nil when nothing is known of nodes,
	// and never will be, as with manifests that hold none.
	Nodes *nodes.Inventory
	// Fresh are the nodes that were read for this request, by name; nil stands for
	// one that does not exist.
	Fresh map[string]*nodes.Node
	// NodesComplete: what is neither in Fresh nor in Nodes does not exist.
	NodesComplete bool
	// Bound is the pod that a Binding is about. It is read only where the node is one
	// that not every pod may run on.
	Bound *corev1.Pod
	// OnNode are the pods that run on a node, read for requests that change its labels.
	OnNode Pods
}

// Node returns the node of a name, nil when there is none, and whether that is certain.
func (f *NodeFacts) Node(name string) (n *nodes.Node, known bool) {
	if n, ok := f.Fresh[name]; ok {
		return n, true
	}
	n = f.Nodes.Node(name)
	return n, n != nil || f.NodesComplete
}

// Namespace is a namespace and the policies in it.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Terminating bool
	// PeerAuthentications in the namespace, in any order.
	PeerAuthentications []*mesh.PeerAuthentication
	// ProxyUID is the user that proxies run as, 0 for Istio's default, 1337. On
	// OpenShift it comes from the namespace's range.
	ProxyUID int64
	// LimitRanges and Quotas are read for requests by authors of pods (see
	// Review.AuthorsPods) under a guard of their resources, and nil otherwise.
	LimitRanges []corev1.LimitRange
	Quotas      []corev1.ResourceQuota
	// Exceptions are the GuardExceptions of the namespace, sorted by name, whether they
	// apply or not.
	Exceptions []*Exception
	// Pods are those that run in the namespace. They are read for requests that
	// put the namespace under a guard or change its labels, and nil otherwise.
	Pods Pods
}

// RootNamespaces returns the mesh root namespaces of all control planes, sorted
// and without duplicates.
func (c *Cluster) RootNamespaces() []string {
	roots := make([]string, 0, len(c.ControlPlanes))
	for _, cp := range c.ControlPlanes {
		roots = append(roots, cp.RootNamespace)
	}
	slices.Sort(roots)
	return slices.Compact(roots)
}

// IsRoot reports whether a namespace is the root namespace of some control plane.
func (c *Cluster) IsRoot(namespace string) bool {
	return slices.ContainsFunc(c.ControlPlanes, func(cp mesh.ControlPlane) bool { return cp.RootNamespace == namespace })
}

// SystemNamespaces are Kubernetes' own namespaces, which are never guarded: a
// refusal there could stop the cluster from healing itself.
func SystemNamespaces() []string {
	return []string{"kube-node-lease", "kube-public", "kube-system"}
}
