package e2e

import (
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// ambientVectors are tried in a namespace that is enrolled in ambient.
func ambientVectors() []vector {
	list := []vector{
		{name: "out by label", istio: "istio-cni un-enrols the pod", labels: annotated("istio.io/dataplane-mode", "none"), code: "MV226"},
		{name: "out by a forged status", istio: "whatever its value, istio-cni takes the pod for one with a sidecar", annotations: annotated("sidecar.istio.io/status", "{}"), code: "MV226"},
		{name: "out by an empty status", istio: "the annotation being there suffices", annotations: annotated("sidecar.istio.io/status", ""), code: "MV226"},
		{name: "the node's network", istio: "never enrolled", spec: "{hostNetwork: true}", code: "MV205"},
		{name: "enrolled already", istio: "the node agent believes there is nothing to do", annotations: annotated("ambient.istio.io/redirection", "enabled"), code: "MV227"},
		{name: "rights to undo the capture", istio: "the rules are in the pod's network namespace", spec: "{containers: [{name: app, securityContext: {capabilities: {add: [NET_ADMIN]}}}]}", code: "MV222"},
		{name: "a container with the proxy's name", istio: "not injected, so that it is anybody's", spec: "{containers: [{name: istio-proxy, image: evil.example/img:1}]}", labels: annotated("istio.io/dataplane-mode", "none"), code: "MV217"},
		{name: "a sidecar that excludes a port", istio: "the pod asks for a sidecar, and is not enrolled then", labels: annotated("sidecar.istio.io/inject", "true"), annotations: annotated("traffic.sidecar.istio.io/excludeInboundPorts", "8080"), code: "MV206"},
		{name: "a dead revision and out", istio: "neither plane takes it", labels: map[string]string{"istio.io/rev": "canary", "istio.io/dataplane-mode": "none"}, code: "MV226"},
	}
	for _, value := range []string{"true", "1", "t", "TRUE"} {
		list = append(list, vector{name: "no inbound capture " + value, istio: "ingress mode: inbound is left alone", annotations: annotated("ambient.istio.io/bypass-inbound-capture", value), code: "MV227"})
	}
	return list
}

func ambientTwins() []vector {
	return []vector{
		{name: "nothing special"},
		{name: "the namespace's mode again", labels: annotated("istio.io/dataplane-mode", "ambient")},
		{name: "inbound capture", annotations: annotated("ambient.istio.io/bypass-inbound-capture", "false")},
		{name: "a sidecar", labels: annotated("sidecar.istio.io/inject", "true")},
		{name: "a sidecar, and out of ambient", labels: map[string]string{"sidecar.istio.io/inject": "true", "istio.io/dataplane-mode": "none"}},
		{name: "no DNS capture", annotations: annotated("ambient.istio.io/dns-capture", "false")},
		{name: "what only means something to sidecars", annotations: annotated("traffic.sidecar.istio.io/excludeInboundPorts", "8080")},
		{name: "the sidecar's user", spec: "{securityContext: {runAsUser: 1337}}"},
	}
}

// ambientOperations: istio-cni goes by the labels and annotations of running
// pods, at once.
func ambientOperations(t *testing.T, namespace string) {
	dev := clientFor(t, controlplane.Developer)
	running := podOf(namespace, (&vector{}).template(t))
	must(t, dev.Create(t.Context(), running))
	for _, c := range []struct{ name, patch, code string }{
		{"label none", `{"metadata":{"labels":{"istio.io/dataplane-mode":"none"}}}`, "MV226"},
		{"a status", `{"metadata":{"annotations":{"sidecar.istio.io/status":"{}"}}}`, "MV226"},
		{"ingress mode", `{"metadata":{"annotations":{"ambient.istio.io/bypass-inbound-capture":"true"}}}`, "MV227"},
		{"redirection by hand", `{"metadata":{"annotations":{"ambient.istio.io/redirection":"disabled"}}}`, "MV227"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, dev.Patch(t.Context(), running.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(c.patch))), "["+c.code+"]")
		})
	}
	must(t, dev.Patch(t.Context(), running.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"tier":"web"}}}`))))

	t.Run("on its way out", func(t *testing.T) {
		// It runs on until its grace period is over; the finalizer stands in for the
		// kubelet that waits for it.
		late := podOf(namespace, (&vector{}).template(t))
		late.SetFinalizers([]string{"example.com/keep"})
		must(t, dev.Create(t.Context(), late))
		must(t, dev.Delete(t.Context(), late, client.GracePeriodSeconds(1<<30)))
		refused(t, dev.Patch(t.Context(), late.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"istio.io/dataplane-mode":"none"}}}`))), "[MV226]")
		must(t, dev.Patch(t.Context(), late.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))))
		gone(t, late)
	})

	t.Run("where the guard accepts no ambient", func(t *testing.T) {
		other := meshNamespace(t, "no-ambient", sidecarLabels())
		admin := clientFor(t, controlplane.Admin)
		for key, value := range map[string]string{"istio-injection": "", "istio.io/dataplane-mode": "ambient"} {
			// As the platform's people, who may take it out of the mesh and do it in two steps.
			_ = relabel(t.Context(), admin, nsObject(other), key, value)
		}
		v := vector{labels: map[string]string{"istio.io/dataplane-mode": "ambient", "sidecar.istio.io/inject": "false"}}
		refused(t, dev.Create(t.Context(), podOf(other, v.template(t))), "[MV20")
	})
}
