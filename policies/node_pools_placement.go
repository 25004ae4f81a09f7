package policies

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// placed is a pod, or a template of pods, that is to run somewhere.
type placed struct {
	meta *metav1.ObjectMeta
	spec *corev1.PodSpec
	// at is where the template stands in its object, "" for a pod.
	at string
	// final: nothing is injected into the pod any more.
	final bool
	// everywhere: there is to be a pod on every node that it can land on.
	everywhere bool

	cluster   *facts.Cluster
	namespace *facts.Namespace
	// review is the request about it, nil where its node has been chosen.
	review *facts.Review
}

// placedOf returns what is to run by an object, nil if nothing is that is judged.
func placedOf(r *facts.Review, object any, ns *facts.Namespace) (*placed, error) {
	p := &placed{cluster: &r.Cluster, namespace: ns, review: r}
	switch o := object.(type) {
	case *corev1.Pod:
		if !judgedPod(o) {
			return nil, nil
		}
		p.meta, p.spec, p.final = &o.ObjectMeta, &o.Spec, !r.Submitted
		return p, nil
	case *facts.Workload:
		if o.Template == nil || o.DeletionTimestamp != nil {
			return nil, nil
		}
		p.meta, p.spec, p.at = &o.Template.ObjectMeta, &o.Template.Spec, o.Path
		p.everywhere = r.Kind.Kind == "DaemonSet"
		return p, nil
	}
	return nil, errWrongObject(r)
}

// ofDaemonSet reports whether a DaemonSet has chosen the node of the pod.
func (p *placed) ofDaemonSet() bool {
	owner := facts.Controller(p.meta)
	return owner != nil && owner.Kind == "DaemonSet"
}

// meant reports whether the guard is about the pod.
func (p *placed) meant(g *facts.Guard) bool {
	root := p.cluster.IsRoot(p.namespace.Name)
	switch {
	case root && (p.everywhere || p.ofDaemonSet()):
		return false // ztunnel and istio-cni, without which no pod of the node is in the mesh
	case p.cluster.Selects(g, p.namespace.Name, p.namespace.Labels) && (g.NodePools.Scope == v1alpha1.PlacementAll || p.inMesh()):
		return true
	}
	return root && guardsControlPlane(g) && (p.isControlPlane() || p.inMesh())
}

// inMesh reports whether the pod has a proxy, will get one, or is enrolled in ambient.
func (p *placed) inMesh() bool {
	isProxy := func(c corev1.Container) bool { return c.Name == proxyContainer }
	if slices.ContainsFunc(p.spec.Containers, isProxy) || slices.ContainsFunc(p.spec.InitContainers, isProxy) {
		return true
	}
	candidate := mesh.Candidate{
		Namespace:       p.namespace.Name,
		NamespaceLabels: p.namespace.Labels,
		Labels:          p.meta.Labels,
		Annotations:     p.meta.Annotations,
		HostNetwork:     p.spec.HostNetwork,
	}
	if mesh.AmbientEnrolled(candidate) {
		return true
	}
	injection := p.cluster.Injection.Decide(candidate)
	return !p.final && injection.Injected()
}

// isControlPlane recognizes istiod by the label that Istio's charts give it.
func (p *placed) isControlPlane() bool { return p.meta.Labels["app"] == "istiod" }

func (p *placed) field(path string) string {
	if p.at == "" {
		return path
	}
	return p.at + "." + path
}

// placementFindings judges one side of a request.
func placementFindings(r *facts.Review, object any, ns *facts.Namespace, g *facts.Guard) ([]Finding, error) {
	p, err := placedOf(r, object, ns)
	if p == nil || !p.meant(g) {
		return nil, err
	}
	if p.spec.NodeName != "" {
		return putOn(&r.Cluster, g, p.field("spec.nodeName"), p.spec.NodeName)
	}
	if p.everywhere {
		return p.daemonSetFindings(g), nil
	}
	if p.ofDaemonSet() {
		// Were it refused here, the controller would put off those for other nodes, for
		// minutes, and for longer each time. Its binding is judged.
		return nil, nil
	}
	asked := p.asked()
	reached := r.Cluster.Nodes.Reach(asked)
	if len(reached) == 0 {
		return p.demandFindings(g, asked), nil
	}
	refused := refusedPools(g, reached)
	switch {
	case refused.pools == len(reached) && g.NodePools.OnNoNode == v1alpha1.OnNoNodeWait:
		return p.waits(r, g, asked, refused), nil
	case refused.pools == len(reached):
		return []Finding{{
			Reason: reasonOnlyRefusedNodes(), Type: metav1.CauseTypeForbidden, Field: p.blame(asked),
			Message: fmt.Sprintf("lets pods land only on nodes on which they may not run by MeshGuard %q: %s; must let them land on others", g.Name, refused.text()),
			Remedy:  p.wayOut(g, asked),
		}}, nil
	case refused.pools > 0 && !steers(g) && r.AuthorsPods():
		remedy := leaveOut(steering(&r.Cluster, []*facts.Guard{g}))
		if g.NodePools.Steering == v1alpha1.SteeringNone {
			remedy += ", or let the guard steer (spec.nodePools.steering: Required)"
		}
		return []Finding{{
			Reason: reasonNotSteered(), Severity: Notice, Type: metav1.CauseTypeForbidden, Field: p.field("spec"),
			Message: fmt.Sprintf("nothing keeps the scheduler off nodes on which pods may not run by MeshGuard %q: %s", g.Name, refused.text()),
			Remedy:  remedy,
		}}, nil
	}
	return nil, nil
}

// waits judges a pod that is kept off all nodes that there are for it: unless it asks for
// refused ones by itself, it may wait for others, and its author is told.
func (p *placed) waits(r *facts.Review, g *facts.Guard, asked nodes.Placement, refused refusedNodes) []Finding {
	if found := p.demandFindings(g, asked); len(found) > 0 || !r.AuthorsPods() {
		return found
	}
	return []Finding{{
		Reason: reasonOnlyRefusedNodes(), Severity: Notice, Type: metav1.CauseTypeForbidden, Field: p.blame(asked),
		Message: fmt.Sprintf("lets pods land only on nodes on which they may not run by MeshGuard %q: %s; they wait for others", g.Name, refused.text()),
		Remedy:  p.wayOut(g, asked),
	}}
}

// asked is what the pod asks for without what Meshvakt has added, so that a pod that
// was kept off all nodes is told so, instead of waiting for ever. A template is held
// against the same, for its pods will be.
func (p *placed) asked() nodes.Placement {
	asked, added := nodes.PlacementOf(p.spec), p.steering()
	if asked.Required == nil || len(added) == 0 {
		return asked
	}
	required := &corev1.NodeSelector{}
	for _, t := range asked.Required.NodeSelectorTerms {
		if at := steeredAt(t.MatchExpressions, added); at >= 0 {
			t.MatchExpressions = slices.Concat(t.MatchExpressions[:at], t.MatchExpressions[at+len(added):])
			if len(t.MatchExpressions) == 0 && len(t.MatchFields) == 0 {
				asked.Required = nil // a term that asks for nothing else lets in every node
				return asked
			}
		}
		required.NodeSelectorTerms = append(required.NodeSelectorTerms, t)
	}
	asked.Required = required
	return asked
}

// daemonSetFindings demands that a DaemonSet leaves out the nodes on which its pods may
// not run: it puts one on each that it can, and goes on trying where that is refused.
func (p *placed) daemonSetFindings(g *facts.Guard) []Finding {
	asked := nodes.PlacementOf(p.spec)
	reached := p.cluster.Nodes.Reach(asked)
	if mentions(asked.Required, v1alpha1.ClassLabel) {
		// Nodes get the label a moment after they have joined.
		reached = slices.DeleteFunc(reached, func(pool nodes.Pool) bool { return pool.First().Label(v1alpha1.ClassLabel) == "" })
	}
	if len(reached) == 0 {
		return p.demandFindings(g, asked)
	}
	refused := refusedPools(g, reached)
	if refused.pools == 0 {
		return nil
	}
	return []Finding{{
		Reason: reasonDaemonSetOnRefusedNodes(), Type: metav1.CauseTypeForbidden, Field: p.field("spec.affinity"),
		Message: fmt.Sprintf("the DaemonSet puts pods on nodes on which they may not run by MeshGuard %q: %s; must put them on others alone", g.Name, refused.text()),
		Remedy:  leaveOut(exclusion(p.cluster, g)),
	}}
}

// mentions reports whether every term asks for something of the label.
func mentions(required *corev1.NodeSelector, key string) bool {
	return required != nil && !slices.ContainsFunc(required.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchExpressions, func(q corev1.NodeSelectorRequirement) bool { return q.Key == key })
	})
}

// blame is the field by which the pod gets where it may not run, if it is one alone.
func (p *placed) blame(asked nodes.Placement) string {
	selects, requires := len(asked.NodeSelector) > 0, asked.Required != nil
	switch {
	case selects && !requires:
		return p.field("spec.nodeSelector")
	case requires && !selects:
		return p.field("spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution")
	}
	return p.field("spec")
}
