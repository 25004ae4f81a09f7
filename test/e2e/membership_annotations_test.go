package e2e

import "fmt"

// The ways out by annotation or label, in the order of Istio's reference.

func annotated(key, value string) map[string]string { return map[string]string{key: value} }

func annotationVectors() []vector {
	const traffic = "traffic.sidecar.istio.io/"
	const both = "istio-init gets no such capture: "
	list := []vector{
		{name: "exclude an inbound port", istio: "-d: the port goes to the application directly", annotations: annotated(traffic+"excludeInboundPorts", "8080"), code: "MV206"},
		{name: "exclude among Istio's own ports", istio: "the list is taken entry by entry", annotations: annotated(traffic+"excludeInboundPorts", "15090, 8080 ,15021"), code: "MV206"},
		{name: "exclude a port written with a zero", istio: "strconv.ParseUint reads 8080", annotations: annotated(traffic+"excludeInboundPorts", "08080"), code: "MV206"},
		{name: "exclude all inbound ports", istio: "the injector refuses the pod", annotations: annotated(traffic+"excludeInboundPorts", "*"), code: "MV206", podBy: "istio"},
		{name: "exclude a range of inbound ports", istio: "the injector refuses the pod", annotations: annotated(traffic+"excludeInboundPorts", "8000-9000"), code: "MV206", podBy: "istio"},
		{name: "exclude a port in full-width digits", istio: "the injector refuses the pod", annotations: annotated(traffic+"excludeInboundPorts", "８０８０"), code: "MV206", podBy: "istio"},
		{name: "exclude the inbound listener's port", istio: "-d 15006", annotations: annotated(traffic+"excludeInboundPorts", "15006"), code: "MV206"},
		{name: "include one inbound port", istio: "-b: every other port is not captured", annotations: annotated(traffic+"includeInboundPorts", "9090"), code: "MV207"},
		{name: "include no inbound port", istio: "-b '': no inbound capture at all", annotations: annotated(traffic+"includeInboundPorts", ""), code: "MV207"},
		{name: "include all inbound ports and one", istio: "the injector refuses the pod", annotations: annotated(traffic+"includeInboundPorts", "*,8080"), code: "MV207", podBy: "istio"},
		{name: "move the status port", istio: "the injector puts it in place of 15020 in -d", annotations: annotated("status.sidecar.istio.io/port", "8080"), code: "MV208"},
		{name: "move the status port, with a zero", istio: "as 8080", annotations: annotated("status.sidecar.istio.io/port", "08080"), code: "MV208"},
		{name: "exclude an interface", istio: "-c: RETURN in both directions", annotations: annotated(traffic+"excludeInterfaces", "eth0"), code: "MV209"},
		{name: "exclude several interfaces", istio: "-c takes a list", annotations: annotated(traffic+"excludeInterfaces", " eth0 , net1 "), code: "MV209"},
		{name: "reroute a virtual interface", istio: "-k: inbound is treated as outbound", annotations: annotated("istio.io/reroute-virtual-interfaces", "eth0"), code: "MV210"},
		{name: "reroute a virtual interface by the old name", istio: "-k", annotations: annotated(traffic+"kubevirtInterfaces", "eth0"), code: "MV210"},
		{name: "no interception", istio: "istio-proxy without istio-init", annotations: annotated("sidecar.istio.io/interceptionMode", "NONE"), code: "MV211"},
		{name: "an empty interception mode", istio: "the injector refuses the pod", annotations: annotated("sidecar.istio.io/interceptionMode", ""), code: "MV211", podBy: "istio", podOnly: true},
		{name: "exclude an outbound port", istio: "-o: traffic to it leaves directly", annotations: annotated(traffic+"excludeOutboundPorts", "5432"), code: "MV212"},
		{name: "exclude an outbound port next to a permitted one", istio: "-o", annotations: annotated(traffic+"excludeOutboundPorts", "3306,5432"), code: "MV212"},
		{name: "exclude an outbound range", istio: "-x", annotations: annotated(traffic+"excludeOutboundIPRanges", "10.0.0.0/8"), code: "MV212"},
		{name: "exclude all outbound ranges", istio: "-x", annotations: annotated(traffic+"excludeOutboundIPRanges", "0.0.0.0/0"), code: "MV212"},
		{name: "exclude all outbound ranges in halves", istio: "-x", annotations: annotated(traffic+"excludeOutboundIPRanges", "0.0.0.0/1,128.0.0.0/1"), code: "MV212"},
		{name: "exclude all IPv6", istio: "-x", annotations: annotated(traffic+"excludeOutboundIPRanges", "::/0"), code: "MV212"},
		{name: "exclude more than a permitted range", istio: "the mask is 16, not 24", annotations: annotated(traffic+"excludeOutboundIPRanges", "192.0.2.7/16"), code: "MV212"},
		{name: "exclude an address", istio: "the injector refuses the pod", annotations: annotated(traffic+"excludeOutboundIPRanges", "192.0.2.7"), code: "MV212", podBy: "istio"},
		{name: "exclude permitted ranges after a space", istio: "the injector refuses the pod", annotations: annotated(traffic+"excludeOutboundIPRanges", "192.0.2.0/25, 192.0.2.128/25"), code: "MV212", podBy: "istio"},
		{name: "exclude a permitted range and another", istio: "-x takes a list", annotations: annotated(traffic+"excludeOutboundIPRanges", "192.0.2.0/24,203.0.113.0/24"), code: "MV212"},
		{name: "include no outbound range", istio: "-i '': no outbound capture", annotations: annotated(traffic+"includeOutboundIPRanges", ""), code: "MV212"},
		{name: "include one outbound range", istio: "-i: the rest leaves directly", annotations: annotated(traffic+"includeOutboundIPRanges", "10.96.0.0/12"), code: "MV212"},
		{name: "another image", istio: "both istio-proxy and istio-init run it", annotations: annotated("sidecar.istio.io/proxyImage", "evil.example/proxyv2:1"), code: "MV217"},
		{name: "another image that ends like Istio's", istio: "both run it", annotations: annotated("sidecar.istio.io/proxyImage", "evil.example/istio/proxyv2:latest"), code: "MV217"},
		{name: "another image by digest", istio: "the digest decides, not the tag", annotations: annotated("sidecar.istio.io/proxyImage", "docker.io/istio/proxyv2:1.29.0@sha256:0000000000000000000000000000000000000000000000000000000000000000"), code: "MV217"},
		{name: "another tag", istio: "both run it", annotations: annotated("sidecar.istio.io/proxyImage", "docker.io/istio/proxyv2:1.0.0"), code: "MV217"},
		{name: "an image in capitals", istio: "both run it", annotations: annotated("sidecar.istio.io/proxyImage", "EVIL.EXAMPLE/PROXYV2:1"), code: "MV217"},
		{name: "another bootstrap", istio: "the ConfigMap is merged into Envoy's bootstrap", annotations: annotated("sidecar.istio.io/bootstrapOverride", "mine"), code: "MV218"},
		{name: "another control plane", istio: "the agent goes by the annotation at start", annotations: annotated("sidecar.istio.io/discoveryAddress", "evil.example:15012"), code: "MV220"},
		{name: "injection off by label", istio: "the API server does not ask the injector", labels: annotated("sidecar.istio.io/inject", "false"), code: "MV202"},
		{name: "injection off by annotation", istio: "the injector injects nothing", annotations: annotated("sidecar.istio.io/inject", "false"), code: "MV202"},
		{name: "injection off by both", istio: "not asked", labels: annotated("sidecar.istio.io/inject", "false"), annotations: annotated("sidecar.istio.io/inject", "true"), code: "MV202"},
		{name: "plaintext for the mesh's clients", istio: "clients send plaintext to the pod", labels: annotated("security.istio.io/tlsMode", "disabled"), code: "MV228"},
		{name: "an empty mode for the mesh's clients", istio: "the template keeps the label only if it is not empty", labels: annotated("security.istio.io/tlsMode", ""), code: "MV228", templateOnly: true},
		{name: "a virtual machine", istio: "istiod believes the proxy about its labels", labels: annotated("istio.io/test-vm", "true"), code: "MV228"},
		{name: "enrolled in ambient already", istio: "istiod sends HBONE to the pod", annotations: annotated("ambient.istio.io/redirection", "enabled"), code: "MV227"},
	}
	for _, key := range []string{"sidecar.istio.io/statsInclusionPrefixes", "sidecar.istio.io/statsInclusionSuffixes", "sidecar.istio.io/extraStatTags"} {
		for _, value := range []string{`a"}]}},"static_resources":{"listeners":[]},"x":{"y":{"z":[{"prefix":"b`, `a\`, "a\nb"} {
			list = append(list, vector{name: fmt.Sprintf("%s %q", key, value), istio: "the agent writes the value into Envoy's bootstrap without escaping it", annotations: annotated(key, value), code: "MV218"})
		}
	}
	for _, value := range []string{"False", "FALSE", "0", "f", "F"} {
		list = append(list,
			vector{name: "injection off for istio-cni by label " + value, istio: "the injector injects; istio-cni reads a boolean and captures nothing", labels: annotated("sidecar.istio.io/inject", value), code: "MV202"},
			vector{name: "injection off for istio-cni by annotation " + value, istio: "the injector injects; istio-cni captures nothing", annotations: annotated("sidecar.istio.io/inject", value), code: "MV202"})
	}
	for _, template := range []string{"grpc-agent", "grpc-simple", "gateway"} {
		list = append(list, vector{name: "template " + template, istio: both + "no iptables, or no proxy", annotations: annotated("inject.istio.io/templates", template), code: "MV216"})
	}
	for _, template := range []string{"waypoint", "SIDECAR", "nobody"} {
		list = append(list, vector{name: "template " + template, istio: "the injector refuses the pod", annotations: annotated("inject.istio.io/templates", template), code: "MV216", podBy: "istio"})
	}
	return append(list,
		vector{name: "a template among others", istio: both + "templates are merged, and two istio-proxy are invalid", annotations: annotated("inject.istio.io/templates", "sidecar,gateway"), code: "MV216", podBy: "kubernetes"},
		vector{name: "a template after a space", istio: both + "names are trimmed", annotations: annotated("inject.istio.io/templates", " grpc-agent"), code: "MV216"})
}

// volumeVectors give the proxy files in place of those it rests on.
func volumeVectors() []vector {
	const volume, mount = "sidecar.istio.io/userVolume", "sidecar.istio.io/userVolumeMount"
	config := `{"mine":{"configMap":{"name":"mine"}}}`
	list := []vector{
		{name: "files of the node", istio: "the injector adds any volume", annotations: map[string]string{
			volume: `{"mine":{"hostPath":{"path":"/"}}}`, mount: `{"mine":{"mountPath":"/mine"}}`,
		}, code: "MV219"},
		{name: "a list of mounts", istio: "name in the value beats the index", annotations: map[string]string{
			volume: `[{"name":"mine","configMap":{"name":"mine"}}]`, mount: `[{"name":"mine","mountPath":"/etc/istio/proxy"}]`,
		}, code: "MV219", podBy: "kubernetes"},
		{name: "mounts that are no JSON", istio: "the injector refuses the pod", annotations: annotated(mount, "mountPath: /etc/istio"), code: "MV219", podBy: "istio"},
	}
	for _, at := range []string{"/etc/istio", "/etc/istio/config", "/etc", "/", "/etc/../etc/istio/config", "//etc//istio/config/", "/usr/local/bin", "/var/run/secrets", "/var/lib/istio/envoy", "/etc/ssl/certs", "etc/istio/config",
		"/etc/certs", "/etc/ld.so.preload", "/etc/alternatives", "/etc/nsswitch.conf"} {
		list = append(list, vector{name: "over " + at, istio: "the mount hides files of the proxy",
			annotations: map[string]string{volume: config, mount: `{"mine":{"mountPath":"` + at + `"}}`}, code: "MV219"})
	}
	for _, at := range []string{"/etc/istio/proxy", "/etc/istio/pod", "/var/run/secrets/istio", "/var/run/secrets/workload-spiffe-credentials", "/var/run/secrets/tokens"} {
		// Two mounts of a path are merged into one, or refused.
		list = append(list, vector{name: "in place of " + at, istio: "the template's mount is replaced, or the pod is invalid",
			annotations: map[string]string{volume: config, mount: `{"mine":{"mountPath":"` + at + `"}}`}, code: "MV219", templateOnly: true})
	}
	list = append(list, vector{name: "over a file", istio: "subPath mounts one file", annotations: map[string]string{
		volume: config, mount: `{"mine":{"mountPath":"/usr/local/bin/envoy","subPath":"envoy"}}`,
	}, code: "MV219"})
	// What the application can write, the proxy must not read.
	for _, name := range []string{"istio-envoy", "istio-data", "workload-certs", "workload-socket", "credential-socket"} {
		mount := "containers: [{name: app, volumeMounts: [{name: " + name + ", mountPath: /mine}]}]}"
		list = append(list,
			vector{name: "the proxy's volume " + name, istio: "it is there once the template is merged", spec: "{" + mount, code: "MV219", podOnly: true},
			vector{name: "a volume named " + name, istio: "merged with the template's", spec: "{volumes: [{name: " + name + ", emptyDir: {}}], " + mount, code: "MV219"})
	}
	for _, at := range []string{"/etc/istio/proxy", "/var/run/secrets/workload-spiffe-credentials", "/var/lib/istio/data"} {
		list = append(list, vector{name: "a shared volume at " + at, istio: "the user's istio-proxy is merged over the template",
			spec: "{volumes: [{name: mine, emptyDir: {}}], containers: [{name: app, volumeMounts: [{name: mine, mountPath: /mine}]}, {name: istio-proxy, image: auto, volumeMounts: [{name: mine, mountPath: " + at + "}]}]}", code: "MV219"})
	}
	return append(list,
		vector{name: "a library for every binary", istio: "the dynamic linker loads what /etc/ld.so.preload names, also into iptables",
			spec: "{volumes: [{name: mine, configMap: {name: mine}}], initContainers: [{name: istio-init, image: auto, volumeMounts: [{name: mine, mountPath: /etc/ld.so.preload, subPath: preload}]}]}", code: "MV219"},
		vector{name: "roots at the place of old", istio: "the agent prefers /etc/certs/root-cert.pem to what istiod says",
			spec: "{volumes: [{name: mine, secret: {secretName: mine}}], containers: [{name: istio-proxy, image: auto, volumeMounts: [{name: mine, mountPath: /etc/certs}]}]}", code: "MV219"},
		vector{name: "no revoked certificates", istio: "items choose another key of the ConfigMap",
			spec: "{volumes: [{name: istio-ca-crl, configMap: {name: istio-ca-crl, items: [{key: mine, path: ca-crl.pem}]}}]}", code: "MV219"},
		vector{name: "certificates of another driver", istio: "the agent uses the files that it finds, roots among them", annotations: annotated("sidecar.istio.io/status", `{"initContainers":["other"]}`),
			spec: "{volumes: [{name: mine, csi: {driver: csi.cert-manager.io}}], containers: [{name: istio-proxy, image: auto, volumeMounts: [{name: mine, mountPath: /var/run/secrets/workload-spiffe-credentials}]}]}", code: "MV219", podOnly: true},
		vector{name: "roots of the user's", istio: "the agent trusts what is in root-cert.pem",
			spec: "{volumes: [{name: mine, projected: {sources: [{configMap: {name: mine}}]}}], containers: [{name: istio-proxy, image: auto, volumeMounts: [{name: mine, mountPath: /var/run/secrets/istio}]}]}", code: "MV219"},
		vector{name: "roots by another key", istio: "istiod leaves foreign keys in its ConfigMap, and items choose one",
			spec: "{volumes: [{name: istiod-ca-cert, configMap: {name: istio-ca-root-cert, items: [{key: mine, path: root-cert.pem}]}}]}", code: "MV219"},
		vector{name: "annotations of the user's", istio: "the agent reads its ProxyConfig from /etc/istio/pod/annotations",
			spec: "{volumes: [{name: mine, downwardAPI: {items: [{path: annotations, fieldRef: {fieldPath: \"metadata.annotations['mine']\"}}]}}], containers: [{name: istio-proxy, image: auto, volumeMounts: [{name: mine, mountPath: /etc/istio/pod}]}]}", code: "MV219"},
	)
}
