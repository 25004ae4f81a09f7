package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
)

// judgePodSpec judges what the workload's own containers may do to capture.
func (w *workload) judgePodSpec() {
	for _, c := range w.applications() {
		w.judgeRights(c)
		if w.plane != planeAmbient {
			w.judgeUser(c)
		}
		w.judgePorts(c)
	}
	if w.plane != planeAmbient {
		w.judgeFurtherGroups()
	}
	w.judgeInitWithoutNative()
}

// judgeFurtherGroups: a process in the proxy's group may give the group and the
// set-group-ID bit to a file of its own, and run as that group by executing it.
// fsGroup also puts all processes into the group.
func (w *workload) judgeFurtherGroups() {
	s := w.spec.SecurityContext
	if s == nil || !w.hasApplication() {
		return
	}
	const message = "%d is the proxy's own group, whose outbound traffic is not captured, and which any process in it can take on; must be another"
	if slices.Contains(s.SupplementalGroups, w.proxyUID()) {
		w.refuse(reasonRunsAsProxy(), w.field("spec.securityContext.supplementalGroups"), fmt.Sprintf(message, w.proxyUID()), "choose another number")
	}
	if s.FSGroup != nil && *s.FSGroup == w.proxyUID() {
		w.refuse(reasonRunsAsProxy(), w.field("spec.securityContext.fsGroup"), fmt.Sprintf(message, w.proxyUID()), "choose another number")
	}
}

// judgeUser: the rules of capture let everything out that runs as the proxy's
// user or group, which is how they tell the proxy's traffic from the workload's.
// The user may be set for the pod or for the container.
//
// Source: tools/istio-iptables/pkg/capture/run.go, the owner matches of
// ISTIO_OUTPUT; the group defaults to the user's number.
func (w *workload) judgeUser(c container) {
	var podUser, podGroup, user, group *int64
	if s := w.spec.SecurityContext; s != nil {
		podUser, podGroup = s.RunAsUser, s.RunAsGroup
	}
	if s := c.SecurityContext; s != nil {
		user, group = s.RunAsUser, s.RunAsGroup
	}
	for _, is := range []struct {
		name     string
		own, pod *int64
	}{{"runAsUser", user, podUser}, {"runAsGroup", group, podGroup}} {
		value := cmp.Or(is.own, is.pod)
		if value == nil || *value != w.proxyUID() {
			continue
		}
		field := c.field + ".securityContext." + is.name
		if is.own == nil {
			field = w.field("spec.securityContext." + is.name)
		}
		if w.hasAt(field) {
			continue
		}
		w.refuse(reasonRunsAsProxy(), field,
			fmt.Sprintf("%d is the proxy's own, whose outbound traffic is not captured; must be another in container %q", *value, c.Name),
			"choose another number; if the image demands this one, rebuild it")
	}
}

func (w *workload) hasAt(field string) bool {
	return slices.ContainsFunc(w.found, func(f Finding) bool { return f.Field == field })
}

// captureCapabilities let a process change iptables, the network namespace or the
// kernel's view of either. Container runtimes take them with and without CAP_.
func captureCapabilities() []string {
	return []string{"ALL", "BPF", "NET_ADMIN", "SYS_ADMIN", "SYS_MODULE"}
}

// judgeRights: the rules of capture live in the pod's own network namespace, where
// a process with the right to can remove them or put its own before them.
func (w *workload) judgeRights(c container) {
	s := c.SecurityContext
	if s == nil {
		return
	}
	if s.Privileged != nil && *s.Privileged {
		w.refuse(reasonMayRewriteCapture(), c.field+".securityContext.privileged",
			fmt.Sprintf("true lets container %q undo the capture of traffic; must be false", c.Name),
			"remove it, or move what needs it to a namespace that is not guarded")
		return
	}
	if s.Capabilities == nil {
		return
	}
	sharesProxy := w.spec.HostPID || w.spec.ShareProcessNamespace != nil && *w.spec.ShareProcessNamespace || w.targetsProxy(c)
	for _, capability := range s.Capabilities.Add {
		name := strings.TrimPrefix(strings.ToUpper(string(capability)), "CAP_")
		traces := name == "SYS_PTRACE" && sharesProxy
		if !slices.Contains(captureCapabilities(), name) && !traces {
			continue
		}
		what := "undo the capture of traffic"
		if traces {
			what = "take over the proxy's process, with which it shares its process namespace"
		}
		w.refuse(reasonMayRewriteCapture(), c.field+".securityContext.capabilities.add",
			fmt.Sprintf("%s lets container %q %s; must not be added", quote(string(capability)), c.Name, what),
			"remove the capability, or move what needs it to a namespace that is not guarded")
	}
}

// targetsProxy reports whether an ephemeral container enters the process
// namespace of the proxy.
func (w *workload) targetsProxy(c container) bool {
	return slices.ContainsFunc(w.spec.EphemeralContainers, func(e corev1.EphemeralContainer) bool {
		return e.Name == c.Name && e.TargetContainerName == proxyContainer
	})
}

// judgePorts: traffic to Istio's own ports is left alone for every pod, so that
// an application there takes it as it comes; and only TCP is ever captured.
func (w *workload) judgePorts(c container) {
	for i, p := range c.Ports {
		field := func() string { return fmt.Sprintf("%s.ports[%d]", c.field, i) }
		if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
			w.remark(reasonProtocolNotCaptured(), field()+".protocol",
				fmt.Sprintf("%s on port %d of container %q is not captured by Istio, and so neither encrypted nor authorized", p.Protocol, p.ContainerPort, c.Name),
				"make sure that the protocol protects itself, or use TCP")
			continue
		}
		own := []string{"15008", "15020", "15021", "15090", w.statusPort()}
		if w.plane == planeSidecar && slices.Contains(own, strconv.Itoa(int(p.ContainerPort))) {
			w.refuse(reasonUncapturedPort(), field()+".containerPort",
				fmt.Sprintf("%d is one of the proxy's own ports, which are never captured, in container %q; must be another", p.ContainerPort, c.Name),
				"listen on another port")
		}
	}
}

// judgeInitWithoutNative predicts for what is still to be injected that its init
// containers will run before istio-init: the annotation turns off native
// sidecars, with which istio-init comes first.
func (w *workload) judgeInitWithoutNative() {
	if w.complete || w.injector().CNI || w.meta.Annotations[nativeSidecarKey] != "false" {
		return
	}
	for _, c := range w.applications() {
		if c.kind == initial {
			w.refuse(reasonRunsBeforeCapture(), c.field,
				fmt.Sprintf("init container %q will run before %s, while traffic is not captured, because of annotation %s: \"false\"; must come after it", c.Name, initContainer, nativeSidecarKey),
				"remove the annotation, or set it to \"true\"")
		}
	}
}

// probe is a probe of a container, with its field.
type probe struct {
	field string
	*corev1.Probe
}

func probesOf(c *corev1.Container) []probe {
	all := []probe{{"livenessProbe", c.LivenessProbe}, {"readinessProbe", c.ReadinessProbe}, {"startupProbe", c.StartupProbe}}
	return slices.DeleteFunc(all, func(p probe) bool { return p.Probe == nil })
}

// judgeProbeRewrite: Istio has the agent answer the kubelet's network probes, in
// plaintext on a port that is not captured, by asking the application the same.
// Without that they meet STRICT and fail.
func (w *workload) judgeProbeRewrite() {
	if w.plane != planeSidecar {
		return
	}
	rewritten := w.meta.Annotations[rewriteProbesKey] != "false"
	for _, c := range w.applications() {
		w.judgeHooks(c, rewritten)
		for _, probe := range probesOf(c.Container) {
			if probe.HTTPGet == nil && probe.TCPSocket == nil && probe.GRPC == nil {
				continue
			}
			switch {
			case rewritten && w.guard.MeshMembership.ProbeRewrite == v1alpha1.ProbeRewriteDeny:
				w.refuse(reasonProbeRewrite(), c.field+"."+probe.field,
					fmt.Sprintf("Istio has the agent answer this probe of container %q in plaintext, for everybody; must be an exec probe by MeshGuard %q", c.Name, w.guard.Name),
					"use an exec probe")
			case !rewritten && !w.complete:
				w.remark(reasonProbeRewrite(), w.annotationField(rewriteProbesKey),
					fmt.Sprintf("\"false\" lets the %s of container %q meet mutual TLS, where it fails", probe.field, c.Name),
					"remove the annotation, or use an exec probe")
			}
		}
	}
}

// judgeHooks: the hooks of a container's life are rewritten like its probes.
//
// Source: pilot/cmd/pilot-agent/status/server.go, appProberPattern.
func (w *workload) judgeHooks(c container, rewritten bool) {
	l := c.Lifecycle
	if l == nil || !rewritten || w.guard.MeshMembership.ProbeRewrite != v1alpha1.ProbeRewriteDeny {
		return
	}
	for _, hook := range []struct {
		name string
		*corev1.LifecycleHandler
	}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
		if hook.LifecycleHandler != nil && (hook.HTTPGet != nil || hook.TCPSocket != nil) {
			w.refuse(reasonProbeRewrite(), c.field+".lifecycle."+hook.name,
				fmt.Sprintf("Istio has the agent answer this hook of container %q in plaintext, for everybody; must be an exec hook by MeshGuard %q", c.Name, w.guard.Name),
				"use an exec hook")
		}
	}
}
