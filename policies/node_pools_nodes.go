package policies

import (
	"fmt"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgeBinding judges the choice of a scheduler, whichever it is. Most nodes are such
// that every pod may run on them; only for the others is it looked up which pod it is.
func judgeBinding(r *facts.Review, b *corev1.Binding, ns *facts.Namespace, g *facts.Guard) ([]Finding, error) {
	c := &r.Cluster
	if !c.Selects(g, ns.Name, ns.Labels) && !(guardsControlPlane(g) && c.IsRoot(ns.Name)) {
		return nil, nil
	}
	found, err := putOn(c, g, "target.name", b.Target.Name)
	if len(found) == 0 {
		return nil, err
	}
	if c.Bound == nil && !c.Live {
		return nil, fmt.Errorf("%w: pod %s/%s", ErrMissingFact, r.Namespace, b.Name)
	}
	// Where there is no such pod, one may be created before the API server looks.
	if c.Bound != nil {
		p := &placed{meta: &c.Bound.ObjectMeta, spec: &c.Bound.Spec, final: true, cluster: c, namespace: ns}
		if !p.meant(g) {
			return nil, nil
		}
	}
	return found, nil
}

// putOn judges the node that a pod is put on, unless nothing is known of nodes at all,
// as with manifests that hold none.
func putOn(c *facts.Cluster, g *facts.Guard, field, name string) ([]Finding, error) {
	if c.Nodes == nil {
		return nil, nil
	}
	n, known := c.Node(name)
	if !known {
		return nil, fmt.Errorf("%w: node %q", ErrMissingFact, name)
	}
	if n == nil {
		return []Finding{{
			Reason: reasonNodeNotFound(), Type: metav1.CauseTypeFieldValueNotFound, Field: field,
			Message: fmt.Sprintf("there is no node %s, and nothing tells what it will be; must be a node that is there", quote(name)),
			Remedy:  otherNodes(c, g),
		}}, nil
	}
	var found []Finding
	for _, f := range nodes.Refused(g.NodePools, n) {
		found = append(found, Finding{
			Reason: reasonOf(f.Cause), Type: metav1.CauseTypeForbidden, Field: field,
			Message: fmt.Sprintf("node %s is %s; must be one on which pods may run by MeshGuard %q", quote(name), f.Text, g.Name),
			Remedy:  otherNodes(c, g),
		})
	}
	return found, nil
}

// otherNodes names a node on which pods of the guard may run.
func otherNodes(c *facts.Cluster, g *facts.Guard) string {
	if n := allowedNode(g, c.Nodes.Pools()); n != nil {
		return fmt.Sprintf("let it run on another, such as %q", n.Name())
	}
	return addNodes(g)
}

// judgeNode tells of the pods that run on a node that becomes one on which they may
// not. It refuses nothing: the node is what it is, and so are the pods.
func judgeNode(r *facts.Review, after *corev1.Node, g *facts.Guard) ([]Finding, error) {
	before, ok := r.OldObject.(*corev1.Node)
	if !ok || r.Cluster.Catalogue == nil {
		return nil, errWrongObject(r)
	}
	is := nodes.NewlyRefused(g.NodePools, r.Cluster.Catalogue.NewNode(before), r.Cluster.Catalogue.NewNode(after))
	if r.Cluster.OnNode == nil {
		return nil, nil
	}
	pods, first := 0, ""
	for pod := range r.Cluster.OnNode.All() {
		if ns := r.Cluster.Namespaces[pod.Namespace]; ns != nil && len(Misplaced(&r.Cluster, g, ns, pod, is, r.Now)) > 0 {
			if pods++; pods == 1 {
				first = pod.Namespace + "/" + pod.Name
			}
		}
	}
	if pods == 0 {
		return nil, nil
	}
	return []Finding{{
		Reason: reasonNodeChanges(), Severity: Notice, Type: metav1.CauseTypeForbidden, Field: "metadata.labels",
		Message: fmt.Sprintf("the node comes to be %s, where pods may not run by MeshGuard %q, and %s; what runs stays", refusalText(is), g.Name, running(pods, first)),
		Remedy:  "drain the node when it suits you",
	}}, nil
}

func running(pods int, first string) string {
	if pods == 1 {
		return fmt.Sprintf("pod %q runs there", first)
	}
	return fmt.Sprintf("%d pods such as %q run there", pods, first)
}

// Misplaced returns why a pod may not run on the node it runs on, of the reasons for which
// the guard, which is one of node-pools, refuses the node: nothing where the guard is not
// about the pod, and nothing that an exception is from.
func Misplaced(c *facts.Cluster, g *facts.Guard, ns *facts.Namespace, pod *corev1.Pod, refused []nodes.Refusal, now time.Time) []nodes.Refusal {
	p := &placed{meta: &pod.ObjectMeta, spec: &pod.Spec, final: true, cluster: c, namespace: ns}
	if !judgedPod(pod) || !p.meant(g) {
		return nil
	}
	r := facts.Review{Namespace: pod.Namespace, Object: pod, Now: now, Cluster: *c}
	return slices.DeleteFunc(slices.Clone(refused), func(f nodes.Refusal) bool {
		return r.Excepting(g, "node-pools", reasonOf(f.Cause).Name) != nil
	})
}

// judgeVolume tells of volumes of guarded namespaces that come to be outside of the
// allowed regions.
func judgeVolume(r *facts.Review, v *corev1.PersistentVolume, g *facts.Guard) ([]Finding, error) {
	where := VolumeOutside(&r.Cluster, g, v)
	if where == "" {
		return nil, nil
	}
	if r.Operation == admissionv1.Update {
		before, ok := r.OldObject.(*corev1.PersistentVolume)
		if !ok {
			return nil, errWrongObject(r)
		}
		if VolumeOutside(&r.Cluster, g, before) == where {
			return nil, nil
		}
	}
	return []Finding{{
		Reason: reasonVolumeOutsideRegion(), Severity: Notice, Type: metav1.CauseTypeForbidden, Field: "spec.nodeAffinity",
		Message: fmt.Sprintf("a volume of namespace %q is %s; must be where pods may run by MeshGuard %q", v.Spec.ClaimRef.Namespace, where, g.Name),
		Remedy:  "move the data, and restrict the StorageClass by allowedTopologies",
	}}, nil
}

// VolumeOutside says where a volume of a namespace of the guard is, which is one of
// node-pools, if all nodes that can reach it are outside of the allowed regions or zones,
// "" otherwise.
func VolumeOutside(c *facts.Cluster, g *facts.Guard, v *corev1.PersistentVolume) string {
	if v.Spec.ClaimRef == nil || v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return ""
	}
	ns := c.Namespaces[v.Spec.ClaimRef.Namespace]
	if ns == nil || !c.Selects(g, ns.Name, ns.Labels) {
		return ""
	}
	where := ""
	reached := c.Nodes.Reach(nodes.Placement{Required: v.Spec.NodeAffinity.Required, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}})
	for i := range reached {
		at := slices.IndexFunc(nodes.Refused(g.NodePools, reached[i].First()), func(f nodes.Refusal) bool { return f.Cause == nodes.CausePlace })
		if at < 0 {
			return ""
		}
		where = nodes.Refused(g.NodePools, reached[i].First())[at].Text
	}
	if where != "" {
		return where
	}
	// No node is there that could tell; the affinity itself may.
	for _, t := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
		text := refusedPlace(g.NodePools, demandOf(nil, t))
		if text == "" {
			return ""
		}
		where = text
	}
	return where
}
