package policytest

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/nodes"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Variant is a case with something that its files cannot say: who asks, what of the
// state is not known, or a request that no API server sends.
type Variant struct {
	Name   string
	Review *facts.Review
	// Fails: the request cannot be judged, and that is an error which says so.
	Fails bool
	// Want is what must come of it, "" when any decision may.
	Want policies.Outcome
}

// Variants returns the variants of a case that some policy judges, and none of others.
func (c *Case) Variants(tb testing.TB) []Variant {
	tb.Helper()
	if c.Want.Decision == NotApplicable {
		return nil
	}
	var list []Variant
	vary := func(v Variant, change func(*facts.Review)) {
		v.Name, v.Review = c.Policy+"/"+c.Name+", "+v.Name, c.Review(tb)
		change(v.Review)
		list = append(list, v)
	}
	asIs := c.Review(tb)
	creates, deletes := asIs.Operation == admissionv1.Create, asIs.Operation == admissionv1.Delete
	own := cmp.Or(asIs.Namespace, asIs.Name)
	vary(Variant{Name: "without its namespace", Fails: asIs.Namespace != "" || asIs.Kind.Kind == "Namespace" && !creates}, func(r *facts.Review) { delete(r.Cluster.Namespaces, own) })
	vary(Variant{Name: "with no other namespace"}, func(r *facts.Review) {
		maps.DeleteFunc(r.Cluster.Namespaces, func(name string, _ *facts.Namespace) bool { return name != own })
	})
	vary(Variant{Name: "with nothing known of injection"}, func(r *facts.Review) { r.Cluster.Injection = mesh.Injection{} })
	// A ConfigMap that is not what it should be, and was not, is none of istiod's.
	if asIs.Kind.Kind != "ConfigMap" || !creates && !deletes {
		broken(vary, creates, deletes, len(c.Want.Findings) > 0)
	}
	c.nodeVariants(tb, asIs, vary)
	if old, ok := asIs.OldObject.(*mesh.PeerAuthentication); ok {
		vary(Variant{Name: "with a state that lacks the old object", Want: c.Want.Decision}, func(r *facts.Review) {
			ns := *r.Cluster.Namespaces[old.Namespace]
			ns.PeerAuthentications = slices.DeleteFunc(slices.Clone(ns.PeerAuthentications), func(p *mesh.PeerAuthentication) bool { return p.Name == old.Name })
			r.Cluster.Namespaces[old.Namespace] = &ns
		})
	}
	// istio-cni notes on a pod that it has enrolled it.
	if slices.ContainsFunc(c.Want.Findings, func(f WantFinding) bool { return f.Field == "metadata.annotations[ambient.istio.io/redirection]" }) {
		for user, isMesh := range map[string]bool{
			"system:serviceaccount:kube-system:istio-cni": true, "system:serviceaccount:istio-system:istio-cni": true,
			"system:serviceaccount:prod:istio-cni": false, "istio-system:istio-cni": false, "kube-system": false,
		} {
			v := Variant{Name: "asked for by " + user, Want: c.Want.Decision}
			if isMesh && !creates {
				v.Want = policies.Allow
			}
			vary(v, func(r *facts.Review) { r.User.Username = user })
		}
	}
	slices.SortStableFunc(list, func(a, b Variant) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// broken are requests with objects that no API server sends. The old object is only
// read where there is something to find.
func broken(vary func(Variant, func(*facts.Review)), creates, deletes, finds bool) {
	vary(Variant{Name: "with another object", Fails: true}, func(r *facts.Review) { r.Object = "another" })
	vary(Variant{Name: "without an object", Fails: !deletes}, func(r *facts.Review) { r.Object = nil })
	if !creates && finds {
		vary(Variant{Name: "with another old object", Fails: true}, func(r *facts.Review) { r.OldObject = "another" })
		vary(Variant{Name: "without an old object", Fails: true}, func(r *facts.Review) { r.OldObject = nil })
	}
}

// nodeVariants are requests about a node that pods are put on, or that changes, with
// less known of it.
func (c *Case) nodeVariants(tb testing.TB, asIs *facts.Review, vary func(Variant, func(*facts.Review))) {
	tb.Helper()
	found := slices.ContainsFunc(c.Want.Findings, func(f WantFinding) bool {
		return slices.Contains([]string{"NodeBurstable", "NodeClassUnknown", "NodeOutsideRegion", "NodeNotFound", "NodeChanges"}, f.Reason)
	})
	if name := asIs.NodeName(); found && name != "" {
		node := asIs.Cluster.Nodes.Node(name)
		vary(Variant{Name: "with nodes that are not all known", Fails: node == nil}, func(r *facts.Review) { r.Cluster.NodesComplete = false })
		vary(Variant{Name: "with the node read for it", Want: c.Want.Decision}, func(r *facts.Review) {
			r.Cluster.NodesComplete, r.Cluster.Fresh = false, map[string]*nodes.Node{name: node}
		})
		vary(Variant{Name: "with the node gone since", Want: c.Want.Decision}, func(r *facts.Review) {
			r.Cluster.Fresh = map[string]*nodes.Node{name: nil}
		})
	}
	switch o := asIs.Object.(type) {
	case *corev1.Binding:
		// Which pod it is only matters for a node that some guard of its namespace refuses.
		cluster, ns := &asIs.Cluster, asIs.Cluster.Namespaces[asIs.Namespace]
		refused := cluster.Nodes != nil && slices.ContainsFunc(cluster.Guards, func(g facts.Guard) bool {
			if g.NodePools == nil || !cluster.Selects(&g, ns.Name, ns.Labels) && !(g.NodePools.ControlPlane == v1alpha1.ControlPlaneGuard && cluster.IsRoot(ns.Name)) {
				return false
			}
			n := cluster.Nodes.Node(o.Target.Name)
			return n == nil || len(nodes.Refused(g.NodePools, n)) > 0
		})
		vary(Variant{Name: "with its pod not read", Fails: refused}, func(r *facts.Review) { r.Cluster.Bound, r.Cluster.Live = nil, false })
		if found {
			if asIs.Cluster.Bound != nil {
				vary(Variant{Name: "with its pod read before", Want: c.Want.Decision}, func(r *facts.Review) { r.Cluster.Live = false })
			}
			gone := c.Want.Decision
			if slices.ContainsFunc(c.Want.Findings, func(f WantFinding) bool { return f.Exception != "" }) {
				gone = policies.Deny // whether an exception selects it is not known any more
			}
			vary(Variant{Name: "with its pod gone", Want: gone}, func(r *facts.Review) { r.Cluster.Bound = nil })
		}
	case *corev1.Node:
		if found {
			vary(Variant{Name: "with its pods not read", Want: policies.Allow}, func(r *facts.Review) { r.Cluster.OnNode = nil })
			vary(Variant{Name: "without a catalogue", Fails: true}, func(r *facts.Review) { r.Cluster.Catalogue = nil })
		}
	}
}
