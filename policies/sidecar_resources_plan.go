package policies

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// sidecars are the containers of Istio's in a pod or a template, those that are there
// and the proxy that injection will bring, with what the workload states for them.
//
// What the workload states wins over what the guard states, which wins over what the
// mesh states for everybody (global.proxy.resources): a number that is just the
// mesh's counts as stated by nobody. So the outcome is the same whether the pod is
// seen before injection or after.
type sidecars struct {
	at   string
	meta *metav1.ObjectMeta
	spec *corev1.PodSpec

	// coming: injection is still to come, and a container of Istio's name is what its
	// author wants to be merged over it. injected: it has been.
	coming, injected bool
	// isFinal: the pod is judged as it is to be stored.
	isFinal bool
	// rendered: Istio takes the numbers from annotations or from the mesh's settings.
	rendered bool

	injector     *mesh.Injector
	annotated    mesh.Resources
	anyAnnotated bool
	unreadable   error
	// overrides are what was merged over the template, or is to be, by container.
	overrides map[string]mesh.Resources

	// containers of Istio's, the proxy first; none in a pod that has no proxy.
	containers []sidecar
}

// sidecar is one container of Istio's.
type sidecar struct {
	name string
	// declared is nil as long as injection has not brought the container.
	declared *corev1.Container
	list     string // "containers" or "initContainers"
	index    int
	stated   mesh.Resources
}

func newSidecars(c *facts.Cluster, ns *facts.Namespace, at string, meta *metav1.ObjectMeta, spec *corev1.PodSpec) *sidecars {
	s := &sidecars{at: at, meta: meta, spec: spec}
	s.declare("containers", spec.Containers)
	s.declare("initContainers", spec.InitContainers)
	if i := slices.IndexFunc(s.containers, func(c sidecar) bool { return c.name == proxyContainer }); i > 0 {
		s.containers[0], s.containers[i] = s.containers[i], s.containers[0]
	}
	decision := c.Injection.Decide(mesh.Candidate{
		Namespace: ns.Name, NamespaceLabels: ns.Labels, Labels: meta.Labels, Annotations: meta.Annotations, HostNetwork: spec.HostNetwork,
	})
	_, status := meta.Annotations[statusKey]
	s.injected = status && s.hasProxy()
	s.coming = decision.Injected() && !s.injected
	switch {
	case s.coming && !s.hasProxy():
		s.containers = slices.Insert(s.containers, 0, sidecar{name: proxyContainer})
	case !s.hasProxy():
		s.containers = nil // an init container of this name is anybody's
	}
	s.injector = decision.Injector
	s.rendered = (s.coming || s.injected) && mesh.RendersResources(s.templates())
	s.annotated, s.anyAnnotated, s.unreadable = mesh.AnnotatedResources(meta.Annotations)
	s.readOverrides()
	for i := range s.containers {
		s.containers[i].stated = s.statedFor(&s.containers[i])
	}
	return s
}

func (s *sidecars) declare(list string, containers []corev1.Container) {
	for i := range containers {
		c := &containers[i]
		if c.Name == proxyContainer || list == "initContainers" && (c.Name == initContainer || c.Name == validationContainer) {
			s.containers = append(s.containers, sidecar{name: c.Name, declared: c, list: list, index: i})
		}
	}
}

func (s *sidecars) hasProxy() bool {
	return len(s.containers) > 0 && s.containers[0].name == proxyContainer
}

// templates are those that injection uses.
func (s *sidecars) templates() []string {
	if v, ok := s.meta.Annotations[templatesKey]; ok {
		var names []string
		for name := range strings.SplitSeq(v, ",") {
			names = append(names, strings.TrimSpace(name))
		}
		return names
	}
	if s.injector != nil {
		return s.injector.Templates
	}
	return []string{"sidecar"}
}

// readOverrides reads the annotation in which Istio notes what it merged over its
// template. Who writes it by hand is heard too (reapplyOverwrittenContainers).
func (s *sidecars) readOverrides() {
	var noted struct {
		InitContainers []corev1.Container `json:"initContainers"`
		Containers     []corev1.Container `json:"containers"`
	}
	if json.Unmarshal([]byte(s.meta.Annotations[overridesKey]), &noted) != nil {
		return // the injector refuses it, and mesh-membership says so
	}
	s.overrides = map[string]mesh.Resources{}
	for _, list := range [...][]corev1.Container{noted.InitContainers, noted.Containers} {
		for i := range list {
			s.overrides[list[i].Name] = mesh.ResourcesOf(&list[i].Resources)
		}
	}
}

// statedFor returns what the workload states for a container. Of an init container
// that is what is said of it alone; the rest is as with the proxy.
func (s *sidecars) statedFor(c *sidecar) mesh.Resources {
	var stated mesh.Resources
	if c.declared != nil {
		stated = mesh.ResourcesOf(&c.declared.Resources)
	}
	switch {
	case s.coming:
		stated = s.overrides[c.name].Over(stated)
	case s.rendered:
		for _, k := range mesh.ResourceKeys() {
			if s.fromMesh(c, k) {
				stated[k] = resource.Quantity{}
			}
		}
		// Istio forgets them when it is asked again.
		stated = stated.Over(s.overrides[c.name])
	}
	if s.rendered && c.name == proxyContainer {
		stated = stated.Over(s.annotated)
	}
	return stated
}

// fromMesh reports whether a number of an injected container is just what the template
// has made of it: the annotations or, without any, the settings of the mesh; or a
// request that the API server has copied from the limit because the template has none.
func (s *sidecars) fromMesh(c *sidecar, k mesh.ResourceKey) bool {
	value := mesh.ResourcesOf(&c.declared.Resources)
	rendered, limit := s.annotated, k.Limit()
	if !s.anyAnnotated {
		rendered = s.meshNumbers()
	}
	copied := rendered[k].IsZero() && !rendered[limit].IsZero() && value[k].Cmp(value[limit]) == 0
	return copied || value[k].Cmp(rendered[k]) == 0
}

// meshNumbers are what the template has where no annotation says anything.
func (s *sidecars) meshNumbers() mesh.Resources {
	if s.injector == nil {
		return mesh.Resources{}
	}
	return s.injector.Resources
}

// field is the path of a number of a container: where it is stated, or would be.
func (s *sidecars) field(c *sidecar, k mesh.ResourceKey) string {
	if c.declared == nil || s.coming && !s.declares(c, k) && s.rendered {
		return s.inPod("metadata.annotations[" + k.Annotation() + "]")
	}
	return s.inPod(fmt.Sprintf("spec.%s[%d].resources.%s", c.list, c.index, k))
}

// declares reports whether the container itself states a number, be it zero.
func (s *sidecars) declares(c *sidecar, k mesh.ResourceKey) bool {
	if c.declared == nil {
		return false
	}
	list, name := k.Path()
	numbers := c.declared.Resources.Requests
	if list == "limits" {
		numbers = c.declared.Resources.Limits
	}
	_, ok := numbers[name]
	return ok
}

func (s *sidecars) inPod(path string) string {
	if s.at == "" {
		return path
	}
	return s.at + "." + path
}

// guaranteed reports whether the pod would be Guaranteed without Istio's containers.
// If it states resources as a whole, its class does not depend on containers at all.
func (s *sidecars) guaranteed() bool {
	if s.wholePod() {
		return false
	}
	own := 0
	for _, list := range [...]struct {
		name       string
		containers []corev1.Container
	}{{"initContainers", s.spec.InitContainers}, {"containers", s.spec.Containers}} {
		for i := range list.containers {
			if s.indexOf(list.name, i) >= 0 {
				continue
			}
			own++
			if !guaranteedBy(mesh.ResourcesOf(&list.containers[i].Resources)) {
				return false
			}
		}
	}
	return own > 0
}

// wholePod reports whether the pod states resources as a whole.
func (s *sidecars) wholePod() bool {
	return s.spec.Resources != nil && len(s.spec.Resources.Requests)+len(s.spec.Resources.Limits) > 0
}

// guaranteedBy: of CPU and memory there is a limit, and the request is the same; one
// that is missing is copied from the limit when the pod is created
// (pkg/apis/core/v1/helper/qos, requirementsQOS).
func guaranteedBy(r mesh.Resources) bool {
	for _, k := range [...]mesh.ResourceKey{mesh.RequestCPU, mesh.RequestMemory} {
		limit := r[k.Limit()]
		if limit.IsZero() || !r[k].IsZero() && r[k].Cmp(limit) != 0 {
			return false
		}
	}
	return true
}
