package policies

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The annotations by which a workload changes what is captured, and what runs as
// its proxy. Source: the injection template and tools/istio-iptables.
const (
	excludeInboundKey    = "traffic.sidecar.istio.io/excludeInboundPorts"
	includeInboundKey    = "traffic.sidecar.istio.io/includeInboundPorts"
	excludeInterfaceKey  = "traffic.sidecar.istio.io/excludeInterfaces"
	virtualInterfaceKey  = "istio.io/reroute-virtual-interfaces"
	kubevirtInterfaceKey = "traffic.sidecar.istio.io/kubevirtInterfaces"
	interceptionKey      = "sidecar.istio.io/interceptionMode"
	excludeOutPortsKey   = "traffic.sidecar.istio.io/excludeOutboundPorts"
	excludeOutRangesKey  = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	includeOutRangesKey  = "traffic.sidecar.istio.io/includeOutboundIPRanges"
	statusPortKey        = "status.sidecar.istio.io/port"
	templatesKey         = "inject.istio.io/templates"
	proxyImageKey        = "sidecar.istio.io/proxyImage"
	bootstrapKey         = "sidecar.istio.io/bootstrapOverride"
	userVolumeKey        = "sidecar.istio.io/userVolume"
	userVolumeMountKey   = "sidecar.istio.io/userVolumeMount"
	discoveryKey         = "sidecar.istio.io/discoveryAddress"
	rewriteProbesKey     = "sidecar.istio.io/rewriteAppHTTPProbers"
	nativeSidecarKey     = "sidecar.istio.io/nativeSidecar"
)

// all is how Istio writes "every port" and "every address".
const all = "*"

// annotation returns a value that is there and not empty.
func (w *workload) annotation(key string) (string, bool) {
	v := strings.TrimSpace(w.meta.Annotations[key])
	return v, v != ""
}

func (w *workload) judgeAnnotations() {
	if w.plane != planeAmbient {
		w.judgeInboundAnnotations()
		w.judgeOutboundAnnotations()
		w.judgeBootstrapAnnotations()
	}
	w.judgeProxyAnnotations()
	w.judgeProbeRewrite()
}

// judgeInboundAnnotations: a port that is not captured takes whatever comes, past
// mutual TLS and authorization.
func (w *workload) judgeInboundAnnotations() {
	excluded, _ := w.annotation(excludeInboundKey)
	if ports := w.uncaptured(excluded); len(ports) > 0 {
		w.refuse(reasonInboundPortsExcluded(), w.annotationField(excludeInboundKey),
			fmt.Sprintf("%s takes %s out of inbound capture, so that plaintext gets in past mutual TLS and authorization; must exclude none", quote(excluded), portList(ports)),
			"remove the annotation; callers from outside the mesh can come in through a gateway")
	}
	if v, ok := w.meta.Annotations[includeInboundKey]; ok && v != all {
		w.refuse(reasonInboundPortsNotIncluded(), w.annotationField(includeInboundKey),
			fmt.Sprintf("%s limits inbound capture to these ports, so that every other one accepts plaintext; must be \"*\" or absent", quote(v)),
			"remove the annotation")
	}
	if v, ok := w.annotation(statusPortKey); ok && v != w.statusPort() && v != "0" {
		w.refuse(reasonStatusPortMoved(), w.annotationField(statusPortKey),
			fmt.Sprintf("%s puts this port in place of the agent's into the list of ports that are never captured; must be %q or absent", quote(v), w.statusPort()),
			"remove the annotation")
	}
	if v, ok := w.annotation(excludeInterfaceKey); ok {
		w.refuse(reasonInterfaceExcluded(), w.annotationField(excludeInterfaceKey),
			fmt.Sprintf("%s takes an interface out of capture in both directions; must be absent", quote(v)),
			"remove the annotation")
	}
	for _, key := range []string{virtualInterfaceKey, kubevirtInterfaceKey} {
		if v, ok := w.annotation(key); ok {
			w.refuse(reasonVirtualInterface(), w.annotationField(key),
				fmt.Sprintf("%s has what comes in through this interface treated as outbound, past the demand for mutual TLS; must be absent", quote(v)),
				"remove the annotation; virtual machines belong in a namespace that is not guarded")
		}
	}
	if v, _ := w.annotation(interceptionKey); strings.EqualFold(v, "NONE") {
		w.refuse(reasonInterceptionOff(), w.annotationField(interceptionKey),
			fmt.Sprintf("%s captures no traffic at all; must be \"REDIRECT\", \"TPROXY\" or absent", quote(v)),
			"remove the annotation")
	}
}

// uncaptured returns the entries of a list of ports that are not left out of
// capture for every pod: the proxy's own, and those that the mesh configures.
func (w *workload) uncaptured(list string) []string {
	own := append(splitList(w.injector().ExcludeInboundPorts), w.statusPort(), "15008", "15021", "15090")
	return slices.DeleteFunc(splitList(list), func(p string) bool { return slices.Contains(own, p) })
}

// injector is the configuration of the injector that deals with the workload, or
// what all have in common where that is not known.
func (w *workload) injector() mesh.Injector {
	if w.injection.Injector != nil {
		return *w.injection.Injector
	}
	if list := w.cluster.Injection.Injectors; len(list) > 0 {
		return list[0]
	}
	return mesh.Injector{}
}

// statusPort is where the agent answers.
func (w *workload) statusPort() string {
	return cmp.Or(w.injector().StatusPort, "15020")
}

// judgeOutboundAnnotations: traffic around the proxy leaves in plaintext and
// without the mesh's identity. What is needed is named by the guard, because the
// people who run a namespace are not those who answer for it.
func (w *workload) judgeOutboundAnnotations() {
	excluded, _ := w.annotation(excludeOutPortsKey)
	if ports := w.outboundPorts(excluded); len(ports) > 0 {
		w.refuse(reasonOutboundExcluded(), w.annotationField(excludeOutPortsKey),
			fmt.Sprintf("%s sends traffic to %s past the proxy; must only name ports that MeshGuard %q lets pass", quote(excluded), portList(ports), w.guard.Name),
			fmt.Sprintf("remove them, or have them added to spec.meshMembership.outbound.ports of MeshGuard %q", w.guard.Name))
	}
	excluded, _ = w.annotation(excludeOutRangesKey)
	if entry, all := onlyRanges(w.meta.Annotations[excludeOutRangesKey]); excluded != "" && !all && !w.complete {
		w.refuse(reasonOutboundExcluded(), w.annotationField(excludeOutRangesKey),
			fmt.Sprintf("%s is no range of addresses, and Istio's injector refuses the pod for it; must be in CIDR notation, without spaces", quote(entry)),
			"add the length of the prefix, which is /32 for an address of IPv4 and /128 for one of IPv6")
	} else if ranges := w.outboundRanges(excluded); len(ranges) > 0 {
		w.refuse(reasonOutboundExcluded(), w.annotationField(excludeOutRangesKey),
			fmt.Sprintf("%s sends traffic to %s past the proxy; must only name ranges that MeshGuard %q lets pass", quote(excluded), quote(strings.Join(ranges, ",")), w.guard.Name),
			fmt.Sprintf("remove them, or have them added to spec.meshMembership.outbound.cidrs of MeshGuard %q", w.guard.Name))
	}
	if v, ok := w.meta.Annotations[includeOutRangesKey]; ok && !w.includesAllRanges(v) {
		w.refuse(reasonOutboundExcluded(), w.annotationField(includeOutRangesKey),
			fmt.Sprintf("%s captures traffic to these ranges only, and lets the rest pass the proxy; must be \"*\" or absent", quote(v)),
			"remove the annotation")
	}
}

func (w *workload) outboundPorts(list string) []string {
	mesh := splitList(w.injector().ExcludeOutboundPorts)
	return slices.DeleteFunc(splitList(list), func(p string) bool {
		return slices.Contains(mesh, p) || slices.ContainsFunc(w.guard.MeshMembership.Outbound.Ports, func(n int32) bool { return strconv.Itoa(int(n)) == p })
	})
}

// outboundRanges returns the entries that lie in no range that the guard or the
// mesh lets pass.
func (w *workload) outboundRanges(list string) []string {
	passed := append(splitList(w.injector().ExcludeIPRanges), w.guard.MeshMembership.Outbound.CIDRs...)
	return slices.DeleteFunc(splitList(list), func(r string) bool {
		return slices.ContainsFunc(passed, func(outer string) bool { return within(r, outer) })
	})
}

// onlyRanges reports whether Istio takes every entry for a range, or else the first
// that it does not: it wants the length of the prefix of a single address too, and
// no spaces (pkg/kube/inject/validate.go).
func onlyRanges(list string) (entry string, ok bool) {
	for _, r := range strings.Split(list, ",") {
		if _, err := netip.ParsePrefix(r); err != nil {
			return r, false
		}
	}
	return "", true
}

// within reports whether one address range lies in another. What is no range, which
// Istio does not inject with, lies in none.
func within(inner, outer string) bool {
	i, _ := netip.ParsePrefix(inner)
	o, _ := netip.ParsePrefix(outer)
	return o.Bits() <= i.Bits() && o.Contains(i.Addr())
}

func (w *workload) includesAllRanges(v string) bool {
	configured := w.injector().IncludeIPRanges
	return v == all || configured != "" && v == configured
}

// judgeProxyAnnotations: what changes the proxy itself.
func (w *workload) judgeProxyAnnotations() {
	w.judgeTemplates()
	if v, _ := w.annotation(proxyImageKey); strings.Contains(v, "/") && !w.allowsImage(v) {
		// Without a slash Istio takes no notice of it.
		w.refuse(reasonProxyImageForbidden(), w.annotationField(proxyImageKey),
			fmt.Sprintf("%s is not an image of the mesh; must be %s", quote(v), w.imagesText()),
			fmt.Sprintf("remove the annotation, or have the image added to spec.meshMembership.proxyImages of MeshGuard %q", w.guard.Name))
	}
	if v, ok := w.annotation(bootstrapKey); ok {
		w.refuse(reasonBootstrapOverridden(), w.annotationField(bootstrapKey),
			fmt.Sprintf("ConfigMap %s is merged into the proxy's bootstrap, and may add listeners without TLS; must be absent", quote(v)),
			"remove the annotation; what the whole mesh needs belongs in its configuration")
	}
	if v, ok := w.annotation(discoveryKey); ok {
		w.refuse(reasonDiscoveryAddress(), w.annotationField(discoveryKey),
			fmt.Sprintf("%s has the proxy take its configuration from there; must be absent", quote(v)),
			"remove the annotation")
	}
	w.judgeUserVolumes()
}

// judgeTemplates: any other template may leave out the proxy or the capture.
func (w *workload) judgeTemplates() {
	v, _ := w.annotation(templatesKey)
	known := append([]string{"sidecar"}, w.guard.MeshMembership.InjectionTemplates...)
	known = append(known, w.injector().Templates...)
	if w.plane == planeProxy {
		known = append(known, "gateway")
	}
	for _, name := range splitList(v) {
		if slices.Contains(known, name) {
			continue
		}
		must := "must be \"sidecar\" or absent"
		if name == "gateway" {
			must = "must be for a pod that holds nothing but the proxy, as its template captures nothing"
		}
		w.refuse(reasonTemplateForbidden(), w.annotationField(templatesKey),
			fmt.Sprintf("template %s is not Istio's sidecar; %s", quote(name), must),
			fmt.Sprintf("remove the annotation, or have the template added to spec.meshMembership.injectionTemplates of MeshGuard %q", w.guard.Name))
	}
}

// judgeUserVolumes: a volume may give the proxy files, but not in place of those
// that it rests on, and not from the node.
func (w *workload) judgeUserVolumes() {
	if v, ok := w.annotation(userVolumeMountKey); ok {
		mounts, err := namedValues[struct {
			MountPath string `json:"mountPath"`
		}](v)
		if err != nil {
			w.refuse(reasonProxyVolumeForbidden(), w.annotationField(userVolumeMountKey),
				fmt.Sprintf("%s is not readable JSON; must be an object or a list of volume mounts", quote(v)), "mend or remove the annotation")
		}
		for _, name := range sortedKeys(mounts) {
			if at := mounts[name].MountPath; proxyPath(at) {
				w.refuse(reasonProxyVolumeForbidden(), w.annotationField(userVolumeMountKey),
					fmt.Sprintf("volume %s is mounted at %s, over what the proxy runs and trusts; must be at a path of its own, such as /mnt/certs", quote(name), quote(at)),
					"mount it elsewhere, or remove the annotation")
			}
		}
	}
	if v, ok := w.annotation(userVolumeKey); ok {
		volumes, err := namedValues[map[string]json.RawMessage](v)
		if err != nil {
			w.refuse(reasonProxyVolumeForbidden(), w.annotationField(userVolumeKey),
				fmt.Sprintf("%s is not readable JSON; must be an object or a list of volumes", quote(v)), "mend or remove the annotation")
		}
		for _, name := range sortedKeys(volumes) {
			if _, host := volumes[name]["hostPath"]; host {
				w.refuse(reasonProxyVolumeForbidden(), w.annotationField(userVolumeKey),
					fmt.Sprintf("volume %s gives the proxy files of the node; must not be a hostPath", quote(name)),
					"use a Secret or ConfigMap, or remove the annotation")
			}
		}
	}
}

// namedValues reads an object of values by name, or a list of them, which Istio's
// template ranges over just so. In a list they go by their place.
func namedValues[V any](text string) (map[string]V, error) {
	var list []V
	if json.Unmarshal([]byte(text), &list) == nil {
		values := make(map[string]V, len(list))
		for i, v := range list {
			values[strconv.Itoa(i)] = v
		}
		return values, nil
	}
	var values map[string]V
	err := json.Unmarshal([]byte(text), &values)
	return values, err
}

// certsPath is where the agent takes roots and certificates from, in place of those
// that it gets from istiod, if there are any.
//
// Source: pkg/security/security.go, DefaultRootCertFilePath; generateFileSecret in
// security/pkg/nodeagent/cache/secretcache.go.
const certsPath = "/etc/certs"

// proxyPath reports whether a mount there could hide files of the proxy, or give it
// some that it goes by: binaries and what is loaded into them, its bootstrap, the
// roots it trusts, its certificates and sockets.
func proxyPath(at string) bool {
	if !strings.HasPrefix(at, "/") {
		at = "/" + at
	}
	at = path.Clean(at)
	for _, own := range [...]string{
		"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sys", "/dev",
		"/etc/istio", certsPath, "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/var/lib/istio", "/var/run/secrets", "/run/secrets",
		"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/hosts", "/etc/resolv.conf", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf",
		"/etc/ld.so.preload", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
		"/etc/alternatives", "/etc/environment", "/etc/profile", "/etc/profile.d", "/etc/bash.bashrc", "/etc/pam.d", "/etc/sudoers", "/etc/sudoers.d",
		"/etc/ethertypes", "/etc/nftables.conf", "/etc/protocols", "/etc/services", "/etc/xtables",
	} {
		if under(at, own) || under(own, at) {
			return true
		}
	}
	return false
}

// under reports whether a clean path is the given one, or in it.
func under(at, root string) bool {
	rest, ok := strings.CutPrefix(at, strings.TrimSuffix(root, "/"))
	return ok && (rest == "" || rest[0] == '/')
}
