package policies

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// judgePodMTLS judges a pod that enters a guarded namespace, and a pod in it
// whose labels change: they decide which workload policy Istio applies to it,
// also while it runs. The namespace as a whole must be STRICT too: a pod that is
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
	if !r.Cluster.Selects(g, ns.Name, ns.Labels) || pod.DeletionTimestamp != nil {
		return nil, nil
	}
	if old == nil {
		if h, ok := worstHole(&r.Cluster, ns, pod.Labels, nil); ok {
			return []Finding{podFinding(&r.Cluster, ns, h)}, nil
		}
		return nil, nil
	}
	if maps.Equal(old.Labels, pod.Labels) {
		return nil, nil
	}
	if h, ok := worstHole(&r.Cluster, ns, pod.Labels, old.Labels); ok {
		return []Finding{podFinding(&r.Cluster, ns, h)}, nil
	}
	if h, ok := worstHole(&r.Cluster, ns, pod.Labels, nil); ok {
		f := podFinding(&r.Cluster, ns, h)
		f.Reason, f.Severity = reasonStillNotStrict(), Notice
		return []Finding{f}, nil
	}
	return nil, nil
}

// worstHole returns the first hole that a pod with these labels would open. With
// former labels, only ports that were better off under them count.
func worstHole(c *facts.Cluster, ns *facts.Namespace, labels, former map[string]string) (hole, bool) {
	ambient := isAmbient(ns.Labels) || isAmbient(labels)
	for _, v := range views(c, ns, ambient) {
		policies := v.read(c, ns)
		resolve := func(l map[string]string) mesh.Effective {
			return v.controlPlane.Resolve(mesh.Workload{Namespace: ns.Name, Labels: l, Dataplane: v.dataplane}, policies)
		}
		after := resolve(labels)
		if former != nil {
			if list := weaker(ns.Name, labels, v, resolve(former), after); len(list) > 0 {
				return list[0], true
			}
			continue
		}
		if list := holesOf(ns.Name, nil, resolve(nil), v); len(list) > 0 {
			return list[0], true
		}
		if list := holesOf(ns.Name, labels, after, v); len(list) > 0 {
			return list[0], true
		}
	}
	return hole{}, false
}

func podFinding(c *facts.Cluster, ns *facts.Namespace, h hole) Finding {
	f := Finding{Type: metav1.CauseTypeForbidden, Remedy: remedy(c, h)}
	if h.selector == nil {
		f.Reason, f.Field = reasonNamespaceNotStrict(), "metadata.namespace"
		f.Message = fmt.Sprintf("namespace %q is guarded and its effective mode is %s%s%s; must be STRICT before pods enter it", ns.Name, h.mode, h.where(), because(c, h))
		return f
	}
	f.Reason, f.Field = reasonWorkloadNotStrict(), "metadata.labels"
	ports := "all its ports"
	if h.port != 0 {
		ports = fmt.Sprintf("port %d", h.port)
	}
	f.Message = fmt.Sprintf("with these labels Istio applies %s to %s%s; must be STRICT in guarded namespace %q", h.mode, ports, because(c, h), ns.Name)
	return f
}
