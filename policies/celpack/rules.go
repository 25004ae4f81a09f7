package celpack

// rules are all rules of the pack. Each finds what the rule of its reason in package
// policies finds, or less; field, message and remedy are those of that rule.
func rules() []rule {
	var list []rule
	list = append(list, presenceRules()...)
	list = append(list, labelRules()...)
	list = append(list, captureRules()...)
	list = append(list, outboundRules()...)
	list = append(list, proxyAnnotationRules()...)
	list = append(list, workloadRules()...)
	list = append(list, proxyRules()...)
	list = append(list, finalRules()...)
	return list
}

// injectValue is the wish of the pod: the label hides the annotation.
const (
	injectValue = "s.labels[?'sidecar.istio.io/inject'].orValue(s.annotations[?'sidecar.istio.io/inject'].orValue(''))"
	injectField = "metadata.<<'sidecar.istio.io/inject' in s.labels ? 'labels' : 'annotations'>>[sidecar.istio.io/inject]"
	optsOut     = injectValue + " in ['0', 'f', 'F', 'false', 'False', 'FALSE']"
	hostNetwork = "s.spec.?hostNetwork.orValue(false) == true"
)

func presenceRules() []rule {
	return []rule{
		{
			reason: "HostNetwork", templates: true, how: "`spec.hostNetwork`",
			found: []string{when(hostNetwork, say("HostNetwork", "spec.hostNetwork",
				"true puts the pod on the node's network, where Istio neither injects nor captures; must be false in a guarded namespace",
				"remove hostNetwork; an agent that needs the node's network belongs in a namespace of its own that is not guarded"))},
		},
		{
			reason: "InjectionOptOut", templates: true, how: "label, or else annotation `sidecar.istio.io/inject`",
			found: []string{when("!"+ambient+" && !"+proxyOnly+" && "+optsOut, say("InjectionOptOut", injectField,
				"<<strings.quote("+injectValue+")>> keeps Istio's sidecar out of the pod or its traffic uncaptured; must be \"true\" or absent",
				"remove it, or set it to \"true\""))},
		},
		{
			reason: "NotInMesh", how: "a pod without container `istio-proxy` that is not enrolled in ambient, or where the guard does not accept that; pods whose injection an object other than the pod prevents get this reason too",
			found: []string{
				when("!s.hasProxy && s.enrolled && !variables.ambientAccepted", say("NotInMesh",
					"<<s.labels[?'istio.io/dataplane-mode'].orValue('') == 'ambient' ? 'metadata.labels[istio.io/dataplane-mode]' : 'metadata.namespace'>>",
					"enrolled in ambient, which "+guard+" does not accept; must have Istio's sidecar",
					"enable injection for the namespace, or, if ztunnel runs on all nodes, have Ambient added to spec.meshMembership.dataPlanes of "+guard)),
				when("!s.hasProxy && !s.enrolled && !("+hostNetwork+") && !("+optsOut+") && !("+ambientNone+") && !("+ambientStatus+")", say("NotInMesh", "spec.containers",
					"there is no container istio-proxy: Istio's injector has not added it, or something took it out again; must have Istio's sidecar",
					"see that injection is enabled for the namespace (kubectl label namespace <<namespaceObject.metadata.name>> istio-injection=enabled) and that Istio's injector runs")),
			},
		},
		{
			reason: "AmbientOptOut", how: "label `istio.io/dataplane-mode: none`, annotation `sidecar.istio.io/status`, where the guard accepts ambient and the pod has no sidecar",
			found: []string{
				when("!s.hasProxy && "+ambientStatus, say("AmbientOptOut", "metadata.annotations[sidecar.istio.io/status]",
					"<<"+quoted("s.annotations['sidecar.istio.io/status']")+">> says that the pod has a sidecar, which it has not, and so keeps it out of ambient; must be absent", "remove the annotation")),
				when("!s.hasProxy && "+ambientNone, say("AmbientOptOut", "metadata.labels[istio.io/dataplane-mode]",
					"\"none\" takes the pod out of ambient, and it has no sidecar; must be \"ambient\" or absent", "remove the label")),
			},
		},
	}
}

// Ways out of ambient where the guard accepts it and the namespace, or the pod, is
// in it.
const (
	ambientNone   = "(variables.ambientAccepted && variables.ambientNamespace && s.labels[?'istio.io/dataplane-mode'].orValue('') == 'none')"
	ambientStatus = "(variables.ambientAccepted && !(" + hostNetwork + ") && 'sidecar.istio.io/status' in s.annotations &&\n" +
		"(s.labels[?'istio.io/dataplane-mode'].orValue('') == 'ambient' || s.labels[?'istio.io/dataplane-mode'].orValue('') != 'none' && variables.ambientNamespace))"
)

func labelRules() []rule {
	return []rule{
		{
			reason: "IdentityForged", templates: true, how: "labels `security.istio.io/tlsMode`, `istio.io/test-vm`",
			found: []string{
				when("s.labels[?'security.istio.io/tlsMode'].orValue('istio') != 'istio'", say("IdentityForged", "metadata.labels[security.istio.io/tlsMode]",
					"<<strings.quote(s.labels['security.istio.io/tlsMode'])>> makes all clients in the mesh send plaintext to the pod; must be \"istio\" or absent", "remove the label")),
				when("'istio.io/test-vm' in s.labels", say("IdentityForged", "metadata.labels[istio.io/test-vm]",
					"<<strings.quote(s.labels['istio.io/test-vm'])>> makes istiod take the pod for a virtual machine, and believe its proxy about its labels; must be absent", "remove the label")),
			},
		},
		{
			reason: "AmbientBypass", templates: true, how: "annotations `ambient.istio.io/redirection`, unless a ServiceAccount sets it on a pod that is there, and, of pods in ambient, `ambient.istio.io/bypass-inbound-capture`",
			found: []string{
				// istio-cni notes on a pod that runs what it has done.
				annotation("AmbientBypass", "ambient.istio.io/redirection",
					"!variables.isPod || request.operation == 'CREATE' || !request.userInfo.?username.orValue('').startsWith('system:serviceaccount:')",
					"<<"+quoted("v")+">> says that the pod is enrolled in ambient already, so that it never will be; must be left to istio-cni", "remove the annotation"),
				annotation("AmbientBypass", "ambient.istio.io/bypass-inbound-capture",
					"variables.isPod && "+ambient+" && v in ['1', 't', 'T', 'true', 'True', 'TRUE']",
					"<<"+quoted("v")+">> leaves inbound traffic alone, so that the pod takes plaintext; must be absent", "remove the annotation"),
			},
		},
	}
}

// captureRules are about the annotations that change what is captured.
func captureRules() []rule {
	const notOwn = ".filter(e, !(e in ['15008', '15020', '15021', '15090']))"
	excluded := entries("v") + notOwn
	return []rule{
		{
			reason: "InboundPortsExcluded", templates: true, how: "annotation `traffic.sidecar.istio.io/excludeInboundPorts`",
			found: []string{annotation("InboundPortsExcluded", "traffic.sidecar.istio.io/excludeInboundPorts", "!"+ambient+" && size("+excluded+") > 0",
				"<<"+quoted("v")+">> takes <<["+excluded+"].map(l, "+ports("l")+")[0]>> out of inbound capture, so that plaintext gets in past mutual TLS and authorization; must exclude none",
				"remove the annotation; callers from outside the mesh can come in through a gateway")},
		},
		{
			reason: "InboundPortsNotIncluded", templates: true, how: "annotation `traffic.sidecar.istio.io/includeInboundPorts`; of pods also the arguments of `istio-init`",
			found: []string{
				presentAnnotation("InboundPortsNotIncluded", "traffic.sidecar.istio.io/includeInboundPorts", "!"+ambient+" && v != '*'",
					"<<"+quoted("v")+">> limits inbound capture to these ports, so that every other one accepts plaintext; must be \"*\" or absent", "remove the annotation"),
				captureFlag("InboundPortsNotIncluded", "-b", "v != '*'", "limits inbound capture to these ports; must be \"*\"", "traffic.sidecar.istio.io/includeInboundPorts"),
			},
		},
		{
			reason: "StatusPortMoved", templates: true, how: "annotation `status.sidecar.istio.io/port`",
			found: []string{annotation("StatusPortMoved", "status.sidecar.istio.io/port", "!"+ambient+" && !(v in ['0', '15020', '15021', '15090'])",
				"<<"+quoted("v")+">> puts this port in place of the agent's into the list of ports that are never captured; must be \"15020\" or absent", "remove the annotation")},
		},
		{
			reason: "InterfaceExcluded", templates: true, how: "annotation `traffic.sidecar.istio.io/excludeInterfaces`; of pods also the arguments of `istio-init`",
			found: []string{
				annotation("InterfaceExcluded", "traffic.sidecar.istio.io/excludeInterfaces", "!"+ambient,
					"<<"+quoted("v")+">> takes an interface out of capture in both directions; must be absent", "remove the annotation"),
				captureFlag("InterfaceExcluded", "-c", "v != ''", "takes an interface out of capture; must be absent", "traffic.sidecar.istio.io/excludeInterfaces"),
			},
		},
		{
			reason: "VirtualInterface", templates: true, how: "annotations `istio.io/reroute-virtual-interfaces`, `traffic.sidecar.istio.io/kubevirtInterfaces`; of pods also the arguments of `istio-init`",
			found: []string{
				virtualInterface("istio.io/reroute-virtual-interfaces"), virtualInterface("traffic.sidecar.istio.io/kubevirtInterfaces"),
				captureFlag("VirtualInterface", "-k", "v != ''", "has inbound traffic of an interface treated as outbound; must be absent",
					"istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"),
			},
		},
		{
			reason: "InterceptionOff", templates: true, how: "annotation `sidecar.istio.io/interceptionMode`, `interceptionMode` in `proxy.istio.io/config` where it is plain to see; of pods also the environment of the proxy and the arguments of `istio-init`",
			found: []string{
				annotation("InterceptionOff", "sidecar.istio.io/interceptionMode", "!"+ambient+" && v.lowerAscii() == 'none'",
					"<<"+quoted("v")+">> captures no traffic at all; must be \"REDIRECT\", \"TPROXY\" or absent", "remove the annotation"),
				annotation("InterceptionOff", "proxy.istio.io/config", "!"+ambient+" && size(v) < 100000 && !v.contains('#') && v.matches("+literal(interceptionText)+")",
					"interceptionMode \"NONE\" captures no traffic at all; must be \"REDIRECT\", \"TPROXY\" or absent", "remove interceptionMode"),
				"(!variables.isPod || " + interceptionSaid + " ? [] : " + istios + ".filter(c, c.name == 'istio-proxy' && c.env.exists(e, " + interceptionNone + ")).map(c, " +
					say("InterceptionOff", "<<"+position+">>.env", "ISTIO_META_INTERCEPTION_MODE of istio-proxy is <<"+quoted("c.env.filter(e, "+interceptionNone+")[0].value")+">>, which captures no traffic; must be \"REDIRECT\" or \"TPROXY\"", "remove what sets it") + "))",
				"(" + interceptionSaid + " ? [] : " + captureFlag("InterceptionOff", "-m", "!(v in ['REDIRECT', 'TPROXY'])", "captures no traffic; must be \"REDIRECT\" or \"TPROXY\"") + ")",
			},
		},
	}
}

const (
	interceptionNone = "e.?name.orValue('') == 'ISTIO_META_INTERCEPTION_MODE' && e.?value.orValue('').lowerAscii() == 'none'"
	interceptionText = `(^|[\s{,])["']?(interceptionMode|interception_mode)["']?\s*:\s*["']?NONE["']?($|[\s},])`
	interceptionSaid = "(s.annotations[?'sidecar.istio.io/interceptionMode'].orValue('').lowerAscii() == 'none' || 'proxy.istio.io/config' in s.annotations)"
)

func virtualInterface(key string) string {
	return annotation("VirtualInterface", key, "!"+ambient,
		"<<"+quoted("v")+">> has what comes in through this interface treated as outbound, past the demand for mutual TLS; must be absent",
		"remove the annotation; virtual machines belong in a namespace that is not guarded")
}

// captureFlag is a list with a finding about the value v of a flag of istio-init, or
// of what stands in its place, in a pod; unless an annotation is there that sets it.
func captureFlag(reason, flag, condition, message string, keys ...string) string {
	next := "c.args.indexOf(" + literal(flag) + ") + 1"
	value := "c.args[" + next + "]"
	return "(!variables.isPod || " + list(keys) + ".exists(k, k in s.annotations) ? [] : " + istios + ".filter(c, c.name != 'istio-proxy' && " + literal(flag) + " in c.args &&\n" +
		next + " < size(c.args) && [" + value + "].exists(v, " + condition + ")).map(c, " +
		say(reason, "<<"+position+">>.args", flag+" <<"+quoted(value)+">> "+message, "remove what sets it, or mend the injector's configuration") + "))"
}

// outboundRules: what the guard lets pass around the proxy, and no more.
func outboundRules() []rule {
	notPassed := entries("v") + ".filter(e, !(e.matches('^[+-]?[0-9]{1,9}$') && int(e) in " + array("variables.outbound.?ports") + "))"
	const within = "(isCIDR(g) && (isCIDR(e) ? cidr(g).containsCIDR(cidr(e)) : isIP(e) && cidr(g).containsIP(ip(e))))"
	outside := entries("v") + ".filter(e, !" + array("variables.outbound.?cidrs") + ".exists(g, g == e || " + within + "))"
	return []rule{{
		reason: "OutboundExcluded", templates: true,
		how: "annotations `traffic.sidecar.istio.io/excludeOutboundPorts`, `excludeOutboundIPRanges` and `includeOutboundIPRanges`, with what the guard lets pass",
		found: []string{
			annotation("OutboundExcluded", "traffic.sidecar.istio.io/excludeOutboundPorts", "!"+ambient+" && size("+notPassed+") > 0",
				"<<"+quoted("v")+">> sends traffic to <<["+notPassed+"].map(l, "+ports("l")+")[0]>> past the proxy; must only name ports that "+guard+" lets pass",
				"remove them, or have them added to spec.meshMembership.outbound.ports of "+guard),
			annotation("OutboundExcluded", "traffic.sidecar.istio.io/excludeOutboundIPRanges", "!"+ambient+" && size("+outside+") > 0",
				"<<"+quoted("v")+">> sends traffic to <<["+outside+".join(',')].map(l, "+quoted("l")+")[0]>> past the proxy; must only name ranges that "+guard+" lets pass",
				"remove them, or have them added to spec.meshMembership.outbound.cidrs of "+guard),
			presentAnnotation("OutboundExcluded", "traffic.sidecar.istio.io/includeOutboundIPRanges", "!"+ambient+" && v != '*'",
				"<<"+quoted("v")+">> captures traffic to these ranges only, and lets the rest pass the proxy; must be \"*\" or absent", "remove the annotation"),
		},
	}}
}

// proxyAnnotationRules are about the annotations that change the proxy itself.
func proxyAnnotationRules() []rule {
	known := "(['sidecar'] + " + array("variables.guard.?injectionTemplates") + " + (" + proxyOnly + " ? ['gateway'] : []))"
	return []rule{
		{
			reason: "TemplateForbidden", templates: true, how: "annotation `inject.istio.io/templates`",
			found: []string{"[" + entries("s.annotations[?'inject.istio.io/templates'].orValue('')") + "].map(l, l.filter(e, !(e in " + known + ")).map(e, " +
				say("TemplateForbidden", "metadata.annotations[inject.istio.io/templates]",
					"template <<"+quoted("e")+">> is not Istio's sidecar; <<e == 'gateway' ? 'must be for a pod that holds nothing but the proxy, as its template captures nothing' : 'must be \"sidecar\" or absent'>>",
					"remove the annotation, or have the template added to spec.meshMembership.injectionTemplates of "+guard) + ").join('\\n'))"},
		},
		{
			reason: "BootstrapOverridden", templates: true, how: "annotation `sidecar.istio.io/bootstrapOverride`",
			found: []string{annotation("BootstrapOverridden", "sidecar.istio.io/bootstrapOverride", "true",
				"ConfigMap <<"+quoted("v")+">> is merged into the proxy's bootstrap, and may add listeners without TLS; must be absent", "remove the annotation; what the whole mesh needs belongs in its configuration")},
		},
		{
			reason: "DiscoveryAddress", templates: true, how: "annotation `sidecar.istio.io/discoveryAddress`",
			found: []string{annotation("DiscoveryAddress", "sidecar.istio.io/discoveryAddress", "true",
				"<<"+quoted("v")+">> has the proxy take its configuration from there; must be absent", "remove the annotation")},
		},
	}
}
