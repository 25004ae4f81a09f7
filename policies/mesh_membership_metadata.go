package policies

import (
	"slices"
	"strings"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Environment of the proxy. proxyMetadata, of the mesh, of a ProxyConfig or of an
// annotation, becomes environment of istio-proxy and of istio-init, where almost
// every flag of istio-iptables can be set by a variable (SKIP_RULE_APPLY,
// INBOUND_TUNNEL_PORT, …), and where istio-agent takes labels for the pod
// (ISTIO_METAJSON_LABELS), other certificate authorities, another Envoy or none.
// New versions add names, so what is allowed is listed, not what is forbidden.
//
// Source: the injection template; tools/istio-iptables/pkg/cmd/root.go;
// pkg/bootstrap/config.go; pilot/cmd/pilot-agent/options.

// harmlessMetadata are names that workloads may set without being asked: they
// change when the proxy drains, how it resolves names, what it reports.
func harmlessMetadata() []string {
	return []string{
		"EXIT_ON_ZERO_ACTIVE_CONNECTIONS",
		"GOMAXPROCS",
		"GOMEMLIMIT",
		"ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION",
		"ISTIO_DELTA_XDS",
		"ISTIO_META_DNS_AUTO_ALLOCATE",
		"ISTIO_META_DNS_CAPTURE",
		"ISTIO_META_ENABLE_HBONE",
		"ISTIO_META_HTTP10",
		"ISTIO_META_IDLE_TIMEOUT",
		"ISTIO_META_REQUESTED_NETWORK_VIEW",
		"ISTIO_META_ROUTER_MODE",
		"ISTIO_META_UNPRIVILEGED_POD",
		"MINIMUM_DRAIN_DURATION",
		"OTEL_RESOURCE_ATTRIBUTES",
		"OTEL_SERVICE_NAME",
		"SECRET_TTL",
		"TERMINATION_DRAIN_DURATION_SECONDS",
	}
}

// renderedEnvironment are the names that the templates of Istio set for the proxy
// by themselves, besides harmless ones. They are fine where Istio put them, once each; a workload that
// sets one gives it another value.
func renderedEnvironment() []string {
	return []string{
		"CA_ADDR", "COMPLIANCE_POLICY", "GODEBUG", "HOST_IP", "INSTANCE_IP",
		"ISTIO_CPU_LIMIT", "ISTIO_KUBE_APP_PROBERS", "ISTIO_META_APP_CONTAINERS", "ISTIO_META_CLUSTER_ID",
		"ISTIO_META_INTERCEPTION_MODE", "ISTIO_META_MESH_ID", "ISTIO_META_NETWORK", "ISTIO_META_NODE_NAME",
		"ISTIO_META_OWNER", "ISTIO_META_POD_PORTS", "ISTIO_META_SERVICE_ACCOUNT", "ISTIO_META_WORKLOAD_NAME",
		"ISTIO_PROMETHEUS_ANNOTATIONS", "PILOT_CERT_PROVIDER", "POD_NAME",
		"POD_NAMESPACE", "PROXY_CONFIG", "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "SERVICE_ACCOUNT",
		"TRUST_DOMAIN",
	}
}

// renderedField is the field of the pod from which the template fills a variable,
// "" for all other variables.
func renderedField(name string) string {
	switch name {
	case "HOST_IP":
		return "status.hostIP"
	case "INSTANCE_IP":
		return "status.podIP"
	case "ISTIO_META_NODE_NAME":
		return "spec.nodeName"
	case "POD_NAME":
		return "metadata.name"
	case "POD_NAMESPACE":
		return "metadata.namespace"
	case "SERVICE_ACCOUNT":
		return "spec.serviceAccountName"
	}
	return ""
}

// forbiddenMetadata reports whether a workload must not set the variable: it is
// neither harmless, nor what the whole mesh has anyway, nor named by the guard.
func forbiddenMetadata(name, value string, planes []mesh.ControlPlane, g *facts.Guard) bool {
	if slices.Contains(harmlessMetadata(), name) || matchesAny(name, g.MeshMembership.ProxyMetadata) {
		return false
	}
	return !slices.ContainsFunc(planes, func(cp mesh.ControlPlane) bool {
		v, ok := cp.ProxyConfig.GetProxyMetadata()[name]
		return ok && v == value
	})
}

// matchesAny reports whether one of the patterns is the value, or ends in a star
// and begins it.
func matchesAny(value string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if prefix, open := strings.CutSuffix(p, "*"); open {
			return strings.HasPrefix(value, prefix)
		}
		return p == value
	})
}
