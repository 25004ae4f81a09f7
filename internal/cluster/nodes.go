package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// nodeIndex is the cached nodes. They change by the second, by how they fare, and now
// and then by what is read of them; the inventory is made anew only for the latter, and
// when somebody asks for it.
type nodeIndex struct {
	catalogue *nodes.Catalogue

	mu        sync.Mutex
	nodes     map[string]*nodes.Node // guarded by mu
	inventory *nodes.Inventory       // guarded by mu; nil when it is out of date
	judged    []string               // guarded by mu; labels that the inventory was told of
}

func newNodeIndex(c *nodes.Catalogue) *nodeIndex {
	return &nodeIndex{catalogue: c, nodes: map[string]*nodes.Node{}}
}

// set reports whether anything has changed of what is read of nodes.
func (x *nodeIndex) set(o *corev1.Node) bool {
	n := x.catalogue.NewNode(o)
	x.mu.Lock()
	defer x.mu.Unlock()
	if n.Equal(x.nodes[o.Name]) {
		return false
	}
	x.nodes[o.Name], x.inventory = n, nil
	return true
}

func (x *nodeIndex) remove(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.nodes, name)
	x.inventory = nil
}

// facts are what is known of nodes from the cache, for the judgement by these guards.
func (x *nodeIndex) facts(guards []facts.Guard) facts.NodeFacts {
	judged := facts.NodeLabels(guards)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.inventory == nil || !slices.Equal(judged, x.judged) {
		x.inventory, x.judged = nodes.NewInventory(slices.Collect(maps.Values(x.nodes)), judged...), judged
	}
	return facts.NodeFacts{Catalogue: x.catalogue, Nodes: x.inventory}
}

// slimNode keeps what is read of a node. What kubelets report of it, images above all,
// is most of a node, and changes all the time.
func slimNode(in any) (any, error) {
	n, ok := in.(*corev1.Node)
	if !ok {
		return in, nil
	}
	n.ManagedFields, n.OwnerReferences, n.Finalizers = nil, nil, nil
	kept := map[string]string{}
	for _, key := range []string{v1alpha1.AnnotationSteal, v1alpha1.AnnotationMeasuredAt, v1alpha1.ClassSourceAnnotation} {
		if v, ok := n.Annotations[key]; ok {
			kept[key] = v
		}
	}
	n.Annotations = kept
	n.Spec = corev1.NodeSpec{Taints: n.Spec.Taints}
	n.Status = corev1.NodeStatus{}
	return n, nil
}

func (s *Source) onNode() toolscache.ResourceEventHandler {
	set := func(o any) {
		if n, ok := o.(*corev1.Node); ok && s.nodes.set(n) {
			s.nodeChanged(n.Name)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(o any) {
			if n, ok := unwrap[*corev1.Node](o); ok {
				s.nodes.remove(n.Name)
				s.nodeChanged(n.Name)
			}
		},
	}
}

// OnNode adds a function that is called, with its name, after something has changed of
// what is read of a node. It must not block.
func (s *Source) OnNode(f func(name string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onNodeChange = append(s.onNodeChange, f)
}

func (s *Source) nodeChanged(name string) {
	s.mu.Lock()
	listeners := s.onNodeChange
	s.mu.Unlock()
	for _, f := range listeners {
		f(name)
	}
}

// NodeNames returns the names of the cached nodes, sorted.
func (s *Source) NodeNames() []string {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	return slices.Sorted(maps.Keys(s.nodes.nodes))
}

// GuardNames returns the names of the cached guards, sorted.
func (s *Source) GuardNames() []string {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	names := make([]string, 0, len(s.index.guards))
	for i := range s.index.guards {
		names = append(names, s.index.guards[i].Name)
	}
	return names
}

// asksAboutNodes reports whether any guard is about where pods run.
func asksAboutNodes(guards []facts.Guard) bool {
	return slices.ContainsFunc(guards, func(g facts.Guard) bool { return g.NodePools != nil })
}

// addNode reads the node that a request puts a pod on. The cache may not have heard of a
// node that has just joined, or that it is another one by now.
func (s *Source) addNode(ctx context.Context, r *facts.Review, c *facts.Cluster) error {
	name := r.NodeName()
	if name == "" || !asksAboutNodes(c.Guards) {
		return nil
	}
	var node corev1.Node
	switch err := s.cfg.Live.Get(ctx, client.ObjectKey{Name: name}, &node); {
	case err == nil:
		c.Fresh = map[string]*nodes.Node{name: s.nodes.catalogue.NewNode(&node)}
	case apierrors.IsNotFound(err):
		c.Fresh = map[string]*nodes.Node{name: nil}
	default:
		return fmt.Errorf("get node %q: %w", name, err)
	}
	return nil
}

// addBound reads the pod that a Binding is about.
func (s *Source) addBound(ctx context.Context, r *facts.Review, c *facts.Cluster) error {
	b, ok := r.Object.(*corev1.Binding)
	if !ok || !asksAboutNodes(c.Guards) {
		return nil
	}
	var pod corev1.Pod
	switch err := s.cfg.Live.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: b.Name}, &pod); {
	case err == nil:
		c.Bound = &pod
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("get pod %s/%s: %w", r.Namespace, b.Name, err)
	}
	return nil
}

// readNode gives the facts for a request about a node, or about a volume. They feed
// remarks alone, so all but the pods of the node comes from the cache.
func (s *Source) readNode(ctx context.Context, r *facts.Review) (facts.Cluster, error) {
	c, err := s.Snapshot()
	if err != nil {
		return facts.Cluster{}, err
	}
	c.Live = true
	node, ok := r.Object.(*corev1.Node)
	if !ok || !s.becomesRefused(&c, r, node) {
		return c, nil
	}
	pods, err := s.PodsOnNode(ctx, node.Name)
	c.OnNode = pods
	return c, err
}

// becomesRefused reports whether a guard refuses the node for something new.
func (s *Source) becomesRefused(c *facts.Cluster, r *facts.Review, after *corev1.Node) bool {
	before, ok := r.OldObject.(*corev1.Node)
	if !ok {
		return false
	}
	was, is := s.nodes.catalogue.NewNode(before), s.nodes.catalogue.NewNode(after)
	return slices.ContainsFunc(c.Guards, func(g facts.Guard) bool {
		return g.NodePools != nil && len(nodes.NewlyRefused(g.NodePools, was, is)) > 0
	})
}

// PodsOnNode returns the pods that run on a node, as the API server's cache has them.
// It knows them by their nodes, so that it need not look at all.
func (s *Source) PodsOnNode(ctx context.Context, node string) (facts.PodList, error) {
	var list corev1.PodList
	options := &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: "0", FieldSelector: "spec.nodeName=" + node}}
	if err := s.cfg.Live.List(ctx, &list, options); err != nil {
		return nil, fmt.Errorf("list the pods on node %q: %w", node, err)
	}
	pods := make(facts.PodList, 0, len(list.Items))
	for i := range list.Items {
		if pod := slimPod(&list.Items[i]); pod != nil {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// Volumes returns the volumes that are claimed from a namespace and can be reached from
// some nodes alone.
func (s *Source) Volumes(ctx context.Context) ([]corev1.PersistentVolume, error) {
	var volumes []corev1.PersistentVolume
	for next := ""; ; {
		var page corev1.PersistentVolumeList
		if err := s.cfg.Live.List(ctx, &page, client.Limit(pageSize), client.Continue(next)); err != nil {
			return nil, fmt.Errorf("list PersistentVolumes: %w", err)
		}
		for i := range page.Items {
			if v := &page.Items[i]; v.Spec.ClaimRef != nil && v.Spec.NodeAffinity != nil {
				volumes = append(volumes, corev1.PersistentVolume{
					ObjectMeta: metav1.ObjectMeta{Name: v.Name},
					Spec:       corev1.PersistentVolumeSpec{ClaimRef: v.Spec.ClaimRef, NodeAffinity: v.Spec.NodeAffinity},
				})
			}
		}
		if next = page.Continue; next == "" {
			return volumes, nil
		}
	}
}
