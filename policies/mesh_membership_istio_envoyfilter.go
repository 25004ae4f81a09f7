package policies

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// EnvoyFilter. It patches what Istio has generated for Envoy, and what it does
// cannot be told from it in general. Denied is what reaches below the point where
// TLS ends, by which a listener can come to take plaintext and a cluster to send it,
// and what leads requests to another cluster, such as PassthroughCluster, past the
// TLS that Istio chose. A remark for what works on requests only: rate limits,
// headers and Lua are what people use it for.
//
// Those that the platform has looked at are named in
// spec.meshMembership.envoyFilters of the guard.
//
// Source: Istio, EnvoyFilter reference, ApplyTo and PatchContext;
// pilot/pkg/networking/core/envoyfilter.

func (j *istioReview) judgeEnvoyFilter(filter *networkingv1alpha3.EnvoyFilter) {
	if !j.applies() || matchesAny(j.object.Namespace+"/"+j.object.Name, j.guard.MeshMembership.EnvoyFilters) {
		return
	}
	remedy := fmt.Sprintf("have it added to spec.meshMembership.envoyFilters of MeshGuard %q as \"%s/%s\", or do without it",
		j.guard.Name, j.object.Namespace, j.object.Name)
	requests := 0
	for i, p := range filter.GetConfigPatches() {
		does := patchDoes(p)
		if does == "" {
			requests++
			continue
		}
		field := fmt.Sprintf("spec.configPatches[%d]", i)
		message := fmt.Sprintf("a patch of %s in context %s can %s, for workloads of %s", applyTo(p), p.GetMatch().GetContext(), does, j.whose())
		if edgeOnly(p) {
			j.remark(reasonEnvoyFilterForbidden(), field, message, remedy)
			continue
		}
		j.refuse(reasonEnvoyFilterForbidden(), field, message+"; must not be there", remedy)
	}
	if requests > 0 {
		j.remark(reasonEnvoyFilterForbidden(), "spec.configPatches",
			fmt.Sprintf("%d of %d patches change how the proxies of %s handle requests, and what they do is not judged", requests, len(filter.GetConfigPatches()), j.whose()),
			fmt.Sprintf("once somebody has looked at it, have it added to spec.meshMembership.envoyFilters of MeshGuard %q as \"%s/%s\"", j.guard.Name, j.object.Namespace, j.object.Name))
	}
}

func applyTo(p *networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) string {
	if p.GetApplyTo() == networkingv1alpha3.EnvoyFilter_INVALID {
		return "an unknown kind"
	}
	return p.GetApplyTo().String()
}

// patchDoes says what a patch can do to the protection of traffic, "" for one that
// works on requests only.
func patchDoes(p *networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) string {
	switch p.GetApplyTo() {
	case networkingv1alpha3.EnvoyFilter_LISTENER, networkingv1alpha3.EnvoyFilter_LISTENER_FILTER, networkingv1alpha3.EnvoyFilter_FILTER_CHAIN:
		return "take the demand for mutual TLS out of a listener"
	case networkingv1alpha3.EnvoyFilter_CLUSTER:
		return "take mutual TLS out of what the proxy sends"
	case networkingv1alpha3.EnvoyFilter_BOOTSTRAP:
		return "add listeners and clusters without TLS"
	case networkingv1alpha3.EnvoyFilter_NETWORK_FILTER, networkingv1alpha3.EnvoyFilter_ROUTE_CONFIGURATION,
		networkingv1alpha3.EnvoyFilter_VIRTUAL_HOST, networkingv1alpha3.EnvoyFilter_HTTP_ROUTE:
		if choosesCluster(structpb.NewStructValue(p.GetPatch().GetValue())) {
			return "lead traffic to another cluster, past the TLS that Istio chose for it"
		}
		return ""
	case networkingv1alpha3.EnvoyFilter_HTTP_FILTER, networkingv1alpha3.EnvoyFilter_EXTENSION_CONFIG:
		return ""
	default:
		return "do anything"
	}
}

// edgeOnly reports whether a patch concerns the listeners of gateways alone: they
// take what comes from outside of the mesh.
func edgeOnly(p *networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	listener := []networkingv1alpha3.EnvoyFilter_ApplyTo{
		networkingv1alpha3.EnvoyFilter_LISTENER, networkingv1alpha3.EnvoyFilter_LISTENER_FILTER, networkingv1alpha3.EnvoyFilter_FILTER_CHAIN,
	}
	return p.GetMatch().GetContext() == networkingv1alpha3.EnvoyFilter_GATEWAY && slices.Contains(listener, p.GetApplyTo())
}

// choosesCluster reports whether a value says, at any depth, which cluster traffic
// goes to. Envoy knows each field by its name in proto and in JSON.
func choosesCluster(v *structpb.Value) bool {
	for name, inner := range v.GetStructValue().GetFields() {
		switch strings.ToLower(strings.ReplaceAll(name, "_", "")) {
		case "cluster", "clusterheader", "weightedclusters", "clusterspecifierplugin", "inlineclusterspecifierplugin", "requestmirrorpolicies":
			return true
		}
		if choosesCluster(inner) {
			return true
		}
	}
	return slices.ContainsFunc(v.GetListValue().GetValues(), choosesCluster)
}
