package policies

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Capture. istio-init writes the iptables rules that lead traffic into the proxy;
// where istio-cni does that on the node, istio-validation stands in its place and
// only tries whether it was done. Either is an ordinary container of the pod by
// the time it gets here, and everything that decides what is captured is in its
// arguments and its environment.
//
// Source: the injection template; tools/istio-iptables/pkg/cmd and
// pkg/capture/run.go.

// judgeCapture judges how the traffic of a pod with a proxy is captured.
func (w *workload) judgeCapture() {
	all := w.containers()
	found := false
	for i, c := range all {
		if w.istios(c) && c.Name != proxyContainer {
			found = true
			w.judgeCaptureContainer(c)
			w.judgeOrder(all, i)
		}
	}
	if found || w.plane != planeSidecar || w.has(reasonInterceptionOff()) || w.has(reasonTemplateForbidden()) {
		return
	}
	w.refuse(reasonCaptureTampered(), w.field("spec.initContainers"),
		fmt.Sprintf("there is neither %s nor %s, so that no traffic is captured; must have the one that Istio's injector adds", initContainer, validationContainer),
		"remove what keeps Istio's injector from adding it")
}

func (w *workload) judgeCaptureContainer(c container) {
	w.judgeCaptureKind(c)
	if !w.allowsImage(c.Image) {
		w.refuseImage(c)
	}
	w.judgeCommand(c)
	w.judgeCaptureArguments(c)
	w.judgeEnvironment(c)
	w.judgeContainer(c)
	if c.RestartPolicy != nil {
		w.refuse(reasonCaptureTampered(), c.field+".restartPolicy",
			fmt.Sprintf("%q lets the pod go on before %s is done; must be absent", *c.RestartPolicy, c.Name), "remove it")
	}
}

// judgeCaptureKind: istio-cni leaves a pod alone that has an istio-init, and
// nothing captures for a pod with istio-validation where there is no istio-cni.
func (w *workload) judgeCaptureKind(c container) {
	injector := w.injector()
	if len(injector.Images) == 0 {
		return // nothing is known of the mesh
	}
	want := initContainer
	if injector.CNI {
		want = validationContainer
	}
	if c.Name != want {
		w.refuse(reasonCaptureTampered(), c.field+".name",
			fmt.Sprintf("%q captures nothing in this mesh; must be %q", c.Name, want), "leave the init containers to Istio's injector")
	}
}

// judgeOrder: what runs before istio-init runs without capture.
func (w *workload) judgeOrder(all []container, capture int) {
	if all[capture].Name != initContainer {
		return // istio-cni has captured before any container starts
	}
	for _, c := range all[:capture] {
		if c.Name == proxyContainer {
			continue
		}
		remedy := fmt.Sprintf("set annotation %s: \"true\" on the pod, with which istio-init comes first", nativeSidecarKey)
		if p, _ := w.proxy(); p.kind == initial {
			remedy = "have the mutating webhook that adds it run before Istio's injector, or add it at the end"
		}
		w.refuse(reasonRunsBeforeCapture(), c.field,
			fmt.Sprintf("init container %q runs before %s, while traffic is not captured; must come after it", c.Name, initContainer), remedy)
	}
}

// captureFlag reports whether a flag is one that Istio's templates give, and
// whether it takes a value.
func captureFlag(name string) (takes, known bool) {
	switch name {
	case "-p", "-z", "-u", "-g", "-m", "-i", "-x", "-b", "-d", "-q", "-o", "-k", "-c", "--log_output_level":
		return true, true
	case "--log_as_json", "--run-validation", "--skip-rule-apply", "--force-apply", "--native-nftables":
		return false, true
	}
	return false, false
}

// parseCapture takes the arguments of istio-iptables apart. Flags that stand twice
// count by the last of them there, and are refused here.
func parseCapture(args []string) (values map[string]string, strange string) {
	values = make(map[string]string, len(args)/2)
	if len(args) == 0 || args[0] != "istio-iptables" {
		return values, strings.Join(args, " ")
	}
	for i := 1; i < len(args); i++ {
		name, value, given := strings.Cut(args[i], "=")
		takes, known := captureFlag(name)
		if _, twice := values[name]; !known || twice {
			return values, args[i]
		}
		if takes && !given {
			if i++; i == len(args) {
				return values, name
			}
			value = args[i]
		}
		values[name] = value
	}
	return values, ""
}

func (w *workload) judgeCaptureArguments(c container) {
	field := c.field + ".args"
	flags, strange := parseCapture(c.Args)
	if strange != "" {
		w.refuse(reasonCaptureTampered(), field,
			fmt.Sprintf("%s is no argument that Istio gives %s, or stands twice; must be absent", quote(strange), c.Name), "leave the arguments to Istio")
		return
	}
	if _, skips := flags["--skip-rule-apply"]; skips && c.Name == initContainer {
		w.refuse(reasonCaptureTampered(), field, "--skip-rule-apply keeps istio-init from capturing anything; must be absent", "leave the arguments to Istio")
	}
	w.judgeCapturePorts(field, flags)
	w.judgeCapturedTraffic(field, flags)
}

// judgeCapturePorts: where the captured traffic goes, and whose is left alone.
func (w *workload) judgeCapturePorts(field string, flags map[string]string) {
	uid := strconv.FormatInt(w.proxyUID(), 10)
	out, in := w.listenPorts()
	for _, want := range []struct{ flag, value, is string }{
		{"-p", out, "the proxy's outbound port"},
		{"-z", in, "the proxy's inbound port"},
		{"-u", uid, "the proxy's user, whose traffic is left alone"},
	} {
		if v, given := flags[want.flag]; given && v != want.value && !(want.flag == "-u" && v == "1337") {
			w.refuse(reasonCaptureTampered(), field,
				fmt.Sprintf("%s %s is not %s; must be %q", want.flag, quote(v), want.is, want.value), "leave the arguments to Istio")
		}
	}
	if g, given := flags["-g"]; given && g != uid {
		w.refuse(reasonCaptureTampered(), field,
			fmt.Sprintf("-g %s is not the proxy's group, whose traffic is left alone; must be %q", quote(g), uid), "leave the arguments to Istio")
	}
}

// listenPorts are where the mesh's proxies take captured traffic.
func (w *workload) listenPorts() (outbound, inbound string) {
	for _, cp := range w.cluster.ControlPlanes {
		if len(w.cluster.ControlPlanes) == 1 || cp.Revision == w.injector().Revision {
			return strconv.Itoa(int(cmp.Or(cp.ProxyListenPort, 15001))), strconv.Itoa(int(cmp.Or(cp.InboundListenPort, 15006)))
		}
	}
	return "15001", "15006"
}

// judgeCapturedTraffic: what the annotations ask for comes back in the arguments,
// and is said once.
func (w *workload) judgeCapturedTraffic(field string, flags map[string]string) {
	once := func(reason Reason, message string) {
		if !w.has(reason) {
			w.refuse(reason, field, message, "remove what sets it, or mend the injector's configuration")
		}
	}
	if m := flags["-m"]; m != "REDIRECT" && m != "TPROXY" {
		once(reasonInterceptionOff(), fmt.Sprintf("-m %s captures no traffic; must be \"REDIRECT\" or \"TPROXY\"", quote(m)))
	}
	if b := flags["-b"]; b != all {
		once(reasonInboundPortsNotIncluded(), fmt.Sprintf("-b %s limits inbound capture to these ports; must be \"*\"", quote(b)))
	}
	if ports := w.uncaptured(flags["-d"]); len(ports) > 0 {
		once(reasonInboundPortsExcluded(), fmt.Sprintf("-d takes %s out of inbound capture; must exclude none but Istio's own", portList(ports)))
	}
	if c := flags["-c"]; c != "" {
		once(reasonInterfaceExcluded(), fmt.Sprintf("-c %s takes an interface out of capture; must be absent", quote(c)))
	}
	if k := flags["-k"]; k != "" {
		once(reasonVirtualInterface(), fmt.Sprintf("-k %s has inbound traffic of an interface treated as outbound; must be absent", quote(k)))
	}
	if i := flags["-i"]; !w.includesAllRanges(i) {
		once(reasonOutboundExcluded(), fmt.Sprintf("-i %s captures traffic to these ranges only; must be \"*\"", quote(i)))
	}
	if ranges := w.outboundRanges(flags["-x"]); len(ranges) > 0 {
		once(reasonOutboundExcluded(), fmt.Sprintf("-x sends traffic to %s past the proxy; must only name ranges that MeshGuard %q lets pass", quote(strings.Join(ranges, ",")), w.guard.Name))
	}
	if ports := w.outboundPorts(flags["-o"]); len(ports) > 0 {
		once(reasonOutboundExcluded(), fmt.Sprintf("-o sends traffic to %s past the proxy; must only name ports that MeshGuard %q lets pass", portList(ports), w.guard.Name))
	}
}
