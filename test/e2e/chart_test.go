package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// release is a control plane of its own with the chart in it: the other tests have
// put cluster-wide objects of the same names into theirs.
type release struct {
	t      *testing.T
	plane  *controlplane.ControlPlane
	client client.Client
	helm   string // path of the executable
}

func newRelease(t *testing.T) *release {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=test/tools/helm/go.mod", "-n", "helm")
	cmd.Dir, cmd.Stderr = "../..", os.Stderr
	path, err := cmd.Output()
	if err != nil {
		t.Fatalf("build helm: %v", err)
	}
	r := &release{t: t, plane: controlplane.Start(t, controlplane.Options{}), helm: strings.TrimSpace(string(path))}
	if r.client, err = client.New(r.plane.RestConfig(controlplane.Admin), client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	return r
}

// try runs helm as the administrator.
func (r *release) try(args ...string) (string, error) {
	home := r.t.TempDir()
	cmd := exec.CommandContext(r.t.Context(), r.helm, args...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.plane.Kubeconfig(controlplane.Admin),
		"HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home, "HELM_NAMESPACE="+ownNamespace)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

func (r *release) run(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *release) kubectl(stdin string, args ...string) string {
	r.t.Helper()
	out, _, err := r.plane.Kubectl(r.t.Context(), controlplane.Admin, stdin, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (r *release) guard() *v1alpha1.MeshGuard {
	r.t.Helper()
	var g v1alpha1.MeshGuard
	if err := r.client.Get(r.t.Context(), client.ObjectKey{Name: v1alpha1.DefaultGuardName}, &g); err != nil {
		r.t.Fatal(err)
	}
	return &g
}

// left lists what a release has created and is still there.
func (r *release) left() []string {
	r.t.Helper()
	kinds := strings.Fields(r.kubectl("", "api-resources", "--verbs=list,delete", "-o", "name"))
	kinds = slices.DeleteFunc(kinds, func(k string) bool {
		// Not objects of their own: they follow others, and some with delay.
		return strings.HasPrefix(k, "events") || strings.HasPrefix(k, "endpoint") || k == "pods" || strings.HasPrefix(k, "replicasets")
	})
	out := r.kubectl("", "get", strings.Join(kinds, ","), "-A", "--ignore-not-found", "-o", "name", "-l", "app.kubernetes.io/instance=meshvakt")
	return strings.Fields(out)
}

// What a cluster administrator does with the chart, in this order, with Helm
// itself against a real API server.
func TestChart(t *testing.T) {
	r := newRelease(t)
	r.kubectl("", "create", "namespace", "istio-system")
	r.kubectl("", "create", "namespace", ownNamespace)
	r.kubectl("", "label", "namespace", ownNamespace, "pod-security.kubernetes.io/enforce=restricted")

	for _, step := range []struct {
		name string
		do   func(t *testing.T, r *release)
	}{
		{"install", chartInstalls},
		{"pods are restricted", chartPodsAreRestricted},
		{"rights suffice", chartRightsSuffice},
		{"rights are narrow", chartRightsAreNarrow},
		{"all values are accepted", chartValuesAreAccepted},
		{"upgrade keeps the guard", chartUpgrades},
		{"uninstall without hooks and install again", chartComesBack},
		{"uninstall", chartUninstalls},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			step.do(t, &release{t: t, plane: r.plane, client: r.client, helm: r.helm})
		}) {
			return // the next step rests on it
		}
	}
}

func chartInstalls(t *testing.T, r *release) {
	r.run("install", "meshvakt", "charts/meshvakt")
	if spec := r.guard().Spec; spec.StrictMTLS == nil || spec.StrictMTLS.OnMissing != v1alpha1.OnMissingReject {
		t.Errorf("the guard demands %+v", spec)
	}
	if registered := r.registered(); len(registered) > 0 {
		t.Errorf("registered before anybody serves: %q", registered)
	}
}

// registered lists the webhook configurations of Meshvakt.
func (r *release) registered() []string {
	r.t.Helper()
	names := strings.Fields(r.kubectl("", "get", "validatingwebhookconfigurations,mutatingwebhookconfigurations", "-o", "name"))
	return slices.DeleteFunc(names, func(n string) bool { return !strings.Contains(n, "meshvakt") })
}

// The namespace enforces Pod Security "restricted", so that other pods would not
// come to be.
func chartPodsAreRestricted(t *testing.T, r *release) {
	eventually(t, 60*time.Second, func() error {
		var pods corev1.PodList
		if err := r.client.List(t.Context(), &pods, client.InNamespace(ownNamespace)); err != nil {
			return err
		}
		if len(pods.Items) != 3 {
			return fmt.Errorf("%d pods; must be 3", len(pods.Items))
		}
		return nil
	})
}

// chartArgs are the arguments the Deployment gives the process.
func (r *release) chartArgs() []string {
	r.t.Helper()
	var d appsv1.Deployment
	if err := r.client.Get(r.t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: "meshvakt"}, &d); err != nil {
		r.t.Fatal(err)
	}
	return d.Spec.Template.Spec.Containers[0].Args
}

// serve runs the process with the arguments of the Deployment, but for addresses, and
// with the rights of its ServiceAccount, until the test ends.
func (r *release) serve(t *testing.T) *replica {
	t.Helper()
	kubeconfig, err := r.plane.ServiceAccountKubeconfig(t.Context(), ownNamespace, "meshvakt")
	if err != nil {
		t.Fatal(err)
	}
	args := r.chartArgs()
	if len(args) == 0 || args[0] != "serve" {
		t.Fatalf("the container runs %q", args)
	}
	address := freeAddress(t)
	args = append(slices.Clone(args[1:]), "--kubeconfig", kubeconfig, "--listen", address,
		"--webhook-url", "https://"+address, "--operations-listen", "127.0.0.1:0", "--drain-delay", "100ms")
	return startReplica(t, args...).ready(t.Context())
}

// The process becomes ready, leads, and registers.
func chartRightsSuffice(t *testing.T, r *release) {
	replica := r.serve(t)
	eventually(t, 60*time.Second, func() error {
		g := r.guard()
		if bound := r.kubectl("", "get", "validatingadmissionpolicybindings", "-o", "name"); !strings.Contains(bound, "meshvakt-default") {
			return fmt.Errorf("the guard's policy is not bound: %q", bound)
		}
		if registered := r.registered(); len(registered) != 2 {
			return fmt.Errorf("registered: %q; must be both configurations", registered)
		}
		for _, c := range g.Status.Conditions {
			if c.Type == v1alpha1.ConditionEnforcing && c.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", g.Status.Conditions)
	})
	replica.mu.Lock()
	defer replica.mu.Unlock()
	for _, line := range replica.log {
		if strings.Contains(line, "forbidden") {
			t.Errorf("a right is missing: %s", line)
		}
	}
}

func chartRightsAreNarrow(t *testing.T, r *release) {
	account := "system:serviceaccount:" + ownNamespace + ":meshvakt"
	can := func(args ...string) bool {
		out, _, _ := r.plane.Kubectl(t.Context(), controlplane.Admin, "", append([]string{"auth", "can-i", "--as", account}, args...)...)
		return strings.TrimSpace(out) == "yes"
	}
	for _, c := range []struct {
		args string
		want bool
	}{
		{"update validatingwebhookconfigurations/meshvakt", true},
		{"create validatingwebhookconfigurations/meshvakt", true},
		{"create validatingwebhookconfigurations", false},
		{"update validatingwebhookconfigurations/other", false},
		{"delete validatingwebhookconfigurations/meshvakt", false},
		{"update mutatingwebhookconfigurations/before-istio.meshvakt.io", true},
		{"create mutatingwebhookconfigurations/before-istio.meshvakt.io", true},
		{"create mutatingwebhookconfigurations", false},
		{"update mutatingwebhookconfigurations/istio-sidecar-injector", false},
		{"delete mutatingwebhookconfigurations/before-istio.meshvakt.io", false},
		{"get validatingadmissionpolicies/meshvakt-mesh-membership", true},
		{"update validatingadmissionpolicies/meshvakt-mesh-membership", true},
		{"delete validatingadmissionpolicies/meshvakt-mesh-membership", false},
		{"get validatingadmissionpolicies/other", false},
		{"update validatingadmissionpolicies/other", false},
		{"update clusterroles/meshvakt", true},
		{"update clusterroles/meshvakt-unguard", false},
		{"update clusterroles/other", false},
		{"escalate clusterroles/meshvakt", false},
		{"bind clusterroles/meshvakt", false},
		{"create clusterrolebindings", false},
		{"update clusterrolebindings/meshvakt-spare", true},
		{"update clusterrolebindings/other", false},
		{"update roles/meshvakt -n " + ownNamespace, true},
		{"update roles/other -n " + ownNamespace, false},
		{"update roles/meshvakt -n default", false},
		{"update customresourcedefinitions/meshguards.meshvakt.io", true},
		{"delete customresourcedefinitions/meshguards.meshvakt.io", false},
		{"update customresourcedefinitions/peerauthentications.security.istio.io", false},
		{"update services/meshvakt -n " + ownNamespace, true},
		{"update services/other -n " + ownNamespace, false},
		{"update configmaps/other -n " + ownNamespace, false},
		{"update serviceaccounts/meshvakt -n " + ownNamespace, false},
		{"create meshguards.meshvakt.io", true},
		{"delete meshguards.meshvakt.io", false},
		{"create guardexceptions.meshvakt.io -n " + ownNamespace, true},
		{"create guardexceptions.meshvakt.io -n default", false},
		{"update guardexceptions.meshvakt.io -n " + ownNamespace, false},
		{"approve guardexceptions.meshvakt.io -n " + ownNamespace, false},
		{"create validatingadmissionpolicybindings", true},
		{"delete validatingadmissionpolicybindings", true},
		{"get secrets/meshvakt-ca -n " + ownNamespace, true},
		{"get secrets/other -n " + ownNamespace, false},
		{"list secrets -n " + ownNamespace, false},
		{"get secrets -n istio-system", false},
		{"get configmaps -n istio-system", true},
		{"get configmaps -n default", false},
		{"create peerauthentications.security.istio.io -n default", true},
		{"update peerauthentications.security.istio.io -n default", false},
		{"delete peerauthentications.security.istio.io -n default", false},
		{"list pods -A", true},
		{"watch pods -A", true},
		{"list deployments.apps -A", true},
		{"update deployments.apps -n default", false},
		{"patch peerauthentications.security.istio.io -n default", true},
		{"get pods -n default", true},
		{"delete pods -n default", false},
		{"create pods/binding -n default", false},
		{"list persistentvolumes", true},
		{"patch persistentvolumes", false},
		{"watch nodes", true},
		{"patch nodes", false},
		{"update nodes", false},
		{"delete nodes", false},
		{"patch nodes --subresource=status", true},
		{"list resourcequotas -A", true},
		{"list limitranges -A", true},
		{"update resourcequotas -n default", false},
		{"update limitranges -n default", false},
		{"watch cronjobs.batch -A", true},
		{"get deployments.apps -n default", false},
		{"get configmaps/meshvakt-standing -n " + ownNamespace, true},
		{"get configmaps/other -n " + ownNamespace, false},
		{"list configmaps -n " + ownNamespace, false},
		{"update namespaces", false},
		{"update meshguards.meshvakt.io", false},
		{"unguard meshguards.meshvakt.io/default", false},
	} {
		if got := can(strings.Fields(c.args)...); got != c.want {
			t.Errorf("can %s: %t, must be %t", c.args, got, c.want)
		}
	}
	// A POST does not say the name when rights are checked, so none is granted.
	const webhook = `{"apiVersion":"admissionregistration.k8s.io/v1","kind":%q,"metadata":{"name":"meshvakt-2"}}`
	for _, kind := range []string{"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"} {
		for _, how := range []string{"create", "apply --server-side"} {
			args := append(strings.Fields(how), "--as", account, "-f", "-")
			_, stderr, err := r.plane.Kubectl(t.Context(), controlplane.Admin, fmt.Sprintf(webhook, kind), args...)
			if err == nil || !strings.Contains(stderr, "forbidden") {
				t.Errorf("%s of another %s: %v; must be forbidden", how, kind, err)
			}
		}
	}
	chartNodesAreSafe(t, r, account)
	eventually(t, 30*time.Second, func() error {
		if rules := r.kubectl("", "get", "clusterrole", "view", "-o", "jsonpath={.rules}"); !strings.Contains(rules, "meshguards") {
			return fmt.Errorf("the ClusterRole view does not let people see MeshGuards: %s", rules)
		}
		return nil
	})
}

// The right to patch the status of nodes ends at their class.
func chartNodesAreSafe(t *testing.T, r *release, account string) {
	const class = "meshvakt.node-restriction.kubernetes.io/class"
	r.kubectl(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","labels":{"zone":"a"},"annotations":{"note":"a"}}}`, "create", "-f", "-")
	config := r.plane.RestConfig(controlplane.Admin)
	config.Impersonate.UserName = account
	leader, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	for _, c := range []struct{ patch, refused string }{
		{`{"metadata":{"labels":{"` + class + `":"unknown"},"annotations":{"meshvakt.io/class-source":"nothing"}}}`, ""},
		{`{"metadata":{"labels":{"zone":"b"}}}`, "metadata.labels[zone]: changed by Meshvakt"},
		{`{"metadata":{"labels":{"zone":null}}}`, "metadata.labels[zone]: changed by Meshvakt"},
		{`{"metadata":{"labels":{"` + class + `2":"x"}}}`, "metadata.labels[" + class + "2]: changed by Meshvakt"},
		{`{"metadata":{"annotations":{"note":"b"}}}`, "metadata.annotations[note]: changed by Meshvakt"},
		{`{"metadata":{"annotations":{"note":null}}}`, "metadata.annotations[note]: changed by Meshvakt"},
		{`{"metadata":{"finalizers":["a.example/b"]}}`, "metadata.finalizers: changed by Meshvakt"},
		{`{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, "status: changed by Meshvakt"},
		{`{"metadata":{"labels":{"` + class + `":null}}}`, ""},
	} {
		// The API server learns of a policy by a watch.
		eventually(t, 10*time.Second, func() error {
			err := leader.Status().Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, mergePatch(c.patch))
			if c.refused == "" && err != nil || c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)) {
				return fmt.Errorf("%s: %w; must be refused for %q", c.patch, err, c.refused)
			}
			return nil
		})
	}
	if labels := r.kubectl("", "get", "node", "n1", "-o", "jsonpath={.metadata.labels}"); strings.Contains(labels, class) || !strings.Contains(labels, "zone") {
		t.Errorf("labels %s", labels)
	}
	// The spec is out of reach.
	if _, stderr, _ := r.plane.Kubectl(t.Context(), controlplane.Admin, "", "taint", "node", "n1", "a=b:NoSchedule", "--as", account); !strings.Contains(stderr, "cannot patch resource") {
		t.Errorf("taint: %s", stderr)
	}
	r.kubectl("", "delete", "node", "n1")
}

// Every set of values that the chart's own tests render passes the API server's
// validation, hooks included.
func chartValuesAreAccepted(t *testing.T, r *release) {
	r.serve(t) // guards are judged
	r.kubectl("", "create", "namespace", "istio-config")
	r.kubectl("", "create", "namespace", "meshvakt-elsewhere")
	sets, err := os.ReadDir("../chart/testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range sets {
		if !strings.HasSuffix(f.Name(), ".values.yaml") {
			continue
		}
		manifest := r.run("template", "meshvakt", "charts/meshvakt", "--namespace", "meshvakt-elsewhere", "--values", "test/chart/testdata/"+f.Name())
		var accepted []string
		for _, doc := range strings.Split(manifest, "\n---") {
			// The Prometheus operator is not part of the control plane.
			if !strings.Contains(doc, "\napiVersion: monitoring.coreos.com/") {
				accepted = append(accepted, doc)
			}
		}
		r.kubectl(strings.Join(accepted, "\n---"), "apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "-f", "-")
	}
}

func chartUpgrades(t *testing.T, r *release) {
	r.serve(t)
	before := r.guard()
	r.run("upgrade", "meshvakt", "charts/meshvakt", "--set", "guard.spec.strictMTLS.onMissing=Hold")
	after := r.guard()
	if after.UID != before.UID {
		t.Error("the upgrade has deleted the guard and created another: its namespaces were unguarded meanwhile")
	}
	if got := after.Spec.StrictMTLS.OnMissing; got != v1alpha1.OnMissingHold {
		t.Errorf("onMissing is %s; must be Hold", got)
	}
	// A slip in the values takes no guard away either.
	r.run("upgrade", "meshvakt", "charts/meshvakt", "--set", "guard.create=false")
	if r.guard().UID != before.UID {
		t.Error("guard.create=false has deleted the guard")
	}
	r.run("upgrade", "meshvakt", "charts/meshvakt", "--reset-values")
	if got := r.guard(); got.UID != before.UID || got.Spec.StrictMTLS.OnMissing != v1alpha1.OnMissingReject {
		t.Errorf("the guard was not taken in again: %+v", got.Spec)
	}
}

// The hook's Job runs `meshvakt uninstall`; there is no kubelet, so the test runs
// it with the arguments and the rights of the Job's pod.
func chartUninstalls(t *testing.T, r *release) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	played := make(chan error, 1)
	go func() { played <- r.playUninstall(ctx) }()
	_, err := r.try("uninstall", "meshvakt", "--timeout", "2m")
	stop()
	if err := errors.Join(<-played, err); err != nil {
		t.Fatal(err)
	}
	if left := r.registered(); len(left) > 0 {
		t.Errorf("left, and nobody serves them: %q", left)
	}
	if left := r.kubectl("", "get", "validatingadmissionpolicybindings", "-o", "name"); left != "" {
		t.Errorf("bindings are left: %s", left)
	}
	r.onlyKeptObjectsAreLeft()
}

// playUninstall does for the pod of the uninstall Job what a kubelet would.
func (r *release) playUninstall(ctx context.Context) error {
	for {
		var jobs batchv1.JobList
		var pods corev1.PodList
		if err := r.client.List(ctx, &jobs, client.InNamespace(ownNamespace)); err != nil {
			return err
		}
		if err := r.client.List(ctx, &pods, client.InNamespace(ownNamespace), client.HasLabels{"batch.kubernetes.io/job-name"}); err != nil {
			return err
		}
		if len(jobs.Items) == 0 || len(pods.Items) == 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("no pod of the uninstall Job: %w", ctx.Err())
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		pod := &pods.Items[0]
		kubeconfig, err := r.plane.ServiceAccountKubeconfig(ctx, ownNamespace, pod.Spec.ServiceAccountName)
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, binary, append(slices.Clone(pod.Spec.Containers[0].Args), "--kubeconfig", kubeconfig)...).CombinedOutput()
		// A patch, for the scheduler writes to the status as well.
		before := pod.DeepCopy()
		pod.Status.Phase = corev1.PodSucceeded
		if err != nil {
			err = fmt.Errorf("meshvakt uninstall: %w\n%s", err, out)
			pod.Status.Phase = corev1.PodFailed
		}
		if errStatus := r.client.Status().Patch(ctx, pod, client.MergeFrom(before)); errStatus != nil {
			return errStatus
		}
		return err
	}
}

func (r *release) onlyKeptObjectsAreLeft() {
	r.t.Helper()
	want := []string{"customresourcedefinition.apiextensions.k8s.io/guardexceptions.meshvakt.io", "customresourcedefinition.apiextensions.k8s.io/meshguards.meshvakt.io", "meshguard.meshvakt.io/default"}
	if left := r.left(); !slices.Equal(left, want) {
		r.t.Errorf("left behind: %q; must be %q", left, want)
	}
}

// Without hooks the webhook configurations have to be removed by hand, as the manual
// says. With CRD and guard still there the chart can be installed again.
func chartComesBack(t *testing.T, r *release) {
	before := r.guard()
	r.run("uninstall", "meshvakt", "--no-hooks")
	r.kubectl("", "delete", "validatingwebhookconfiguration", "meshvakt")
	r.kubectl("", "delete", "mutatingwebhookconfiguration", mutatingName)
	if out := r.kubectl("", "delete", "validatingadmissionpolicybindings", "-l", "app.kubernetes.io/managed-by=meshvakt"); !strings.Contains(out, "meshvakt-default") {
		t.Errorf("the guard's policy was not bound: %q", out)
	}
	r.onlyKeptObjectsAreLeft()
	// A Job that fails is to fail soon in the next step.
	r.run("install", "meshvakt", "charts/meshvakt", "--set", "uninstall.timeoutSeconds=60")
	if r.guard().UID != before.UID {
		t.Error("installing again has replaced the guard")
	}
	chartRightsSuffice(t, r)
}
