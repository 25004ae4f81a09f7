package policies

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// sidecarChanges returns what makes a pod that is being created carry the numbers of
// the guards.
//
// Before injection these are Istio's four annotations, together, for one of them alone
// makes Istio leave out everything that the others do not state; and the numbers of a
// container that the author wants to be merged over the injected one. After injection
// they are the numbers of the containers, and the annotations as well, so that Istio
// comes to the same if it is asked again. A pod that needs nothing is left alone.
func sidecarChanges(r *facts.Review, guards []*facts.Guard) ([]facts.Change, error) {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok {
		return nil, errWrongObject(r)
	}
	if !judgedPod(pod) {
		return nil, nil
	}
	s := newSidecars(&r.Cluster, r.Cluster.Namespaces[r.Namespace], "", &pod.ObjectMeta, &pod.Spec)
	if len(s.containers) == 0 || s.refused() {
		return nil, nil // the injector says why
	}
	want := s.settled(guards)
	var changes []facts.Change
	for i := range s.containers {
		changes = append(changes, s.containerChanges(&s.containers[i], want[i])...)
	}
	template := s.template(guards)
	if s.rendered && (s.coming && !s.rendersAlready(template) || !s.coming && len(changes) > 0) {
		changes = append(s.annotationChanges(template), changes...)
	}
	return append(changes, s.concurrencyChanges(guards)...), nil
}

// rendersAlready reports whether injection comes to these numbers as things are.
func (s *sidecars) rendersAlready(want mesh.Resources) bool {
	if s.anyAnnotated {
		return s.annotated.Equal(want)
	}
	return s.meshNumbers().Equal(want)
}

// containerChanges sets the numbers of a container that differ. As long as annotations
// are still to be rendered, those that it does not state itself come from there.
func (s *sidecars) containerChanges(c *sidecar, want mesh.Resources) []facts.Change {
	if c.declared == nil {
		return nil
	}
	have := mesh.ResourcesOf(&c.declared.Resources)
	var changes []facts.Change
	for _, k := range mesh.ResourceKeys() {
		if have[k].Cmp(want[k]) == 0 || s.coming && s.rendered && !s.declares(c, k) {
			continue
		}
		list, name := k.Path()
		changes = append(changes, facts.Change{
			Path:  []string{"spec", c.list, strconv.Itoa(c.index), "resources", list, string(name)},
			Value: want[k].String(),
		})
	}
	return changes
}

// annotationChanges sets those of the four annotations that say something else.
func (s *sidecars) annotationChanges(want mesh.Resources) []facts.Change {
	var changes []facts.Change
	for _, k := range mesh.ResourceKeys() {
		if s.annotated[k].Cmp(want[k]) != 0 {
			changes = append(changes, annotationChange(k.Annotation(), want[k].String()))
		}
	}
	return changes
}

func annotationChange(key, value string) facts.Change {
	return facts.Change{Path: []string{"metadata", "annotations", key}, Value: value}
}
