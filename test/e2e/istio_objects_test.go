package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// istioVector is an object of Istio's that istiod accepts, with the code of what
// Meshvakt says to it: a refusal, a warning, or, without a code, nothing. GUARDED
// and OUTSIDE stand for two namespaces.
type istioVector struct {
	name, code      string
	warns           bool
	kind, namespace string
	spec            string
}

func istioVectors() []istioVector {
	const guarded, outside, root = "GUARDED", "OUTSIDE", "istio-system"
	patch := func(applyTo, context, value string) string {
		return fmt.Sprintf("{configPatches: [{applyTo: %s, match: {context: %s}, patch: {operation: MERGE, value: %s}}]}", applyTo, context, value)
	}
	entry := func(host string) string {
		return fmt.Sprintf("{hosts: [%s], ports: [{number: 80, name: http, protocol: HTTP}], location: MESH_EXTERNAL, resolution: STATIC, endpoints: [{address: 192.0.2.1}]}", host)
	}
	return []istioVector{
		{"plaintext to a guarded service", "MV234", false, "DestinationRule", guarded, "{host: web, trafficPolicy: {tls: {mode: DISABLE}}}"},
		{"plaintext from another namespace", "MV234", false, "DestinationRule", outside, "{host: web.GUARDED.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}"},
		{"plaintext for a port of a subset", "MV234", false, "DestinationRule", guarded, "{host: web, subsets: [{name: v1, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}]}"},
		{"plaintext for the whole mesh", "MV234", false, "DestinationRule", root, `{host: "*.local", trafficPolicy: {tls: {mode: DISABLE}}}`},
		{"TLS of one's own", "MV235", false, "DestinationRule", guarded, "{host: web, trafficPolicy: {tls: {mode: SIMPLE}}}"},
		{"another identity", "MV235", false, "DestinationRule", outside, `{host: web.GUARDED.svc.cluster.local, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://cluster.local/ns/OUTSIDE/sa/default"]}}}`},
		{"mutual TLS and a pool", "", false, "DestinationRule", guarded, "{host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}, tls: {mode: ISTIO_MUTUAL}}}"},
		{"TLS to the internet", "", false, "DestinationRule", guarded, "{host: api.example.com, trafficPolicy: {tls: {mode: SIMPLE}}}"},
		{"plaintext to a service outside", "MV234", true, "DestinationRule", guarded, "{host: web.OUTSIDE.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}"},

		{"filter chains", "MV236", false, "EnvoyFilter", guarded, patch("FILTER_CHAIN", "SIDECAR_INBOUND", "{name: x}")},
		{"clusters of the whole mesh", "MV236", false, "EnvoyFilter", root, patch("CLUSTER", "SIDECAR_OUTBOUND", "{connect_timeout: 1s}")},
		{"a route past everything", "MV236", false, "EnvoyFilter", guarded, patch("HTTP_ROUTE", "SIDECAR_OUTBOUND", "{route: {cluster: PassthroughCluster}}")},
		{"an HTTP filter", "MV236", true, "EnvoyFilter", guarded, patch("HTTP_FILTER", "SIDECAR_INBOUND", "{name: x}")},
		{"filter chains of somebody else", "", false, "EnvoyFilter", outside, patch("FILTER_CHAIN", "SIDECAR_INBOUND", "{name: x}")},

		{"a guarded host", "MV237", false, "ServiceEntry", outside, entry("web.GUARDED.svc.cluster.local")},
		{"a guarded host in its namespace", "MV237", false, "ServiceEntry", guarded, entry("web.GUARDED.svc.cluster.local")},
		{"a guarded host in short", "MV237", false, "ServiceEntry", outside, entry("web.GUARDED")},
		{"a host on the internet", "", false, "ServiceEntry", guarded, entry("api.example.com")},

		{"an endpoint without mutual TLS", "MV238", false, "WorkloadEntry", guarded, "{address: 192.0.2.1, labels: {app: web}}"},
		{"an endpoint that says so", "MV238", false, "WorkloadEntry", guarded, "{address: 192.0.2.1, serviceAccount: default, labels: {app: web, security.istio.io/tlsMode: disabled}}"},
		{"a virtual machine", "", false, "WorkloadEntry", guarded, "{address: 192.0.2.1, serviceAccount: default, labels: {app: web}}"},
		{"a group without mutual TLS", "MV238", false, "WorkloadGroup", guarded, "{metadata: {labels: {app: web}}, template: {ports: {http: 80}}}"},
		{"a group of virtual machines", "", false, "WorkloadGroup", guarded, "{metadata: {labels: {app: web}}, template: {serviceAccount: default}}"},

		{"no rules", "MV214", false, "ProxyConfig", guarded, `{environmentVariables: {SKIP_RULE_APPLY: "true"}}`},
		{"no rules in the whole mesh", "MV214", false, "ProxyConfig", root, `{environmentVariables: {SKIP_RULE_APPLY: "true"}}`},
		{"threads", "", false, "ProxyConfig", guarded, "{concurrency: 2}"},

		{"egress in part", "MV239", true, "Sidecar", guarded, `{egress: [{hosts: ["./*"]}]}`},
		{"egress in part and nothing else", "", false, "Sidecar", guarded, `{egress: [{hosts: ["./*"]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}`},
	}
}

// TestIstioObjects gives istiod objects that hollow out a guarded namespace, by a
// user who may write Istio's objects everywhere, and takes the mesh from it by the
// settings of istiod. Every one of them lands before there is a guard.
func TestIstioObjects(t *testing.T) {
	ownPlane(t, controlplane.Options{Istio: true, Log: os.Stderr})
	admin := clientFor(t, controlplane.Admin)
	create(t, admin, policy("istio-system", "default", "STRICT"))
	r := start(t)
	inside, outside := injectedNamespace("prod", true), injectedNamespace("shop", false)
	create(t, clientFor(t, controlplane.Admin), inside, outside)
	names := strings.NewReplacer("GUARDED", inside.Name, "OUTSIDE", outside.Name)
	for _, v := range istioVectors() {
		if _, err := v.try(t, names); err != nil {
			t.Errorf("%s: not accepted without a guard: %v", v.name, err)
		}
	}
	guard(t, v1alpha1.DefaultGuard())
	enforcing(t, "default")
	for _, v := range istioVectors() {
		t.Run(v.kind+"/"+v.name, func(t *testing.T) {
			warnings, err := v.try(t, names)
			switch {
			case v.code != "" && !v.warns:
				t.Log(refused(t, err, "["+v.code+"]"))
			case err != nil:
				t.Errorf("refused: %v", err)
			case v.warns != strings.Contains(warnings, "["+v.code+"]") || !v.warns && warnings != "":
				t.Errorf("warnings %q", warnings)
			}
		})
	}
	t.Run("settings", func(t *testing.T) { settingsOfIstiod(t, inside.Name) })
	t.Run("roots", func(t *testing.T) { rootsStay(t, inside.Name) })
	t.Run("what Istio does itself", func(t *testing.T) { istiodGoesOn(t, r) })
}

// try creates the object as a dry run, and returns the warnings.
func (v *istioVector) try(t *testing.T, names *strings.Replacer) (string, error) {
	t.Helper()
	u := &unstructured.Unstructured{}
	must(t, yaml.Unmarshal([]byte(names.Replace(fmt.Sprintf("{metadata: {name: vector, namespace: %s}, spec: %s}", v.namespace, v.spec))), &u.Object))
	version := map[string]string{"EnvoyFilter": "v1alpha3", "ProxyConfig": "v1beta1"}[v.kind]
	if version == "" {
		version = "v1"
	}
	u.SetAPIVersion("networking.istio.io/" + version)
	u.SetKind(v.kind)
	var warnings bytes.Buffer
	err := client.NewDryRunClient(warned(t, controlplane.Developer, &warnings)).Create(t.Context(), u)
	return meshvaktsOwn(warnings.String()), err
}

// meshvaktsOwn leaves out what istiod warns of.
func meshvaktsOwn(warnings string) string {
	var own strings.Builder
	for line := range strings.Lines(warnings) {
		if strings.Contains(line, "[MV") {
			own.WriteString(line)
		}
	}
	return own.String()
}

// settingsOfIstiod changes the ConfigMaps that istiod runs on, as a dry run.
func settingsOfIstiod(t *testing.T, guarded string) {
	const mesh, injector = "istio", "istio-sidecar-injector"
	for _, c := range []struct {
		name, configMap, key string
		from, to             string // in the text of the key
		codes                []string
	}{
		{"another root namespace", mesh, "mesh", "", "rootNamespace: elsewhere\n", []string{"MV108", guarded}},
		{"namespaces out of sight", mesh, "mesh", "", "discoverySelectors: [{matchLabels: {seen: \"true\"}}]\n", []string{"MV108", guarded}},
		{"no automatic mutual TLS", mesh, "mesh", "", "enableAutoMtls: false\n", []string{"MV240"}},
		{"no text that can be read", mesh, "mesh", "", "enableAutoMtls: [\n", []string{"MV240"}},
		{"a log file", mesh, "mesh", "", "accessLogFile: /dev/stdout\n", nil},
		{"no injection", injector, "config", "policy: enabled", "policy: disabled", []string{"MV240", guarded}},
		{"a port left out", injector, "values", `"excludeInboundPorts": ""`, `"excludeInboundPorts": "9000"`, []string{"MV240"}},
		{"another tag", injector, "values", `"tag": "`, `"tag": "next-`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var cm corev1.ConfigMap
			dev := clientFor(t, controlplane.Developer)
			must(t, dev.Get(t.Context(), client.ObjectKey{Namespace: "istio-system", Name: c.configMap}, &cm))
			if !strings.Contains(cm.Data[c.key], c.from) {
				t.Fatalf("%s lacks %q:\n%.3000s", c.key, c.from, cm.Data[c.key])
			}
			if c.from == "" {
				cm.Data[c.key] = withoutKey(t, cm.Data[c.key], c.to) + c.to
			} else {
				cm.Data[c.key] = strings.Replace(cm.Data[c.key], c.from, c.to, 1)
			}
			err := client.NewDryRunClient(dev).Update(t.Context(), &cm)
			if c.codes == nil {
				must(t, err)
				return
			}
			t.Log(refused(t, err, c.codes...))
		})
	}
}

// withoutKey takes a setting out of the text that is about to be added.
func withoutKey(t *testing.T, text, added string) string {
	t.Helper()
	key, _, _ := strings.Cut(added, ":")
	var settings map[string]any
	must(t, yaml.Unmarshal([]byte(text), &settings))
	delete(settings, key)
	out, err := yaml.Marshal(settings)
	must(t, err)
	return string(out)
}

// rootsStay: what somebody writes into a namespace's copy of the mesh's roots istiod
// puts back, unless it is frozen.
func rootsStay(t *testing.T, guarded string) {
	dev := clientFor(t, controlplane.Developer)
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: guarded, Name: "istio-ca-root-cert"}
	eventually(t, 20*time.Second, func() error { return dev.Get(t.Context(), key, &cm) })
	roots := cm.Data["root-cert.pem"]
	write := func(patch string) error {
		return dev.Patch(t.Context(), cm.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch)))
	}
	t.Log(refused(t, write(`{"immutable":true,"data":{"root-cert.pem":"mine"}}`), "immutable", "[MV241]"))
	must(t, write(`{"data":{"root-cert.pem":"mine"}}`))
	eventually(t, 20*time.Second, func() error {
		if err := dev.Get(t.Context(), key, &cm); err != nil {
			return err
		}
		if cm.Data["root-cert.pem"] != roots {
			return errors.New("istiod has not put the roots back")
		}
		return nil
	})
}

// istiodGoesOn: ConfigMaps of Istio's that are no settings do not wait for us, and
// a new one of a generated name is nobody's settings.
func istiodGoesOn(t *testing.T, r *replica) {
	admin := clientFor(t, controlplane.Admin)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: unique("istio-leader")}, Data: map[string]string{"a": "b"}}
	must(t, admin.Create(t.Context(), cm))
	must(t, admin.Patch(t.Context(), cm, client.RawPatch("application/merge-patch+json", []byte(`{"data":{"a":"c"}}`))))
	must(t, admin.Delete(t.Context(), cm))
	generated := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", GenerateName: "istio-"}, Data: map[string]string{"a": "b"}}
	must(t, admin.Create(t.Context(), generated))
	must(t, admin.Delete(t.Context(), generated))
	if r.decidedOn([]string{cm.Name, generated.Name, "istio-"}) {
		t.Error("Meshvakt was asked about ConfigMaps that are no settings")
	}
}
