package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/preflight"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

var updateDocs = flag.Bool("update-docs", false, "show in the documentation what is printed")

// TestPreflight lets preflight look at a real cluster with a running istiod: ready, then
// not, with few rights, and at last under the guard that it has foretold.
func TestPreflight(t *testing.T) {
	ownPlane(t, controlplane.Options{Istio: true, Log: t.Output()})
	admin := clientFor(t, controlplane.Admin)
	join(t, dedicatedNode("node-1"))
	create(t, admin, policy("istio-system", "default", "STRICT"))
	payments := injectedAs("payments")
	create(t, admin, payments)
	serviceAccount(t, payments.Name)
	rolledOut(t, deployment(payments.Name, "api", 2, nil))

	t.Run("a cluster that is ready", preflightReady)
	if !t.Run("with the roles it prints", preflightRole) {
		return
	}
	c := &unready{payments: payments.Name}
	c.spoil(t)
	t.Run("one that is not", func(t *testing.T) { c.isNotReady(t) })
	t.Run("a user with few rights", preflightFewRights)
	t.Run("a guard in a file", func(t *testing.T) { preflightGuardFile(t, c) })
	t.Run("usage", preflightUsage)
	t.Run("what it foretold comes true", func(t *testing.T) { c.comesTrue(t) })
}

// preflightRun is one run of the command.
type preflightRun struct {
	preflight.Report
	status         int
	stdout, stderr string
}

// runPreflight runs the command with a kubeconfig and reads its JSON.
func runPreflight(t testing.TB, kubeconfig string, args ...string) *preflightRun {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"preflight", "--kubeconfig", kubeconfig}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := &preflightRun{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	if !slices.Contains(args, "table") && r.status != 2 {
		if err := json.Unmarshal(stdout.Bytes(), &r.Report); err != nil {
			t.Fatalf("status %d: %v\n%s%s", r.status, err, r.stdout, r.stderr)
		}
	}
	return r
}

// is demands results of checks.
func (r *preflightRun) is(t testing.TB, want map[string]preflight.Result) {
	t.Helper()
	for id, result := range want {
		at := slices.IndexFunc(r.Checks, func(c preflight.Check) bool { return c.ID == id })
		if at < 0 {
			t.Errorf("there is no check %s", id)
		} else if r.Checks[at].Result != result {
			t.Errorf("%s is %s; want %s: %+v", id, r.Checks[at].Result, result, r.Checks[at])
		}
	}
}

func (r *preflightRun) kind(kind string) preflight.KindCount {
	for _, k := range r.Forecast.Kinds {
		if k.Kind == kind {
			return k
		}
	}
	return preflight.KindCount{Kind: kind}
}

func preflightReady(t *testing.T) {
	r := runPreflight(t, plane.Kubeconfig(controlplane.Auditor))
	if r.status != 0 || len(r.MissingRights) > 0 {
		t.Errorf("status %d, missing %v\n%s", r.status, r.MissingRights, r.stdout)
	}
	r.is(t, map[string]preflight.Result{
		"kubernetes-version": preflight.Pass, "istio-kinds": preflight.Pass, "istio-mesh-mode": preflight.Pass, "istio-auto-mtls": preflight.Pass,
		"istio-root-namespaces": preflight.Pass, "istio-discovery": preflight.Pass, "istio-injection": preflight.Pass,
		"istio-control-planes": preflight.Warn, // istiod runs outside of the cluster
		"webhook-order":        preflight.Pass, "webhook-locks": preflight.Pass, "nodes": preflight.Pass, "guarded-namespaces": preflight.Pass,
		"forecast-namespaces": preflight.Pass, "forecast-templates": preflight.Pass, "forecast-pods": preflight.Pass,
	})
	if n := r.Forecast.Namespaces; n.Guarded != 1 || n.NotStrict != 0 {
		t.Errorf("namespaces %+v", n)
	}
	if k := r.kind("Pod"); k.Judged != 2 || k.Refused != 0 {
		t.Errorf("pods %+v", k)
	}
	table := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), "-o", "table")
	fits(t, table.stdout)
	if !strings.Contains(table.stdout, "Nothing is in the way.") || strings.Contains(table.stdout, "\x1b") {
		t.Errorf("table:\n%s", table.stdout)
	}
}

// fits demands that a table is no wider than a terminal.
func fits(t testing.TB, table string) {
	t.Helper()
	for line := range strings.Lines(table) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

// preflightRole runs as a ServiceAccount with nothing but the printed roles.
func preflightRole(t *testing.T) {
	role := preflightRoles(t)
	must(t, plane.Apply(t.Context(), []byte(role+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: preflight, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: meshvakt-preflight}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: meshvakt-preflight}
subjects: [{kind: ServiceAccount, name: preflight, namespace: default}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: meshvakt-preflight, namespace: istio-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: meshvakt-preflight}
subjects: [{kind: ServiceAccount, name: preflight, namespace: default}]
`)))
	kubeconfig, err := plane.ServiceAccountKubeconfig(t.Context(), "default", "preflight")
	must(t, err)
	eventually(t, 10*time.Second, func() error {
		if r := runPreflight(t, kubeconfig); len(r.MissingRights) > 0 || r.status != 0 {
			return fmt.Errorf("status %d, lacks %v\n%s", r.status, r.MissingRights, r.stderr)
		}
		return nil
	})
	// The audit log holds every request but those that read.
	user := "system:serviceaccount:default:preflight"
	ours := func(e controlplane.AuditEvent) bool { return e.User.Username == user }
	_, err = plane.WaitAudit(t.Context(), ours)
	must(t, err)
	events, err := plane.Audited(ours)
	must(t, err)
	for _, e := range events {
		if e.ObjectRef.Resource != "selfsubjectaccessreviews" {
			t.Errorf("it does more than read: %s %s", e.Verb, e.RequestURI)
		}
	}
	if strings.Contains(role, "secrets") || strings.Contains(role, "create") || strings.Contains(role, "\"*\"") {
		t.Errorf("the role gives too much:\n%s", role)
	}
}

func preflightRoles(t testing.TB) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, "preflight", "--print-rbac").Output()
	must(t, err)
	return string(out)
}

// unready is the cluster once it has been spoilt.
type unready struct {
	payments, legacy, outside, outdated, excepted string
	forecast                                      *preflightRun
}

// spoil adds to the cluster what is in the way of a guard.
func (c *unready) spoil(t *testing.T) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	namespaceOf := func(ns *corev1.Namespace) string {
		create(t, admin, ns)
		serviceAccount(t, ns.Name)
		return ns.Name
	}
	c.legacy = namespaceOf(injectedAs("legacy"))
	create(t, admin, policy(c.legacy, "default", "PERMISSIVE"))
	rolledOut(t, deployment(c.legacy, "web", 1, nil))

	c.outside = namespaceOf(namespace("batch", true))
	rolledOut(t, deployment(c.outside, "nightly", 1, nil))

	// Pods that were there before injection was.
	ns := namespace("ledger", true)
	c.outdated = namespaceOf(ns)
	rolledOut(t, deployment(c.outdated, "books", 2, nil))
	must(t, relabel(t.Context(), admin, ns, "istio-injection", "enabled"))

	c.excepted = namespaceOf(injectedAs("reports"))
	optOut := map[string]string{"sidecar.istio.io/inject": "false"}
	rolledOut(t, deployment(c.excepted, "legacy-export", 1, optOut))
	rolledOut(t, deployment(c.excepted, "export", 1, optOut))
	create(t, admin, exception(c.excepted, "legacy-export"))

	// A second root namespace, where the same holds as in the first.
	create(t, admin, namespace("istio-config", false))
	create(t, admin, policy("istio-config", "default", "STRICT"))
	create(t, admin, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-canary", Labels: map[string]string{"istio.io/rev": "canary"}},
		Data:       map[string]string{"mesh": "rootNamespace: istio-config\n"},
	})
	must(t, plane.Apply(t.Context(), []byte(plaintextRule("plaintext"))))

	// A node that came later, and a pod that is bound to be there.
	burstable := dedicatedNode("node-2")
	burstable.Labels[corev1.LabelInstanceTypeStable] = "t3.2xlarge"
	join(t, burstable)
	create(t, admin, pinned())
	matchesEverything(t)
}

// plaintextRule is a DestinationRule that has clients send plaintext to payments.
func plaintextRule(name string) string {
	return `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ` + name + `, namespace: payments}
spec: {host: api.payments.svc.cluster.local, trafficPolicy: {tls: {mode: DISABLE}}}
`
}

// pinned is a pod on the node whose CPU is shared.
func pinned() *corev1.Pod {
	p := pod("payments", map[string]string{"app": "pinned"})
	p.GenerateName, p.Name, p.Spec.NodeName = "", "pinned", "node-2"
	return p
}

// exception is an approved one for the pods of an app.
func exception(namespace, app string) *v1alpha1.GuardException {
	return &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: app},
		Spec: v1alpha1.GuardExceptionSpec{
			Policies:       []v1alpha1.ExceptedPolicy{{Name: "mesh-membership"}},
			ObjectSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			Reason:         "is moved next week", Reference: "TICKET-1",
			ExpiresAt: metav1.NewTime(time.Now().Add(24 * time.Hour)),
			Approved:  true, Requester: "developer", Approver: "platform",
		},
	}
}

// matchesEverything registers a webhook that fails closed and is asked about everything.
// It lets all pass, or there would be no cluster any more.
func matchesEverything(t *testing.T) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		review.Request = nil
		_ = json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(server.Close)
	none := admissionregistrationv1.SideEffectClassNone
	create(t, clientFor(t, controlplane.Admin), &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "everything"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "everything.example.com", SideEffects: &none, AdmissionReviewVersions: []string{"v1"}, TimeoutSeconds: new(int32(30)),
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				URL: &server.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}},
			}},
		}},
	})
}

func (c *unready) isNotReady(t *testing.T) {
	r := runPreflight(t, plane.Kubeconfig(controlplane.Auditor))
	c.forecast = r
	if r.status != 1 {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
	r.is(t, map[string]preflight.Result{
		"istio-root-namespaces": preflight.Warn, "webhook-locks": preflight.Fail, "webhook-timeouts": preflight.Warn,
		"forecast-namespaces": preflight.Fail, "forecast-templates": preflight.Fail, "forecast-pods": preflight.Fail, "forecast-policies": preflight.Fail,
		"forecast-istio-objects": preflight.Fail, "nodes": preflight.Pass,
	})
	if n := r.Forecast.Namespaces; n.Guarded != 5 || n.NotStrict != 1 || !slices.Equal(n.Open, []string{c.legacy}) {
		t.Errorf("namespaces %+v", n)
	}
	for kind, want := range map[string]preflight.KindCount{
		"Namespace":          {Judged: 5, Refused: 1, Warned: 1},                // legacy, outside
		"Deployment":         {Judged: 6, Refused: 2, Excepted: 1},              // nightly, export; legacy-export
		"Pod":                {Judged: 9, Refused: 6, Outdated: 2, Excepted: 1}, // web, nightly, export, pinned, 2 of books
		"DestinationRule":    {Judged: 1, Refused: 1},
		"PeerAuthentication": {Judged: 3, Refused: 1, Warned: 2}, // legacy; those of the roots, that do not help it
	} {
		want.Kind = kind
		if got := r.kind(kind); got != want {
			t.Errorf("%s: %+v; want %+v", kind, got, want)
		}
	}
	if !slices.Contains(r.Forecast.Worst, preflight.NamespaceCount{Namespace: c.payments, Refused: 2}) { // the rule and pinned
		t.Errorf("worst %+v", r.Forecast.Worst)
	}
	text := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), "-o", "table").stdout
	fits(t, text)
	for _, want := range []string{"leases of nodes", "everything.example.com", "MV101", "MV103", c.legacy + "/default", "Enforcing now would break running work"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	documented(t, text)
	for _, name := range []string{"developer", "platform"} {
		if strings.Contains(r.stdout, name) {
			t.Errorf("the report names user %s", name)
		}
	}
}

// injectedAs is a guarded namespace whose pods get a sidecar. Its name is its own, for it
// stands in the documentation.
func injectedAs(name string) *corev1.Namespace {
	ns := namespace(name, true)
	ns.Labels["istio-injection"] = "enabled"
	return ns
}

// documented demands that the documentation shows what was printed.
func documented(t *testing.T, table string) {
	t.Helper()
	const page, begin, end = "../../docs/preflight.md", "```text\n$ meshvakt preflight\n", "```\n"
	table = regexp.MustCompile(`(-[a-z0-9]{6,10}-)[a-z0-9]{5}\b`).ReplaceAllString(table, "${1}x7k2q")
	text, err := os.ReadFile(page)
	must(t, err)
	before, rest, found := strings.Cut(string(text), begin)
	shown, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no block that begins with %q", page, begin)
	}
	if shown == table {
		return
	}
	if *updateDocs {
		must(t, os.WriteFile(page, []byte(before+begin+table+end+after), 0o644))
		return
	}
	t.Errorf("%s shows something else than is printed; go test -run TestPreflight -update-docs . brings it up to date\n%s", page, table)
}

func preflightFewRights(t *testing.T) {
	r := runPreflight(t, plane.Kubeconfig(controlplane.Developer))
	lacks := func(resource string) bool {
		return slices.ContainsFunc(r.MissingRights, func(m preflight.Right) bool { return m.Verb == "list" && m.Resource == resource })
	}
	for _, resource := range []string{"nodes", "validatingwebhookconfigurations", "mutatingwebhookconfigurations"} {
		if !lacks(resource) || !strings.Contains(r.stderr, "list "+resource) {
			t.Errorf("it is not said that %s may not be listed: %v\n%s", resource, r.MissingRights, r.stderr)
		}
	}
	if lacks("pods") || lacks("namespaces") {
		t.Errorf("rights that are there are missing: %v", r.MissingRights)
	}
	r.is(t, map[string]preflight.Result{
		"kubernetes-version": preflight.Pass, "istio-mesh-mode": preflight.Pass,
		"nodes": preflight.Unknown, "webhook-locks": preflight.Unknown, "webhook-order": preflight.Unknown, "istio-injection": preflight.Unknown,
		"forecast-istio-objects": preflight.Fail, "forecast-templates": preflight.Fail, "forecast-pods": preflight.Fail,
	})
	if r.status != 1 {
		t.Errorf("status %d; want 1, for what is known to fail", r.status)
	}
	// Nobody in particular may see nothing, and is told of nothing but that.
	anonymous := runPreflight(t, nobody(t))
	if anonymous.status != 3 || anonymous.Summary.Fail > 0 || anonymous.Forecast != nil {
		t.Errorf("status %d, %+v", anonymous.status, anonymous.Summary)
	}
	anonymous.is(t, map[string]preflight.Result{"forecast-pods": preflight.Unknown, "guarded-namespaces": preflight.Unknown, "istio-mesh-mode": preflight.Unknown})
}

// nobody is a ServiceAccount without rights.
func nobody(t testing.TB) string {
	t.Helper()
	create(t, clientFor(t, controlplane.Admin), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "nobody"}})
	kubeconfig, err := plane.ServiceAccountKubeconfig(t.Context(), "default", "nobody")
	must(t, err)
	return kubeconfig
}

func preflightGuardFile(t *testing.T, c *unready) {
	file := filepath.Join(t.TempDir(), "guard.yaml")
	must(t, os.WriteFile(file, []byte(`apiVersion: meshvakt.io/v1alpha1
kind: MeshGuard
metadata: {name: payments}
spec:
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: `+c.payments+`}}
  strictMTLS: {validationActions: [Warn]}
  meshMembership: {}
`), 0o600))
	r := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), "--guard", file)
	if r.Forecast.Namespaces.Guarded != 1 || !slices.Equal(r.Forecast.Guards, []string{"payments"}) {
		t.Errorf("%+v", r.Forecast.Namespaces)
	}
	r.is(t, map[string]preflight.Result{"forecast-namespaces": preflight.Pass, "forecast-pods": preflight.Pass, "forecast-templates": preflight.Pass, "webhook-locks": preflight.Fail, "forecast-istio-objects": preflight.Fail})

	// A guard that warns refuses nothing, unless it is asked what it would refuse.
	must(t, os.WriteFile(file, []byte(`apiVersion: meshvakt.io/v1alpha1
kind: MeshGuard
metadata: {name: legacy}
spec:
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: `+c.legacy+`}}
  strictMTLS: {validationActions: [Warn]}
`), 0o600))
	warned := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), "--guard", file)
	warned.is(t, map[string]preflight.Result{"forecast-pods": preflight.Warn})
	denied := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), "--guard", file, "--deny")
	denied.is(t, map[string]preflight.Result{"forecast-pods": preflight.Fail})

	alone := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), "--namespace", c.payments)
	if k := alone.kind("Pod"); k.Judged != 3 || k.Refused != 1 {
		t.Errorf("--namespace %s: pods %+v", c.payments, k)
	}
}

func preflightUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--guard", "no-such-guard"}, {"--namespace", "no-such-namespace"}, {"-o", "yaml"}, {"--context", "no-such-context"}, {"--kubeconfig", "no-such-file"},
	} {
		if r := runPreflight(t, plane.Kubeconfig(controlplane.Auditor), args...); r.status != 2 || r.stdout != "" || r.stderr == "" {
			t.Errorf("%v: status %d\n%s%s", args, r.status, r.stdout, r.stderr)
		}
	}
}

// comesTrue puts the guard in force and tries as a dry run what the forecast was about.
func (c *unready) comesTrue(t *testing.T) {
	if c.forecast == nil || c.forecast.Forecast == nil {
		t.Fatal("there is no forecast")
	}
	start(t)
	g := v1alpha1.DefaultGuard()
	// Without a reason it could not be deleted again.
	g.Annotations = map[string]string{v1alpha1.ChangeReasonAnnotation: "the test is over"}
	guard(t, g)
	enforcing(t, "default")
	admin := clientFor(t, controlplane.Admin)
	dry := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	refusals := map[string]int{}
	try := func(kind string, o client.Object) {
		t.Helper()
		if err := dry.Create(t.Context(), o); err != nil {
			refusals[kind]++
			refused(t, err)
		}
	}
	for _, ns := range []string{c.payments, c.legacy, c.outside, c.outdated, c.excepted} {
		var deployments appsv1.DeploymentList
		must(t, admin.List(t.Context(), &deployments, client.InNamespace(ns)))
		for i := range deployments.Items {
			d := &deployments.Items[i]
			try("Deployment", &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: d.Name + "-again", Labels: d.Labels}, Spec: d.Spec})
			for range *d.Spec.Replicas {
				template := d.Spec.Template
				try("Pod", &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: d.Name + "-", Labels: template.Labels, Annotations: template.Annotations},
					Spec:       template.Spec,
				})
			}
		}
	}
	again := pinned()
	again.Name += "-again"
	try("Pod", again)
	if _, stderr, err := plane.Kubectl(t.Context(), controlplane.Developer, plaintextRule("again"), "apply", "--dry-run=server", "-f", "-"); err == nil || !strings.Contains(stderr, "[MV234]") {
		t.Errorf("a rule like the one that was foretold to be refused: %v\n%s", err, stderr)
	}
	deployments, pods := c.forecast.kind("Deployment"), c.forecast.kind("Pod")
	if refusals["Deployment"] != deployments.Refused || refusals["Pod"] != pods.Refused-pods.Outdated {
		t.Errorf("refused %v; foretold %+v, %+v", refusals, deployments, pods)
	}
	replicasAreReady(t)
	after := runPreflight(t, plane.Kubeconfig(controlplane.Auditor))
	after.is(t, map[string]preflight.Result{
		"meshvakt-installation": preflight.Pass, "meshvakt-webhooks": preflight.Pass, "meshvakt-reach": preflight.Pass,
		"meshvakt-guards": preflight.Warn, "meshvakt-replicas": preflight.Pass, "meshvakt-disruption": preflight.Pass, "forecast-pods": preflight.Fail,
	})
	if got, want := after.kind("Pod"), pods; got != want {
		t.Errorf("with the guard in force: %+v; before: %+v", got, want)
	}
	c.namespacesComeTrue(t)
}

// replicasAreReady creates the Deployment of the chart with pods that are said to be
// ready, as kubelets would; the replica itself runs outside of the cluster.
func replicasAreReady(t *testing.T) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	d := deployment(ownNamespace, "meshvakt", 2, nil)
	d.Labels = map[string]string{"app.kubernetes.io/name": "meshvakt", "app.kubernetes.io/instance": "meshvakt", "app.kubernetes.io/component": "webhook"}
	d.Spec.Selector.MatchLabels, d.Spec.Template.Labels = d.Labels, d.Labels
	rolledOut(t, d)
	if r := runPreflight(t, plane.Kubeconfig(controlplane.Auditor)); !t.Failed() {
		r.is(t, map[string]preflight.Result{"meshvakt-replicas": preflight.Fail, "meshvakt-disruption": preflight.Warn})
	}
	var pods corev1.PodList
	must(t, admin.List(t.Context(), &pods, client.InNamespace(ownNamespace), client.MatchingLabels(d.Labels)))
	for i := range pods.Items {
		p := &pods.Items[i]
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
		must(t, admin.Status().Update(t.Context(), p))
	}
	eventually(t, 30*time.Second, func() error {
		var budget policyv1.PodDisruptionBudget
		must(t, admin.Get(t.Context(), client.ObjectKeyFromObject(d), d))
		must(t, admin.Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: "meshvakt"}, &budget))
		if d.Status.ReadyReplicas != 2 || budget.Status.DisruptionsAllowed == 0 {
			return fmt.Errorf("%d replicas are ready, the budget lets %d go", d.Status.ReadyReplicas, budget.Status.DisruptionsAllowed)
		}
		return nil
	})
}

// namespacesComeTrue takes each namespace out of the guard and tries to put it back, and
// to create the policy of one anew once it is STRICT.
func (c *unready) namespacesComeTrue(t *testing.T) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	dry := client.NewDryRunClient(admin)
	for name, pass := range map[string]bool{c.payments: true, c.legacy: false, c.outside: false, c.outdated: false} {
		ns := namespace(name, false)
		must(t, relabel(t.Context(), admin, ns, v1alpha1.GuardedLabel, ""))
		err := relabel(t.Context(), dry, ns, v1alpha1.GuardedLabel, v1alpha1.GuardedValue)
		if (err == nil) != pass {
			t.Errorf("namespace %s comes under the guard: %v", name, err)
		}
		if err != nil {
			refused(t, err)
		}
	}
	must(t, admin.Delete(t.Context(), policy(c.legacy, "default", "PERMISSIVE")))
	must(t, relabel(t.Context(), admin, namespace(c.legacy, false), v1alpha1.GuardedLabel, v1alpha1.GuardedValue))
	refused(t, dry.Create(t.Context(), policy(c.legacy, "default", "PERMISSIVE")), "MV103")
}

// deployment makes pods of one container.
func deployment(namespace, app string, replicas int32, annotations map[string]string) *appsv1.Deployment {
	labels := map[string]string{"app": app}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: app},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, Spec: pod(namespace, nil).Spec},
		},
	}
}

// rolledOut creates it and waits for its pods.
func rolledOut(t testing.TB, d *appsv1.Deployment) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	create(t, admin, d)
	eventually(t, 30*time.Second, func() error {
		var pods corev1.PodList
		if err := admin.List(t.Context(), &pods, client.InNamespace(d.Namespace), client.MatchingLabels(d.Spec.Template.Labels)); err != nil {
			return err
		}
		bound := 0
		for i := range pods.Items {
			if pods.Items[i].Spec.NodeName != "" {
				bound++
			}
		}
		if bound != int(*d.Spec.Replicas) {
			return fmt.Errorf("%d of %d pods of %s/%s are on a node", bound, *d.Spec.Replicas, d.Namespace, d.Name)
		}
		return nil
	})
}

func dedicatedNode(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelInstanceTypeStable: "m5.2xlarge", corev1.LabelTopologyRegion: "eu-north-1",
		}},
		Status: corev1.NodeStatus{Capacity: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
		}},
	}
}
