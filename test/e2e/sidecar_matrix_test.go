package e2e

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// The guards of the matrix. None of their numbers is Istio's own.
func matrixGuards() map[string]string {
	return map[string]string{
		"Fill": `{mode: Fill, qos: Preserve, requests: {cpu: 150m, memory: 160Mi}, limits: {cpu: 1, memory: 768Mi},
			minimum: {cpu: 20m, memory: 32Mi}, maximum: {cpu: 3, memory: 8Gi}}`,
		"Clamp": `{mode: Clamp, qos: Preserve, requests: {cpu: 150m, memory: 160Mi}, limits: {cpu: 1, memory: 768Mi},
			minimum: {cpu: 20m, memory: 32Mi}, maximum: {cpu: 3, memory: 4Gi}}`,
		"Exact": `{mode: Exact, qos: Preserve, requests: {cpu: 150m, memory: 160Mi}, limits: {cpu: 1, memory: 768Mi}}`,
	}
}

// outcome is what a pod comes to: the numbers of both containers, or the codes of the
// reasons for which it is refused.
type outcome struct {
	proxy, init four
	refused     string
}

func (o outcome) String() string {
	if o.refused != "" {
		return "refused " + o.refused
	}
	return fmt.Sprintf("istio-proxy %s; istio-init %s", o.proxy, o.init)
}

// matrixPod is what an author writes, and what it comes to by the mode of the guard.
type matrixPod struct {
	name     string
	template string // over the plain pod
	want     map[string]outcome
	// lost is what it comes to where Istio is asked again after Meshvakt, if that is not
	// the same: Istio then forgets what the author had merged over its containers, and
	// its annotations have no numbers for an init container alone.
	lost map[string]outcome
}

func alike(f four) outcome { return outcome{proxy: f, init: f} }

// matrixPods: what is expected is the same whoever is asked first, and how often.
func matrixPods() []matrixPod {
	guards := four{"150m", "160Mi", "1", "768Mi"}
	everywhere := map[string]outcome{"Fill": alike(guards), "Clamp": alike(guards), "Exact": alike(guards)}
	guaranteed := alike(four{"1", "768Mi", "1", "768Mi"})
	return []matrixPod{
		{"nothing", "{}", everywhere, nil},
		{"one annotation", `{metadata: {annotations: {sidecar.istio.io/proxyCPU: 200m}}}`, map[string]outcome{
			"Fill": alike(four{"200m", "160Mi", "1", "768Mi"}), "Clamp": alike(four{"200m", "160Mi", "1", "768Mi"}), "Exact": alike(guards),
		}, nil},
		{"out of bounds", `{metadata: {annotations: {sidecar.istio.io/proxyCPU: 10m, sidecar.istio.io/proxyMemory: 16Mi,
			sidecar.istio.io/proxyCPULimit: "8", sidecar.istio.io/proxyMemoryLimit: 16Gi}}}`, map[string]outcome{
			"Fill": {refused: "MV303 MV304"}, "Clamp": alike(four{"20m", "32Mi", "3", "4Gi"}), "Exact": alike(guards),
		}, nil},
		// The API server has copied the limit into the request before anybody is asked,
		// and Istio's template has the same numbers for both containers.
		{"own container", `{spec: {containers: [{name: istio-proxy, image: auto, resources: {limits: {memory: 7Gi}}}]}}`, map[string]outcome{
			"Fill": alike(four{"150m", "7Gi", "1", "7Gi"}), "Clamp": alike(four{"150m", "4Gi", "1", "4Gi"}), "Exact": alike(guards),
		}, nil},
		{"limit alone", `{metadata: {annotations: {sidecar.istio.io/proxyMemoryLimit: 512Mi}}}`, map[string]outcome{
			"Fill": alike(four{"150m", "160Mi", "1", "512Mi"}), "Clamp": alike(four{"150m", "160Mi", "1", "512Mi"}), "Exact": alike(guards),
		}, nil},
		{"large request", `{metadata: {annotations: {sidecar.istio.io/proxyCPU: "2"}}}`, map[string]outcome{
			"Fill": alike(four{"2", "160Mi", "2", "768Mi"}), "Clamp": alike(four{"2", "160Mi", "2", "768Mi"}), "Exact": alike(guards),
		}, nil},
		{"own init", `{spec: {initContainers: [{name: istio-init, image: auto, resources: {limits: {memory: 2Gi}}}]}}`, map[string]outcome{
			"Fill":  {proxy: guards, init: four{"150m", "2Gi", "1", "2Gi"}},
			"Clamp": {proxy: guards, init: four{"150m", "2Gi", "1", "2Gi"}},
			"Exact": alike(guards),
		}, everywhere},
		{"zero", `{metadata: {annotations: {sidecar.istio.io/proxyCPULimit: "0", sidecar.istio.io/proxyMemoryLimit: "0"}}}`, everywhere, nil},
		{"guaranteed", `{spec: {containers: [{name: app, resources: {limits: {cpu: 500m, memory: 256Mi}}}]}}`, map[string]outcome{
			"Fill": guaranteed, "Clamp": guaranteed, "Exact": guaranteed,
		}, nil},
		{"third party", `{metadata: {labels: {noted: "true"}}}`, everywhere, nil},
	}
}

// pod returns the pod in a namespace, with some more annotations.
func (m *matrixPod) pod(t testing.TB, namespace string, annotations map[string]string) *corev1.Pod {
	t.Helper()
	var over struct {
		Metadata struct{ Labels, Annotations map[string]string }
		Spec     map[string]any
	}
	must(t, yaml.Unmarshal([]byte(m.template), &over))
	spec, err := yaml.Marshal(over.Spec)
	must(t, err)
	v := vector{labels: over.Metadata.Labels, annotations: map[string]string{}, spec: string(spec)}
	maps.Copy(v.annotations, over.Metadata.Annotations)
	maps.Copy(v.annotations, annotations)
	return typed(t, namespace, v.template(t))
}

// webhooks is one way in which Meshvakt and Istio are asked.
type webhooks struct {
	name        string
	ours, istio admissionregistrationv1.ReinvocationPolicyType
}

func webhookOrders() []webhooks {
	var list []webhooks
	policies := []admissionregistrationv1.ReinvocationPolicyType{admissionregistrationv1.NeverReinvocationPolicy, admissionregistrationv1.IfNeededReinvocationPolicy}
	for _, name := range []string{"before-istio", "zzz-after-istio"} {
		for _, ours := range policies {
			for _, istio := range policies {
				list = append(list, webhooks{name, ours, istio})
			}
		}
	}
	return list
}

// istioLast reports whether Istio is asked again after Meshvakt is for the last time.
func (w webhooks) istioLast() bool {
	again := admissionregistrationv1.IfNeededReinvocationPolicy
	return w.istio == again && (w.ours != again || w.name == "before-istio")
}

func (w webhooks) String() string {
	return fmt.Sprintf("%s %s, istio %s", w.name, w.ours, w.istio)
}

// noter is another party's webhook, which comes last and notes on the pods that ask
// for it where it was registered.
type noter struct{ otherParty }

const notedKey = "noted.example.com/path"

func newNoter(t testing.TB) noter {
	return noter{newOtherParty(t, func(path string, pod *corev1.Pod) []objects.Operation {
		op := "add"
		if pod.Annotations[notedKey] != "" {
			op = "replace"
		}
		changes := []objects.Operation{{Op: op, Path: "/metadata/annotations/" + strings.ReplaceAll(notedKey, "/", "~1"), Value: path}}
		if pod.Annotations == nil {
			changes = []objects.Operation{{Op: "add", Path: "/metadata/annotations", Value: map[string]string{notedKey: path}}}
		}
		return changes
	})}
}

// inForce registers the webhooks, and waits until the API server asks them so. It
// learns of configurations in the order in which they change, so what the last of
// them does is the sign.
func (n noter) inForce(t testing.TB, order webhooks, namespace string) {
	t.Helper()
	istioAsksAgain(t, order.istio)
	replaced(t, meshvaktWebhook(t, order.name, order.ours))
	path := "/" + unique("order")
	last := podWebhook("zzzz-noter", n.on(path), admissionregistrationv1.NeverReinvocationPolicy)
	last.Webhooks[0].ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"noted": "true"}}
	replaced(t, last)
	dev := client.NewDryRunClient(clientFor(t, controlplane.Developer))
	eventually(t, 30*time.Second, func() error {
		probe := (&matrixPod{template: `{metadata: {labels: {noted: "true"}}}`}).pod(t, namespace, nil)
		if err := dev.Create(t.Context(), probe); err != nil {
			return err
		}
		if got := probe.Annotations[notedKey]; got != path {
			return fmt.Errorf("noted by %q; want %q", got, path)
		}
		return nil
	})
}

// TestSidecarMatrix: what a pod's proxy gets does not depend on who is asked first and
// who is asked again.
func TestSidecarMatrix(t *testing.T) {
	meshPlane(t)
	startWithoutMutation(t)
	namespaces := map[string]string{}
	for mode, block := range matrixGuards() {
		namespaces[mode] = sidecarNamespace(t, "matrix-"+strings.ToLower(mode), block)
	}
	threads := threadNamespaces(t)
	last := newNoter(t)
	for _, order := range webhookOrders() {
		t.Run(order.String(), func(t *testing.T) {
			last.inForce(t, order, namespaces["Fill"])
			for _, kind := range []string{"native", "classic"} {
				for _, pod := range matrixPods() {
					for _, mode := range []string{"Fill", "Clamp", "Exact"} {
						pod.try(t, order, kind, mode, namespaces[mode])
					}
				}
				tryThreads(t, kind, threads)
			}
		})
	}
}

// try demands of one pod that it comes to what is expected.
func (m *matrixPod) try(t *testing.T, order webhooks, kind, mode, namespace string) {
	annotations := map[string]string{}
	if kind == "classic" {
		annotations = classic()
	}
	pod := m.pod(t, namespace, annotations)
	err := client.NewDryRunClient(clientFor(t, controlplane.Developer)).Create(t.Context(), pod)
	want := m.want[mode]
	if m.lost != nil && order.istioLast() {
		want = m.lost[mode]
	}
	got := outcomeOf(t, pod, err)
	t.Logf("%-7s %-14s %-5s %s", kind, m.name, mode, got)
	if got != want {
		t.Errorf("%s %s under %s:\ngot  %s\nwant %s\n%v", kind, m.name, mode, got, want, err)
	}
}

// outcomeOf reads what came of a request to create the pod.
func outcomeOf(t testing.TB, pod *corev1.Pod, err error) outcome {
	t.Helper()
	if err == nil {
		return outcome{proxy: fourOf(istioContainer(t, pod, "istio-proxy")), init: fourOf(istioContainer(t, pod, "istio-init"))}
	}
	codes := refusalCodes(err)
	if codes == "" {
		return outcome{refused: err.Error()}
	}
	return outcome{refused: codes}
}
