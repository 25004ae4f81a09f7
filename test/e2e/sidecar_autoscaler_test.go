package e2e

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// newAutoscaler is a webhook that does to proxies what a VerticalPodAutoscaler does
// whose recommendation is too low: requests become 10m and 10Mi, nothing else changes.
func newAutoscaler(t testing.TB) otherParty {
	t.Helper()
	return newOtherParty(t, func(path string, pod *corev1.Pod) []objects.Operation {
		lists := map[string][]corev1.Container{"initContainers": pod.Spec.InitContainers, "containers": pod.Spec.Containers}
		for list, containers := range lists {
			for i := range containers {
				if containers[i].Name != "istio-proxy" {
					continue
				}
				at := "/spec/" + list + "/" + strconv.Itoa(i) + "/resources/requests"
				return []objects.Operation{
					{Op: "add", Path: at, Value: map[string]string{"cpu": "10m", "memory": "10Mi"}},
					{Op: "add", Path: "/metadata/labels/autoscaled", Value: strings.TrimPrefix(path, "/")},
				}
			}
		}
		return []objects.Operation{}
	})
}

// sidecarAutoscaler: where another webhook lowers the proxy after Istio has injected it,
// Meshvakt is asked again, and the pod that is to be stored is judged in any case.
func sidecarAutoscaler(t *testing.T) {
	autoscaler := newAutoscaler(t)
	const bounds = "minimum: {cpu: 50m, memory: 64Mi}"
	namespaces := map[string]string{
		"Fill":  sidecarNamespace(t, "scaled-fill", "{"+bounds+"}"),
		"Clamp": sidecarNamespace(t, "scaled-clamp", "{mode: Clamp, "+bounds+"}"),
		"Exact": sidecarNamespace(t, "scaled-exact", "{mode: Exact}"),
	}
	minimum, guards := four{"50m", "64Mi", "2", "1Gi"}, four{"100m", "128Mi", "2", "1Gi"}
	never, again := admissionregistrationv1.NeverReinvocationPolicy, admissionregistrationv1.IfNeededReinvocationPolicy
	const byAutoscaler, bySomebody = "let what sets it, be it an autoscaler", "another webhook changes the proxy after it"
	for _, c := range []struct {
		policy admissionregistrationv1.ReinvocationPolicyType
		mode   string
		want   outcome
		says   string
	}{
		{never, "Clamp", outcome{proxy: minimum, init: guards}, ""},
		{never, "Exact", outcome{proxy: guards, init: guards}, ""},
		{never, "Fill", outcome{refused: "MV303"}, byAutoscaler},
		// Asked again after Meshvakt, it has the last word.
		{again, "Clamp", outcome{refused: "MV303"}, byAutoscaler},
		{again, "Exact", outcome{refused: "MV305"}, bySomebody},
		{again, "Fill", outcome{refused: "MV303"}, byAutoscaler},
	} {
		t.Run(string(c.policy)+" "+c.mode, func(t *testing.T) {
			autoscaling(t, autoscaler, c.policy)
			for kind, annotations := range map[string]map[string]string{"native": nil, "classic": classic()} {
				pod := typed(t, namespaces[c.mode], (&vector{annotations: annotations}).template(t))
				err := client.NewDryRunClient(clientFor(t, controlplane.Developer)).Create(t.Context(), pod)
				if got := outcomeOf(t, pod, err); got != c.want {
					t.Errorf("%s: got %s; want %s\n%v", kind, got, c.want, err)
				}
				if c.want.refused != "" {
					refused(t, err, `requests.cpu of istio-proxy is "10m"`, `requests.memory of istio-proxy is "10Mi"`, c.says)
				}
			}
		})
	}
}

// autoscaling registers the autoscaler, and waits until the API server asks it so. A
// namespace of no guard shows what it does, for nobody changes it afterwards.
func autoscaling(t testing.TB, autoscaler otherParty, policy admissionregistrationv1.ReinvocationPolicyType) {
	t.Helper()
	token := unique("scaled")
	replaced(t, podWebhook("vpa-webhook-config", autoscaler.on("/"+token), policy))
	free := meshNamespace(t, "free", map[string]string{"istio-injection": "enabled"})
	eventually(t, 30*time.Second, func() error {
		pod := typed(t, free, (&vector{}).template(t))
		if err := client.NewDryRunClient(clientFor(t, controlplane.Developer)).Create(t.Context(), pod); err != nil {
			return err
		}
		if pod.Labels["autoscaled"] != token {
			return errors.New("not asked yet")
		}
		if got := fourOf(istioContainer(t, pod, "istio-proxy")); got != (four{"10m", "10Mi", "2", "1Gi"}) {
			return fmt.Errorf("the autoscaler has made %s of it", got)
		}
		return nil
	})
}

// sidecarOutOfReach: pods are created while nobody changes them. Those that need
// nothing pass, and the others are refused with what to do.
func sidecarOutOfReach(t *testing.T) {
	startWithoutMutation(t)
	ns := sidecarNamespace(t, "reach", "{}")
	closed := meshvaktWebhook(t, "before-istio-closed", admissionregistrationv1.IfNeededReinvocationPolicy)
	url := "https://" + freeAddress(t) + "/mutate"
	closed.Webhooks[0].ClientConfig.URL = &url
	replaced(t, closed)
	dev := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	plain := func() *corev1.Pod { return typed(t, ns, (&vector{}).template(t)) }
	eventually(t, 30*time.Second, func() error {
		must(t, dev.Create(t.Context(), plain()))
		if failedOpen(t, closed.Webhooks[0].Name) == 0 {
			return errors.New("not asked yet")
		}
		return nil
	})
	pod := plain()
	must(t, dev.Create(t.Context(), pod))
	if got, want := fourOf(istioContainer(t, pod, "istio-proxy")), (four{"100m", "128Mi", "2", "1Gi"}); got != want {
		t.Errorf("a pod that states nothing gets %s; want Istio's %s", got, want)
	}
	one := typed(t, ns, (&vector{annotations: map[string]string{"sidecar.istio.io/proxyCPU": "200m"}}).template(t))
	message := refused(t, dev.Create(t.Context(), one), "[MV301]", "[MV302]", "istio-proxy has no limit of memory", "istio-init has no limit of CPU", "create the pod again")
	t.Log(message)
}

// failedOpen returns how often the API server has gone on without an answer of a
// mutating webhook.
func failedOpen(t testing.TB, webhook string) float64 {
	t.Helper()
	text, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "get", "--raw", "/metrics")
	must(t, err)
	var sum float64
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "apiserver_admission_webhook_fail_open_count{") && strings.Contains(line, fmt.Sprintf("name=%q", webhook)) {
			fields := strings.Fields(line)
			n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			must(t, err)
			sum += n
		}
	}
	return sum
}
