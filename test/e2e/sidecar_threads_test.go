package e2e

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/test/controlplane"
)

// threadNamespaces puts guards of worker threads in force.
func threadNamespaces(t testing.TB) map[string]string {
	return map[string]string{
		"Fill":  sidecarNamespace(t, "threads-fill", "{concurrency: 2}"),
		"Exact": sidecarNamespace(t, "threads-exact", "{mode: Exact, concurrency: 2}"),
	}
}

// tryThreads demands that the number of worker threads gets into the annotation and
// into what the proxy reads, and everything else that stands there stays.
func tryThreads(t *testing.T, kind string, namespaces map[string]string) {
	for name, c := range map[string]struct {
		config string
		want   map[string]float64 // by the mode of the guard
		keeps  bool
	}{
		"nothing":      {"", map[string]float64{"Fill": 2, "Exact": 2}, false},
		"other fields": {"drainDuration: 60s\nproxyMetadata: {COLOUR: blue}\n", map[string]float64{"Fill": 2, "Exact": 2}, true},
		"own number":   {"concurrency: 3\ndrainDuration: 60s\nproxyMetadata: {COLOUR: blue}\n", map[string]float64{"Fill": 3, "Exact": 2}, true},
	} {
		for mode, namespace := range namespaces {
			annotations := map[string]string{}
			if kind == "classic" {
				maps.Copy(annotations, classic())
			}
			if c.config != "" {
				annotations[proxyConfigAnnotation] = c.config
			}
			pod := typed(t, namespace, (&vector{annotations: annotations}).template(t))
			if err := client.NewDryRunClient(clientFor(t, controlplane.Developer)).Create(t.Context(), pod); err != nil {
				t.Errorf("%s %s under %s: %v", kind, name, mode, err)
				continue
			}
			for where, text := range map[string]string{"annotation": pod.Annotations[proxyConfigAnnotation], "PROXY_CONFIG": proxyConfigOf(t, pod)} {
				var config struct {
					Concurrency   float64           `json:"concurrency"`
					DrainDuration string            `json:"drainDuration"`
					ProxyMetadata map[string]string `json:"proxyMetadata"`
				}
				must(t, yaml.Unmarshal([]byte(text), &config))
				t.Logf("%-7s %-14s %-5s %s %s", kind, name, mode, where, text)
				if config.Concurrency != c.want[mode] || c.keeps && (config.DrainDuration != "60s" || config.ProxyMetadata["COLOUR"] != "blue") {
					t.Errorf("%s %s under %s: %s is %s; want concurrency %v, and the rest as it was", kind, name, mode, where, text, c.want[mode])
				}
			}
		}
	}
}

// proxyConfigOf is what the agent of the pod's proxy reads.
func proxyConfigOf(t testing.TB, pod *corev1.Pod) string {
	t.Helper()
	for _, e := range istioContainer(t, pod, "istio-proxy").Env {
		if e.Name == "PROXY_CONFIG" {
			return e.Value
		}
	}
	t.Fatal("istio-proxy has no PROXY_CONFIG")
	return ""
}
