package policies

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgeNamespaceMembership judges a namespace that comes under the guard, with
// the pods that run in it, and the change of a guarded namespace's labels, by
// which its pods can leave the mesh: those of ambient at once, those with a
// sidecar when they are replaced.
func judgeNamespaceMembership(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	old, ns, err := namespaceSides(r)
	if err != nil {
		return nil, err
	}
	if ns.DeletionTimestamp != nil {
		return nil, nil
	}
	c := &r.Cluster
	wasGuarded := old != nil && c.Selects(g, old.Name, old.Labels)
	if !c.Selects(g, ns.Name, ns.Labels) {
		if wasGuarded && g.StrictMTLS == nil && !r.MayUnguard[g.Name] {
			return []Finding{unguarded(ns.Name, g)}, nil
		}
		return nil, nil
	}
	after := judgedNamespace(c, ns.Name, ns.Labels)
	found := namespaceInjection(c, after, g)
	if old == nil {
		return found, nil
	}
	if !wasGuarded {
		return append(found, podsOutOfMesh(c, nil, after, g)...), nil
	}
	before := judgedNamespace(c, old.Name, old.Labels)
	found = onlyNew(namespaceInjection(c, before, g), found, reasonStillOutOfMesh())
	if enrolled(c, before, g) && !enrolled(c, after, g) && worstBreach(found) == "" {
		found = append(found[:0], Finding{
			Reason: reasonNamespaceLeavesMesh(), Type: metav1.CauseTypeForbidden, Field: "metadata.labels",
			Message: fmt.Sprintf("without these labels no pod of namespace %q gets into the mesh unless it asks for it; must keep what turns injection or ambient on", ns.Name),
			Remedy:  "leave " + injectionKey + ", " + revisionKey + " and " + dataplaneKey + " as they are",
		})
	}
	return append(found, podsOutOfMesh(c, before, after, g)...), nil
}

func unguarded(name string, g *facts.Guard) Finding {
	return Finding{
		Reason: reasonNamespaceLeavesMesh(), Firm: true, Type: metav1.CauseTypeForbidden, Field: "metadata.labels",
		Message: fmt.Sprintf("the change takes namespace %q out of MeshGuard %q; must keep matching its namespaceSelector %q", name, g.Name, g.Selector),
		Remedy:  fmt.Sprintf("leave these labels as they are, or ask someone who has the verb unguard on meshguards.meshvakt.io %q", g.Name),
	}
}

// judgedNamespace is the namespace as the facts know it, with the given labels.
func judgedNamespace(c *facts.Cluster, name string, labels map[string]string) *facts.Namespace {
	ns := facts.Namespace{Name: name}
	if known := c.Namespaces[name]; known != nil {
		ns = *known
	}
	ns.Labels = labels
	return &ns
}

// enrolled reports whether a pod that says nothing gets into the mesh.
func enrolled(c *facts.Cluster, ns *facts.Namespace, g *facts.Guard) bool {
	plain := mesh.Candidate{Namespace: ns.Name, NamespaceLabels: ns.Labels}
	if slices.Contains(g.MeshMembership.DataPlanes, v1alpha1.DataPlaneAmbient) && mesh.AmbientEnrolled(plain) {
		return true
	}
	d := c.Injection.Decide(plain)
	return d.Injected()
}

// namespaceInjection says why no pod, or none that does not ask for it, gets into
// the mesh.
func namespaceInjection(c *facts.Cluster, ns *facts.Namespace, g *facts.Guard) []Finding {
	if enrolled(c, ns, g) {
		return nil
	}
	d := c.Injection.Decide(mesh.Candidate{Namespace: ns.Name, NamespaceLabels: ns.Labels})
	f := Finding{
		Reason: reasonNamespaceNotInjected(), Type: metav1.CauseTypeForbidden, Field: "metadata.labels",
		Remedy: fmt.Sprintf("add label %s: enabled", injectionKey),
	}
	switch d.Cause {
	case mesh.NotInjectedNamespaceDisabled:
		f.Field = "metadata.labels[" + injectionKey + "]"
		f.Message = fmt.Sprintf("%q turns injection off for every pod, whatever it asks for; must be \"enabled\" in a guarded namespace", ns.Labels[injectionKey])
		f.Remedy = "set it to \"enabled\""
	case mesh.NotInjectedNamespaceRevision:
		f.Reason = reasonDeadRevision()
		f.Field = "metadata.labels[" + revisionKey + "]"
		f.Message = fmt.Sprintf("%q is no revision or tag that an injector serves (there are: %s); must name one that is there", ns.Labels[revisionKey], revisionsText(c.Injection))
		f.Remedy = "name a revision or tag that is there, or install it first"
	case mesh.NotInjectedNoInjector:
		f.Severity = Notice
		f.Message = "no webhook of an injector answers for these labels; must be there before pods can enter"
		f.Remedy = "install Istio's injector, or mend its MutatingWebhookConfiguration"
	default:
		f.Severity = Notice
		f.Message = fmt.Sprintf("nothing here turns injection on, and so each pod must ask for it by label %s: \"true\"", injectKey)
	}
	return []Finding{f}
}

// podsOutOfMesh names the running pods that are not in the mesh under the labels
// of after: all of them where before is nil, else those that were before.
func podsOutOfMesh(c *facts.Cluster, before, after *facts.Namespace, g *facts.Guard) []Finding {
	if after.Pods == nil {
		return nil
	}
	var names []string
	for pod := range after.Pods.All() {
		if pod.DeletionTimestamp != nil {
			continue // it goes, and what replaces it is judged when it comes
		}
		why := worstBreach(podFindings(c, pod, after, g, true, false))
		if why == "" || before != nil && worstBreach(podFindings(c, pod, before, g, true, false)) != "" {
			continue
		}
		names = append(names, fmt.Sprintf("%s (%s)", pod.Name, why))
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	list := firstOf(names[:min(len(names), namedAtMost)], len(names))
	f := Finding{
		Reason: reasonPodsOutOfMesh(), Type: metav1.CauseTypeForbidden, Field: "metadata.labels",
		Message: fmt.Sprintf("%d running pods of namespace %q are not in the mesh as MeshGuard %q demands: %s; must be before the namespace comes under the guard", len(names), after.Name, g.Name, list),
		Remedy:  "mend them (meshvakt check --final says what is wrong), or, where injection is on by now, restart what runs them: kubectl rollout restart deployment -n " + after.Name,
	}
	if before != nil {
		f.Reason = reasonNamespaceLeavesMesh()
		f.Message = fmt.Sprintf("with these labels %d running pods of namespace %q are not in the mesh any more: %s; must stay in it", len(names), after.Name, list)
		f.Remedy = "leave the labels as they are until the pods have been replaced"
	}
	return []Finding{f}
}

// worstBreach is the reasons of what is wrong with a pod, "" when nothing is.
func worstBreach(found []Finding) string {
	var reasons []string
	for _, f := range found {
		if f.Severity == Breach {
			reasons = append(reasons, f.Reason.Name)
		}
	}
	slices.Sort(reasons)
	return strings.Join(slices.Compact(reasons), ", ")
}
