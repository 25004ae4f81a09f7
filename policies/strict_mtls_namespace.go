package policies

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgeNamespaceMTLS judges the creation of a namespace and the change of its
// labels: by them it comes under a guard or leaves it, and, where Istio has
// discoverySelectors, appears to the mesh or vanishes from it.
func judgeNamespaceMTLS(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	old, ns, err := namespaceSides(r)
	if err != nil {
		return nil, err
	}
	if ns.DeletionTimestamp != nil {
		return nil, nil
	}
	before := &r.Cluster
	after := withNamespace(before, ns)
	guarded := before.Selects(g, ns.Name, ns.Labels)
	wasGuarded := old != nil && before.Selects(g, old.Name, old.Labels)

	var found []Finding
	switch {
	case guarded && !wasGuarded:
		found = append(found, judgeNewlyGuarded(after, ns.Name, old == nil, g)...)
	case wasGuarded && !guarded && !r.MayUnguard[g.Name]:
		found = append(found, Finding{
			Reason:  reasonNamespaceUnguarded(),
			Firm:    true,
			Type:    metav1.CauseTypeForbidden,
			Field:   "metadata.labels",
			Message: fmt.Sprintf("the change takes namespace %q out of MeshGuard %q; must keep matching its namespaceSelector %q", ns.Name, g.Name, g.Selector),
			Remedy:  fmt.Sprintf("leave these labels as they are, or ask someone who has the verb unguard on meshguards.meshvakt.io %q", g.Name),
		})
	}

	// The labels of a root namespace decide what all others see of it.
	names := []string{ns.Name}
	if slices.Contains(before.RootNamespaces(), ns.Name) {
		names = guardedNamespaces(after, g)
	}
	var lost []hole
	for _, name := range names {
		if name != ns.Name || guarded && wasGuarded {
			lost = append(lost, regressions(before, after, name)...)
		}
	}
	for _, group := range groupHoles(lost) {
		found = append(found, Finding{
			Reason:  reasonNamespaceWeakensMTLS(),
			Type:    metav1.CauseTypeForbidden,
			Field:   "metadata.labels",
			Message: fmt.Sprintf("the change makes %s%s; must be STRICT", group.makes(), group.because(after)),
			Remedy:  "keep the labels that Istio's discoverySelectors and data plane mode rest on, or first " + group.remedy(after),
		})
	}
	if len(lost) == 0 && guarded && wasGuarded {
		found = append(found, stillNotStrict(after, []string{ns.Name})...)
	}
	return found, nil
}

// judgeNewlyGuarded judges a namespace that comes under the guard.
func judgeNewlyGuarded(c *facts.Cluster, name string, created bool, g *facts.Guard) []Finding {
	var found []Finding
	for _, group := range groupHoles(holes(c, c.Namespaces[name])) {
		f := Finding{
			Reason: reasonNamespaceNotStrict(),
			Type:   metav1.CauseTypeForbidden,
			Field:  "metadata.labels",
			Remedy: group.remedy(c),
		}
		state := fmt.Sprintf("MeshGuard %q guards namespace %q by these labels, and Istio applies %s to %s%s",
			g.Name, name, group.holes[0].mode, group.within(c), group.because(c))
		switch g.StrictMTLS.OnMissing {
		case v1alpha1.OnMissingHold:
			f.Severity = Notice
			f.Message = state + "; must be STRICT before pods enter it"
		case v1alpha1.OnMissingProvision:
			f.Severity = Notice
			f.Message = state + "; must be STRICT before pods enter it, and a STRICT policy provided by Meshvakt would not make it so"
			if provisionHelps(c, name) {
				f.Message = state + fmt.Sprintf("; must be STRICT before pods enter it, so Meshvakt creates PeerAuthentication %s now", Provisioned(name).Key())
				f.Remedy = ""
			}
		default:
			f.Message = state + "; must be STRICT"
			if h := group.holes[0]; created && (h.decider == nil || h.decider.Namespace != name) {
				f.Remedy = creationRemedy(c, group, g)
			}
		}
		found = append(found, f)
	}
	return atMost(found)
}

// creationRemedy lists the ways to create a namespace under a guard that rejects
// it: its own PeerAuthentication cannot exist before it does.
func creationRemedy(c *facts.Cluster, group holeGroup, g *facts.Guard) string {
	h := group.holes[0]
	var ways []string
	bare := map[string]string{corev1.LabelMetadataName: h.namespace}
	if !c.Selects(g, h.namespace, bare) {
		ways = append(ways, fmt.Sprintf("create it without the label that the guard selects (%s), apply a PeerAuthentication with spec.mtls.mode STRICT in it, then add the label", g.Selector))
	}
	wide := fmt.Sprintf("make the whole mesh STRICT by a PeerAuthentication in %q", h.view.controlPlane.RootNamespace)
	if h.decider != nil || len(inertNotes(c, h)) > 0 {
		wide = group.remedy(c)
	}
	ways = append(ways, wide,
		fmt.Sprintf("have spec.strictMTLS.onMissing of MeshGuard %q set to Hold or Provision", g.Name))
	return strings.Join(ways, "; or ")
}

// Provisioned returns the PeerAuthentication that makes a namespace STRICT by
// default.
func Provisioned(namespace string) *mesh.PeerAuthentication {
	return &mesh.PeerAuthentication{Namespace: namespace, Name: "default", Mode: mesh.ModeStrict}
}

// provisionHelps reports whether a STRICT policy "default", the youngest of all,
// would make the namespace STRICT.
func provisionHelps(c *facts.Cluster, name string) bool {
	ns := c.Namespaces[name]
	if slices.ContainsFunc(ns.PeerAuthentications, func(p *mesh.PeerAuthentication) bool { return p.Name == "default" }) {
		return false
	}
	with := withPolicy(c, nil, Provisioned(name))
	return len(holes(with, with.Namespaces[name])) == 0
}

// NeedsProvision reports whether the namespace is guarded by a guard that
// provisions, is not STRICT, and would be by the policy Provisioned returns.
func NeedsProvision(c *facts.Cluster, name string) bool {
	ns := c.Namespaces[name]
	if ns == nil || ns.Terminating {
		return false
	}
	provisions := slices.ContainsFunc(c.Guards, func(g facts.Guard) bool {
		return g.StrictMTLS != nil && g.StrictMTLS.OnMissing == v1alpha1.OnMissingProvision && c.Selects(&g, name, ns.Labels)
	})
	return provisions && !Strict(c, name) && provisionHelps(c, name)
}

// Strict reports whether a namespace of the snapshot is STRICT without a hole.
func Strict(c *facts.Cluster, name string) bool {
	ns := c.Namespaces[name]
	return ns != nil && len(holes(c, ns)) == 0
}
