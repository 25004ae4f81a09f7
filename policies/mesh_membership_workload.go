package policies

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// workload is a pod or a template of pods, on which one rule after the other
// notes what it finds.
type workload struct {
	meta *metav1.ObjectMeta
	spec *corev1.PodSpec
	// at is where the template stands in its object, "" for a pod.
	at string
	// complete: Istio's containers are there as they will run. Otherwise injection
	// is still to come, and a container of Istio's name is an override.
	complete bool
	// authored: the annotations are those of whoever sends the request, not what
	// the mesh wrote on a pod that runs.
	authored bool
	// sidecar: there is a proxy, or there will be one; containers of Istio's names
	// are then judged as Istio's, and as anybody's otherwise.
	sidecar bool
	plane   plane

	cluster   *facts.Cluster
	namespace *facts.Namespace
	guard     *facts.Guard
	injection mesh.InjectionDecision

	all, own []container // what containers and applications return

	found []Finding
}

// plane is the way in which a workload is in the mesh.
type plane uint8

const (
	planeNone plane = iota
	planeSidecar
	// planeProxy is a pod that holds nothing but a proxy, a gateway: there is no
	// workload behind it whose traffic could go around it.
	planeProxy
	planeAmbient
)

// judgeWorkload judges a pod or a template before and after the request. A
// breach that was there before does not refuse the change: controllers must be
// able to go on with what exists, and people to mend it step by step.
func judgeWorkload(r *facts.Review, g *facts.Guard) ([]Finding, error) {
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the %s", ErrMissingFact, r.Namespace, r.Kind.Kind)
	}
	if !r.Cluster.Selects(g, ns.Name, ns.Labels) {
		return nil, nil
	}
	after, err := findingsOf(r, r.Object, ns, g)
	if len(after) == 0 || r.Operation == admissionv1.Create {
		return after, err
	}
	before, err := findingsOf(r, r.OldObject, ns, g)
	if err != nil {
		return nil, err
	}
	return onlyNew(before, after, reasonStillOutOfMesh()), nil
}

// onlyNew leaves out of the findings those that were there before, and tells of
// them in one notice. A finding is the same wherever in a list it stands, for what
// stands before it may have been taken out; but each counts for one only.
func onlyNew(before, after []Finding, still Reason) []Finding {
	type same struct {
		reason         Reason
		field, message string
	}
	known := map[same]int{}
	for _, f := range before {
		known[same{f.Reason, withoutIndexes(f.Field), f.Message}]++
	}
	found := make([]Finding, 0, len(after))
	var codes []string
	for _, f := range after {
		k := same{f.Reason, withoutIndexes(f.Field), f.Message}
		if f.Severity == Breach && known[k] > 0 {
			known[k]--
			codes = append(codes, f.Reason.Name+" ["+f.Reason.Code+"]")
			continue
		}
		found = append(found, f)
	}
	if len(codes) > 0 {
		slices.Sort(codes)
		found = append(found, Finding{
			Reason:   still,
			Severity: Notice,
			Type:     metav1.CauseTypeForbidden,
			Message:  "not changed by this request, and would be refused if it were new: " + strings.Join(slices.Compact(codes), ", "),
			Remedy:   "see what meshvakt check says of the object, and mend it",
		})
	}
	return found
}

// withoutIndexes is a field path without the places in lists.
func withoutIndexes(field string) string {
	parts := strings.Split(field, "[")
	for i, p := range parts[1:] {
		if index, rest, _ := strings.Cut(p, "]"); strings.Trim(index, "0123456789") == "" {
			parts[i+1] = "]" + rest
		}
	}
	return strings.Join(parts, "[")
}

// findingsOf judges one side of a request.
func findingsOf(r *facts.Review, object any, ns *facts.Namespace, g *facts.Guard) ([]Finding, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return podFindings(&r.Cluster, o, ns, g, !r.Submitted, !byMesh(r)), nil
	case *facts.Workload:
		if o.Template == nil || o.DeletionTimestamp != nil {
			return nil, nil
		}
		w := newWorkload(&r.Cluster, o.Path, &o.Template.ObjectMeta, &o.Template.Spec, ns, g, false)
		w.authored = true
		w.judge()
		return w.found, nil
	}
	return nil, errWrongObject(r)
}

// byMesh reports whether a component of the mesh changes something: istio-cni
// notes on a pod what it has done.
func byMesh(r *facts.Review) bool {
	account, ok := strings.CutPrefix(r.User.Username, "system:serviceaccount:")
	namespace, _, _ := strings.Cut(account, ":")
	return ok && r.Operation == admissionv1.Update &&
		(namespace == metav1.NamespaceSystem || slices.Contains(r.Cluster.RootNamespaces(), namespace))
}

// podFindings judges a pod that is there, or is to be.
func podFindings(c *facts.Cluster, pod *corev1.Pod, ns *facts.Namespace, g *facts.Guard, final, authored bool) []Finding {
	if !judgedPod(pod) {
		return nil
	}
	w := newWorkload(c, "", &pod.ObjectMeta, &pod.Spec, ns, g, final)
	w.authored = authored
	w.judge()
	return w.found
}

// judgedPod leaves out pods that nothing said here can stop or change: a mirror
// pod stands for one that the kubelet runs from a file, and is itself never run. A
// pod that is being deleted runs on until its grace period is over, which may be
// years.
func judgedPod(pod *corev1.Pod) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	return !mirror && !ended
}

func newWorkload(c *facts.Cluster, at string, meta *metav1.ObjectMeta, spec *corev1.PodSpec, ns *facts.Namespace, g *facts.Guard, final bool) *workload {
	w := &workload{at: at, meta: meta, spec: spec, cluster: c, namespace: ns, guard: g}
	w.all = w.listContainers()
	candidate := w.candidate()
	w.injection = c.Injection.Decide(candidate)
	w.complete = final || !w.injection.Injected()
	w.sidecar = !w.complete || w.hasProxy()
	w.own = slices.DeleteFunc(slices.Clone(w.all), w.istios)
	switch {
	case !w.sidecar:
		if mesh.AmbientEnrolled(candidate) && w.accepts(v1alpha1.DataPlaneAmbient) {
			w.plane = planeAmbient
		}
	case !w.hasApplication():
		w.plane = planeProxy
	default:
		w.plane = planeSidecar
	}
	return w
}

// candidate is what Istio decides by.
func (w *workload) candidate() mesh.Candidate {
	return mesh.Candidate{
		Namespace:       w.namespace.Name,
		NamespaceLabels: w.namespace.Labels,
		Labels:          w.meta.Labels,
		Annotations:     w.meta.Annotations,
		HostNetwork:     w.spec.HostNetwork,
	}
}

func (w *workload) judge() {
	w.judgePresence()
	w.judgeLabels()
	w.judgeAnnotations()
	w.judgeProxyConfig()
	w.judgePodSpec()
	switch w.plane {
	case planeSidecar, planeProxy:
		w.judgeOverrides()
		w.judgeTemplateVolumes()
		if w.complete {
			w.judgeProxy()
			w.judgeCapture()
		}
	case planeAmbient:
		w.judgeAmbient()
	case planeNone:
	}
}

// accepts reports whether the guard accepts a data plane.
func (w *workload) accepts(p v1alpha1.DataPlane) bool {
	return slices.Contains(w.guard.MeshMembership.DataPlanes, p)
}

// field is the path of a field of the pod in the object under review.
func (w *workload) field(path string) string {
	if w.at == "" {
		return path
	}
	return w.at + "." + path
}

func (w *workload) annotationField(key string) string {
	return w.field("metadata.annotations[" + key + "]")
}

func (w *workload) labelField(key string) string { return w.field("metadata.labels[" + key + "]") }

// refuse notes a breach; field is the path in the pod.
func (w *workload) refuse(reason Reason, field, message, remedy string) {
	w.found = append(w.found, Finding{
		Reason: reason, Type: metav1.CauseTypeForbidden,
		Field: field, Message: message, Remedy: remedy,
	})
}

// remark notes what is worth knowing and refuses nothing.
func (w *workload) remark(reason Reason, field, message, remedy string) {
	w.found = append(w.found, Finding{
		Reason: reason, Severity: Notice, Type: metav1.CauseTypeForbidden,
		Field: field, Message: message, Remedy: remedy,
	})
}

// has reports whether something of this reason has been noted: what an annotation
// asks for comes back in the containers that Istio makes of it.
func (w *workload) has(reason Reason) bool {
	return slices.ContainsFunc(w.found, func(f Finding) bool { return f.Reason == reason })
}

// container is a container of any kind with its place.
type container struct {
	*corev1.Container
	field string
	kind  containerKind
}

type containerKind uint8

const (
	regular containerKind = iota
	initial
	ephemeral
)

// containers returns all containers, init containers first, as they start.
func (w *workload) containers() []container { return w.all }

func (w *workload) listContainers() []container {
	list := make([]container, 0, len(w.spec.InitContainers)+len(w.spec.Containers)+len(w.spec.EphemeralContainers))
	for i := range w.spec.InitContainers {
		list = append(list, container{&w.spec.InitContainers[i], w.field(fmt.Sprintf("spec.initContainers[%d]", i)), initial})
	}
	for i := range w.spec.Containers {
		list = append(list, container{&w.spec.Containers[i], w.field(fmt.Sprintf("spec.containers[%d]", i)), regular})
	}
	for i := range w.spec.EphemeralContainers {
		c := corev1.Container(w.spec.EphemeralContainers[i].EphemeralContainerCommon)
		list = append(list, container{&c, w.field(fmt.Sprintf("spec.ephemeralContainers[%d]", i)), ephemeral})
	}
	return list
}

// The names of the containers that Istio puts into a pod. A name proves nothing:
// anybody may use it.
const (
	proxyContainer      = "istio-proxy"
	initContainer       = "istio-init"
	validationContainer = "istio-validation"
)

// istios reports whether the container is where Istio puts one of its name.
func (w *workload) istios(c container) bool {
	switch c.Name {
	case proxyContainer:
		return c.kind != ephemeral
	case initContainer, validationContainer:
		return w.sidecar && c.kind == initial
	}
	return false
}

// applications are the containers that are not Istio's.
func (w *workload) applications() []container { return w.own }

func (w *workload) hasApplication() bool { return len(w.applications()) > 0 }

// proxy returns the container istio-proxy, among the containers or, as a native
// sidecar, among the init containers.
func (w *workload) proxy() (container, bool) {
	for _, c := range w.containers() {
		if c.Name == proxyContainer && c.kind != ephemeral {
			return c, true
		}
	}
	return container{}, false
}

func (w *workload) hasProxy() bool {
	_, ok := w.proxy()
	return ok
}
