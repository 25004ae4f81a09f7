package policies

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgePodMTLS judges a pod that enters a guarded namespace, and a pod in it
// whose labels change: they decide which workload policy Istio applies to it,
// also while it runs, be it on the way out: a grace period may take years. The
// namespace as a whole must be STRICT too: a pod that is
// STRICT only by its own labels would cease to be by an edit of them.
func judgePodMTLS(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	old, pod, err := sides[corev1.Pod](r)
	if err != nil {
		return nil, err
	}
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the pod", ErrMissingFact, r.Namespace)
	}
	if !r.Cluster.Selects(g, ns.Name, ns.Labels) {
		return nil, nil
	}
	if old == nil {
		if h, ok := worstHole(&r.Cluster, ns, pod.Labels, nil); ok {
			return []Finding{podFinding(&r.Cluster, h)}, nil
		}
		return nil, nil
	}
	if maps.Equal(old.Labels, pod.Labels) {
		return nil, nil
	}
	if h, ok := worstHole(&r.Cluster, ns, pod.Labels, old.Labels); ok {
		return []Finding{podFinding(&r.Cluster, h)}, nil
	}
	if h, ok := worstHole(&r.Cluster, ns, pod.Labels, nil); ok {
		f := podFinding(&r.Cluster, h)
		f.Reason, f.Severity = reasonStillNotStrict(), Notice
		return []Finding{f}, nil
	}
	return nil, nil
}

// worstHole returns the first hole that a pod with these labels would open. With
// former labels, only ports that were better off under them count.
func worstHole(c *facts.Cluster, ns *facts.Namespace, labels, former map[string]string) (hole, bool) {
	for _, v := range views(c, ns, isAmbient(ns.Labels) || isAmbient(labels)) {
		policies := v.read(c, ns)
		after := v.resolve(ns.Name, labels, policies)
		if former != nil {
			was := v.under(isAmbient(ns.Labels) || isAmbient(former))
			if list := weaker(ns.Name, labels, v, was.resolve(ns.Name, former, policies), after); len(list) > 0 {
				return list[0], true
			}
			continue
		}
		if list := holesOf(ns.Name, nil, v.resolve(ns.Name, nil, policies), v); len(list) > 0 {
			return list[0], true
		}
		if list := holesOf(ns.Name, labels, after, v); len(list) > 0 {
			return list[0], true
		}
	}
	return hole{}, false
}

func podFinding(c *facts.Cluster, h hole) Finding {
	g := groupHoles([]hole{h})[0]
	f := Finding{Type: metav1.CauseTypeForbidden, Remedy: g.remedy(c)}
	if h.selector == nil {
		f.Reason, f.Field = reasonNamespaceNotStrict(), "metadata.namespace"
		f.Message = fmt.Sprintf("namespace %q is guarded, and Istio applies %s to %s%s; must be STRICT before pods enter it", h.namespace, h.mode, g.within(c), g.because(c))
		return f
	}
	f.Reason, f.Field = reasonWorkloadNotStrict(), "metadata.labels"
	ports := "all ports"
	if h.port != 0 {
		ports = g.portsText()
	}
	f.Message = fmt.Sprintf("with these labels Istio applies %s to %s of the pod%s; must be STRICT in guarded namespace %q", h.mode, ports, g.because(c), h.namespace)
	if h.decider != nil && len(h.decider.Selector) > 0 {
		f.Remedy += fmt.Sprintf(", or give the pod labels that its selector (%s) does not match", selectorText(h.decider.Selector))
	}
	return f
}
