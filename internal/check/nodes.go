package check

import (
	"cmp"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func nodeKind() schema.GroupKind { return schema.GroupKind{Kind: "Node"} }

func volumeKind() schema.GroupKind { return schema.GroupKind{Kind: "PersistentVolume"} }

// readNodes takes over the nodes. Without any, nothing is known of where pods can land,
// and they are judged by what they ask for alone.
func (s *State) readNodes() error {
	catalogue, err := nodes.NewCatalogue()
	if err != nil {
		return err
	}
	s.cluster.Catalogue = catalogue
	var list []*nodes.Node
	var errs []error
	for _, k := range s.order {
		if k.kind != nodeKind() {
			continue
		}
		var n corev1.Node
		errs = append(errs, decodeInto(s.docs[k], &n))
		list = append(list, catalogue.NewNode(&n))
	}
	if len(list) > 0 || s.live && !slices.Contains(s.unread, "nodes") {
		s.cluster.Nodes, s.cluster.NodesComplete = nodes.NewInventory(list, facts.NodeLabels(s.cluster.Guards)...), true
	}
	return errors.Join(errs...)
}

// pods returns the pods of the state that fit.
func (s *State) pods(fits func(*corev1.Pod) bool) facts.PodList {
	var list facts.PodList
	for _, k := range s.order {
		if pod, ok := s.objects[k].(*corev1.Pod); ok && fits(pod) {
			list = append(list, pod)
		}
	}
	return list
}

// around adds to the facts the pods that a request about a node or a Binding is about.
func (s *State) around(r *facts.Review) {
	switch o := r.Object.(type) {
	case *corev1.Node:
		r.Cluster.OnNode = s.pods(func(pod *corev1.Pod) bool { return pod.Spec.NodeName == o.Name })
	case *corev1.Binding:
		r.Cluster.Live = true // there is nothing more to be read
		for _, pod := range s.pods(func(pod *corev1.Pod) bool { return pod.Namespace == o.Namespace && pod.Name == o.Name }) {
			r.Cluster.Bound = pod
		}
	}
}

// nodeNotes tells that nothing is known of nodes, where a guard asks about them.
func (s *State) nodeNotes() []string {
	if s.cluster.Nodes != nil || s.placed == 0 {
		return nil
	}
	return []string{"where pods can land is judged by what they ask for alone: the manifests hold no Node (kubectl get nodes -o yaml)"}
}

// places counts what is judged by where it can land.
func (s *State) places(r *facts.Review) {
	switch r.Object.(type) {
	case *corev1.Pod, *facts.Workload:
	default:
		return
	}
	ns := r.Cluster.Namespaces[cmp.Or(r.Namespace, metav1.NamespaceDefault)]
	if ns == nil {
		return
	}
	for i := range r.Cluster.Guards {
		g := &r.Cluster.Guards[i]
		if g.NodePools == nil {
			continue
		}
		if r.Cluster.Selects(g, ns.Name, ns.Labels) || g.NodePools.ControlPlane == v1alpha1.ControlPlaneGuard && r.Cluster.IsRoot(ns.Name) {
			s.placed++
			return
		}
	}
}
