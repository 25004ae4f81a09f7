package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestWithIstio plays on a control plane with a running istiod, which injects for
// real: prediction against outcome, every way out against the refusal, and what
// everybody deploys against false alarms.
func TestWithIstio(t *testing.T) {
	ownPlane(t, controlplane.Options{Istio: true, Log: t.Output()})
	t.Run("prediction", predictions)

	admin := clientFor(t, controlplane.Admin)
	create(t, admin, policy("istio-system", "default", "STRICT"))
	start(t)
	guard(t, v1alpha1.DefaultGuard())
	enforcing(t, "default")
	ns := injectedNamespace("prod", true)
	create(t, clientFor(t, controlplane.Developer), ns)
	serviceAccount(t, ns.Name)
	t.Run("ways out", func(t *testing.T) { waysOut(t, ns.Name) })
	t.Run("running pods", runningPods)
	t.Run("samples", func(t *testing.T) { istioSamples(t, ns.Name) })
}

func injectedNamespace(prefix string, guarded bool) *corev1.Namespace {
	ns := namespace(unique(prefix), guarded)
	ns.Labels["istio-injection"] = "enabled"
	return ns
}

// wayOut is a way out of the mesh and the code of what is said to it.
type wayOut struct {
	name, code string
	labels     map[string]string
	annotation [2]string
	spec       func(*corev1.PodSpec)
}

// byAnnotation are the ways out that take one annotation.
func byAnnotation() []wayOut {
	const traffic, sidecar, config = "traffic.sidecar.istio.io/", "sidecar.istio.io/", "proxy.istio.io/config"
	metadata := func(key string) [2]string { return [2]string{config, `{"proxyMetadata":{"` + key + `":"true"}}`} }
	return []wayOut{
		{name: "opt out by annotation", code: "MV202", annotation: [2]string{sidecar + "inject", "false"}},
		{name: "excluded port", code: "MV206", annotation: [2]string{traffic + "excludeInboundPorts", "8080"}},
		{name: "included ports", code: "MV207", annotation: [2]string{traffic + "includeInboundPorts", "8080"}},
		{name: "no included ports", code: "MV207", annotation: [2]string{traffic + "includeInboundPorts", ""}},
		{name: "status port", code: "MV208", annotation: [2]string{"status.sidecar.istio.io/port", "8080"}},
		{name: "interface", code: "MV209", annotation: [2]string{traffic + "excludeInterfaces", "eth0"}},
		{name: "virtual interface", code: "MV210", annotation: [2]string{"istio.io/reroute-virtual-interfaces", "eth0"}},
		{name: "kubevirt interface", code: "MV210", annotation: [2]string{traffic + "kubevirtInterfaces", "eth0"}},
		{name: "interception none", code: "MV211", annotation: [2]string{sidecar + "interceptionMode", "NONE"}},
		{name: "interception none in the config", code: "MV211", annotation: [2]string{config, "interceptionMode: NONE"}},
		{name: "outbound port", code: "MV212", annotation: [2]string{traffic + "excludeOutboundPorts", "5432"}},
		{name: "outbound range", code: "MV212", annotation: [2]string{traffic + "excludeOutboundIPRanges", "10.0.0.0/8"}},
		{name: "outbound captured in part", code: "MV212", annotation: [2]string{traffic + "includeOutboundIPRanges", "10.0.0.0/8"}},
		{name: "discovery address in the config", code: "MV213", annotation: [2]string{config, "discoveryAddress: evil.example.com:15012"}},
		{name: "bootstrap file in snake case", code: "MV213", annotation: [2]string{config, `{"custom_config_file":"/tmp/x"}`}},
		{name: "skip the rules", code: "MV214", annotation: metadata("SKIP_RULE_APPLY")},
		{name: "dry run of the rules", code: "MV214", annotation: metadata("DRY_RUN")},
		{name: "tunnel port", code: "MV214", annotation: metadata("INBOUND_TUNNEL_PORT")},
		{name: "forged labels", code: "MV214", annotation: metadata("ISTIO_METAJSON_LABELS")},
		{name: "no Envoy", code: "MV214", annotation: metadata("DISABLE_ENVOY")},
		{name: "overrides", code: "MV217", annotation: [2]string{"proxy.istio.io/overrides", `{"initContainers":[{"name":"istio-proxy","image":"evil.example.com/envoy:1"}]}`}},
		{name: "template for gRPC", code: "MV216", annotation: [2]string{"inject.istio.io/templates", "grpc-agent"}},
		{name: "template for gateways", code: "MV216", annotation: [2]string{"inject.istio.io/templates", "gateway"}},
		{name: "proxy image", code: "MV217", annotation: [2]string{sidecar + "proxyImage", "evil.example.com/envoy:1"}},
		{name: "bootstrap", code: "MV218", annotation: [2]string{sidecar + "bootstrapOverride", "mine"}},
		{name: "volume of the node", code: "MV219", annotation: [2]string{sidecar + "userVolume", `{"x":{"hostPath":{"path":"/"}}}`}},
		{name: "discovery address", code: "MV220", annotation: [2]string{sidecar + "discoveryAddress", "evil.example.com:15012"}},
		{name: "ambient said to be done", code: "MV227", annotation: [2]string{"ambient.istio.io/redirection", "enabled"}},
	}
}

// byLabelOrSpec are the others.
func byLabelOrSpec() []wayOut {
	const sidecar = "sidecar.istio.io/"
	user, yes := int64(1337), true
	first := func(s corev1.SecurityContext) func(*corev1.PodSpec) {
		return func(spec *corev1.PodSpec) { spec.Containers[0].SecurityContext = &s }
	}
	extra := func(c corev1.Container) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) { s.Containers = append(s.Containers, c) }
	}
	return []wayOut{
		{name: "opt out by label", code: "MV202", labels: map[string]string{sidecar + "inject": "false"}},
		{name: "odd value", code: "MV202", labels: map[string]string{sidecar + "inject": "0"}},
		{name: "TLS mode", code: "MV228", labels: map[string]string{"security.istio.io/tlsMode": "disabled"}},
		{name: "virtual machine", code: "MV228", labels: map[string]string{"istio.io/test-vm": "x"}},
		{name: "host network", code: "MV205", spec: func(s *corev1.PodSpec) { s.HostNetwork = true }},
		{name: "own proxy", code: "MV217", spec: extra(corev1.Container{Name: "istio-proxy", Image: "evil.example.com/envoy:1"})},
		{name: "own command for the proxy", code: "MV215", spec: extra(corev1.Container{Name: "istio-proxy", Image: "auto", Command: []string{"sleep"}})},
		{name: "own istio-init", code: "MV215", spec: func(s *corev1.PodSpec) {
			s.InitContainers = append(s.InitContainers, corev1.Container{Name: "istio-init", Image: "auto", Command: []string{"true"}})
		}},
		{name: "user 1337", code: "MV221", spec: first(corev1.SecurityContext{RunAsUser: &user})},
		{name: "group 1337 of the pod", code: "MV221", spec: func(s *corev1.PodSpec) { s.SecurityContext = &corev1.PodSecurityContext{RunAsGroup: &user} }},
		{name: "privileged", code: "MV222", spec: first(corev1.SecurityContext{Privileged: &yes})},
		{name: "capability", code: "MV222", spec: first(corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}})},
		{name: "port that is never captured", code: "MV224", spec: func(s *corev1.PodSpec) {
			s.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 15008}}
		}},
	}
}

// waysOut tries every way out as a pod and as a Deployment, with the rights of an
// ordinary user of the namespace.
func waysOut(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	for _, w := range append(byAnnotation(), byLabelOrSpec()...) {
		t.Run(w.name, func(t *testing.T) {
			p := pod(namespace, map[string]string{"app": "web"})
			maps.Copy(p.Labels, w.labels)
			if w.annotation[0] != "" {
				p.Annotations = map[string]string{w.annotation[0]: w.annotation[1]}
			}
			if w.spec != nil {
				w.spec(&p.Spec)
			}
			for _, o := range []client.Object{deploymentOf(p), p} {
				refused(t, dev.Create(t.Context(), o), "["+w.code+"]")
			}
		})
	}
	harmless := pod(namespace, map[string]string{"app": "web"})
	harmless.Annotations = map[string]string{"proxy.istio.io/config": "concurrency: 2", "sidecar.istio.io/proxyCPU": "200m"}
	gateway := pod(namespace, map[string]string{"app": "gateway"})
	gateway.Annotations = map[string]string{"inject.istio.io/templates": "gateway"}
	gateway.Spec.Containers = []corev1.Container{{Name: "istio-proxy", Image: "auto"}}
	create(t, dev, deploymentOf(harmless), harmless, deploymentOf(gateway), gateway)
}

func deploymentOf(p *corev1.Pod) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: unique("web")},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": p.Labels["app"]}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels, Annotations: p.Annotations}, Spec: *p.Spec.DeepCopy()},
		},
	}
}

func mergePatch(body string) client.Patch {
	return client.RawPatch("application/merge-patch+json", []byte(body))
}

// runningPods: a namespace comes under the guard only with its pods in the mesh,
// and pods do not leave it while they run.
func runningPods(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	ns := injectedNamespace("later", false)
	create(t, dev, ns)
	serviceAccount(t, ns.Name)
	outside := pod(ns.Name, map[string]string{"app": "outside", "sidecar.istio.io/inject": "false"})
	inside := pod(ns.Name, map[string]string{"app": "inside"})
	create(t, dev, outside, inside)

	guarded := mergePatch(`{"metadata":{"labels":{"` + v1alpha1.GuardedLabel + `":"` + v1alpha1.GuardedValue + `"}}}`)
	refused(t, dev.Patch(t.Context(), ns.DeepCopy(), guarded), "[MV232]", outside.Name)
	must(t, dev.Delete(t.Context(), outside, client.GracePeriodSeconds(0)))
	eventually(t, 30*time.Second, func() error { return dev.Patch(t.Context(), ns.DeepCopy(), guarded) })
	// The API server knows by its own cache that the namespace is guarded now.
	eventually(t, 10*time.Second, func() error {
		p := pod(ns.Name, map[string]string{"sidecar.istio.io/inject": "false"})
		if err := client.NewDryRunClient(dev).Create(t.Context(), p); err == nil {
			return fmt.Errorf("a pod without a sidecar is admitted")
		}
		return nil
	})

	image := client.RawPatch("application/json-patch+json", []byte(`[{"op":"replace","path":"/spec/initContainers/1/image","value":"evil.example.com/envoy:1"}]`))
	refused(t, dev.Patch(t.Context(), inside.DeepCopy(), image), "[MV217]")
	refused(t, dev.Patch(t.Context(), inside.DeepCopy(), mergePatch(`{"metadata":{"annotations":{"proxy.istio.io/config":"discoveryAddress: evil:15012"}}}`)), "[MV213]")
	must(t, dev.Patch(t.Context(), inside.DeepCopy(), mergePatch(`{"metadata":{"labels":{"tier":"front"}}}`)))

	user := int64(1337)
	debug := &corev1.Pod{}
	must(t, dev.Get(t.Context(), client.ObjectKeyFromObject(inside), debug))
	debug.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debug", Image: "busybox", SecurityContext: &corev1.SecurityContext{RunAsUser: &user},
	}}}
	refused(t, clientFor(t, controlplane.Admin).SubResource("ephemeralcontainers").Update(t.Context(), debug), "[MV221]")
	refused(t, dev.Patch(t.Context(), ns.DeepCopy(), mergePatch(`{"metadata":{"labels":{"istio-injection":"disabled"}}}`)), "[MV203]")
}

// outsideByDesign is a sample that proxies call before they let anything pass; it
// says itself that it has no sidecar.
const outsideByDesign = "extauthz/ext-authz.yaml"

// istioSamples deploys Istio's sample applications, as they are, into a guarded
// namespace.
func istioSamples(t *testing.T, namespace string) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio")
	cmd.Dir = "../controlplane/binaries/istio"
	out, err := cmd.Output()
	must(t, err)
	root := strings.TrimSpace(string(out))
	for _, sample := range []string{
		"bookinfo/platform/kube/bookinfo.yaml", "bookinfo/platform/kube/bookinfo-ratings-v2.yaml", "bookinfo/platform/kube/bookinfo-mysql.yaml",
		"bookinfo/platform/kube/bookinfo-db.yaml", "httpbin/httpbin.yaml", "curl/curl.yaml", "helloworld/helloworld.yaml",
		"tcp-echo/tcp-echo.yaml", "health-check/liveness-http-same-port.yaml", outsideByDesign,
	} {
		manifest, err := os.ReadFile(filepath.Join(root, "samples", sample))
		must(t, err)
		stdout, stderr, err := plane.Kubectl(t.Context(), controlplane.Developer, string(manifest), "-n", namespace, "apply", "-f", "-")
		if want := sample == outsideByDesign; (err != nil) != want || want && !strings.Contains(stderr, "[MV202]") {
			t.Errorf("%s: %v\n%s%s", sample, err, stdout, stderr)
		}
	}
	admin := clientFor(t, controlplane.Admin)
	eventually(t, 60*time.Second, func() error {
		var list appsv1.ReplicaSetList
		if err := admin.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		return allPodsCreated(list.Items)
	})
}

// allPodsCreated reports the first ReplicaSet whose pods the API server did not
// take.
func allPodsCreated(sets []appsv1.ReplicaSet) error {
	if len(sets) < 10 {
		return fmt.Errorf("only %d ReplicaSets", len(sets))
	}
	for i := range sets {
		if s := &sets[i]; s.Status.Replicas < *s.Spec.Replicas {
			return fmt.Errorf("ReplicaSet %s has %d of %d pods: %v", s.Name, s.Status.Replicas, *s.Spec.Replicas, s.Status.Conditions)
		}
	}
	return nil
}
