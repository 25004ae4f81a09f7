package mesh

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// ResourceKey is one of the four numbers that Istio gives its containers.
type ResourceKey uint8

// The keys, in the order of messages and patches.
const (
	RequestCPU ResourceKey = iota
	RequestMemory
	LimitCPU
	LimitMemory
)

// ResourceKeys returns all keys.
func ResourceKeys() []ResourceKey {
	return []ResourceKey{RequestCPU, RequestMemory, LimitCPU, LimitMemory}
}

// Path is where the number stands in the resources of a container: "limits", "cpu".
func (k ResourceKey) Path() (list string, name corev1.ResourceName) {
	list, name = "requests", corev1.ResourceCPU
	if k.IsLimit() {
		list = "limits"
	}
	if k == RequestMemory || k == LimitMemory {
		name = corev1.ResourceMemory
	}
	return list, name
}

// String is the path in one word: "limits.cpu".
func (k ResourceKey) String() string {
	list, name := k.Path()
	return list + "." + string(name)
}

// What is what the number is of: "CPU" or "memory".
func (k ResourceKey) What() string {
	if k == RequestCPU || k == LimitCPU {
		return "CPU"
	}
	return "memory"
}

// IsLimit reports whether the number is a limit.
func (k ResourceKey) IsLimit() bool { return k == LimitCPU || k == LimitMemory }

// Limit is the limit that belongs to a request; a limit is its own.
func (k ResourceKey) Limit() ResourceKey {
	switch k {
	case RequestCPU:
		return LimitCPU
	case RequestMemory:
		return LimitMemory
	default:
		return k
	}
}

// Annotation is the annotation of a pod by which it states the number for its proxy.
func (k ResourceKey) Annotation() string {
	return [...]string{
		RequestCPU: "sidecar.istio.io/proxyCPU", RequestMemory: "sidecar.istio.io/proxyMemory",
		LimitCPU: "sidecar.istio.io/proxyCPULimit", LimitMemory: "sidecar.istio.io/proxyMemoryLimit",
	}[k]
}

// Resources are the four numbers. One of zero is not there: to Kubernetes a limit of 0 is none, and a request of
// 0 asks for nothing.
type Resources [4]resource.Quantity

// ResourcesOf are the numbers of a container.
func ResourcesOf(r *corev1.ResourceRequirements) Resources {
	return Resources{
		RequestCPU: r.Requests[corev1.ResourceCPU], RequestMemory: r.Requests[corev1.ResourceMemory],
		LimitCPU: r.Limits[corev1.ResourceCPU], LimitMemory: r.Limits[corev1.ResourceMemory],
	}
}

// DeepCopy returns a copy to reckon with: quantities that do not fit 64 bits are shared otherwise.
func (r Resources) DeepCopy() Resources {
	for k := range r {
		r[k] = r[k].DeepCopy()
	}
	return r
}

// Equal reports whether the numbers are the same, in whatever way they are written.
func (r Resources) Equal(others Resources) bool {
	for k := range r {
		if r[k].Cmp(others[k]) != 0 {
			return false
		}
	}
	return true
}

// Over returns the numbers that are there, and those of others in place of the rest.
func (r Resources) Over(others Resources) Resources {
	for k := range r {
		if r[k].IsZero() {
			r[k] = others[k]
		}
	}
	return r
}

// AnnotatedResources are the numbers that annotations state, and whether they state any: if one of the four
// annotations is there, Istio's template leaves out everything that it does not render from them
// (injection-template.yaml, "resources"). It errs on a value that the injector or the API server refuses.
func AnnotatedResources(annotations map[string]string) (stated Resources, annotated bool, err error) {
	for _, k := range ResourceKeys() {
		text, ok := annotations[k.Annotation()]
		if !ok {
			continue
		}
		annotated = true
		if !ReadableResource(text) {
			err = fmt.Errorf("%s: %q is no quantity that Kubernetes takes", k.Annotation(), text)
			continue
		}
		stated[k] = resource.MustParse(text)
	}
	return stated, annotated, err
}

// ReadableResource reports whether a pod can be created with the value of such an annotation.
func ReadableResource(text string) bool {
	q, err := resource.ParseQuantity(text)
	return err == nil && q.Sign() >= 0
}

// RendersResources reports whether injection by these templates gives the proxy the resources that annotations or
// the mesh state. The template "gateway" does not: its proxy has what its author gives it.
func RendersResources(templates []string) bool {
	return slices.ContainsFunc(templates, func(t string) bool { return t != "gateway" })
}

// defaultResources are those of Istio's chart.
func defaultResources() Resources {
	return Resources{
		RequestCPU: resource.MustParse("100m"), RequestMemory: resource.MustParse("128Mi"),
		LimitCPU: resource.MustParse("2000m"), LimitMemory: resource.MustParse("1024Mi"),
	}
}

// resourcesOf reads global.proxy.resources. What is no quantity makes the injector fail, and is not there.
func resourcesOf(values map[string]map[string]any) Resources {
	var r Resources
	for _, k := range ResourceKeys() {
		list, name := k.Path()
		if v, ok := values[list][string(name)]; ok && v != nil {
			if q, err := resource.ParseQuantity(fmt.Sprint(v)); err == nil && q.Sign() > 0 {
				r[k] = q
			}
		}
	}
	return r
}
