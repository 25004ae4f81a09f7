package policies

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// PodCost is what one pod of the object under review is counted for, with the sidecar
// that it has or will have under the guards, and how many pods there are; ok is false
// for objects that make no pods.
func PodCost(r *facts.Review) (one Cost, pods int32, ok bool) {
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return Cost{}, 0, false
	}
	var spec *corev1.PodSpec
	switch o := r.Object.(type) {
	case *corev1.Pod:
		spec, pods = &o.Spec, 1
	case *facts.Workload:
		if o.Template == nil {
			return Cost{}, 0, false
		}
		spec, pods = &o.Template.Spec, o.Pods
	default:
		return Cost{}, 0, false
	}
	s, _ := podsOf(r, ns, r.Object)
	if s == nil || s.refused() {
		return Cost{Total: counted(&corev1.Pod{Spec: *spec.DeepCopy()})}, pods, true
	}
	guards, err := SidecarResources().Mutation.guards(r, "sidecar-resources")
	if err != nil {
		return Cost{}, 0, false
	}
	if len(guards) == 0 && s.rendered && !s.anyAnnotated {
		for i := range s.containers {
			s.containers[i].stated = s.containers[i].stated.Over(s.meshNumbers())
		}
	}
	return s.cost(guards), pods, true
}
