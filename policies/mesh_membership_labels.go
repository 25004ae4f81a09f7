package policies

import (
	"fmt"
	"strconv"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

const (
	tlsModeKey            = "security.istio.io/tlsMode"
	testVMKey             = "istio.io/test-vm"
	bypassInboundKey      = "ambient.istio.io/bypass-inbound-capture"
	ambientRedirectionKey = "ambient.istio.io/redirection"
)

// judgeLabels: labels that make others take the pod for something it is not.
//
// Source: pilot/pkg/xds/endpoints/mtls_checker.go for tlsMode; Proxy.
// SetWorkloadLabels in pilot/pkg/model/context.go for test-vm.
func (w *workload) judgeLabels() {
	if v, ok := w.meta.Labels[tlsModeKey]; ok && v != "istio" {
		w.refuse(reasonIdentityForged(), w.labelField(tlsModeKey),
			fmt.Sprintf("%q makes all clients in the mesh send plaintext to the pod; must be \"istio\" or absent", v), "remove the label")
	}
	if v, ok := w.meta.Labels[testVMKey]; ok {
		w.refuse(reasonIdentityForged(), w.labelField(testVMKey),
			fmt.Sprintf("%q makes istiod take the pod for a virtual machine, and believe its proxy about its labels; must be absent", v), "remove the label")
	}
	// istio-cni sets it when it has enrolled a pod. Set beforehand it makes istiod
	// believe that the pod speaks HBONE, and istio-cni that there is nothing to do.
	// Source: cni/pkg/nodeagent/informers.go.
	if v, ok := w.annotation(ambientRedirectionKey); ok && w.authored {
		w.refuse(reasonAmbientBypass(), w.annotationField(ambientRedirectionKey),
			fmt.Sprintf("%s says that the pod is enrolled in ambient already, so that it never will be; must be left to istio-cni", quote(v)), "remove the annotation")
	}
}

// judgeAmbientOptOut refuses what would be enrolled in ambient but for a label or
// annotation of its own, and reports whether it did.
//
// Source: cni/pkg/util/enablement_selector.go, Matches.
func (w *workload) judgeAmbientOptOut() bool {
	if !w.accepts(v1alpha1.DataPlaneAmbient) || w.namespace.Labels[dataplaneKey] != ambientMode && w.meta.Labels[dataplaneKey] != ambientMode {
		return false
	}
	without := w.candidate()
	without.Annotations = nil
	if mesh.AmbientEnrolled(without) {
		w.refuse(reasonAmbientOptOut(), w.annotationField(statusKey),
			fmt.Sprintf("%s says that the pod has a sidecar, which it has not, and so keeps it out of ambient; must be absent", quote(w.meta.Annotations[statusKey])), "remove the annotation")
		return true
	}
	if v := w.meta.Labels[dataplaneKey]; v == dataplaneNone {
		w.refuse(reasonAmbientOptOut(), w.labelField(dataplaneKey),
			fmt.Sprintf("%q takes the pod out of ambient, and it has no sidecar; must be %q or absent", v, ambientMode), "remove the label")
		return true
	}
	return false
}

// judgeAmbient judges a pod that is enrolled in ambient.
//
// Source: cni/pkg/nodeagent/net.go and cni/pkg/iptables for the ingress mode.
func (w *workload) judgeAmbient() {
	v, _ := w.annotation(bypassInboundKey)
	if bypasses, _ := strconv.ParseBool(v); bypasses {
		w.refuse(reasonAmbientBypass(), w.annotationField(bypassInboundKey),
			fmt.Sprintf("%s leaves inbound traffic alone, so that the pod takes plaintext; must be absent", quote(v)), "remove the annotation")
	}
}
