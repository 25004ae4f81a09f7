//go:build unix

package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/webhook"
)

const (
	fewNodes, manyNodes = 50, 5_000
	nodePools           = 40
	reviewedPods        = 10_000
)

// withNodes adds nodes of so many pools, a quarter of which are burstable, each with
// labels such as clouds give them.
func withNodes(s *Source, n int) *Source {
	for i := range n {
		pool := i % nodePools
		instanceType := []string{"t3.large", "m5.large", "m6i.xlarge", "c5.2xlarge"}[pool%4]
		s.nodes.set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%04d", i), Labels: map[string]string{
			corev1.LabelHostname: fmt.Sprintf("n%04d", i), corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
			corev1.LabelInstanceTypeStable: instanceType, corev1.LabelTopologyRegion: "eu-north-1", corev1.LabelTopologyZone: fmt.Sprintf("eu-north-1%c", 'a'+pool%3),
			"eks.amazonaws.com/nodegroup": fmt.Sprintf("pool-%d", pool), "k8s.io/cloud-provider-aws": fmt.Sprintf("%08x", i),
		}}})
	}
	return s
}

// numbered are the recorded reviews of pods again and again, with names and node
// selectors of their own.
func numbered(b *testing.B, pods [][]byte, n int) [][]byte {
	b.Helper()
	list := make([][]byte, 0, n)
	for i := range n {
		var review map[string]any
		if err := json.Unmarshal(pods[i%len(pods)], &review); err != nil {
			b.Fatal(err)
		}
		request := review["request"].(map[string]any)
		object := request["object"].(map[string]any)
		request["uid"], request["name"] = fmt.Sprint("uid-", i), fmt.Sprint("web-", i)
		object["metadata"].(map[string]any)["name"] = request["name"]
		spec := object["spec"].(map[string]any)
		delete(spec, "nodeName")
		spec["nodeSelector"] = map[string]any{"eks.amazonaws.com/nodegroup": fmt.Sprint("pool-", 1+4*(i%10))}
		text, err := json.Marshal(review)
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, text)
	}
	return list
}

// BenchmarkNodes compares the CPU time of 10,000 pods, each changed and judged without
// a network, in clusters of 50 and of 5,000 nodes in 40 pools.
func BenchmarkNodes(b *testing.B) {
	pods := numbered(b, recordedPods(b), reviewedPods)
	run := func(n int) time.Duration {
		s := withNodes(filled(b, small, true), n)
		h, err := webhook.New(webhook.Config{Policies: policies.All(), Facts: s, Authorizer: everybody{}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		routes := webhook.Routes(h)
		runtime.GC()
		before := cpuTime(b)
		for _, path := range []string{webhook.PathMutate, webhook.PathValidate} {
			for _, body := range pods {
				r := httptest.NewRequest(http.MethodPost, path+"?timeout=10s", bytes.NewReader(body))
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				routes.ServeHTTP(w, r)
				if want := map[string]string{webhook.PathMutate: `"patch":`, webhook.PathValidate: `"allowed":true`}[path]; w.Code != http.StatusOK || !bytes.Contains(w.Body.Bytes(), []byte(want)) {
					b.Fatalf("HTTP %d %s", w.Code, w.Body)
				}
			}
		}
		return cpuTime(b) - before
	}
	run(fewNodes) // warm up
	spent := map[int]time.Duration{}
	for b.Loop() {
		for _, n := range []int{fewNodes, manyNodes} {
			spent[n] += run(n)
		}
	}
	b.ReportMetric(float64(spent[manyNodes])/float64(spent[fewNodes]), "x-growth")
	b.ReportMetric(float64(spent[manyNodes].Microseconds())/float64(b.N*2*reviewedPods), "us/review")
}
