package check

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// ownNamespace is where the chart installs Meshvakt; it is never guarded.
const ownNamespace = "meshvakt-system"

// State is a cluster as files describe it.
type State struct {
	*judges

	cluster facts.Cluster
	docs    map[key]*Document
	order   []key // of docs
	objects map[key]any
	// last is the creation time of the youngest PeerAuthentication.
	last time.Time
	// assumed are the settings of injection that no manifest says; predicted is how
	// many objects are judged by them all the same.
	assumed   []string
	predicted int
	// placed is how many objects are judged by where their pods can land.
	placed int
	// readBack are the pods under review that have been injected already.
	readBack []string

	// live says that the state was read from a cluster: what is not in it is not there,
	// but for the kinds that are unread.
	live   bool
	unread []string
	// before are the objects of the cluster in whose place there are manifests, and
	// beforeDocs the documents of all of those.
	before     map[key]any
	beforeDocs map[key]*Document
	// provisioned are the namespaces with a policy that Meshvakt is yet to create.
	provisioned map[string]bool
	// broken are the stored objects that cannot be read, and do nothing.
	broken []string
}

// NewState reads the state of a cluster from manifests. It errs on what it cannot decode,
// on an object that is there twice, and on policies in a namespace that is not there.
func NewState(docs []Document) (*State, error) { return newState(&State{judges: newJudges()}, docs) }

func newState(s *State, docs []Document) (*State, error) {
	s.docs, s.objects = make(map[key]*Document, len(docs)), make(map[key]any, len(docs))
	var errs []error
	for i := range docs {
		d := &docs[i]
		k := s.key(d)
		if d.Name == "" {
			errs = append(errs, d.errorf("%s with metadata.generateName %q; metadata.name must be set in the state of a cluster", d.Kind.Kind, d.GenerateName))
			continue
		}
		if other, taken := s.docs[k]; taken {
			errs = append(errs, d.errorf("%s stands twice, the first time in %s", k, other.Origin))
			continue
		}
		s.docs[k] = d
		s.order = append(s.order, k)
		if !s.judged(k.kind) {
			continue
		}
		object, err := s.decode(d)
		if err != nil {
			if k.kind != guardKind() { // which tells of its errors below
				errs = append(errs, err)
			}
			continue
		}
		if s.live && !d.Stored {
			s.settle(k, object)
		}
		s.objects[k] = object
	}
	errs = append(errs, s.readSettings(), s.readInjection(), s.readNodes())
	if err := errors.Join(errs...); err != nil {
		// What is missing cannot be told before all is read.
		return nil, err
	}
	if err := s.readNamespaces(); err != nil {
		return nil, err
	}
	return s, nil
}

func namespaceKind() schema.GroupKind { return schema.GroupKind{Kind: "Namespace"} }

func guardKind() schema.GroupKind {
	return schema.GroupKind{Group: v1alpha1.Group, Kind: "MeshGuard"}
}

func clusterScoped(kind schema.GroupKind) bool {
	return slices.Contains([]schema.GroupKind{namespaceKind(), guardKind(), nodeKind(), volumeKind(), webhooksKind()}, kind)
}

// label gives a namespace the label that each has.
func label(ns *corev1.Namespace) {
	ns.Namespace = ""
	ns.Labels = maps.Clone(ns.Labels)
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

// readSettings takes over guards and control planes.
func (s *State) readSettings() error {
	var errs []error
	for _, k := range s.order {
		d := s.docs[k]
		switch {
		case k.kind == guardKind():
			g, err := decodeGuard(d)
			if err != nil && d.Stored {
				s.broken = append(s.broken, k.String())
				continue
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s.cluster.Guards = append(s.cluster.Guards, g)
		case isMeshConfig(k):
			cp, found, err := decodeMeshConfig(d)
			if err != nil && s.live && !d.Stored {
				// It is judged for it; what it says for others is what was said before.
				cp, found, err = s.meshConfigBefore(k)
			}
			if err != nil {
				errs = append(errs, err)
			} else if found {
				s.cluster.ControlPlanes = append(s.cluster.ControlPlanes, cp)
			}
		}
	}
	if len(s.cluster.Guards) == 0 && len(errs) == 0 && !s.live {
		g, err := facts.NewGuard(v1alpha1.DefaultGuard())
		if err != nil {
			return err
		}
		s.cluster.Guards = append(s.cluster.Guards, g)
	}
	if len(s.cluster.ControlPlanes) == 0 {
		s.cluster.ControlPlanes = append(s.cluster.ControlPlanes, mesh.DefaultControlPlane())
	}
	s.cluster.Unguardable = append(facts.SystemNamespaces(), ownNamespace)
	return errors.Join(errs...)
}

// readNamespaces takes over namespaces and the policies in them.
func (s *State) readNamespaces() error {
	s.cluster.Namespaces = map[string]*facts.Namespace{}
	for _, name := range slices.Concat(facts.SystemNamespaces(), s.cluster.RootNamespaces()) {
		if name != "" {
			s.cluster.Namespaces[name] = &facts.Namespace{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}}
		}
	}
	var undated []*mesh.PeerAuthentication
	var errs []error
	for _, k := range s.order {
		if ns, ok := s.objects[k].(*corev1.Namespace); ok {
			s.cluster.Namespaces[ns.Name] = namespaceOf(ns)
		}
	}
	s.readPods()
	errs = append(errs, s.readQuotas(), s.readExceptions())
	for _, k := range s.order {
		p, ok := s.objects[k].(*mesh.PeerAuthentication)
		if !ok {
			continue
		}
		ns := s.cluster.Namespaces[p.Namespace]
		if ns == nil {
			errs = append(errs, s.missingNamespace(s.docs[k]))
			continue
		}
		ns.PeerAuthentications = append(ns.PeerAuthentications, p)
		if p.Created.IsZero() {
			undated = append(undated, p)
		} else if p.Created.After(s.last) {
			s.last = p.Created
		}
	}
	for _, p := range undated {
		s.last = s.next()
		p.Created = s.last
	}
	return errors.Join(errs...)
}

// namespaceOf is a namespace without what is in it.
func namespaceOf(ns *corev1.Namespace) *facts.Namespace {
	return &facts.Namespace{
		Name: ns.Name, Labels: ns.Labels, Terminating: ns.DeletionTimestamp != nil,
		ProxyUID: mesh.ProxyUID(ns.Annotations),
	}
}

// readPods puts the pods into their namespaces, as they run there.
func (s *State) readPods() {
	for _, k := range s.order {
		if pod, ok := s.objects[k].(*corev1.Pod); ok && s.cluster.Namespaces[pod.Namespace] != nil {
			ns := s.cluster.Namespaces[pod.Namespace]
			list, _ := ns.Pods.(facts.PodList)
			list = append(list, pod)
			ns.Pods = list
		}
	}
}

// readQuotas puts LimitRanges and ResourceQuotas into their namespaces.
func (s *State) readQuotas() error {
	var errs []error
	for _, k := range s.order {
		d := s.docs[k]
		ns := s.cluster.Namespaces[cmp.Or(k.namespace, metav1.NamespaceDefault)]
		if ns == nil || k.kind.Group != "" {
			continue
		}
		switch k.kind.Kind {
		case "LimitRange":
			ns.LimitRanges = append(ns.LimitRanges, corev1.LimitRange{})
			errs = append(errs, decodeInto(d, &ns.LimitRanges[len(ns.LimitRanges)-1]))
		case "ResourceQuota":
			ns.Quotas = append(ns.Quotas, corev1.ResourceQuota{})
			errs = append(errs, decodeInto(d, &ns.Quotas[len(ns.Quotas)-1]))
		}
	}
	return errors.Join(errs...)
}

// readExceptions puts GuardExceptions into their namespaces.
func (s *State) readExceptions() error {
	var errs []error
	for _, k := range s.order {
		e, ok := s.objects[k].(*v1alpha1.GuardException)
		if !ok {
			continue
		}
		d, ns := s.docs[k], s.cluster.Namespaces[e.Namespace]
		if ns == nil {
			errs = append(errs, s.missingNamespace(d))
			continue
		}
		x, err := facts.NewException(s.unapproved(k, e))
		if err != nil && d.Stored {
			s.broken = append(s.broken, k.String())
			continue
		}
		if err != nil {
			errs = append(errs, d.errorf("%w", err))
			continue
		}
		ns.Exceptions = append(ns.Exceptions, x)
		slices.SortFunc(ns.Exceptions, func(a, b *facts.Exception) int { return cmp.Compare(a.Name, b.Name) })
	}
	return errors.Join(errs...)
}

func decodeInto(d *Document, object any) error {
	if err := json.Unmarshal(d.JSON, object); err != nil {
		return d.errorf("decode %s: %w", d.Kind.Kind, err)
	}
	return nil
}

// next is a time that is later than all creations in the state. When it is, does
// not matter: policies compare times and never print them.
func (s *State) next() time.Time { return s.last.Add(time.Second).Truncate(time.Second) }

// ErrMissingManifest marks what cannot be judged without another manifest.
var ErrMissingManifest = errors.New("missing manifest")

func (s *State) missingNamespace(d *Document) error {
	name := s.key(d).namespace
	if s.live {
		return d.errorf("%w: %s is in namespace %q, which is neither in the cluster nor among the manifests; add the manifest of that Namespace, or name another with -n",
			ErrMissingManifest, d.Kind.Kind, name)
	}
	implied := ""
	if d.Namespace == "" {
		implied = " (metadata.namespace is not set)"
	}
	return d.errorf("%w: %s is in namespace %q%s, whose labels are not known; add the manifest of that Namespace (kubectl get namespace %s -o yaml)",
		ErrMissingManifest, d.Kind.Kind, name, implied, name)
}

func (s *State) has(k key) bool { return s.docs[k] != nil }
