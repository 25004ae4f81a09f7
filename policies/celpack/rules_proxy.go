package celpack

import "slices"

// dangerousMetadata are variables that switch capture off, move its limits, or give
// the pod labels that it does not have. What the mesh itself sets is not known here,
// so these are names that no mesh has a reason to set for all its proxies.
func dangerousMetadata() []string {
	return []string{
		"CLEANUP_ONLY", "DISABLE_ENVOY", "DRY_RUN", "ENVOY_PROMETHEUS_PORT", "ENVOY_STATUS_PORT", "FORCE_IPTABLES_BINARY",
		"INBOUND_TUNNEL_PORT", "ISTIO_EXCLUDE_INTERFACES", "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", "ISTIO_METAJSON_LABELS",
		"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
		"KUBE_VIRT_INTERFACES", "PROXY_GID", "SKIP_RULE_APPLY",
	}
}

// proxyRules are about containers of Istio's names. In a template they are overrides,
// to be merged over what Istio renders, or, where Istio will not inject, containers
// as they will run; the rules hold for both.
func proxyRules() []rule {
	return []rule{
		{
			reason: "ProxyMetadataForbidden", templates: true,
			how:   "names that are known to be dangerous, and values from other objects, in the environment of `istio-proxy`, `istio-init` and `istio-validation`; such names in `proxy.istio.io/config` where they are plain to see",
			found: forbiddenMetadata(),
		},
		{
			reason: "ProxyOverridden", templates: true,
			how:   "command, arguments, hooks, exec probes, user, group and capabilities of `istio-proxy`, `istio-init` and `istio-validation`; command and arguments in annotation `proxy.istio.io/overrides`",
			found: append(overriddenProcess(), overriddenRights()...),
		},
		{
			reason: "ProxyVolumeForbidden", templates: true,
			how:   "mounts over the proxy's own paths, in its containers and in annotation `sidecar.istio.io/userVolumeMount`; hostPath, in pods and in annotation `sidecar.istio.io/userVolume`; volumes of Istio's names in templates; volumes from which the proxy starts, mounted by others",
			found: forbiddenVolumes(),
		},
	}
}

func forbiddenMetadata() []string {
	const (
		becomes = "becomes environment of the proxy and of istio-init, and is not known to be harmless; must not be set"
		remedy  = "remove it, or have the name added to spec.meshMembership.proxyMetadata of " + guard
		passes  = "(g.endsWith('*') ? n.startsWith(g.substring(0, size(g) - 1)) : n == g)"
		foreign = "(has(e.valueFrom) && e.valueFrom != null && !has(e.valueFrom.fieldRef) && !has(e.valueFrom.resourceFieldRef))"
		// What the template makes of annotation bootstrapOverride is said of that.
		holds = "c.env.exists(e, e.?name.orValue('') == n)"
	)
	names := list(dangerousMetadata()) + ".filter(n, !" + array("variables.guard.?proxyMetadata") + ".exists(g, " + passes + "))"
	const config = "s.annotations[?'proxy.istio.io/config'].orValue('')"
	plain := "'(^|[\\\\s{,])[\"\\']?' + n + '[\"\\']?\\\\s*:'"
	readable := "(size(" + config + ") < 20000 && " + config + ".matches('proxyMetadata|proxy_metadata') && !" + config + ".contains('#'))"
	said := "(" + readable + " && " + config + ".matches(" + plain + "))"
	return []string{
		"(" + ambient + " ? [] : " + names + ".filter(n, " + istios + ".exists(c, " + holds + ")).filter(n, !" + said + ").map(n, " + istios + ".filter(c, " + holds + ").map(c, " +
			say("ProxyMetadataForbidden", "<<"+position+">>.env", "<<strings.quote(n)>> of <<c.name>> "+becomes, remedy) + ")).filter(l, size(l) > 0).map(l, l[0]))",
		"(" + ambient + " || !" + readable + " ? [] : " + names + ".filter(n, " + config + ".matches(" + plain + ")).map(n, " +
			say("ProxyMetadataForbidden", "metadata.annotations[proxy.istio.io/config]", "proxyMetadata[<<strings.quote(n)>>] "+becomes, remedy) + "))",
		"(" + ambient + " ? [] : " + istios + ".map(c, c.env.filter(e, " + foreign + ").map(e, " +
			say("ProxyMetadataForbidden", "<<"+position+">>.env", "<<strings.quote(e.name)>> of <<c.name>> comes from another object, and "+becomes, remedy) + ").join('\\n')))",
		"(" + ambient + " ? [] : " + istios + ".filter(c, size(" + array("c.c.?envFrom") + ") > 0).map(c, " +
			say("ProxyMetadataForbidden", "<<"+position+">>.envFrom", "<<c.name>> takes its environment from an object that may change; must be absent", "remove it") + "))",
	}
}

// overriddenProcess: what runs in a container of Istio's.
func overriddenProcess() []string {
	const (
		harmless  = "(e[0] in ['sleep', '/bin/sleep'] || e[0] in ['pilot-agent', '/usr/local/bin/pilot-agent'] && size(e) > 1 && e[1] in ['wait', 'request'])"
		container = `v.findAll('"command"\\s*:\\s*\\[\\s*"')`
		hook      = `v.findAll('"exec"\\s*:\\s*\\{\\s*"command"\\s*:\\s*\\[\\s*"')`
		modes     = "['sidecar', 'router', 'waypoint']"
		starts    = "(size(c.args) > 1 && c.args[0] == 'proxy' && c.args[1] in " + modes + ")"
		final     = "(size(c.args) > 1 && c.args[0] == 'proxy' && c.args[1] in (" + proxyOnly + " ? " + modes + " : ['sidecar']))"
	)
	hooks := func(place, action string) string {
		return "(" + ambient + " ? [] : " + istios + ".map(c, " + place + ".filter(n, " +
			"[" + array(object(action)+".?command") + "].exists(e, size(e) > 0 && !" + harmless + ")).map(n, " +
			say("ProxyOverridden", "<<"+position+">>.<<"+fieldOf(place)+">>",
				"<<"+quoted(array(object(action)+".?command")+".join(' ')")+">> runs inside <<c.name>> with the proxy's rights; must be \"pilot-agent wait\", \"pilot-agent request\", \"sleep …\" or absent", "remove it, or use sleep") + ").join('\\n')))"
	}
	return []string{
		"(" + ambient + " ? [] : " + istios + ".filter(c, size(" + array("c.c.?command") + ") > 0).map(c, " +
			say("ProxyOverridden", "<<"+position+">>.command", "<<"+quoted("c.c.command.join(' ')")+">> runs in place of what the image of <<c.name>> starts; must be absent", "remove it") + "))",
		"(" + ambient + " || variables.isPod ? [] : " + istios + ".filter(c, size(c.args) > 0 && (c.name == 'istio-proxy' ? !" + starts + " : c.args[0] != 'istio-iptables')).map(c, " +
			say("ProxyOverridden", "<<"+position+">>.args", "<<"+quoted("c.args.join(' ')")+">> replace the arguments that Istio gives <<c.name>>; must be absent", "remove them") + "))",
		"(!variables.isPod ? [] : " + istios + ".filter(c, c.name == 'istio-proxy' && !" + final + ").map(c, " +
			say("ProxyOverridden", "<<"+position+">>.args", "<<"+quoted("c.args.join(' ')")+">> do not start the proxy; must begin with \"proxy <<"+proxyOnly+" ? 'sidecar|router|waypoint' : 'sidecar'>>\"", "leave them to Istio") + "))",
		"(!variables.isPod ? [] : " + istios + ".filter(c, c.name == 'istio-proxy' && size(c.args) > 1).map(c, c.args.filter(a, a.startsWith('-') && !(a.split('=')[0] in " + list(proxyFlags()) + ")).map(a, " +
			say("ProxyOverridden", "<<"+position+">>.args", "argument <<"+quoted("a")+">> is none that Istio gives its proxy; must be absent", "leave the arguments to Istio") + ").join('\\n')))",
		hooks("['postStart', 'preStop']", object(object("c.c.?lifecycle")+"[?n]")+".?exec"),
		hooks("['livenessProbe', 'readinessProbe', 'startupProbe']", object("c.c[?n]")+".?exec"),
		annotation("ProxyOverridden", "proxy.istio.io/overrides", "!"+ambient+" && size(v) < 100000 && size("+container+") > size("+hook+")",
			"a command in it runs in place of what Istio's image starts; must be absent", "remove the command"),
		annotation("ProxyOverridden", "proxy.istio.io/overrides", "!"+ambient+` && size(v) < 100000 && v.matches('"args"\\s*:\\s*\\[\\s*"')`,
			"arguments in it replace those that Istio gives; must be absent", "remove the arguments"),
	}
}

func fieldOf(place string) string {
	if place == "['postStart', 'preStop']" {
		return "'lifecycle.' + n"
	}
	return "n"
}

func proxyFlags() []string {
	return []string{
		"--domain", "--proxyLogLevel", "--proxyComponentLogLevel", "--log_output_level", "--log_as_json", "--stsPort",
		"--outlierLogPath", "--serviceCluster", "--concurrency", "--profiling",
	}
}

// overriddenRights: as whom the proxy runs, and with which rights.
func overriddenRights() []string {
	proxy := "(" + ambient + " || " + proxyOnly + " ? [] : s.containers.filter(c, c.istio && c.name == 'istio-proxy'"
	const tproxy = "c.env.exists(e, e.?name.orValue('') == 'ISTIO_META_INTERCEPTION_MODE' && e.?value.orValue('') == 'TPROXY')"
	var found []string
	for _, is := range []struct{ field, what string }{{"runAsUser", "user"}, {"runAsGroup", "group"}} {
		number := "c.security.?" + is.field + ".orValue(null)"
		found = append(found, proxy+" && "+number+" != null && !("+number+" in [0, variables.proxyUID])).map(c, "+
			say("ProxyOverridden", "<<"+position+">>.securityContext."+is.field,
				"<<string("+number+")>> makes Istio leave everything alone that runs as this "+is.what+"; must be <<string(variables.proxyUID)>> or absent", "remove it")+"))")
	}
	return append(found, proxy+").map(c, "+array(object("c.security.?capabilities")+".?add")+
		".filter(k, !k.upperAscii().matches('^(CAP_)?NET_BIND_SERVICE$') && !(k.upperAscii().matches('^(CAP_)?NET_ADMIN$') && "+tproxy+")).map(k, "+
		say("ProxyOverridden", "<<"+position+">>.securityContext.capabilities.add", "<<strings.quote(k)>> lets the proxy's container undo the capture of traffic; must not be added", "remove the capability")+").join('\\n')))")
}

// ownPaths matches the paths of the proxy's binaries, bootstrap, roots, certificates
// and sockets, what is below them, and the directories that they are in.
const ownPaths = `^/*((usr|bin|sbin|lib|lib64|proc|sys|dev|etc/istio|etc/ssl|etc/pki|var/lib/istio|var/run/secrets|run/secrets|etc/passwd|etc/group|etc/hosts|etc/resolv\.conf)(/.*)?|etc/?|var/?|var/lib/?|var/run/?|run/?)?$`

// templatePaths are those where Istio's templates and integrations mount something
// themselves, and where Kubernetes mounts the token of the ServiceAccount.
func templatePaths() []string {
	return []string{
		"/etc/istio/custom-bootstrap", "/etc/istio/pod", "/etc/istio/proxy", "/run/secrets/workload-spiffe-uds", "/var/lib/istio/data",
		"/var/run/secrets/credential-uds", "/var/run/secrets/istio", "/var/run/secrets/istio/crl", "/var/run/secrets/kubernetes.io/serviceaccount",
		"/var/run/secrets/tokens", "/var/run/secrets/workload-spiffe-credentials", "/var/run/secrets/workload-spiffe-uds",
	}
}

// trustPaths are those where the proxy finds its bootstrap, certificates and sockets.
func trustPaths() []string {
	return slices.DeleteFunc(templatePaths(), func(p string) bool { return p == "/etc/istio/custom-bootstrap" })
}

func forbiddenVolumes() []string {
	const (
		elsewhere = "must be at a path of its own, such as /etc/certs"
		mounts    = `v.findAll('"mountPath"\\s*:\\s*"[^"\\\\]*"').map(m, m.split('"')[3])`
		// The policy resolves dots; this lets pass what has any.
		plain   = "!m.matches('(^|/)[.]{1,2}(/|$)|//')"
		volumes = "optional.ofNonZeroValue(s.spec.?volumes.orValue(dyn(null))).orValue([])"
		reserve = "(m.endsWith('/') ? m.substring(0, size(m) - 1) : m)"
	)
	own := "matches(" + literal(ownPaths) + ")"
	return []string{
		"(" + ambient + " ? [] : " + istios + ".map(c, c.mounts.filter(x, [x.?mountPath.orValue('')].exists(m, " + plain + " && m." + own + " && !(" + reserve + " in " + list(templatePaths()) + "))).map(x, " +
			say("ProxyVolumeForbidden", "<<"+position+">>.volumeMounts", "volume <<"+quoted("x.name")+">> is mounted at <<"+quoted("x.mountPath")+">>, over what the proxy runs and trusts; "+elsewhere, "mount it elsewhere") + ").join('\\n')))",
		"[s.annotations[?'sidecar.istio.io/userVolumeMount'].orValue('')].map(v, " + mounts + ".filter(m, " + plain + " && m." + own + ").map(m, " +
			say("ProxyVolumeForbidden", "metadata.annotations[sidecar.istio.io/userVolumeMount]",
				"a volume is mounted at <<"+quoted("m")+">>, over what the proxy runs and trusts; "+elsewhere, "mount it elsewhere, or remove the annotation") + ").join('\\n'))",
		annotation("ProxyVolumeForbidden", "sidecar.istio.io/userVolume", `v.matches('"hostPath"\\s*:\\s*\\{[^{}]*"path"\\s*:')`,
			"a volume gives the proxy files of the node; must not be a hostPath", "use a Secret or ConfigMap, or remove the annotation"),
		// In a template: volumes of the names that Istio's template will use.
		"(variables.isPod || s.hasProxy || " + ambient + " ? [] : " + volumes + ".filter(x, x.?name.orValue('') in ['istio-podinfo', 'istio-token', 'istiod-ca-cert']).map(x, " +
			say("ProxyVolumeForbidden", "spec.volumes[<<string("+volumes+".indexOf(x))>>]",
				"volume <<strings.quote(x.name)>> will be merged with Istio's own of this name, in which the proxy finds what it trusts; must have another name", "rename the volume") + "))",
		shared("(variables.isPod || s.hasProxy || " + ambient + " ? [] : ['istio-data', 'istio-envoy', 'workload-certs', 'workload-socket'])"),
		// In a pod: those that the proxy starts from.
		shared("(!variables.isPod ? [] : " + volumes + ".filter(v, has(v.emptyDir)).map(v, v.name).filter(n, " + istios +
			".exists(c, c.name == 'istio-proxy' && c.mounts.exists(x, x.name == n && [x.mountPath].exists(m, " + reserve + " in " + list(trustPaths()) + ")))))"),
		"(!variables.isPod ? [] : " + istios + ".filter(c, c.name == 'istio-proxy').map(c, c.mounts.filter(x, " + volumes + ".exists(v, v.name == x.name && has(v.hostPath))).map(x, " +
			say("ProxyVolumeForbidden", "<<"+position+">>.volumeMounts", "volume <<"+quoted("x.name")+">> (hostPath) is mounted at <<"+quoted("x.mountPath")+">> of the proxy; must be anything but a hostPath", "leave the volumes of the proxy to Istio") + ").join('\\n')))",
	}
}

// shared is a list with a finding for every container of the workload that can write
// to one of the volumes.
func shared(names string) string {
	return names + ".map(n, " + apps + ".map(c, c.mounts.filter(x, x.?name.orValue('') == n && x.?readOnly.orValue(false) != true).map(x, " +
		say("ProxyVolumeForbidden", "<<"+position+">>.volumeMounts[<<string(c.mounts.indexOf(x))>>]",
			"container <<strings.quote(c.name)>> can write to volume <<"+quoted("n")+">>, from which the proxy starts; must not mount it", "remove the mount, or set readOnly: true") + ").join('\\n')).join('\\n'))"
}

// finalRules are about the containers of a pod as they will run.
func finalRules() []rule {
	const index = "s.containers.filter(i, i.kind == 'inits').map(i, i.name)"
	return []rule{
		{
			reason: "CaptureTampered", how: "`istio-init` or `istio-validation` missing, with a strange argument, with `--skip-rule-apply` or with a restartPolicy",
			found: []string{
				when("s.hasProxy && !"+proxyOnly+" && !s.containers.exists(c, c.istio && c.name != 'istio-proxy') && variables.interceptionOff[0] == '' && variables.templateForbidden[0] == ''",
					say("CaptureTampered", "spec.initContainers", "there is neither istio-init nor istio-validation, so that no traffic is captured; must have the one that Istio's injector adds",
						"remove what keeps Istio's injector from adding it")),
				captureContainers + ".filter(c, size(c.args) == 0 || c.args[0] != 'istio-iptables').map(c, " +
					say("CaptureTampered", "<<"+position+">>.args", "<<"+quoted("c.args.join(' ')")+">> is no argument that Istio gives <<c.name>>, or stands twice; must be absent", "leave the arguments to Istio") + ")",
				captureContainers + ".map(c, c.args.filter(a, a.startsWith('-') && !(a.split('=')[0] in " + list(captureFlags()) + ")).map(a, " +
					say("CaptureTampered", "<<"+position+">>.args", "<<"+quoted("a")+">> is no argument that Istio gives <<c.name>>, or stands twice; must be absent", "leave the arguments to Istio") + ").join('\\n'))",
				captureContainers + ".filter(c, c.name == 'istio-init' && c.args.exists(a, a.split('=')[0] == '--skip-rule-apply')).map(c, " +
					say("CaptureTampered", "<<"+position+">>.args", "--skip-rule-apply keeps istio-init from capturing anything; must be absent", "leave the arguments to Istio") + ")",
				captureContainers + ".filter(c, c.c.?restartPolicy.orValue('') != '').map(c, " +
					say("CaptureTampered", "<<"+position+">>.restartPolicy", "<<strings.quote(c.c.restartPolicy)>> lets the pod go on before <<c.name>> is done; must be absent", "remove it") + ")",
			},
		},
		{
			reason: "RunsBeforeCapture", how: "an init container that stands before `istio-init`",
			found: []string{"(" + index + ".indexOf('istio-init') < 0 || !s.hasProxy ? [] : s.containers.filter(c, c.kind == 'inits' && c.name != 'istio-proxy' && " + index + ".indexOf(c.name) < " + index + ".indexOf('istio-init')).map(c, " +
				say("RunsBeforeCapture", "<<"+position+">>", "init container <<strings.quote(c.name)>> runs before istio-init, while traffic is not captured; must come after it",
					"<<s.containers.exists(i, i.kind == 'inits' && i.name == 'istio-proxy') ? 'have the mutating webhook that adds it run before Istio\\'s injector, or add it at the end' : 'set annotation sidecar.istio.io/nativeSidecar: \"true\" on the pod, with which istio-init comes first'>>") + "))"},
		},
	}
}

// captureContainers are those that set up capture.
const captureContainers = "s.containers.filter(c, c.istio && c.name != 'istio-proxy')"

func captureFlags() []string {
	return []string{
		"-p", "-z", "-u", "-g", "-m", "-i", "-x", "-b", "-d", "-q", "-o", "-k", "-c", "--log_output_level", "--log_as_json", "--run-validation",
		"--skip-rule-apply", "--force-apply", "--native-nftables",
	}
}
