package policies_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/kubectl/pkg/util/qos"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// TestSidecarsOfRandomPods takes random pods through the mutating half of
// sidecar-resources and through injection, in both orders, under random guards:
//
//   - what has been changed needs no more changes;
//   - the order of Meshvakt and Istio makes no difference to the numbers;
//   - the pod that comes out passes the judging half, unless its author contradicts
//     the guard and the guard does not move numbers;
//   - where its class is to be preserved, it is Guaranteed exactly if it would be
//     without its proxy, by Kubernetes' own reckoning.
func TestSidecarsOfRandomPods(t *testing.T) {
	t.Parallel()
	const pods = 6_000
	random := rand.New(rand.NewPCG(20261126, 4))
	seen := map[string]int{}
	for i := range pods {
		w := newSidecarWorld(random)
		submitted := w.pod()
		before := w.changed(t, submitted)
		if again := w.changed(t, before); !sameJSON(t, again, before) {
			t.Fatalf("pod %d: changes again\n%s", i, w.describe(t, submitted, before, again))
		}
		first := w.changed(t, w.inject(before)) // asked again after Istio
		after := w.changed(t, w.inject(submitted))
		if again := w.changed(t, after); !sameJSON(t, again, after) {
			t.Fatalf("pod %d: changes again after injection\n%s", i, w.describe(t, submitted, after, again))
		}
		// Istio loses what the author says of istio-init when it is asked again.
		if again := w.changed(t, w.inject(after)); !sameNumbers(again, after, "istio-proxy") {
			t.Fatalf("pod %d: Istio reverts the numbers when it is asked again\n%s", i, w.describe(t, submitted, after, again))
		}
		if !sameNumbers(first, after, "istio-proxy", "istio-init") {
			t.Fatalf("pod %d: the order decides\n%s", i, w.describe(t, submitted, first, after))
		}
		d := w.judged(t, first)
		seen["judged "+string(d.Outcome)]++
		if d.Outcome != policies.Allow && !w.contradicted(&d) {
			t.Fatalf("pod %d: %v\n%s", i, texts(&d), w.describe(t, submitted, first))
		}
		w.checkClass(t, i, submitted, first, seen)
	}
	for _, kind := range []string{"judged Allow", "judged Deny", "stays Guaranteed", "loses Guaranteed", "never Guaranteed"} {
		if seen[kind] < pods/200 {
			t.Errorf("%s: only %d of %d pods", kind, seen[kind], pods)
		}
	}
}

// sidecarWorld is a namespace under random guards in a random mesh.
type sidecarWorld struct {
	random   *rand.Rand
	cluster  facts.Cluster
	injector *mesh.Injector // nil: not known to Meshvakt
	defaults mesh.Resources // what Istio renders
	guards   []*v1alpha1.SidecarResources
	native   bool
}

func newSidecarWorld(random *rand.Rand) *sidecarWorld {
	w := &sidecarWorld{random: random, native: random.IntN(2) == 0}
	w.cluster.Injection = mesh.DefaultInjection("default")
	w.defaults = w.cluster.Injection.Injectors[0].Resources
	if w.chance(3) {
		w.defaults = mesh.ResourcesOf(w.requirements(3))
	}
	w.cluster.Injection.Injectors[0].Resources = w.defaults
	w.injector = &w.cluster.Injection.Injectors[0]
	for i := range 1 + random.IntN(5)/4 {
		g := w.guard()
		w.guards = append(w.guards, g)
		w.cluster.Guards = append(w.cluster.Guards, facts.Guard{Name: fmt.Sprintf("g%d", i), Selector: labels.Everything(), SidecarResources: g})
	}
	w.cluster.Namespaces = map[string]*facts.Namespace{"prod": {Name: "prod", Labels: map[string]string{"istio-injection": "enabled"}}}
	return w
}

// chance is true once in n times.
func (w *sidecarWorld) chance(n int) bool { return w.random.IntN(n) == 0 }

// quantity is one of a few, of which some are written differently and equal.
func (w *sidecarWorld) quantity(name corev1.ResourceName) resource.Quantity {
	texts := []string{"1m", "50m", "100m", "0.1", "500m", "1", "1000m", "2", "4", "64"}
	if name == corev1.ResourceMemory {
		texts = []string{"1Mi", "64Mi", "128Mi", "131072Ki", "500M", "512Mi", "1Gi", "1024Mi", "4Gi", "1Ei"}
	}
	return resource.MustParse(texts[w.random.IntN(len(texts))])
}

// requirements states each number once in n times.
func (w *sidecarWorld) requirements(n int) *corev1.ResourceRequirements {
	r := &corev1.ResourceRequirements{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := w.quantity(name), w.quantity(name)
		if request.Cmp(limit) > 0 { // which nobody can create
			request, limit = limit, request
		}
		if w.chance(6) {
			request = limit
		}
		if w.chance(n) {
			set(&r.Requests, name, request)
		}
		if w.chance(n) {
			set(&r.Limits, name, limit)
		}
	}
	return r
}

func set(list *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if *list == nil {
		*list = corev1.ResourceList{}
	}
	(*list)[name] = q
}

// guard is one that the API server takes.
func (w *sidecarWorld) guard() *v1alpha1.SidecarResources {
	for {
		g := &v1alpha1.MeshGuard{ObjectMeta: metav1.ObjectMeta{Name: "g"}, Spec: v1alpha1.MeshGuardSpec{SidecarResources: &v1alpha1.SidecarResources{}}}
		s := g.Spec.SidecarResources
		s.Mode = []v1alpha1.ResourcesMode{v1alpha1.ModeFill, v1alpha1.ModeClamp, v1alpha1.ModeExact}[w.random.IntN(3)]
		s.QoS = []v1alpha1.QoSTreatment{v1alpha1.QoSAllow, v1alpha1.QoSPreserve}[w.random.IntN(2)]
		maybe := func(name corev1.ResourceName) *resource.Quantity {
			if w.chance(2) {
				return nil
			}
			q := w.quantity(name)
			return &q
		}
		s.Requests = v1alpha1.ProxyRequests{CPU: maybe(corev1.ResourceCPU), Memory: maybe(corev1.ResourceMemory)}
		s.Limits = v1alpha1.ProxyLimits{CPU: maybe(corev1.ResourceCPU), Memory: maybe(corev1.ResourceMemory)}
		if s.Mode != v1alpha1.ModeExact && !w.chance(3) {
			s.Minimum = &v1alpha1.ProxyBound{CPU: maybe(corev1.ResourceCPU), Memory: maybe(corev1.ResourceMemory)}
		}
		if s.Mode != v1alpha1.ModeExact && !w.chance(3) {
			s.Maximum = &v1alpha1.ProxyBound{CPU: maybe(corev1.ResourceCPU), Memory: maybe(corev1.ResourceMemory)}
		}
		v1alpha1.SetDefaults(g)
		if len(v1alpha1.Validate(g)) == 0 {
			return s
		}
	}
}

// pod is one as the API server shows it to the first webhook.
func (w *sidecarWorld) pod() *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "prod"}}
	pod.Spec.Containers = []corev1.Container{{Name: "web", Resources: *w.requirements(1 + w.random.IntN(3))}}
	if w.chance(2) { // Guaranteed
		r := w.requirements(1)
		r.Requests = maps.Clone(r.Limits)
		pod.Spec.Containers[0].Resources = *r
	}
	if w.chance(6) {
		pod.Spec.InitContainers = []corev1.Container{{Name: "setup", Resources: *w.requirements(2)}}
	}
	annotated := w.requirements(2)
	if w.chance(2) {
		for _, k := range mesh.ResourceKeys() {
			if q := mesh.ResourcesOf(annotated)[k]; !q.IsZero() {
				metav1.SetMetaDataAnnotation(&pod.ObjectMeta, k.Annotation(), q.String())
			} else if w.chance(20) {
				metav1.SetMetaDataAnnotation(&pod.ObjectMeta, k.Annotation(), "0")
			}
		}
	}
	if w.chance(4) {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "auto", Resources: *w.requirements(2)})
	}
	if w.chance(8) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: "istio-init", Image: "auto", Resources: *w.requirements(2)})
	}
	copyRequests(pod)
	return pod
}

// copyRequests is what the API server does to a pod between webhooks.
func copyRequests(pod *corev1.Pod) {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for name, q := range list[i].Resources.Limits {
				if _, ok := list[i].Resources.Requests[name]; !ok {
					set(&list[i].Resources.Requests, name, q)
				}
			}
		}
	}
}

// inject does to resources what Istio's injector does (injection-template.yaml;
// pkg/kube/inject, RunTemplate and reapplyOverwrittenContainers).
func (w *sidecarWorld) inject(in *corev1.Pod) *corev1.Pod {
	pod := in.DeepCopy()
	rendered, any, err := mesh.AnnotatedResources(pod.Annotations)
	if err != nil {
		panic(err)
	}
	if !any {
		rendered = w.defaults
	}
	template := corev1.ResourceRequirements{}
	for _, k := range mesh.ResourceKeys() {
		_, annotated := pod.Annotations[k.Annotation()]
		list, name := k.Path()
		if into := map[string]*corev1.ResourceList{"requests": &template.Requests, "limits": &template.Limits}[list]; annotated || !rendered[k].IsZero() {
			set(into, name, rendered[k])
		}
	}
	_, again := pod.Annotations["sidecar.istio.io/status"]
	overrides := map[string]corev1.Container{}
	take := func(list []corev1.Container) []corev1.Container {
		return slices.DeleteFunc(list, func(c corev1.Container) bool {
			if c.Name == "istio-proxy" || c.Name == "istio-init" {
				overrides[c.Name] = c
				return true
			}
			return false
		})
	}
	pod.Spec.InitContainers, pod.Spec.Containers = take(pod.Spec.InitContainers), take(pod.Spec.Containers)
	render := func(name string) corev1.Container {
		own, stated := overrides[name]
		c := corev1.Container{Name: name, Image: "proxyv2", Resources: *template.DeepCopy()}
		switch {
		case stated && again: // keys that the template does not render survive
			c.Resources = merged(own.Resources, template)
		case stated:
			c.Resources = merged(template, own.Resources)
		}
		return c
	}
	initial, proxy := render("istio-init"), render("istio-proxy")
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, initial)
	if w.native {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, proxy)
	} else {
		pod.Spec.Containers = append(pod.Spec.Containers, proxy)
	}
	if !again {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, "sidecar.istio.io/status", "{}")
		noted := struct {
			Containers []corev1.Container `json:"containers,omitempty"`
		}{}
		for _, name := range slices.Sorted(maps.Keys(overrides)) {
			noted.Containers = append(noted.Containers, overrides[name])
		}
		if text, err := json.Marshal(noted); err == nil && len(overrides) > 0 {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, "proxy.istio.io/overrides", string(text))
		}
	}
	copyRequests(pod)
	return pod
}

func merged(base, over corev1.ResourceRequirements) corev1.ResourceRequirements {
	out := *base.DeepCopy()
	for name, q := range over.Requests {
		set(&out.Requests, name, q)
	}
	for name, q := range over.Limits {
		set(&out.Limits, name, q)
	}
	return out
}

// changed applies what Meshvakt changes, as the API server does.
func (w *sidecarWorld) changed(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	changes, err := policies.Mutate(policies.All(), w.review(pod))
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) == 0 {
		return pod
	}
	raw := marshal(t, pod)
	operations, err := objects.Patch(raw, changes)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(marshal(t, operations))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = patch.Apply(raw); err != nil {
		t.Fatal(err)
	}
	out := &corev1.Pod{}
	if err := json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	copyRequests(out)
	return out
}

func (w *sidecarWorld) review(pod *corev1.Pod) *facts.Review {
	return &facts.Review{
		Operation: admissionv1.Create, Namespace: "prod", Name: pod.Name, Object: pod, Cluster: w.cluster,
		Kind: corev1.SchemeGroupVersion.WithKind("Pod"), Resource: corev1.SchemeGroupVersion.WithResource("pods"),
	}
}

func (w *sidecarWorld) judged(t *testing.T, pod *corev1.Pod) policies.Decision {
	t.Helper()
	d, err := policies.Evaluate(policies.All(), w.review(pod))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// contradicted reports whether all findings are such as the author or a second guard
// brings about.
func (w *sidecarWorld) contradicted(d *policies.Decision) bool {
	if len(w.guards) > 1 {
		return true
	}
	return !slices.ContainsFunc(d.Findings, func(f policies.Ruling) bool {
		outside := f.Reason.Name == "ProxyAboveMaximum" || f.Reason.Name == "ProxyBelowMinimum"
		return f.Reason.Name != "RequestOverLimit" && (!outside || w.guards[0].Mode != v1alpha1.ModeFill)
	})
}

// checkClass holds the class of the pod against the promise of the guards.
func (w *sidecarWorld) checkClass(t *testing.T, i int, submitted, final *corev1.Pod, seen map[string]int) {
	t.Helper()
	own := submitted.DeepCopy()
	istios := func(c corev1.Container) bool { return c.Name == "istio-proxy" || c.Name == "istio-init" }
	own.Spec.Containers = slices.DeleteFunc(own.Spec.Containers, istios)
	own.Spec.InitContainers = slices.DeleteFunc(own.Spec.InitContainers, istios)
	preserve := !slices.ContainsFunc(w.guards, func(g *v1alpha1.SidecarResources) bool { return g.QoS != v1alpha1.QoSPreserve })
	was, is := qos.ComputePodQOS(own) == corev1.PodQOSGuaranteed, qos.ComputePodQOS(final) == corev1.PodQOSGuaranteed
	switch {
	case !was && is:
		t.Fatalf("pod %d: becomes Guaranteed\n%s", i, w.describe(t, submitted, final))
	case !was:
		seen["never Guaranteed"]++
	case is:
		seen["stays Guaranteed"]++
	case preserve:
		t.Fatalf("pod %d: loses its class\n%s", i, w.describe(t, submitted, final))
	default:
		seen["loses Guaranteed"]++
	}
}

func (w *sidecarWorld) describe(t *testing.T, pods ...*corev1.Pod) string {
	t.Helper()
	text := fmt.Sprintf("guards %s\nmesh %v\n", marshal(t, w.guards), w.defaults)
	for _, p := range pods {
		text += string(marshal(t, p)) + "\n"
	}
	return text
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func sameJSON(t *testing.T, a, b *corev1.Pod) bool {
	t.Helper()
	return string(marshal(t, a)) == string(marshal(t, b))
}

// sameNumbers compares the resources of containers.
func sameNumbers(a, b *corev1.Pod, names ...string) bool {
	numbers := func(p *corev1.Pod) map[string]mesh.Resources {
		m := map[string]mesh.Resources{}
		for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			if slices.Contains(names, c.Name) {
				m[c.Name] = mesh.ResourcesOf(&c.Resources)
			}
		}
		return m
	}
	return maps.EqualFunc(numbers(a), numbers(b), func(x, y mesh.Resources) bool { return x.Equal(y) })
}
