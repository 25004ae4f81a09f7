package check_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/meshvakt/meshvakt/internal/check"
)

// manifestsOf makes so many manifests as teams write them, a tenth of them namespaces,
// and a tenth of the workloads with something wrong.
func manifestsOf(n int) string {
	var b strings.Builder
	for i := range n / 10 {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Namespace
metadata:
  name: ns-%05d
  labels: {meshvakt.io/guarded: "true", istio-injection: enabled}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: ns-%05d}
spec: {mtls: {mode: STRICT}}
`, i, i)
		for j := range 8 {
			annotation := "example.com/team: shop"
			if (i*8+j)%10 == 0 {
				annotation = `traffic.sidecar.istio.io/excludeInboundPorts: "8080"`
			}
			fmt.Fprintf(&b, `---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web-%d
  namespace: ns-%05d
  labels:
    app.kubernetes.io/name: web
spec:
  replicas: 3
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      labels:
        app: web
      annotations:
        %s
    spec:
      serviceAccountName: web
      containers:
        - name: web
          image: registry.example.com/shop/web:1.2.3
          ports:
            - name: http
              containerPort: 8080
          env:
            - name: LOG_LEVEL
              value: info
            - name: DATABASE
              valueFrom:
                secretKeyRef:
                  name: db
                  key: url
          resources:
            requests: {cpu: 100m, memory: 128Mi}
            limits: {cpu: "1", memory: 512Mi}
          livenessProbe:
            httpGet: {path: /healthz, port: http}
`, j, i, annotation)
		}
	}
	return b.String()
}

// decodeAll is what nobody who reads YAML gets around.
func decodeAll(tb testing.TB, text string) {
	tb.Helper()
	for part := range strings.SplitSeq(text, "---\n") {
		if _, err := yaml.YAMLToJSON([]byte(part)); err != nil {
			tb.Fatal(err)
		}
	}
}

func judgeAll(tb testing.TB, text string) {
	tb.Helper()
	docs, err := check.Parse("all.yaml", []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	result, err := check.Desired(docs, false, time.Time{}, nil)
	if err != nil || result.Summary.Denied == 0 {
		tb.Fatalf("%v: %+v", err, result.Summary)
	}
}

// BenchmarkDesired against reading the same YAML and nothing else: the ratio says what
// judging adds, whatever the machine.
func BenchmarkDesired(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		text := manifestsOf(n)
		b.Run(fmt.Sprintf("manifests=%d/decode", n), func(b *testing.B) {
			for b.Loop() {
				decodeAll(b, text)
			}
		})
		b.Run(fmt.Sprintf("manifests=%d/check", n), func(b *testing.B) {
			for b.Loop() {
				judgeAll(b, text)
			}
		})
	}
}
