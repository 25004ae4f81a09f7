package e2e

// overrideVectors replace or change the containers that Istio adds.
func overrideVectors() []vector {
	const overrides = "proxy.istio.io/overrides"
	list := []vector{
		{name: "a foreign proxy", istio: "the user's container is merged over the template's", spec: "{containers: [{name: istio-proxy, image: evil.example/img:1}]}", code: "MV217"},
		{name: "a foreign proxy among the init containers", istio: "merged just so", spec: "{initContainers: [{name: istio-proxy, image: evil.example/img:1}]}", code: "MV217"},
		{name: "a foreign istio-init", istio: "merged just so", spec: "{initContainers: [{name: istio-init, image: evil.example/img:1}]}", code: "MV217"},
		{name: "an istio-init that does nothing", istio: "command replaces what the image starts", spec: "{initContainers: [{name: istio-init, image: auto, command: ['true']}]}", code: "MV215"},
		{name: "an istio-init that only says how", istio: "args replace the template's", spec: "{initContainers: [{name: istio-init, image: auto, args: [istio-iptables, --dry-run]}]}", code: "MV215", podCode: "MV233"},
		{name: "an istio-init with a variable", istio: "almost every flag can be set by a variable", spec: "{initContainers: [{name: istio-init, image: auto, env: [{name: SKIP_RULE_APPLY, value: 'true'}]}]}", code: "MV214"},
		{name: "an istio-init with variables of a ConfigMap", istio: "which may change", spec: "{initContainers: [{name: istio-init, image: auto, envFrom: [{configMapRef: {name: mine}}]}]}", code: "MV214"},
		{name: "an istio-init that nobody waits for", istio: "restartPolicy Always makes it a sidecar", spec: "{initContainers: [{name: istio-init, image: auto, restartPolicy: Always}]}", code: "MV233"},
		{name: "istio-validation where there is no istio-cni", istio: "it captures nothing", spec: "{initContainers: [{name: istio-validation, image: evil.example/img:1}]}", code: "MV217"},
		{name: "a proxy with another command", istio: "command replaces what the image starts", spec: "{containers: [{name: istio-proxy, image: auto, command: [sleep, infinity]}]}", code: "MV215"},
		{name: "a proxy with other arguments", istio: "args replace the template's", spec: "{containers: [{name: istio-proxy, image: auto, args: [proxy, sidecar, --templateFile=/mine]}]}", code: "MV215"},
		{name: "a proxy that runs as the application", istio: "istio-init leaves that user alone", spec: "{containers: [{name: istio-proxy, image: auto, securityContext: {runAsUser: 1000}}]}", code: "MV215"},
		{name: "a proxy that runs as root", istio: "istio-init leaves root alone", spec: "{containers: [{name: istio-proxy, image: auto, securityContext: {runAsUser: 0, runAsNonRoot: false}}]}", code: "MV215"},
		{name: "a proxy that runs as another group", istio: "istio-init leaves that group alone", spec: "{containers: [{name: istio-proxy, image: auto, securityContext: {runAsGroup: 1000}}]}", code: "MV215"},
		{name: "a privileged proxy", istio: "exec into it may do anything", spec: "{containers: [{name: istio-proxy, image: auto, securityContext: {privileged: true, allowPrivilegeEscalation: true}}]}", code: "MV215"},
		{name: "a proxy with NET_ADMIN", istio: "exec into it may flush the rules", spec: "{containers: [{name: istio-proxy, image: auto, securityContext: {capabilities: {add: [NET_ADMIN]}}}]}", code: "MV215"},
		{name: "a proxy whose hook undoes the capture", istio: "pilot-agent has a subcommand for it", spec: "{containers: [{name: istio-proxy, image: auto, lifecycle: {postStart: {exec: {command: [pilot-agent, istio-clean-iptables]}}}}]}", code: "MV215"},
		{name: "a proxy with a hook", istio: "runs as the proxy's user", spec: "{containers: [{name: istio-proxy, image: auto, lifecycle: {preStop: {exec: {command: [sh, -c, 'curl evil.example']}}}}]}", code: "MV215"},
		{name: "a proxy with a probe", istio: "runs as the proxy's user", spec: "{containers: [{name: istio-proxy, image: auto, livenessProbe: {exec: {command: [sh]}}}]}", code: "MV215"},
		{name: "a proxy in another directory", istio: "the paths of its roots, tokens and sockets are relative",
			spec: "{volumes: [{name: mine, configMap: {name: mine}}], containers: [{name: istio-proxy, image: auto, workingDir: /mine, volumeMounts: [{name: mine, mountPath: /mine}]}]}", code: "MV215"},
		{name: "a proxy without Envoy", istio: "the agent starts none", spec: "{containers: [{name: istio-proxy, image: auto, env: [{name: DISABLE_ENVOY, value: 'true'}]}]}", code: "MV214"},
		{name: "a variable of a Secret", istio: "which may change", spec: "{containers: [{name: istio-proxy, image: auto, env: [{name: OTEL_SERVICE_NAME, valueFrom: {secretKeyRef: {name: mine, key: a}}}]}]}", code: "MV214"},
		{name: "one of Istio's variables", istio: "the user's value wins", spec: "{containers: [{name: istio-proxy, image: auto, env: [{name: TRUST_DOMAIN, value: evil.example}]}]}", code: "MV214"},
	}
	// With a status Istio takes the pod for one that it injected before, and does
	// not note what it merges from the user's containers.
	forged := annotated("sidecar.istio.io/status", `{"initContainers":["other"]}`)
	for _, c := range []struct{ name, container, code string }{
		{"a variable", "env: [{name: PILOT_CERT_PROVIDER, value: none}]", "MV214"},
		{"a variable from an annotation", `env: [{name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['mine']"}}}]`, "MV214"},
		{"the configuration", "env: [{name: PROXY_CONFIG, value: '{\"discoveryAddress\":\"evil.example:15012\"}'}]", "MV213"},
		{"a configuration that expands", "env: [{name: PROXY_CONFIG, value: '{\"serviceCluster\":\"$(OTEL_SERVICE_NAME)\"}'}]", "MV213"},
		{"another authority", "env: [{name: CA_ADDR, value: 'evil.example:15012'}]", "MV220"},
		{"NET_ADMIN", "securityContext: {capabilities: {add: [NET_ADMIN]}}", "MV215"},
		{"another directory", "workingDir: /mine", "MV215"},
		{"a hook", "lifecycle: {postStart: {exec: {command: [pilot-agent, istio-clean-iptables]}}}", "MV215"},
	} {
		list = append(list, vector{name: "behind a forged status: " + c.name, istio: "merged, and not noted in " + overrides, annotations: forged,
			spec: "{containers: [{name: istio-proxy, image: auto, " + c.container + "}]}", code: c.code, podOnly: true})
	}
	for _, c := range []struct{ name, overrides, code string }{
		{"image", `{"initContainers":[{"name":"istio-proxy","image":"evil.example/img:1"}]}`, "MV217"},
		{"image of a sidecar that is not native", `{"containers":[{"name":"istio-proxy","image":"evil.example/img:1"}]}`, "MV217"},
		{"image of istio-init", `{"initContainers":[{"name":"istio-init","image":"evil.example/img:1"}]}`, "MV217"},
		{"command", `{"initContainers":[{"name":"istio-init","command":["true"]}]}`, "MV215"},
		{"directory", `{"initContainers":[{"name":"istio-proxy","workingDir":"/mine"}]}`, "MV215"},
		{"arguments", `{"initContainers":[{"name":"istio-init","args":["istio-iptables","--dry-run"]}]}`, "MV215"},
		{"variable", `{"initContainers":[{"name":"istio-init","env":[{"name":"SKIP_RULE_APPLY","value":"true"}]}]}`, "MV214"},
		{"user", `{"initContainers":[{"name":"istio-proxy","securityContext":{"runAsUser":0}}]}`, "MV215"},
		{"capability", `{"initContainers":[{"name":"istio-proxy","securityContext":{"capabilities":{"add":["NET_ADMIN"]}}}]}`, "MV215"},
		{"other capitals", `{"INITCONTAINERS":[{"NAME":"istio-init","Command":["true"]}]}`, "MV215"},
		{"key twice", `{"initContainers":[],"initContainers":[{"name":"istio-init","command":["true"]}]}`, "MV215"},
		{"escape", `{"initContainers":[{"name":"istio\u002dinit","command":["true"]}]}`, "MV215"},
		{"mount", `{"initContainers":[{"name":"istio-proxy","volumeMounts":[{"name":"istio-token","mountPath":"/etc/istio/proxy"}]}]}`, "MV219"},
	} {
		list = append(list, vector{name: "overrides: " + c.name, istio: "merged as if it were a container of the user's", annotations: annotated(overrides, c.overrides), code: c.code})
	}
	return append(list, vector{name: "overrides that cannot be read", istio: "the injector refuses the pod", annotations: annotated(overrides, "{"), code: "MV215", podBy: "istio"})
}

func podSpecVectors() []vector {
	list := []vector{
		{name: "the node's network", istio: "never injected, nothing captured", spec: "{hostNetwork: true}", code: "MV205"},
		{name: "the node's network though it asks for a sidecar", istio: "never injected", labels: annotated("sidecar.istio.io/inject", "true"), spec: "{hostNetwork: true}", code: "MV205"},
		{name: "the proxy's user", istio: "its outbound traffic is left alone", spec: "{containers: [{name: app, securityContext: {runAsUser: 1337}}]}", code: "MV221"},
		{name: "the proxy's group", istio: "its outbound traffic is left alone", spec: "{containers: [{name: app, securityContext: {runAsGroup: 1337}}]}", code: "MV221"},
		{name: "the proxy's user for the pod", istio: "inherited by the containers", spec: "{securityContext: {runAsUser: 1337}}", code: "MV221"},
		{name: "the proxy's group for the pod", istio: "inherited", spec: "{securityContext: {runAsGroup: 1337}}", code: "MV221"},
		{name: "the proxy's user in an init container", istio: "left alone", spec: "{initContainers: [{name: init, image: registry.example/init:1, securityContext: {runAsUser: 1337}}]}", code: "MV221"},
		{name: "the proxy's user in a second container", istio: "left alone", spec: "{containers: [{name: aside, image: registry.example/aside:1, securityContext: {runAsUser: 1337}}]}", code: "MV221"},
		{name: "the proxy's group among the others", istio: "a file with the set-group-ID bit gives it to a process", spec: "{securityContext: {supplementalGroups: [1337]}}", code: "MV221"},
		{name: "the proxy's group on volumes", istio: "the containers are in the group that owns the files", spec: "{securityContext: {fsGroup: 1337}}", code: "MV221"},
		{name: "privileged", istio: "may flush the rules", spec: "{containers: [{name: app, securityContext: {privileged: true}}]}", code: "MV222"},
		{name: "privileged init container", istio: "may flush the rules", spec: "{initContainers: [{name: init, image: registry.example/init:1, securityContext: {privileged: true}}]}", code: "MV222"},
		{name: "SYS_PTRACE next to the proxy's process", istio: "may take over Envoy", spec: "{shareProcessNamespace: true, containers: [{name: app, securityContext: {capabilities: {add: [SYS_PTRACE]}}}]}", code: "MV222"},
		{name: "init containers before istio-init", istio: "without native sidecars istio-init comes last", annotations: annotated("sidecar.istio.io/nativeSidecar", "false"),
			spec: "{initContainers: [{name: init, image: registry.example/init:1}]}", code: "MV223"},
		{name: "a user's sidecar before istio-init", istio: "it keeps running", annotations: annotated("sidecar.istio.io/nativeSidecar", "false"),
			spec: "{initContainers: [{name: aside, image: registry.example/aside:1, restartPolicy: Always}]}", code: "MV223"},
		{name: "everything at once", istio: "every rule answers", labels: annotated("istio.io/test-vm", "true"), annotations: annotated("traffic.sidecar.istio.io/excludeInboundPorts", "8080"),
			spec: "{securityContext: {runAsUser: 1337}, containers: [{name: app, securityContext: {privileged: true}}]}", code: "MV222"},
	}
	for _, name := range []string{"NET_ADMIN", "net_admin", "CAP_NET_ADMIN", "cap_net_admin", "Cap_Net_Admin", "ALL", "all", "SYS_ADMIN", "SYS_MODULE", "BPF"} {
		list = append(list, vector{name: "capability " + name, istio: "may change the rules or go below them",
			spec: "{containers: [{name: app, securityContext: {capabilities: {add: [" + name + "]}}}]}", code: "MV222"})
	}
	for _, port := range []string{"15008", "15020", "15021", "15090"} {
		list = append(list, vector{name: "port " + port, istio: "never captured", spec: "{containers: [{name: aside, image: registry.example/aside:1, ports: [{containerPort: " + port + "}]}]}", code: "MV224"})
	}
	return append(list,
		vector{name: "a YAML document in the log level", istio: "the template does not quote it, so that a line break adds arguments",
			annotations: annotated("sidecar.istio.io/logLevel", "info\n    - --templateFile=/mine"), code: "MV215", podOnly: true},
		vector{name: "a domain in the log level", istio: "a line break adds an argument, which the agent writes into Envoy's bootstrap",
			annotations: annotated("sidecar.istio.io/logLevel", "info\n    - '--domain=a\"},\"x\":{\"y\":\"b'"), code: "MV218", podOnly: true},
		vector{name: "a host network in the log level", istio: "a line break adds fields of the pod",
			annotations: annotated("sidecar.istio.io/agentLogLevel", "info\n  hostNetwork: true\n  x:\n    y:\n    -"), code: "MV205", podOnly: true},
	)
}

// podSpecTwins look like the vectors and must land.
func podSpecTwins() []vector {
	return []vector{
		{name: "nothing special"},
		{name: "another user", spec: "{securityContext: {runAsUser: 1336, runAsGroup: 1338, fsGroup: 2000, supplementalGroups: [3000]}}"},
		{name: "the proxy's user for the pod, but for no container", spec: "{securityContext: {runAsUser: 1337}, containers: [{name: app, securityContext: {runAsUser: 1000}}]}"},
		{name: "root", spec: "{containers: [{name: app, securityContext: {runAsUser: 0}}]}"},
		{name: "harmless capabilities", spec: "{containers: [{name: app, securityContext: {capabilities: {add: [NET_BIND_SERVICE, CHOWN], drop: [ALL]}}}]}"},
		{name: "NET_ADMIN dropped", spec: "{containers: [{name: app, securityContext: {privileged: false, capabilities: {drop: [NET_ADMIN]}}}]}"},
		{name: "SYS_PTRACE on its own", spec: "{containers: [{name: app, securityContext: {capabilities: {add: [SYS_PTRACE]}}}]}"},
		{name: "a shared process namespace", spec: "{shareProcessNamespace: true}"},
		{name: "init containers", spec: "{initContainers: [{name: init, image: registry.example/init:1}]}"},
		{name: "a user's sidecar", spec: "{initContainers: [{name: aside, image: registry.example/aside:1, restartPolicy: Always}]}"},
		{name: "a sidecar that is not native", annotations: annotated("sidecar.istio.io/nativeSidecar", "false")},
		{name: "a port next to Istio's", spec: "{containers: [{name: aside, image: registry.example/aside:1, ports: [{containerPort: 15009}, {containerPort: 15007}]}]}"},
		{name: "a UDP port, with a warning", spec: "{containers: [{name: aside, image: registry.example/aside:1, ports: [{containerPort: 53, protocol: UDP}]}]}"},
		{name: "a host port", spec: "{containers: [{name: aside, image: registry.example/aside:1, ports: [{containerPort: 9000, hostPort: 9000}]}]}"},
		{name: "probes", spec: "{containers: [{name: app, readinessProbe: {httpGet: {path: /, port: 8080}}, livenessProbe: {tcpSocket: {port: 8080}}, startupProbe: {exec: {command: [a]}}}]}"},
		{name: "hooks", spec: "{containers: [{name: app, lifecycle: {preStop: {httpGet: {path: /, port: 8080}}, postStart: {exec: {command: [a]}}}}]}"},
		{name: "resources of the proxy", spec: "{containers: [{name: istio-proxy, image: auto, resources: {limits: {memory: 300Mi}}}]}"},
		{name: "a proxy that waits", spec: "{containers: [{name: istio-proxy, image: auto, lifecycle: {preStop: {exec: {command: [sleep, '5']}}}}]}"},
		{name: "a proxy with a harmless variable", spec: "{containers: [{name: istio-proxy, image: auto, env: [{name: MINIMUM_DRAIN_DURATION, value: 10s}]}]}"},
		{name: "a proxy with files of the user's", spec: "{volumes: [{name: mine, configMap: {name: mine}}], containers: [{name: istio-proxy, image: auto, volumeMounts: [{name: mine, mountPath: /mnt/certs}]}]}"},
		{name: "nothing but a gateway", annotations: annotated("inject.istio.io/templates", "gateway"), spec: "{containers: [{name: istio-proxy, image: auto}, {name: app, $patch: delete}]}"},
	}
}

// annotationTwins have values that change nothing that matters.
func annotationTwins() []vector {
	const traffic = "traffic.sidecar.istio.io/"
	list := []vector{
		{name: "an empty proxy configuration", annotations: annotated(proxyConfigAnnotation, "")},
		{name: "both labels and a foreign status", labels: annotated("sidecar.istio.io/inject", "true"), annotations: annotated("sidecar.istio.io/status", "{}")},
		{name: "a label that hides the annotation", labels: annotated("sidecar.istio.io/inject", "true"), annotations: annotated("sidecar.istio.io/inject", "false")},
		{name: "files of the user's", annotations: map[string]string{
			"sidecar.istio.io/userVolume":      `{"mine":{"secret":{"secretName":"mine"}}}`,
			"sidecar.istio.io/userVolumeMount": `{"mine":{"mountPath":"/etc/mine","readOnly":true}}`,
		}},
		{name: "files of the user's in a list, as Istio's documentation has it", annotations: map[string]string{
			"sidecar.istio.io/userVolume":      `[{"name":"mine","emptyDir":{"medium":"Memory"}}]`,
			"sidecar.istio.io/userVolumeMount": `[{"name":"mine","mountPath":"/etc/istio-certs/"}]`,
		}},
		{name: "what is counted", annotations: map[string]string{
			"sidecar.istio.io/statsInclusionPrefixes": "cluster.outbound,http.{pod_ip}_", "sidecar.istio.io/statsInclusionRegexps": `a\.b."c"`,
			"sidecar.istio.io/extraStatTags": "team,tier", proxyConfigAnnotation: `{serviceCluster: web.prod, proxyStatsMatcher: {inclusionRegexps: ['a\.b'], inclusionSuffixes: [rbac.allowed]}}`,
		}},
		{name: "Datadog", annotations: annotated("apm.datadoghq.com/env", `{"DD_ENV":"prod","DD_SERVICE":"web"}`)},
		{name: "Prometheus", annotations: map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.istio.io/merge-metrics": "false"}},
		{name: "resources", annotations: map[string]string{"sidecar.istio.io/proxyCPU": "200m", "sidecar.istio.io/proxyMemoryLimit": "512Mi"}},
		{name: "a revision of another name, which the namespace overrules", labels: annotated("istio.io/rev", "canary")},
		{name: "Istio's own mode for clients", labels: annotated("security.istio.io/tlsMode", "istio")},
		{name: "out of an ambient that is not there", labels: annotated("istio.io/dataplane-mode", "none")},
	}
	for key, values := range map[string][]string{
		traffic + "excludeInboundPorts":          {"", "15020", "15021,15090"},
		traffic + "includeInboundPorts":          {"*"},
		traffic + "includeOutboundPorts":         {"8080"},
		traffic + "excludeOutboundPorts":         {"", "3306"},
		traffic + "excludeOutboundIPRanges":      {"", "192.0.2.0/24", "192.0.2.7/32,192.0.2.128/25"},
		traffic + "includeOutboundIPRanges":      {"*"},
		"status.sidecar.istio.io/port":           {"15020", "0"},
		"sidecar.istio.io/interceptionMode":      {"REDIRECT", "TPROXY"},
		"sidecar.istio.io/inject":                {"true", "", "yes"},
		"inject.istio.io/templates":              {"sidecar"},
		"sidecar.istio.io/proxyImage":            {"proxyv2"},
		"sidecar.istio.io/proxyImageType":        {"distroless"},
		"sidecar.istio.io/logLevel":              {"debug"},
		"sidecar.istio.io/capNetBindService":     {"true"},
		"sidecar.istio.io/rewriteAppHTTPProbers": {"true", "false"},
		"proxy.istio.io/overrides":               {`{}`, `{"initContainers":[{"name":"istio-proxy","resources":{"limits":{"memory":"1Gi"}}}]}`},
		proxyConfigAnnotation: {
			"concurrency: 2", "holdApplicationUntilProxyStarts: true", "interceptionMode: REDIRECT", "terminationDrainDuration: 20s",
			"proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true', MINIMUM_DRAIN_DURATION: 5s}", "tracing: {sampling: 50}", "nonsense: 1",
			"proxyStatsMatcher: {inclusionRegexps: ['.*']}", "image: {imageType: distroless}", "controlPlaneAuthPolicy: MUTUAL_TLS",
		},
	} {
		for _, value := range values {
			list = append(list, vector{name: key + " " + value, annotations: annotated(key, value)})
		}
	}
	return list
}
