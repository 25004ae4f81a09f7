package e2e

import "fmt"

const proxyConfigAnnotation = "proxy.istio.io/config"

// proxyConfigVectors are what annotation proxy.istio.io/config can do, in all the
// notations that Istio's parser takes.
func proxyConfigVectors() []vector {
	list := []vector{}
	for _, c := range []struct{ name, istio, config, code string }{
		{"no interception", "no istio-init", "interceptionMode: NONE", "MV211"},
		{"no interception by number", "jsonpb takes numbers for enums", "interceptionMode: 2", "MV211"},
		{"no interception in snake case", "jsonpb takes the names of the proto", "interception_mode: NONE", "MV211"},
		{"an interception mode that is none", "-m 99", "interceptionMode: 99", "MV211"},
		{"another control plane", "the agent connects there", "discoveryAddress: evil.example:15012", "MV213"},
		{"another control plane in snake case", "the agent connects there", "discovery_address: evil.example:15012", "MV213"},
		{"another control plane in JSON", "YAML takes JSON", `{"discoveryAddress":"evil.example:15012"}`, "MV213"},
		{"another control plane by escape", "YAML undoes escapes", `{"discovery\u0041ddress": "evil.example:15012"}`, "MV213"},
		{"another control plane by alias", "YAML resolves aliases", "meshId: &a evil.example:15012\ndiscoveryAddress: *a", "MV213"},
		{"another control plane by merge key", "YAML merges mappings", "tracing: &t {discoveryAddress: evil.example:15012}\n<<: *t", "MV213"},
		{"another control plane in base64", "YAML decodes !!binary", "discoveryAddress: !!binary ZXZpbC5leGFtcGxlOjE1MDEy", "MV213"},
		{"another control plane after an unknown field", "unknown fields are skipped", "nonsense: {a: [1]}\ndiscoveryAddress: evil.example:15012", "MV213"},
		{"another control plane after a comment", "YAML", "# tuned by ops\n\n---\ndiscoveryAddress: evil.example:15012", "MV213"},
		{"another control plane with carriage returns", "YAML", "concurrency: 2\r\ndiscoveryAddress: evil.example:15012\r\n", "MV213"},
		{"a configuration file", "Envoy starts with it", "customConfigFile: /mine.json", "MV213"},
		{"a bootstrap template", "Envoy starts with it", "proxyBootstrapTemplatePath: /mine.json", "MV213"},
		{"another binary", "the agent starts it", "binaryPath: /mine", "MV213"},
		{"another directory", "Envoy's bootstrap is written there", "configPath: /mine", "MV213"},
		{"no authentication of the control plane", "xDS in plaintext; the zero value, set explicitly", "controlPlaneAuthPolicy: NONE", "MV213"},
		{"no authentication of the control plane, by number", "the same", "control_plane_auth_policy: 0", "MV213"},
		{"another status port", "the agent answers there", "statusPort: 8080", "MV213"},
		{"another admin port", "Envoy's admin interface", "proxyAdminPort: 8080", "MV213"},
		{"further roots", "trust is extended", "caCertificatesPem: [mine]", "MV213"},
		{"runtime values", "switches of Envoy's", "runtimeValues: {a: b}", "MV213"},
		{"an image type", "suffix of the image", "image: {imageType: mine}", "MV217"},
		{"a cluster that ends its text", "the agent writes it into Envoy's bootstrap without escaping it", `serviceCluster: 'a"},"static_resources":{"listeners":[]},"node":{"cluster":"b'`, "MV218"},
		{"statistics that end their text", "the same", `proxyStatsMatcher: {inclusionPrefixes: ['a"},{"prefix":"b']}`, "MV218"},
		{"suffixes that end their text", "the same", `proxyStatsMatcher: {inclusionSuffixes: ['a"},{"prefix":"b']}`, "MV218"},
		{"tags that end their text", "the same", `extraStatTags: ['a"},{"regex":"b']`, "MV218"},
		{"a reference to the environment", "the kubelet expands $(NAME) in PROXY_CONFIG",
			`serviceCluster: "$(OTEL_SERVICE_NAME)"` + "\nproxyMetadata: {OTEL_SERVICE_NAME: mine}", "MV213"},
	} {
		list = append(list, vector{name: c.name, istio: c.istio, annotations: annotated(proxyConfigAnnotation, c.config), code: c.code})
	}
	// Whichever of the two counts, nothing gets in that nobody understands.
	for _, c := range []struct{ name, config, code string }{
		{"both notations of a field", "proxyMetadata: {}\nproxy_metadata: {SKIP_RULE_APPLY: 'true'}", "MV213"},
		{"a field twice", "proxyMetadata: {}\nproxyMetadata: {SKIP_RULE_APPLY: 'true'}", "MV214"},
	} {
		list = append(list, vector{name: c.name, istio: "which of them counts is up to the parser", annotations: annotated(proxyConfigAnnotation, c.config), code: c.code})
	}
	for _, c := range []struct{ name, config string }{
		{"no YAML", "a: [b"},
		{"no mapping", "- discoveryAddress"},
		{"a boolean for text", "proxyMetadata: {SKIP_RULE_APPLY: true}"},
	} {
		list = append(list, vector{name: c.name, istio: "the injector refuses the pod", annotations: annotated(proxyConfigAnnotation, c.config), code: "MV213", podBy: "istio"})
	}
	return list
}

// proxyMetadataVectors: every key of proxyMetadata becomes environment of
// istio-proxy and of istio-init.
func proxyMetadataVectors() []vector {
	var list []vector
	for _, c := range []struct{ name, value, istio string }{
		{"SKIP_RULE_APPLY", "true", "istio-init writes no rules"},
		{"DRY_RUN", "true", "istio-init writes no rules"},
		{"CLEANUP_ONLY", "true", "istio-init removes its rules"},
		{"INBOUND_TUNNEL_PORT", "8080", "8080 is returned in place of 15008"},
		{"ISTIO_EXCLUDE_INTERFACES", "eth0", "as the annotation"},
		{"KUBE_VIRT_INTERFACES", "eth0", "as the annotation"},
		{"ISTIO_KUBE_VIRT_INTERFACES", "eth0", "unknown today"},
		{"PROXY_GID", "1000", "traffic of the group is left alone"},
		{"PROXY_UID", "1000", "overruled by -u today"},
		{"ISTIO_OUTBOUND_OWNER_GROUPS", "java", "only traffic of the group is captured"},
		{"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "java", "traffic of the group is left alone"},
		{"ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", "8080", "traffic of the port is left alone"},
		{"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "10.0.0.0/8", "traffic to it is taken for local"},
		{"NATIVE_NFTABLES", "true", "another backend"},
		{"FORCE_IPTABLES_BINARY", "legacy", "another backend"},
		{"ISTIO_INBOUND_PORTS", "", "overruled by -b today"},
		{"DISABLE_ENVOY", "true", "the agent starts no Envoy, and istio-cni captures nothing"},
		{"IPTABLES_TRACE_LOGGING", "true", "istio-proxy becomes privileged"},
		{"CA_ADDR", "evil.example:15012", "another certificate authority"},
		{"CA_ROOT_CA", "/mine.pem", "another root"},
		{"XDS_ROOT_CA", "/mine.pem", "another root"},
		{"TRUST_DOMAIN", "evil.example", "another trust domain"},
		{"FILE_MOUNTED_CERTS", "true", "certificates from files"},
		{"OUTPUT_CERTS", "/mine", "keys are written to files"},
		{"WORKLOAD_IDENTITY_SOCKET_FILE", "mine", "another SDS server"},
		{"ENVOY_STATUS_PORT", "8080", "frees 15021, which stays uncaptured"},
		{"ENVOY_PROMETHEUS_PORT", "8080", "frees 15090, which stays uncaptured"},
		{"ISTIO_METAJSON_LABELS", `{\"app\":\"legacy\"}`, "istiod matches policies against forged labels"},
		{"ISTIO_DUAL_STACK", "false", "the other address family"},
		{"PROXY_CONFIG", "{}", "stands after Istio's own, and counts"},
		{"PILOT_CERT_PROVIDER", "none", "stands after Istio's own, and counts"},
		{"ISTIO_META_INTERCEPTION_MODE", "NONE", "stands after Istio's own, and counts"},
		{"POD_NAMESPACE", "other", "stands after Istio's own, and counts"},
		{"LD_PRELOAD", "/mine.so", "the linker's"},
		{"GODEBUG", "x509sha1=1", "the Go runtime's"},
		{"PATH", "/mine", "where binaries are found"},
		{"HTTPS_PROXY", "evil.example", "where requests go"},
		{"skip_rule_apply", "true", "unknown today"},
		{"ISTIO_META_DNS_CAPTURE\u00a0", "true", "unknown today"},
	} {
		v := vector{name: c.name, istio: c.istio, code: "MV214",
			annotations: annotated(proxyConfigAnnotation, fmt.Sprintf("proxyMetadata: {%q: \"%s\"}", c.name, c.value))}
		if c.name == "ISTIO_METAJSON_LABELS" {
			v.podBy = "istio" // the template does not escape the quotes
		}
		if c.name == "ISTIO_META_DNS_CAPTURE\u00a0" {
			v.podBy = "kubernetes"
		}
		list = append(list, v)
	}
	return append(list,
		vector{name: "in snake case", istio: "jsonpb takes the names of the proto", annotations: annotated(proxyConfigAnnotation, "proxy_metadata: {SKIP_RULE_APPLY: 'true'}"), code: "MV214"},
		vector{name: "among harmless ones", istio: "every key counts", annotations: annotated(proxyConfigAnnotation, "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true', DRY_RUN: 'true'}"), code: "MV214"},
		vector{name: "by merge key", istio: "YAML merges mappings", annotations: annotated(proxyConfigAnnotation, "tracing: &t {DRY_RUN: 'true'}\nproxyMetadata:\n  <<: *t"), code: "MV214"},
		vector{name: "in a value", istio: "the template does not escape line breaks, so that a value can add variables",
			annotations: annotated(proxyConfigAnnotation, `proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true\"\n    - name: DRY_RUN\n      value: \"true"}`), code: "MV214", podOnly: true},
	)
}
