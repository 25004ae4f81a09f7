package policies

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The proxy. Istio merges a container of the user's named like its own over what
// its template renders, field by field, whether it stands in the pod or in
// annotation proxy.istio.io/overrides, which Istio also writes itself to remember
// such containers. Resources, ports, probes of the kubelet's and the like are the
// user's to change; what runs, as whom, with which environment, is not.
//
// Source: pkg/kube/inject/webhook.go, reapplyOverwrittenContainers.
const overridesKey = "proxy.istio.io/overrides"

// judgeOverrides judges the containers that are to be merged over Istio's.
func (w *workload) judgeOverrides() {
	if !w.complete {
		for _, c := range w.containers() {
			if w.istios(c) {
				w.judgeOverride(c)
			}
		}
	}
	v, ok := w.annotation(overridesKey)
	if !ok {
		return
	}
	field := w.annotationField(overridesKey)
	var overrides struct {
		InitContainers []corev1.Container `json:"initContainers"`
		Containers     []corev1.Container `json:"containers"`
	}
	if err := json.Unmarshal([]byte(v), &overrides); err != nil {
		w.refuse(reasonProxyOverridden(), field, fmt.Sprintf("%s is not readable JSON; must be absent", quote(v)), "remove the annotation")
		return
	}
	for i := range overrides.InitContainers {
		w.judgeOverride(container{&overrides.InitContainers[i], field, initial})
	}
	for i := range overrides.Containers {
		w.judgeOverride(container{&overrides.Containers[i], field, regular})
	}
}

// judgeOverride judges what a user says of a container of Istio's.
func (w *workload) judgeOverride(c container) {
	if c.Image != "" && c.Image != "auto" && !w.allowsImage(c.Image) {
		w.refuseImage(c)
	}
	w.judgeCommand(c)
	if len(c.Args) > 0 {
		w.refuse(reasonProxyOverridden(), c.field+".args",
			fmt.Sprintf("%s replace the arguments that Istio gives %s; must be absent", quote(strings.Join(c.Args, " ")), c.Name), "remove them")
	}
	for _, e := range c.Env {
		if forbiddenMetadata(e.Name, e.Value, w.cluster.ControlPlanes, w.guard) {
			w.refuseMetadata(c.field+".env", fmt.Sprintf("%s of %s", quote(e.Name), c.Name), e.Name)
		}
	}
	if c.Name == initContainer && c.RestartPolicy != nil {
		w.refuse(reasonCaptureTampered(), c.field+".restartPolicy",
			fmt.Sprintf("%q lets the pod go on before %s is done; must be absent", *c.RestartPolicy, c.Name), "remove it")
	}
	w.judgeContainer(c)
	w.judgeOverrideSecurity(c)
	for _, m := range c.VolumeMounts {
		// Kubernetes mounts the token of the ServiceAccount into every container.
		if renderedMount(m.MountPath) && path.Clean(m.MountPath) != tokenPath {
			w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
				fmt.Sprintf("volume %s is mounted at %s in place of Istio's own; must be at a path of its own, such as /mnt/certs", quote(m.Name), quote(m.MountPath)), "mount it elsewhere")
		}
	}
}

// judgeOverrideSecurity: a user's own settings of the proxy have none of the
// reasons that Istio has to run it as root or with rights over the network.
func (w *workload) judgeOverrideSecurity(c container) {
	s := c.SecurityContext
	if s == nil || c.Name != proxyContainer {
		return
	}
	if w.complete && s.RunAsUser != nil && *s.RunAsUser == 0 { // otherwise said already
		w.refuse(reasonProxyOverridden(), c.field+".securityContext.runAsUser",
			fmt.Sprintf("0 makes istio-cni leave everything alone that runs as root; must be %d or absent", w.proxyUID()), "remove it")
	}
	if !w.complete { // otherwise it is in the final container too
		w.judgeProxyCapabilities(c)
	}
}

// judgeProxyCapabilities: the proxy needs a right over the network only for
// interception by TPROXY, and otherwise must not have it for what is executed in
// its container.
func (w *workload) judgeProxyCapabilities(c container) {
	if c.SecurityContext == nil || c.SecurityContext.Capabilities == nil || w.plane != planeSidecar {
		return
	}
	tproxy := slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == "ISTIO_META_INTERCEPTION_MODE" && e.Value == "TPROXY"
	})
	for _, capability := range c.SecurityContext.Capabilities.Add {
		name := strings.TrimPrefix(strings.ToUpper(string(capability)), "CAP_")
		if name == "NET_BIND_SERVICE" || name == "NET_ADMIN" && tproxy {
			continue
		}
		w.refuse(reasonProxyOverridden(), c.field+".securityContext.capabilities.add",
			fmt.Sprintf("%s lets the proxy's container undo the capture of traffic; must not be added", quote(string(capability))), "remove the capability")
	}
}

// judgeProxy judges the proxy as it will run.
func (w *workload) judgeProxy() {
	c, _ := w.proxy()
	if !w.allowsImage(c.Image) {
		w.refuseImage(c)
	}
	w.judgeCommand(c)
	w.judgeProxyArguments(c)
	w.judgeEnvironment(c)
	w.judgeContainer(c)
	w.judgeProxyCapabilities(c)
	for i := range c.VolumeMounts {
		w.judgeTrustMount(c, &c.VolumeMounts[i])
	}
}

// judgeContainer judges what must hold of a container of Istio's however it came
// about.
func (w *workload) judgeContainer(c container) {
	if len(c.EnvFrom) > 0 {
		w.refuse(reasonProxyMetadataForbidden(), c.field+".envFrom",
			fmt.Sprintf("%s takes its environment from an object that may change; must be absent", c.Name), "remove it")
	}
	for _, e := range c.Env {
		if from := e.ValueFrom; from != nil && from.FieldRef == nil && from.ResourceFieldRef == nil {
			w.refuseMetadata(c.field+".env", fmt.Sprintf("%s of %s comes from another object, and", quote(e.Name), c.Name), e.Name)
		}
	}
	w.judgeProxySecurity(c)
	if c.WorkingDir != "" {
		w.refuse(reasonProxyOverridden(), c.field+".workingDir",
			fmt.Sprintf("%s is where %s would look for its configuration, roots, tokens and sockets, whose paths are relative; must be absent", quote(c.WorkingDir), c.Name), "remove it")
	}
	for _, m := range c.VolumeMounts {
		if proxyPath(m.MountPath) && !renderedMount(m.MountPath) && !w.meshCertificates(&m) {
			w.refuse(reasonProxyVolumeForbidden(), c.field+".volumeMounts",
				fmt.Sprintf("volume %s is mounted at %s, over what the proxy runs and trusts; must be at a path of its own, such as /mnt/certs", quote(m.Name), quote(m.MountPath)), "mount it elsewhere")
		}
	}
	for _, hook := range execHooks(c.Container) {
		w.refuse(reasonProxyOverridden(), c.field+"."+hook.field,
			fmt.Sprintf("%s runs inside %s with the proxy's rights; must be \"pilot-agent wait\", \"pilot-agent request\", \"sleep …\" or absent", quote(strings.Join(hook.command, " ")), c.Name), "remove it, or use sleep")
	}
}

// judgeCommand: without a command the image decides what runs, and the image is
// Istio's.
func (w *workload) judgeCommand(c container) {
	if len(c.Command) > 0 {
		w.refuse(reasonProxyOverridden(), c.field+".command",
			fmt.Sprintf("%s runs in place of what the image of %s starts; must be absent", quote(strings.Join(c.Command, " ")), c.Name), "remove it")
	}
}

// judgeProxyArguments: pilot-agent takes another bootstrap template or mesh
// configuration by argument.
func (w *workload) judgeProxyArguments(c container) {
	must := []string{"sidecar"}
	if w.plane == planeProxy {
		must = []string{"sidecar", "router", "waypoint"}
	}
	if len(c.Args) < 2 || c.Args[0] != "proxy" || !slices.Contains(must, c.Args[1]) {
		w.refuse(reasonProxyOverridden(), c.field+".args",
			fmt.Sprintf("%s do not start the proxy; must begin with \"proxy %s\"", quote(strings.Join(c.Args, " ")), strings.Join(must, "|")), "leave them to Istio")
		return
	}
	for _, arg := range c.Args {
		if breaksBootstrap(arg) {
			w.refuse(reasonBootstrapOverridden(), c.field+".args", fmt.Sprintf("argument %s %s", quote(arg), withoutQuotes), "leave the arguments to Istio")
		}
	}
	known := []string{"--domain", "--proxyLogLevel", "--proxyComponentLogLevel", "--log_output_level", "--log_as_json", "--stsPort", "--outlierLogPath", "--serviceCluster", "--concurrency", "--profiling"}
	for _, arg := range c.Args[2:] {
		name, _, _ := strings.Cut(arg, "=")
		if strings.HasPrefix(arg, "-") && !slices.Contains(known, name) {
			w.refuse(reasonProxyOverridden(), c.field+".args",
				fmt.Sprintf("argument %s is none that Istio gives its proxy; must be absent", quote(arg)), "leave the arguments to Istio")
		}
	}
}

// judgeEnvironment judges the final environment. Of a variable that is set twice
// the kubelet takes the last, so that one of Istio's own may be followed by one
// from elsewhere.
func (w *workload) judgeEnvironment(c container) {
	var rendered []string
	if c.Name == proxyContainer {
		rendered = renderedEnvironment()
	}
	seen := make([]bool, len(rendered))
	for _, e := range c.Env {
		i := slices.Index(rendered, e.Name)
		switch {
		case i >= 0 && !seen[i]:
			seen[i] = true
			w.judgeRenderedVariable(c, e)
		case forbiddenMetadata(e.Name, e.Value, w.cluster.ControlPlanes, w.guard):
			if e.Name == "ISTIO_BOOTSTRAP_OVERRIDE" && w.has(reasonBootstrapOverridden()) {
				continue // the annotation of this name, reported already
			}
			w.refuseMetadata(c.field+".env", fmt.Sprintf("%s of %s", quote(e.Name), c.Name), e.Name)
		}
	}
}

// judgeRenderedVariable looks into those of Istio's own variables that decide
// whom the proxy obeys.
func (w *workload) judgeRenderedVariable(c container, e corev1.EnvVar) {
	want := renderedField(e.Name)
	switch from := e.ValueFrom; {
	case from != nil && from.FieldRef != nil && from.FieldRef.FieldPath != want:
		w.refuseMetadata(c.field+".env", fmt.Sprintf("%s of %s comes from %s, and", quote(e.Name), c.Name, quote(from.FieldRef.FieldPath)), e.Name)
	case want != "" && (from == nil || from.FieldRef == nil):
		w.refuseMetadata(c.field+".env", fmt.Sprintf("%s of %s is not the pod's %s, and", quote(e.Name), c.Name, want), e.Name)
	}
	switch e.Name {
	case "PILOT_CERT_PROVIDER":
		// The template mounts istiod's root only where istiod is the provider.
		mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return path.Clean(m.MountPath) == rootsPath })
		if mounted && e.Value != "istiod" {
			w.refuseMetadata(c.field+".env", fmt.Sprintf("%s of %s: %s", quote(e.Name), c.Name, quote(e.Value)), e.Name)
		}
	case "PROXY_CONFIG":
		if w.meta.Annotations[proxyConfigKey] == "" || !w.has(reasonProxyConfigForbidden()) && !w.has(reasonInterceptionOff()) {
			w.judgeProxyConfigText(cmp.Or(e.Value, "{}"), c.field+".env")
		}
	case "ISTIO_KUBE_APP_PROBERS":
		if w.guard.MeshMembership.ProbeRewrite == v1alpha1.ProbeRewriteDeny && !w.has(reasonProbeRewrite()) {
			w.refuse(reasonProbeRewrite(), c.field+".env",
				fmt.Sprintf("%s of %s has the agent answer %s in plaintext, for everybody; must be absent by MeshGuard %q", e.Name, c.Name, quote(e.Value), w.guard.Name), "remove what sets it")
		}
	case "ISTIO_META_INTERCEPTION_MODE":
		if strings.EqualFold(e.Value, "NONE") && !w.has(reasonInterceptionOff()) {
			w.refuse(reasonInterceptionOff(), c.field+".env",
				fmt.Sprintf("%s of %s is %s, which captures no traffic; must be \"REDIRECT\" or \"TPROXY\"", e.Name, c.Name, quote(e.Value)), "remove what sets it")
		}
	case "CA_ADDR":
		if !w.knownAuthority(e.Value) {
			w.refuse(reasonDiscoveryAddress(), c.field+".env",
				fmt.Sprintf("CA_ADDR of %s is %s, which is not the mesh's certificate authority; must be the one that the injector configures", c.Name, quote(e.Value)), "remove what sets it")
		}
	}
}

// knownAuthority reports whether an address is istiod's, or the one that the
// injector is configured to render. Without any, the agent asks where it takes its
// configuration from.
func (w *workload) knownAuthority(address string) bool {
	host, _, _ := strings.Cut(address, ":")
	name, rest, _ := strings.Cut(host, ".")
	for _, cp := range w.cluster.ControlPlanes {
		if address == cp.ProxyConfig.GetDiscoveryAddress() {
			return true
		}
		if (name == "istiod" || name == "istiod-"+cp.Revision) && rest == cp.RootNamespace+".svc" {
			return true
		}
	}
	return slices.ContainsFunc(w.cluster.Injection.Injectors, func(i mesh.Injector) bool {
		return address == i.CAAddress
	})
}

// judgeProxySecurity: the rules of capture leave alone what runs as the proxy's
// user, and rewrite themselves for a proxy that says it is another; so nobody
// else may be that user, and the proxy must not be another.
func (w *workload) judgeProxySecurity(c container) {
	s := c.SecurityContext
	if s == nil || c.Name != proxyContainer || w.plane != planeSidecar {
		return
	}
	uid := w.proxyUID()
	asRoot := s.RunAsUser != nil && *s.RunAsUser == 0 && w.complete // Istio's own choice for TPROXY and low ports
	if s.RunAsUser != nil && *s.RunAsUser != uid && !asRoot {
		w.refuse(reasonProxyOverridden(), c.field+".securityContext.runAsUser",
			fmt.Sprintf("%d makes Istio leave everything alone that runs as this user; must be %d or absent", *s.RunAsUser, uid), "remove it")
	}
	if s.RunAsGroup != nil && *s.RunAsGroup != uid && *s.RunAsGroup != 0 {
		w.refuse(reasonProxyOverridden(), c.field+".securityContext.runAsGroup",
			fmt.Sprintf("%d makes Istio leave everything alone that runs as this group; must be %d or absent", *s.RunAsGroup, uid), "remove it")
	}
	if s.Privileged != nil && *s.Privileged && !w.injector().Privileged {
		w.refuse(reasonProxyOverridden(), c.field+".securityContext.privileged",
			"true lets the proxy's container undo the capture of traffic; must be false", "remove it")
	}
}

// proxyUID is the user that proxies of the namespace run as.
func (w *workload) proxyUID() int64 { return cmp.Or(w.namespace.ProxyUID, 1337) }

// harmlessHook: of the subcommands of pilot-agent, others undo the capture of
// traffic or start a proxy of another configuration.
func harmlessHook(command []string) bool {
	switch command[0] {
	case "sleep", "/bin/sleep":
		return true
	case "pilot-agent", "/usr/local/bin/pilot-agent":
		return len(command) > 1 && (command[1] == "wait" || command[1] == "request")
	}
	return false
}

// execHook is a command that the kubelet runs inside a container.
type execHook struct {
	field   string
	command []string
}

// execHooks returns the commands that the kubelet would run inside the container,
// without those of Istio's templates and plain waiting.
func execHooks(c *corev1.Container) []execHook {
	var hooks []execHook
	add := func(field string, e *corev1.ExecAction) {
		if e != nil && len(e.Command) > 0 && !harmlessHook(e.Command) {
			hooks = append(hooks, execHook{field, e.Command})
		}
	}
	if l := c.Lifecycle; l != nil {
		if l.PostStart != nil {
			add("lifecycle.postStart", l.PostStart.Exec)
		}
		if l.PreStop != nil {
			add("lifecycle.preStop", l.PreStop.Exec)
		}
	}
	for _, p := range probesOf(c) {
		add(p.field, p.Exec)
	}
	return hooks
}

func (w *workload) refuseImage(c container) {
	if w.has(reasonProxyImageForbidden()) && w.meta.Annotations[proxyImageKey] == c.Image {
		return // said of the annotation
	}
	w.refuse(reasonProxyImageForbidden(), c.field+".image",
		fmt.Sprintf("%s of %s is not an image of the mesh; must be %s", quote(c.Image), c.Name, w.imagesText()),
		fmt.Sprintf("leave the image to Istio, or have it added to spec.meshMembership.proxyImages of MeshGuard %q", w.guard.Name))
}

// allowsImage reports whether a container of Istio's may have the image.
func (w *workload) allowsImage(image string) bool {
	return matchesAny(image, w.guard.MeshMembership.ProxyImages) ||
		slices.ContainsFunc(w.cluster.Injection.Injectors, func(i mesh.Injector) bool { return i.AllowsImage(image) })
}

func (w *workload) imagesText() string {
	var images []string
	for _, i := range w.cluster.Injection.Injectors {
		images = append(images, i.Images...)
	}
	slices.Sort(images)
	images = slices.Compact(images)
	if len(images) == 0 {
		return "what the injector renders"
	}
	return firstOf(images[:min(len(images), 3)], len(images))
}
