package policies

import (
	"fmt"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// Sidecar, ProxyConfig: how Istio sets up the proxies of a namespace.
//
// Remarks, for Sidecar: an ingress listener that captures nothing opens a port only
// where the pod's interception is off too, which is refused at the pod; TLS of its
// own counts only where the port's mode is DISABLE; what egress leaves out goes to
// its destination as it is, in plaintext, where outboundTrafficPolicy lets it pass.
// The last is how nearly everybody limits what proxies know, and to a STRICT server
// such traffic fails.
//
// Denied, for ProxyConfig: a variable of istio-init and of the proxy that is not
// known to be harmless, as in the annotation proxy.istio.io/config, but with nothing
// to be seen at the workload.
//
// Source: Istio's references of both; pilot/pkg/networking/core/listener_inbound.go,
// buildInboundListeners; pilot/pkg/model/proxy_config.go, EffectiveProxyConfig.

func (j *istioReview) judgeSidecar(sidecar *networkingv1alpha3.Sidecar) {
	if !j.applies() {
		return
	}
	for _, l := range sidecar.GetIngress() {
		at := fmt.Sprintf("spec.ingress[%d]", l.GetPort().GetNumber())
		if l.GetCaptureMode() == networkingv1alpha3.CaptureMode_NONE {
			j.remark(reasonSidecarLoosens(), at+".captureMode",
				"\"NONE\" has the proxy wait for traffic that is sent to it, and open no other port; with interception off, which is refused at the pod, the rest is open", "remove captureMode")
		}
		if l.GetTls() != nil {
			j.remark(reasonSidecarLoosens(), at+".tls",
				"takes the place of mutual TLS where the port's mode is DISABLE, and has no effect where it is STRICT", "remove tls")
		}
	}
	if j.passesThrough(sidecar) {
		j.remark(reasonSidecarLoosens(), "spec.egress",
			fmt.Sprintf("services that are not listed are unknown to the proxies of %s, which send to them in plaintext", j.whose()),
			"set spec.outboundTrafficPolicy.mode to REGISTRY_ONLY, or list \"*/*\"")
	}
}

// passesThrough reports whether proxies forward what they do not know, and know
// less than all.
func (j *istioReview) passesThrough(sidecar *networkingv1alpha3.Sidecar) bool {
	if len(sidecar.GetEgress()) == 0 {
		return false
	}
	for _, l := range sidecar.GetEgress() {
		if slices.Contains(l.GetHosts(), "*/*") {
			return false
		}
	}
	if p := sidecar.GetOutboundTrafficPolicy(); p != nil {
		return p.GetMode() == networkingv1alpha3.OutboundTrafficPolicy_ALLOW_ANY
	}
	return slices.ContainsFunc(j.cluster.ControlPlanes, func(cp mesh.ControlPlane) bool { return !cp.RegistryOnly })
}

func (j *istioReview) judgeProxyConfigObject(config *networkingv1beta1.ProxyConfig) {
	if !j.applies() {
		return
	}
	variables := config.GetEnvironmentVariables()
	for _, name := range sortedKeys(variables) {
		if forbiddenMetadata(name, variables[name], j.cluster.ControlPlanes, j.guard) {
			j.refuse(reasonProxyMetadataForbidden(), "spec.environmentVariables["+quotedName(name)+"]",
				fmt.Sprintf("%s becomes environment of the proxies and of istio-init in %s, and is not known to be harmless; must not be set", quote(variables[name]), j.whose()),
				fmt.Sprintf("remove it, or have the name added to spec.meshMembership.proxyMetadata of MeshGuard %q", j.guard.Name))
		}
	}
	if t := config.GetImage().GetImageType(); !publishedImageType(t) {
		j.refuse(reasonProxyImageForbidden(), "spec.image.imageType",
			fmt.Sprintf("%s is none of Istio's; must be \"default\", \"debug\" or \"distroless\"", quote(t)), "remove image.imageType")
	}
}

// quotedName is a name that anybody may have written as it stands in a path.
func quotedName(name string) string { return strings.Trim(quote(name), `"`) }
