package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// deploymentText is a Deployment as an author writes it.
func deploymentText(annotations string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations: {%s}
    spec:
      containers:
      - name: app
        image: registry.example/web:1
        resources: {requests: {cpu: 50m}}
`, replicas, annotations)
}

// kubectlApply applies the manifest as the developer, and returns what kubectl says and
// what it warns of.
func kubectlApply(t testing.TB, namespace, manifest string, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := plane.Kubectl(t.Context(), controlplane.Developer, manifest, append([]string{"-n", namespace, "apply", "-f", "-"}, args...)...)
	if err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, stderr)
	}
	return stdout, stderr
}

func deployed(t testing.TB, namespace string) *appsv1.Deployment {
	t.Helper()
	var d appsv1.Deployment
	must(t, clientFor(t, controlplane.Developer).Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "web"}, &d))
	return &d
}

// podMade waits for a pod of the Deployment.
func podMade(t testing.TB, namespace string) *corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	eventually(t, 60*time.Second, func() error {
		err := clientFor(t, controlplane.Developer).List(t.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{"app": "web"})
		if err == nil && len(pods.Items) == 0 {
			err = errors.New("there is no pod")
		}
		return err
	})
	return &pods.Items[0]
}

// sidecarTemplates: templates stay as they were written, so that nothing drifts, and
// their pods have the numbers all the same.
func sidecarTemplates(t *testing.T) {
	free := meshNamespace(t, "free", map[string]string{"istio-injection": "enabled"})
	for name, c := range map[string]struct {
		guard, annotations string
		want               four
		warning            string
	}{
		"one annotation": {"{}", `sidecar.istio.io/proxyCPU: 200m`, four{"200m", "128Mi", "2", "1Gi"}, ""},
		"clamped": {
			"{mode: Clamp, maximum: {memory: 2Gi}}", `sidecar.istio.io/proxyMemoryLimit: 16Gi`, four{"100m", "128Mi", "2", "2Gi"},
			`limits.memory of istio-proxy is "2Gi" in pods, and not "16Gi": spec.sidecarResources.maximum by MeshGuard "clamped"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := sidecarNamespace(t, strings.ReplaceAll(name, " ", "-"), c.guard)
			manifest := deploymentText(c.annotations, 1)
			kubectlApply(t, free, manifest)
			asWritten := deployed(t, free)
			_, stderr := kubectlApply(t, ns, manifest)
			if c.warning == "" && stderr != "" || c.warning != "" && (!strings.Contains(stderr, "Warning: ") || !strings.Contains(stderr, c.warning) || !strings.Contains(stderr, "[MV310]")) {
				t.Errorf("kubectl writes %q; want %q", stderr, c.warning)
			}
			pod := podMade(t, ns)
			for _, container := range []string{"istio-proxy", "istio-init"} {
				if got := fourOf(istioContainer(t, pod, container)); got != c.want {
					t.Errorf("%s has %s; want %s", container, got, c.want)
				}
			}
			d := deployed(t, ns)
			if !equality.Semantic.DeepEqual(d.Spec.Template, asWritten.Spec.Template) || d.Generation != 1 {
				t.Errorf("generation %d, template\n%+v\nwant generation 1 and what is stored where no guard is\n%+v", d.Generation, d.Spec.Template, asWritten.Spec.Template)
			}
			if stdout, stderr, err := plane.Kubectl(t.Context(), controlplane.Developer, manifest, "-n", ns, "diff", "-f", "-"); err != nil {
				t.Errorf("kubectl diff: %v\n%s%s", err, stdout, stderr)
			}
			if stdout, _ := kubectlApply(t, ns, manifest); !strings.Contains(stdout, "unchanged") {
				t.Errorf("applied again: %s; want it unchanged", stdout)
			}
			must(t, clientFor(t, controlplane.Developer).Delete(t.Context(), asWritten))
		})
	}
}

// warnedOf waits until a dry run brings the warning, which is from what the API server
// has in its cache, and then applies the manifest.
func warnedOf(t testing.TB, namespace, manifest string, contains ...string) {
	t.Helper()
	all := func(stderr string) error {
		for _, c := range append([]string{"Warning: "}, contains...) {
			if !strings.Contains(stderr, c) {
				return fmt.Errorf("kubectl warns %q; want %q in it", stderr, c)
			}
		}
		return nil
	}
	eventually(t, 30*time.Second, func() error {
		_, stderr := kubectlApply(t, namespace, manifest, "--dry-run=server")
		return all(stderr)
	})
	_, stderr := kubectlApply(t, namespace, manifest)
	must(t, all(stderr))
	t.Log(stderr)
}

// setFails waits for an event of the ReplicaSet that says why it cannot make a pod.
func setFails(t testing.TB, namespace string, contains ...string) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		var events corev1.EventList
		if err := clientFor(t, controlplane.Developer).List(t.Context(), &events, client.InNamespace(namespace)); err != nil {
			return err
		}
		var seen []string
	next:
		for _, e := range events.Items {
			if e.InvolvedObject.Kind != "ReplicaSet" || e.Reason != "FailedCreate" {
				continue
			}
			seen = append(seen, e.Message)
			for _, c := range contains {
				if !strings.Contains(e.Message, c) {
					continue next
				}
			}
			return nil
		}
		return fmt.Errorf("no event of a ReplicaSet says %q: %q", contains, seen)
	})
}

// sidecarQuota: who applies a Deployment is told that the quota is too small for the
// proxies, before the ReplicaSet finds out.
func sidecarQuota(t *testing.T) {
	ns := sidecarNamespace(t, "quota", "{}")
	must(t, plane.Apply(t.Context(), []byte(`{apiVersion: v1, kind: ResourceQuota, metadata: {name: small, namespace: `+ns+`}, spec: {hard: {requests.cpu: 250m}}}`)))
	eventually(t, 30*time.Second, func() error {
		var q corev1.ResourceQuota
		if err := clientFor(t, controlplane.Admin).Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "small"}, &q); err != nil {
			return err
		}
		if len(q.Status.Used) == 0 {
			return errors.New("nobody has counted yet")
		}
		return nil
	})
	warnedOf(t, ns, deploymentText("", 3), "[MV313]",
		`ResourceQuota "small" leaves "250m" of requests.cpu ("0" of "250m" is used), and 3 pods need "450m" more, "300m" of it for proxies`)
	setFails(t, ns, "exceeded quota: small, requested: requests.cpu=150m, used: requests.cpu=150m, limited: requests.cpu=250m")
}

// sidecarLimitRange: who applies a Deployment is told of a LimitRange that refuses its
// proxies.
func sidecarLimitRange(t *testing.T) {
	ns := sidecarNamespace(t, "range", "{}")
	must(t, plane.Apply(t.Context(), []byte(`{apiVersion: v1, kind: LimitRange, metadata: {name: tight, namespace: `+ns+`}, spec: {limits: [{type: Container, max: {memory: 512Mi}}]}}`)))
	warnedOf(t, ns, deploymentText("", 1), "[MV312]",
		`LimitRange "tight" refuses the pods: limits.memory of the proxy is "1Gi", its maximum per Container "512Mi"`)
	setFails(t, ns, "maximum memory usage per Container is 512Mi, but limit is 1Gi")
	pod := typed(t, ns, (&vector{}).template(t))
	refusedBy(t, clientFor(t, controlplane.Developer).Create(t.Context(), pod), "maximum memory usage per Container is 512Mi, but limit is 1Gi")
}
