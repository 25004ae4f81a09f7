package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/policies/policytest"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// packVector is a way out of the mesh that the admission policy closes, or, among the
// twins, the harmless thing that looks most like it.
type packVector struct {
	name     string
	overlay  string // YAML, merged over a pod that is in the mesh, or over a template
	code     string // of the pod and of the template; "" for twins
	template string // the code for the template where it is another; "none" lets it in
}

func packVectors() []packVector {
	annotated := func(key, value string) string { return fmt.Sprintf("{metadata: {annotations: {%s: %q}}}", key, value) }
	labelled := func(key, value string) string { return fmt.Sprintf("{metadata: {labels: {%s: %q}}}", key, value) }
	own := func(field string) string { return "{spec: {containers: [{name: web, " + field + "}]}}" }
	proxy := func(field string) string {
		return "{spec: {initContainers: [{name: istio-proxy, image: auto, restartPolicy: Always, " + field + "}]}}"
	}
	return []packVector{
		{name: "host network", overlay: "{spec: {hostNetwork: true}}", code: "MV205"},
		{name: "label inject false", overlay: labelled("sidecar.istio.io/inject", "false"), code: "MV202"},
		{name: "annotation inject 0", overlay: annotated("sidecar.istio.io/inject", "0"), code: "MV202"},
		{name: "inbound ports excluded", overlay: annotated("traffic.sidecar.istio.io/excludeInboundPorts", "15020, 8080"), code: "MV206"},
		{name: "inbound ports included", overlay: annotated("traffic.sidecar.istio.io/includeInboundPorts", "80"), code: "MV207"},
		{name: "inbound ports included, empty", overlay: annotated("traffic.sidecar.istio.io/includeInboundPorts", ""), code: "MV207"},
		{name: "status port", overlay: annotated("status.sidecar.istio.io/port", "8080"), code: "MV208"},
		{name: "interface excluded", overlay: annotated("traffic.sidecar.istio.io/excludeInterfaces", "eth0"), code: "MV209"},
		{name: "virtual interface", overlay: annotated("istio.io/reroute-virtual-interfaces", "eth0"), code: "MV210"},
		{name: "kubevirt interface", overlay: annotated("traffic.sidecar.istio.io/kubevirtInterfaces", "eth0"), code: "MV210"},
		{name: "interception off", overlay: annotated("sidecar.istio.io/interceptionMode", "none"), code: "MV211"},
		{name: "interception off by proxy config", overlay: annotated("proxy.istio.io/config", "interceptionMode: NONE"), code: "MV211"},
		{name: "outbound port", overlay: annotated("traffic.sidecar.istio.io/excludeOutboundPorts", "3306,5432"), code: "MV212"},
		{name: "outbound range", overlay: annotated("traffic.sidecar.istio.io/excludeOutboundIPRanges", "192.0.2.7/32,0.0.0.0/0"), code: "MV212"},
		{name: "outbound ranges included", overlay: annotated("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8"), code: "MV212"},
		{name: "proxy metadata", overlay: annotated("proxy.istio.io/config", `{"proxyMetadata": {"SKIP_RULE_APPLY": "true"}}`), code: "MV214"},
		{name: "environment of the proxy", overlay: proxy("env: [{name: ISTIO_METAJSON_LABELS, value: '{}'}]"), code: "MV214"},
		{name: "environment from a Secret", overlay: proxy("envFrom: [{secretRef: {name: mine}}]"), code: "MV214"},
		{name: "command of istio-init", overlay: "{spec: {initContainers: [{name: istio-init, image: auto, command: ['true']}]}}", code: "MV215"},
		{name: "arguments of the proxy", overlay: proxy("args: [proxy, sleep]"), code: "MV215"},
		{name: "hook in the proxy", overlay: proxy("lifecycle: {postStart: {exec: {command: [pilot-agent, istio-clean-iptables]}}}"), code: "MV215"},
		{name: "capability of the proxy", overlay: proxy("securityContext: {capabilities: {add: [NET_ADMIN]}}"), code: "MV215"},
		{name: "overrides", overlay: annotated("proxy.istio.io/overrides", `{"initContainers":[{"name":"istio-init","command":["true"]}]}`), code: "MV215"},
		{name: "injection template", overlay: annotated("inject.istio.io/templates", "sidecar,grpc-agent"), code: "MV216"},
		{name: "bootstrap", overlay: annotated("sidecar.istio.io/bootstrapOverride", "mine"), code: "MV218"},
		{name: "volume over the proxy's roots", overlay: annotated("sidecar.istio.io/userVolumeMount", `{"ca": {"mountPath": "/var/run/secrets/istio"}}`), code: "MV219"},
		{name: "volume of the node", overlay: annotated("sidecar.istio.io/userVolume", `[{"name": "x", "hostPath": {"path": "/"}}]`), code: "MV219"},
		{name: "discovery address", overlay: annotated("sidecar.istio.io/discoveryAddress", "evil:15012"), code: "MV220"},
		{name: "user of the proxy", overlay: own("securityContext: {runAsUser: 1337}"), code: "MV221"},
		{name: "group of the proxy for the pod", overlay: "{spec: {securityContext: {runAsGroup: 1337}}}", code: "MV221"},
		{name: "user of the proxy in an init container", overlay: "{spec: {initContainers: [{name: prepare, image: x, securityContext: {runAsUser: 1337}}]}}", code: "MV221"},
		{name: "further group", overlay: "{spec: {securityContext: {supplementalGroups: [1337]}}}", code: "MV221"},
		{name: "privileged", overlay: own("securityContext: {privileged: true}"), code: "MV222"},
		{name: "capability", overlay: own("securityContext: {capabilities: {add: [cap_net_admin]}}"), code: "MV222"},
		{name: "ptrace", overlay: "{spec: {shareProcessNamespace: true, containers: [{name: web, securityContext: {capabilities: {add: [SYS_PTRACE]}}}]}}", code: "MV222"},
		{name: "uncaptured port", overlay: own("ports: [{containerPort: 15008}]"), code: "MV224"},
		{name: "redirection", overlay: annotated("ambient.istio.io/redirection", "enabled"), code: "MV227"},
		{name: "TLS mode", overlay: labelled("security.istio.io/tlsMode", "disabled"), code: "MV228"},
		{name: "virtual machine", overlay: labelled("istio.io/test-vm", ""), code: "MV228"},
		{name: "no proxy", overlay: "{spec: {initContainers: [{$patch: replace}]}}", code: "MV201", template: "none"},
		{name: "no capture", overlay: "{spec: {initContainers: [{name: istio-init, $patch: delete}]}}", code: "MV233", template: "none"},
	}
}

func packTwins() []packVector {
	return []packVector{
		{name: "plain", overlay: "{}"},
		{name: "inject true", overlay: "{metadata: {labels: {sidecar.istio.io/inject: 'true'}}}"},
		{name: "the proxy's own ports", overlay: "{metadata: {annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '15090,15021'}}}"},
		{name: "all ports", overlay: "{metadata: {annotations: {traffic.sidecar.istio.io/includeInboundPorts: '*'}}}"},
		{name: "what the guard lets pass", overlay: "{metadata: {annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: '3306', traffic.sidecar.istio.io/excludeOutboundIPRanges: '192.0.2.7', inject.istio.io/templates: 'sidecar,spire'}}}"},
		{name: "harmless proxy config", overlay: "{metadata: {annotations: {proxy.istio.io/config: '{holdApplicationUntilProxyStarts: true, proxyMetadata: {SECRET_TTL: 12h}}'}}}"},
		{name: "TPROXY", overlay: "{metadata: {annotations: {sidecar.istio.io/interceptionMode: TPROXY}}}"},
		{name: "resources of the proxy", overlay: "{metadata: {annotations: {proxy.istio.io/overrides: '{\"containers\":[{\"name\":\"istio-proxy\",\"lifecycle\":{\"preStop\":{\"exec\":{\"command\":[\"sleep\",\"5\"]}}}}]}'}}}"},
		{name: "volume of its own", overlay: "{metadata: {annotations: {sidecar.istio.io/userVolumeMount: '{\"certs\": {\"mountPath\": \"/etc/certs\"}}', sidecar.istio.io/userVolume: '{\"hostPath\": {\"emptyDir\": {}}}'}}}"},
		{name: "another user, fewer rights", overlay: "{spec: {containers: [{name: web, securityContext: {runAsUser: 1338, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}}]}}"},
		{name: "ptrace by itself", overlay: "{spec: {containers: [{name: web, securityContext: {capabilities: {add: [SYS_PTRACE]}}}]}}"},
		{name: "UDP", overlay: "{spec: {containers: [{name: web, ports: [{containerPort: 15008, protocol: UDP}]}]}}"},
	}
}

// merged merges the overlay over a manifest.
func (v *packVector) merged(t testing.TB, base []byte, schema any) map[string]any {
	t.Helper()
	patch, err := yaml.YAMLToJSON([]byte(v.overlay))
	must(t, err)
	merged, err := strategicpatch.StrategicMergePatch(base, patch, schema)
	must(t, err)
	var object map[string]any
	must(t, json.Unmarshal(merged, &object))
	return object
}

// final is the pod of the vector after injection.
func (v *packVector) final(t testing.TB, namespace string) *unstructured.Unstructured {
	t.Helper()
	base, err := policytest.Injected("../../policies/testdata", "native")
	must(t, err)
	u := &unstructured.Unstructured{Object: v.merged(t, base, corev1.Pod{})}
	u.SetNamespace(namespace)
	u.SetName("")
	u.SetGenerateName("pack-")
	unstructured.RemoveNestedField(u.Object, "status")
	return u
}

// templateOf is the template of the vector before injection.
func (v *packVector) templateOf(t testing.TB) map[string]any {
	t.Helper()
	base, err := yaml.YAMLToJSON([]byte("{metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: registry.example/web:1}]}}"))
	must(t, err)
	return v.merged(t, base, corev1.PodTemplateSpec{})
}

// refusedByPack demands that the admission policy refused the request.
func refusedByPack(t testing.TB, err error, contains ...string) {
	t.Helper()
	if why := notByPack(err, contains...); why != nil {
		t.Error(why)
	}
}

func notByPack(err error, contains ...string) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusForbidden ||
		!strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+celpack.PolicyName+"' with binding 'meshvakt-") || !strings.Contains(err.Error(), "denied request: violates MeshGuard") {
		return fmt.Errorf("got %v; want a refusal by the admission policy", err) //nolint:errorlint // may be nil
	}
	for _, c := range contains {
		if !strings.Contains(err.Error(), c) {
			return fmt.Errorf("the message lacks %q:\n%w", c, err)
		}
	}
	return nil
}

// packAlone puts the guards in force, has Meshvakt bind the policy, and ends it: no
// replica runs and no webhook is registered.
func packAlone(t *testing.T, guards ...*v1alpha1.MeshGuard) {
	t.Helper()
	r := start(t)
	for _, g := range guards {
		guard(t, g)
	}
	admin := clientFor(t, controlplane.Admin)
	for _, g := range guards {
		eventually(t, 30*time.Second, func() error {
			var b admissionregistrationv1.ValidatingAdmissionPolicyBinding
			return admin.Get(t.Context(), client.ObjectKey{Name: "meshvakt-" + g.Name}, &b)
		})
	}
	r.stop()
	unregister(t)
}

// packGuards are a guard of sidecars that lets some things pass, and one of ambient.
func packGuards() (sidecar, ambient *v1alpha1.MeshGuard) {
	sidecar = v1alpha1.DefaultGuard()
	sidecar.Spec.MeshMembership.Outbound = v1alpha1.OutboundExclusions{Ports: []int32{3306}, CIDRs: []string{"192.0.2.0/24"}}
	sidecar.Spec.MeshMembership.InjectionTemplates = []string{"spire"}
	ambient = v1alpha1.DefaultGuard()
	ambient.Name = "both-planes"
	ambient.Spec.NamespaceSelector.MatchLabels = map[string]string{"planes": "both"}
	ambient.Spec.MeshMembership.DataPlanes = []v1alpha1.DataPlane{v1alpha1.DataPlaneSidecar, v1alpha1.DataPlaneAmbient}
	return sidecar, ambient
}

// packNamespace creates a namespace with the labels, and waits until pods of it can be
// created.
func packNamespace(t testing.TB, labels map[string]string) string {
	t.Helper()
	ns := namespace(unique("pack"), false)
	ns.Labels = labels
	must(t, clientFor(t, controlplane.Admin).Create(t.Context(), ns))
	serviceAccount(t, ns.Name)
	return ns.Name
}

// packActive waits until the API server refuses by the admission policy.
func packActive(t testing.TB, namespace string) {
	t.Helper()
	dev := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	probe := packVector{overlay: "{spec: {hostNetwork: true}}"}
	eventually(t, 60*time.Second, func() error {
		return notByPack(dev.Create(t.Context(), workloadOf("apps/v1", "Deployment", namespace, probe.templateOf(t))), "[MV205]")
	})
}

// TestAdmissionPolicy is a day without Meshvakt: no replica runs, and somebody has
// deleted the webhook configuration. A developer tries what the policy closes.
func TestAdmissionPolicy(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: os.Stderr})
	must(t, plane.Apply(t.Context(), []byte(rolloutsAndDebugging)))
	sidecarGuard, ambientGuard := packGuards()
	packAlone(t, sidecarGuard, ambientGuard)
	sidecar, ambient, free := packNamespace(t, sidecarLabels()), packNamespace(t, ambientLabels()), packNamespace(t, nil)
	packActive(t, sidecar)
	packActive(t, ambient)

	t.Run("vectors", func(t *testing.T) { packRefuses(t, sidecar, free) })
	t.Run("twins", func(t *testing.T) { packLetsPass(t, sidecar) })
	t.Run("ambient", func(t *testing.T) { packAmbient(t, ambient) })
	t.Run("kinds", func(t *testing.T) { packKinds(t, sidecar) })
	t.Run("all findings at once", func(t *testing.T) { packSaysAll(t, sidecar) })
	t.Run("changes", packChanges)
	t.Run("ephemeral containers", func(t *testing.T) { packEphemeral(t, sidecar) })
	t.Run("rights", packRights)
}

// packRefuses tries every vector as a pod and in a Deployment. In a namespace that no
// guard selects the same objects are none of the policy's business.
func packRefuses(t *testing.T, guarded, free string) {
	dev := clientFor(t, controlplane.Developer)
	for _, v := range packVectors() {
		t.Run(v.name, func(t *testing.T) {
			refusedByPack(t, dev.Create(t.Context(), v.final(t, guarded)), "["+v.code+"]")
			if err := dev.Create(t.Context(), v.final(t, free), client.DryRunAll); err != nil {
				t.Errorf("in a namespace that is not guarded: %v", err)
			}
			d := workloadOf("apps/v1", "Deployment", guarded, v.templateOf(t))
			switch {
			case v.template == "none":
				must(t, dev.Create(t.Context(), d, client.DryRunAll))
			default:
				refusedByPack(t, dev.Create(t.Context(), d), "["+v.code+"]", "spec.template.")
			}
		})
	}
	var pods corev1.PodList
	must(t, dev.List(t.Context(), &pods, client.InNamespace(guarded)))
	if len(pods.Items) > 0 {
		t.Errorf("%d pods have landed", len(pods.Items))
	}
}

func packLetsPass(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	for _, v := range packTwins() {
		if err := dev.Create(t.Context(), v.final(t, namespace)); err != nil {
			t.Errorf("%s, as a pod: %v", v.name, err)
		}
		if err := dev.Create(t.Context(), workloadOf("apps/v1", "Deployment", namespace, v.templateOf(t)), client.DryRunAll); err != nil {
			t.Errorf("%s, as a Deployment: %v", v.name, err)
		}
	}
}
