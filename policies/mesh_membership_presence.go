package policies

import (
	"fmt"
	"strconv"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The labels and annotations that decide about injection and enrolment.
const (
	injectKey     = "sidecar.istio.io/inject"
	injectionKey  = "istio-injection"
	revisionKey   = "istio.io/rev"
	dataplaneKey  = "istio.io/dataplane-mode"
	statusKey     = "sidecar.istio.io/status"
	ambientMode   = "ambient"
	dataplaneNone = "none"
)

// judgePresence refuses what is not in the mesh, and says why it is not: by the
// decision that Istio takes, or else by the fact alone.
//
// Source: pkg/kube/inject/inject.go, injectRequired; the selectors of the
// injectors' MutatingWebhookConfigurations; cni/pkg/util/enablement_selector.go.
func (w *workload) judgePresence() {
	w.judgeHostNetwork()
	w.judgeInjectValue()
	if w.plane != planeNone {
		return
	}
	if mesh.AmbientEnrolled(w.candidate()) {
		w.refuse(reasonNotInMesh(), w.enrolmentField(),
			fmt.Sprintf("enrolled in ambient, which MeshGuard %q does not accept; must have Istio's sidecar", w.guard.Name),
			fmt.Sprintf("enable injection for the namespace, or, if ztunnel runs on all nodes, have %s added to spec.meshMembership.dataPlanes of MeshGuard %q", v1alpha1.DataPlaneAmbient, w.guard.Name))
		return
	}
	if w.judgeAmbientOptOut() {
		return
	}
	w.judgeInjectionCause()
}

// judgeHostNetwork: on the node's network there is no network of the pod's own
// whose traffic could be captured; neither data plane takes such a pod.
func (w *workload) judgeHostNetwork() {
	if w.spec.HostNetwork {
		w.refuse(reasonHostNetwork(), w.field("spec.hostNetwork"),
			"true puts the pod on the node's network, where Istio neither injects nor captures; must be false in a guarded namespace",
			"remove hostNetwork; an agent that needs the node's network belongs in a namespace of its own that is not guarded")
	}
}

// judgeInjectValue: besides "false", the injector takes every other value for
// "not said", but istio-cni reads it as a boolean and installs no rules for "0",
// "f" or "False" (cni/pkg/plugin/plugin.go).
func (w *workload) judgeInjectValue() {
	if w.plane != planeNone && w.plane != planeSidecar {
		return
	}
	value, field := w.injectValue()
	if off, err := strconv.ParseBool(value); err != nil || off {
		return
	}
	w.refuse(reasonInjectionOptOut(), field,
		fmt.Sprintf("%q keeps Istio's sidecar out of the pod or its traffic uncaptured; must be \"true\" or absent", value),
		"remove it, or set it to \"true\"")
}

// injectValue is the wish of the pod: the label, where it exists, hides the
// annotation.
func (w *workload) injectValue() (value, field string) {
	if v, ok := w.meta.Labels[injectKey]; ok {
		return v, w.labelField(injectKey)
	}
	return w.meta.Annotations[injectKey], w.annotationField(injectKey)
}

// enrolmentField is the label that enrols the pod in ambient.
func (w *workload) enrolmentField() string {
	if w.meta.Labels[dataplaneKey] == ambientMode {
		return w.labelField(dataplaneKey)
	}
	return w.namespaceField()
}

// namespaceField is where a finding about the namespace's labels points to.
func (w *workload) namespaceField() string { return "metadata.namespace" }

// judgeInjectionCause explains a missing sidecar.
func (w *workload) judgeInjectionCause() {
	ns := w.namespace
	switch w.injection.Cause {
	case mesh.NotInjectedHostNetwork, mesh.NotInjectedLabel, mesh.NotInjectedAnnotation:
		// Said already, by the field that causes it.
	case mesh.NotInjectedNamespace:
		w.refuse(reasonNamespaceNotInjected(), w.namespaceField(),
			fmt.Sprintf("namespace %q has no label that turns injection on, and the pod does not ask for it; must get Istio's sidecar", ns.Name),
			fmt.Sprintf("label the namespace (kubectl label namespace %s %s=enabled), or set label %s: \"true\" on the pod", ns.Name, injectionKey, injectKey))
	case mesh.NotInjectedNamespaceDisabled:
		w.refuse(reasonNamespaceNotInjected(), w.namespaceField(),
			fmt.Sprintf("namespace %q has label %s: %q, which turns injection off whatever the pod says; must be \"enabled\"", ns.Name, injectionKey, ns.Labels[injectionKey]),
			fmt.Sprintf("kubectl label --overwrite namespace %s %s=enabled", ns.Name, injectionKey))
	case mesh.NotInjectedNamespaceRevision:
		w.refuse(reasonDeadRevision(), w.namespaceField(),
			fmt.Sprintf("namespace %q has label %s: %q, and no injector serves that revision or tag (there are: %s); must name one that is there", ns.Name, revisionKey, ns.Labels[revisionKey], revisionsText(w.cluster.Injection)),
			fmt.Sprintf("kubectl label --overwrite namespace %s %s=REVISION", ns.Name, revisionKey))
	case mesh.NotInjectedPodRevision:
		w.refuse(reasonDeadRevision(), w.labelField(revisionKey),
			fmt.Sprintf("%q is no revision or tag that an injector serves (there are: %s); must name one that is there, or be absent", w.meta.Labels[revisionKey], revisionsText(w.cluster.Injection)),
			"remove the label, so that the namespace decides")
	case mesh.NotInjectedNoInjector:
		w.notInMesh("no webhook of an injector answers for this namespace", "install Istio's injector, or mend its MutatingWebhookConfiguration")
	case mesh.NotInjectedSelector:
		w.notInMesh("the pod's labels match neverInjectSelector in the injector's configuration", fmt.Sprintf("set label %s: \"true\" on the pod", injectKey))
	case mesh.NotInjectedPolicy:
		w.notInMesh("the injector's configuration has a policy other than \"enabled\"", fmt.Sprintf("set label %s: \"true\" on the pod, or mend the ConfigMap istio-sidecar-injector", injectKey))
	case mesh.NotInjectedIgnoredNamespace:
		w.notInMesh(fmt.Sprintf("Istio injects nothing in namespace %q", ns.Name), "move the workload to another namespace")
	default:
		w.notInMesh("Istio's injector would have added it, so something took it out again", "look for a mutating webhook that runs after Istio's, or create the pod through the API server again")
	}
}

func (w *workload) notInMesh(why, remedy string) {
	w.refuse(reasonNotInMesh(), w.field("spec.containers"),
		fmt.Sprintf("there is no container %s: %s; must have Istio's sidecar", proxyContainer, why), remedy)
}
