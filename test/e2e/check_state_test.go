package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/check"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// checkedState is what is in the cluster before anybody checks: nothing guards it yet.
const checkedState = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "rootNamespace: istio-system"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: unrelated, namespace: istio-system}
data: {password: confidential-map}
---
apiVersion: v1
kind: Node
metadata: {name: check-fast, labels: {node.kubernetes.io/instance-type: m5.large, kubernetes.io/hostname: check-fast}}
---
apiVersion: v1
kind: Node
metadata: {name: check-slow, labels: {node.kubernetes.io/instance-type: t3.large, kubernetes.io/hostname: check-slow}}
---
apiVersion: v1
kind: Namespace
metadata: {name: check-prod, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: check-dev}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: check-prod}
spec: {mtls: {mode: STRICT}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: check-prod}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080"}}
    spec: {containers: [{name: web, image: registry.example.com/web, env: [{name: PASSWORD, value: confidential-env}], command: [confidential-command]}]}
---
apiVersion: meshvakt.io/v1alpha1
kind: GuardException
metadata: {name: legacy, namespace: check-prod}
spec:
  policies: [{name: mesh-membership}]
  objectSelector: {matchLabels: {app: legacy}}
  reason: it cannot be mended before the autumn
  reference: OPS-4711
  expiresAt: EXPIRES
  requester: confidential-user
`

// deployment is a manifest of one, with what is written into its template.
func checkedDeployment(name, metadata, spec string) string {
	return `{apiVersion: apps/v1, kind: Deployment, metadata: {name: ` + name + `, namespace: check-prod}, spec: {replicas: 0, selector: {matchLabels: {app: ` + name +
		`}}, template: {metadata: {labels: {app: ` + name + `}` + metadata + `}, spec: {containers: [{name: web, image: registry.example.com/web}]` + spec + `}}}}`
}

// checkedManifests are what is applied, each on its own, with what has to come of it.
func checkedManifests() []struct {
	name, manifest string
	want           policies.Outcome
} {
	const excluded = `, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080"}`
	return []struct {
		name, manifest string
		want           policies.Outcome
	}{
		{"a new workload", checkedDeployment("new", "", ""), policies.Allow},
		{"a new workload around the proxy", checkedDeployment("new", excluded, ""), policies.Deny},
		{"a workload that stays as bad as it is", checkedDeployment("web", excluded, ", nodeSelector: {kubernetes.io/hostname: check-fast}"), policies.Warn},
		{"a workload that becomes worse", checkedDeployment("web", `, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080,9090"}`, ""), policies.Deny},
		{"a workload on slow nodes", checkedDeployment("new", "", ", nodeSelector: {kubernetes.io/hostname: check-slow}"), policies.Deny},
		{"a workload on a node that is not there", checkedDeployment("new", "", ", nodeName: check-none"), policies.Deny},
		{"an excepted workload", checkedDeployment("legacy", excluded, ""), policies.Warn},
		{"a policy that becomes weaker", `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: check-prod}, spec: {mtls: {mode: PERMISSIVE}}}`, policies.Deny},
		{"a policy as it is there", `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: check-prod}, spec: {mtls: {mode: STRICT}}}`, policies.Allow},
		{"a weak policy that is new", `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: open, namespace: check-prod}, spec: {selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}}`, policies.Deny},
		{"a policy younger than the one that counts", `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: another, namespace: check-prod}, spec: {mtls: {mode: PERMISSIVE}}}`, policies.Allow},
		{"a namespace whose manifest leaves labels out", `{apiVersion: v1, kind: Namespace, metadata: {name: check-prod, labels: {team: a}}}`, policies.Allow},
		{"a namespace that comes under the guard", `{apiVersion: v1, kind: Namespace, metadata: {name: check-dev, labels: {meshvakt.io/guarded: "true", istio-injection: enabled}}}`, policies.Deny},
		{"a new namespace under the guard", `{apiVersion: v1, kind: Namespace, metadata: {name: check-new, labels: {meshvakt.io/guarded: "true", istio-injection: enabled}}}`, policies.Deny},
		{"a rule that turns TLS off", `{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: plain, namespace: check-dev}, spec: {host: web.check-prod.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}}`, policies.Deny},
		{"settings without mutual TLS", `{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: "rootNamespace: istio-system\nenableAutoMtls: false"}}`, policies.Deny},
		{"a guard that demands less, without a new reason", weakerGuard(), policies.Deny},
		{"an exception that lasts longer than it may", `{apiVersion: meshvakt.io/v1alpha1, kind: GuardException, metadata: {name: long, namespace: check-prod}, spec: {policies: [{name: strict-mtls}], objectSelector: {}, reason: r, reference: OPS-1, expiresAt: "2126-01-01T00:00:00Z"}}`, policies.Deny},
	}
}

func checkedGuard() *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Annotations = map[string]string{v1alpha1.ChangeReasonAnnotation: "an earlier one"} // without which it cannot be deleted
	g.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: 48 * time.Hour}, Approval: v1alpha1.ApprovalNone}
	return g
}

func weakerGuard() string {
	g := checkedGuard()
	g.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "MeshGuard"}
	g.Spec.Exceptions.MaxDuration.Duration *= 2
	text, _ := json.Marshal(g)
	return string(text)
}

// TestCheckState: the same manifests get the same answers by the state of the cluster, by
// a file that it was saved to, and by the API server. Who may not read it all is told
// which rights are missing.
func TestCheckState(t *testing.T) {
	admin := clientFor(t, controlplane.Admin)
	prepareChecked(t, admin)
	granted, bare := reader(t, "check-reader", true), reader(t, "check-nobody", false)
	file := filepath.Join(t.TempDir(), "state.yaml")
	saved := meshvaktCheck(t, "", "--save-state", file, "--kubeconfig", granted)
	if saved.status != 0 || !strings.Contains(saved.stderr, "saved ") || saved.stdout != "" {
		t.Fatalf("save: %+v", saved)
	}
	text, err := os.ReadFile(file)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "confidential") || strings.Contains(line, "managedFields") || strings.Contains(line, "last-applied") {
			t.Errorf("saved what no policy reads: %s", line)
		}
	}
	t.Run("the API server agrees", func(t *testing.T) {
		for _, tt := range checkedManifests() {
			t.Run(tt.name, func(t *testing.T) {
				live := result(t, meshvaktCheck(t, tt.manifest, "-f", "-", "--may-unguard", "--kubeconfig", granted))
				offline := result(t, meshvaktCheck(t, tt.manifest, "-f", "-", "--may-unguard", "--state", file))
				if !reflect.DeepEqual(live, offline) {
					t.Errorf("by the cluster:\n%+v\nby the file:\n%+v", live, offline)
				}
				if got := live.Results[0].Decision; got != tt.want {
					t.Errorf("got %s %+v; want %s", got, live.Results[0].Findings, tt.want)
				}
				_, stderr, err := plane.Kubectl(t.Context(), controlplane.Admin, tt.manifest, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
				agrees(t, &live.Results[0], stderr, err)
			})
		}
	})
	t.Run("what is not changed", func(t *testing.T) {
		// The API server does not ask about it; check says all the same what is amiss.
		manifest := checkedDeployment("web", `, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "8080"}`, "")
		if r := result(t, meshvaktCheck(t, manifest, "-f", "-", "--state", file)); r.Results[0].Decision != policies.Warn {
			t.Errorf("got %+v; want a warning", r.Results[0])
		}
		if _, stderr, err := plane.Kubectl(t.Context(), controlplane.Admin, manifest, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"); err != nil || stderr != "" {
			t.Errorf("the API server: %v %s", err, stderr)
		}
	})
	t.Run("rendered manifests", func(t *testing.T) { checkedRendering(t, file) })
	t.Run("rights that are missing", func(t *testing.T) { checkedRights(t, bare) })
}

// prepareChecked brings the cluster into the state, and then under the guard.
func prepareChecked(t *testing.T, admin client.Client) {
	t.Helper()
	webhookAloneFor(t, admin)
	state := strings.ReplaceAll(checkedState, "EXPIRES", time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339))
	must(t, plane.Apply(t.Context(), []byte(state)))
	for _, o := range []client.Object{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: "istio-system"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "unrelated", Namespace: "istio-system"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "check-fast"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "check-slow"}},
		namespaceNamed("check-prod"), namespaceNamed("check-dev"),
	} {
		remove(t, o)
	}
	injectors := unstructuredOf(t, defaultInjector(t, "default"))
	uncalled(t, injectors)
	create(t, admin, injectors, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-sidecar-injector"},
		Data:       map[string]string{"config": "policy: enabled", "values": injectorSettings},
	})
	must(t, relabel(t.Context(), admin, namespaceNamed("check-prod"), v1alpha1.GuardedLabel, v1alpha1.GuardedValue))
	start(t)
	g := checkedGuard()
	guard(t, g)
	enforcing(t, g.Name)
}

// reader returns the kubeconfig of a ServiceAccount, with the rights that docs/check.md
// names or with none.
func reader(t *testing.T, name string, granted bool) string {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	create(t, admin, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ownNamespace, Name: name}})
	if granted {
		page, err := os.ReadFile("../../docs/check.md")
		must(t, err)
		roles := regexp.MustCompile("(?s)```yaml\n(apiVersion: rbac.*?)```").FindSubmatch(page)
		if roles == nil {
			t.Fatal("docs/check.md states no ClusterRole")
		}
		must(t, plane.Apply(t.Context(), []byte(string(roles[1])+`
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: meshvakt-check}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: meshvakt-check}
subjects: [{kind: ServiceAccount, namespace: `+ownNamespace+`, name: `+name+`}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: meshvakt-check, namespace: istio-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: meshvakt-check}
subjects: [{kind: ServiceAccount, namespace: `+ownNamespace+`, name: `+name+`}]
`)))
	}
	kubeconfig, err := plane.ServiceAccountKubeconfig(t.Context(), ownNamespace, name)
	must(t, err)
	return kubeconfig
}

// checked is what meshvakt check has printed.
type checked struct {
	stdout, stderr string
	status         int
}

func meshvaktCheck(t *testing.T, stdin string, args ...string) checked {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"check"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return checked{timeless(stdout.String()), stderr.String(), cmd.ProcessState.ExitCode()}
}

func result(t *testing.T, c checked) check.Result {
	t.Helper()
	var r check.Result
	if err := json.Unmarshal([]byte(c.stdout), &r); err != nil || len(r.Results) != 1 {
		t.Fatalf("%v: %+v", err, c)
	}
	if denied := r.Results[0].Decision == policies.Deny; denied != (c.status == 1) || c.status > 1 {
		t.Errorf("exit %d for %s", c.status, r.Results[0].Decision)
	}
	return r
}

// timeless is a text without moments: answers are given one after the other.
func timeless(text string) string {
	return regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:]+Z`).ReplaceAllString(text, "then")
}

// agrees demands that the API server has answered as check does: refused what is denied
// with all of its findings, and told the warnings, which it cuts.
func agrees(t *testing.T, r *check.ObjectResult, stderr string, err error) {
	t.Helper()
	if denied := r.Decision == policies.Deny; denied != (err != nil) {
		t.Fatalf("check: %s %+v; the API server: %v %s", r.Decision, r.Findings, err, stderr)
	}
	stderr = timeless(stderr)
	codes := map[string]bool{}
	for _, code := range regexp.MustCompile(`\[(MV\d+)\]`).FindAllStringSubmatch(stderr, -1) {
		codes[code[1]] = true
	}
	for _, f := range r.Findings {
		if f.Action == v1alpha1.Deny && !strings.Contains(stderr, f.Message) {
			t.Errorf("check: %s; the API server: %s", f.Message, stderr)
		}
		if !codes[f.Code] {
			t.Errorf("check finds %s, and the API server does not: %s", f.Code, stderr)
		}
	}
	for _, f := range r.Findings {
		for _, code := range regexp.MustCompile(`MV\d+`).FindAllString(f.Code+" "+f.Message, -1) {
			delete(codes, code)
		}
	}
	if len(codes) > 0 {
		t.Errorf("the API server finds %v, and check does not: %+v", codes, r.Findings)
	}
}

// checkedRendering: what Helm and Kustomize print is judged as it comes.
func checkedRendering(t *testing.T, state string) {
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=test/tools/helm/go.mod", "helm", "template", "meshvakt", "charts/meshvakt", "--namespace", ownNamespace, "--set", "guard.create=false")
	cmd.Dir = "../.."
	chart, err := cmd.Output()
	must(t, err)
	if c := meshvaktCheck(t, string(chart), "-f", "-", "-n", ownNamespace, "--state", state); c.status != 0 || !strings.Contains(c.stdout, `"kind": "Deployment"`) {
		t.Errorf("the chart: %+v", c)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"web.yaml":           checkedDeployment("new", "", ""),
		"kustomization.yaml": "resources: [web.yaml]\ncommonAnnotations: {traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"}\n",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	rendered, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "kustomize", dir)
	must(t, err)
	if c := meshvaktCheck(t, rendered, "-f", "-", "--state", state); c.status != 1 || !strings.Contains(c.stdout, "MV206") {
		t.Errorf("the overlay: %+v", c)
	}
}

// checkedRights: all that is missing is told at once, and nothing is judged.
func checkedRights(t *testing.T, kubeconfig string) {
	manifest := checkedDeployment("new", "", "")
	c := meshvaktCheck(t, manifest, "-f", "-", "--kubeconfig", kubeconfig)
	if c.status != 2 || c.stdout != "" {
		t.Errorf("got %+v; want exit 2 and no result", c)
	}
	for _, want := range []string{
		"list namespaces -A", "list nodes -A", "list pods -A", "list configmaps -n istio-system", "list deployments.apps -A",
		"list peerauthentications.security.istio.io -A", "list meshguards.meshvakt.io -A", "list mutatingwebhookconfigurations.admissionregistration.k8s.io -A",
	} {
		if !strings.Contains(c.stderr, "missing: "+want+"\n") {
			t.Errorf("%q is not told:\n%s", want, c.stderr)
		}
	}
	file := filepath.Join(t.TempDir(), "partial.yaml.gz")
	if c := meshvaktCheck(t, "", "--save-state", file, "--kubeconfig", kubeconfig); c.status != 2 {
		t.Errorf("saved what is not complete: %+v", c)
	}
	if c := meshvaktCheck(t, "", "--save-state", file, "--kubeconfig", kubeconfig, "--allow-partial"); c.status != 0 {
		t.Errorf("not saved: %+v", c)
	}
	if c := meshvaktCheck(t, manifest, "-f", "-", "--state", file); c.status != 2 || !strings.Contains(c.stderr, "missing: list nodes -A") {
		t.Errorf("judged by a file that is not complete: %+v", c)
	}
	namespace := `{apiVersion: v1, kind: Namespace, metadata: {name: check-prod}}` + "\n---\n"
	if c := meshvaktCheck(t, namespace+manifest, "-f", "-", "--state", file, "--allow-partial"); c.status != 0 || !strings.Contains(c.stdout, "rest on part of the state") {
		t.Errorf("got %+v; want an answer that says what it lacks", c)
	}
}
