package celpack

import "fmt"

// workloadRules are about what the workload's own containers may do to capture.
func workloadRules() []rule {
	return []rule{
		{
			reason: "RunsAsProxy", templates: true, how: "user, group, further groups and fsGroup of the pod and of every kind of container",
			found: runsAsProxy(),
		},
		{
			reason: "MayRewriteCapture", templates: true, how: "`privileged` and capabilities of every kind of container",
			found: []string{mayRewriteCapture()},
		},
		{
			reason: "UncapturedPort", templates: true, how: "ports of containers",
			found: []string{"(!" + sidecar + " ? [] : " + apps + ".map(c, " + array("c.c.?ports") + ".filter(p, !(p.?protocol.orValue('TCP') in ['UDP', 'SCTP']) &&\n" +
				"p.?containerPort.orValue(0) in [15008, 15020, 15021, 15090]).map(p, " +
				say("UncapturedPort", "<<"+position+">>.ports[<<string(c.c.ports.indexOf(p))>>].containerPort",
					"<<string(p.containerPort)>> is one of the proxy's own ports, which are never captured, in container <<strings.quote(c.name)>>; must be another", "listen on another port") + ").join('\\n')))"},
		},
		{
			reason: "ProbeRewrite", templates: true, how: "HTTP, TCP and gRPC probes, where the guard says `probeRewrite: Deny`",
			found: []string{"(!" + sidecar + " || variables.guard.?probeRewrite.orValue('') != 'Deny' || s.annotations[?'sidecar.istio.io/rewriteAppHTTPProbers'].orValue('') == 'false' ? [] : " +
				apps + ".map(c, ['livenessProbe', 'readinessProbe', 'startupProbe'].filter(n, [" + object("c.c[?n]") + "].exists(p, has(p.httpGet) || has(p.tcpSocket) || has(p.grpc))).map(n, " +
				say("ProbeRewrite", "<<"+position+">>.<<n>>",
					"Istio has the agent answer this probe of container <<strings.quote(c.name)>> in plaintext, for everybody; must be an exec probe by "+guard, "use an exec probe") + ").join('\\n')))"},
		},
	}
}

func runsAsProxy() []string {
	var found []string
	for _, field := range []string{"runAsUser", "runAsGroup"} {
		const message = "<<string(variables.proxyUID)>> is the proxy's own, whose outbound traffic is not captured; must be another in container "
		const remedy = "choose another number; if the image demands this one, rebuild it"
		inherits := fmt.Sprintf("s.containers.filter(c, !c.istio && c.security.?%s.orValue(null) == null)", field)
		found = append(found,
			when(fmt.Sprintf("!%s && s.security.?%s.orValue(null) == variables.proxyUID && size(%s) > 0", ambient, field, inherits),
				say("RunsAsProxy", "spec.securityContext."+field, message+"<<strings.quote("+inherits+"[0].name)>>", remedy)),
			fmt.Sprintf("(%s ? [] : %s.filter(c, c.security.?%s.orValue(null) == variables.proxyUID).map(c, %s))", ambient, apps, field,
				say("RunsAsProxy", "<<"+position+">>.securityContext."+field, message+"<<strings.quote(c.name)>>", remedy)))
	}
	const group = "<<string(variables.proxyUID)>> is the proxy's own group, whose outbound traffic is not captured, and which any process in it can take on; must be another"
	hasApp := "!" + ambient + " && size(" + apps + ") > 0 && "
	return append(found,
		when(hasApp+"variables.proxyUID in "+array("s.security.?supplementalGroups"), say("RunsAsProxy", "spec.securityContext.supplementalGroups", group, "choose another number")),
		when(hasApp+"s.security.?fsGroup.orValue(null) == variables.proxyUID", say("RunsAsProxy", "spec.securityContext.fsGroup", group, "choose another number")),
	)
}

func mayRewriteCapture() string {
	const remedy = "or move what needs it to a namespace that is not guarded"
	const shares = "(s.spec.?hostPID.orValue(false) == true || s.spec.?shareProcessNamespace.orValue(false) == true || c.kind == 'ephemerals' && c.c.?targetContainerName.orValue('') == 'istio-proxy')"
	const traces = "k.upperAscii().matches('^(CAP_)?SYS_PTRACE$')"
	privileged := say("MayRewriteCapture", "<<"+position+">>.securityContext.privileged",
		"true lets container <<strings.quote(c.name)>> undo the capture of traffic; must be false", "remove it, "+remedy)
	capability := say("MayRewriteCapture", "<<"+position+">>.securityContext.capabilities.add",
		"<<strings.quote(k)>> lets container <<strings.quote(c.name)>> <<"+traces+" ? 'take over the proxy\\'s process, with which it shares its process namespace' : 'undo the capture of traffic'>>; must not be added",
		"remove the capability, "+remedy)
	return apps + ".map(c, c.security.?privileged.orValue(false) == true ? " + privileged + " :\n" +
		array(object("c.security.?capabilities")+".?add") + ".filter(k, k.upperAscii().matches('^(CAP_)?(ALL|BPF|NET_ADMIN|SYS_ADMIN|SYS_MODULE)$') || " + traces + " && " + shares + ")\n" +
		".map(k, " + capability + ").join('\\n'))"
}
