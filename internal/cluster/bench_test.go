//go:build unix

package cluster

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
	"github.com/meshvakt/meshvakt/webhook"
)

// small and large are clusters by the number of namespaces, and of
// PeerAuthentications, in them.
const small, large = 10, 10_000

// filled is a source over a cluster of n namespaces with a policy each, among
// them those of the recorded reviews. Where guarded, the guard selects them all.
func filled(tb testing.TB, n int, guarded bool) *Source {
	tb.Helper()
	s := New(Config{OwnNamespace: "meshvakt-system", Catalogue: catalogue(tb), Log: slog.New(slog.DiscardHandler)})
	var held []*objects.PeerAuthentication
	guard, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		tb.Fatal(err)
	}
	s.index.setGuards([]facts.Guard{guard}, 1)
	injection := mesh.DefaultInjection(mesh.DefaultControlPlane().Revision)
	s.index.setWebhooks("istio-sidecar-injector", "1", injection.Webhooks, nil)
	s.index.setInjector("istio-sidecar-injector", "1", injection.Injectors[0], nil)
	names := []string{mesh.DefaultControlPlane().RootNamespace, "prod-pay", "prod-shop", "stage-shop"}
	for i := len(names); i < n; i++ {
		names = append(names, fmt.Sprintf("team-%d", i))
	}
	for i, name := range names {
		labels := map[string]string{corev1.LabelMetadataName: name, "istio-injection": "enabled"}
		if guarded {
			labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
		}
		s.index.setNamespace(name, labels, false, "2")
		s.index.setPolicy(&mesh.PeerAuthentication{
			Namespace: name, Name: "default", Created: time.Unix(1e9+int64(i), 0), Mode: mesh.ModeStrict,
		}, "3")
		held = append(held, storedPolicy(name, "default", "STRICT", "3"))
	}
	s.policies = holding(tb, "1000000", held...)
	s.synced.Store(true)
	return s
}

func podRequest() *facts.Review {
	controlled := true
	return &facts.Review{
		Operation: admissionv1.Create, Kind: corev1.SchemeGroupVersion.WithKind("Pod"),
		Namespace: "prod-shop", Name: "web",
		Object: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "prod-shop", Labels: map[string]string{
				"app": "web", "pod-template-hash": "5d4f", "service.istio.io/canonical-name": "web",
			}, OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d4f", Controller: &controlled}}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "istio-proxy", Image: "istio/proxyv2:1", Args: []string{"proxy", "sidecar"},
				Resources: corev1.ResourceRequirements{Requests: amounts("100m", "128Mi"), Limits: amounts("2", "1Gi")},
			}}},
		},
	}
}

func amounts(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// judge takes the facts for a pod from the cache and judges by them. Unguarded
// pods are cut short of Read, which would ask the API server about them.
func judge(tb testing.TB, s *Source, r *facts.Review, guarded bool) {
	var err error
	if guarded {
		r.Cluster, err = s.Read(context.Background(), r)
	} else {
		r.Cluster, err = s.Cached(r.Namespace)
	}
	if err != nil {
		tb.Fatal(err)
	}
	d, err := policies.Evaluate(policies.All(), r)
	if err != nil || d.Outcome != policies.Allow || len(d.Judged) == 0 {
		tb.Fatalf("%+v, %v; want a pod that was judged and allowed", d, err)
	}
}

// BenchmarkPodFacts is what a pod costs between decoding and answering.
func BenchmarkPodFacts(b *testing.B) {
	for _, guarded := range []bool{true, false} {
		for _, n := range []int{small, large} {
			b.Run(fmt.Sprintf("guarded=%t/%d", guarded, n), func(b *testing.B) {
				s, r := filled(b, n, guarded), podRequest()
				b.ReportAllocs()
				for b.Loop() {
					judge(b, s, r, guarded)
				}
			})
		}
	}
}

type everybody struct{}

func (everybody) MayApprove(context.Context, authenticationv1.UserInfo, string, string) (bool, error) {
	return true, nil
}

func (everybody) MayUnguard(context.Context, authenticationv1.UserInfo, string) (bool, error) {
	return true, nil
}

func recordedPods(tb testing.TB) [][]byte {
	tb.Helper()
	pods, err := readPodReviews()
	if err != nil {
		tb.Fatal(err)
	}
	return pods
}

func readPodReviews() ([][]byte, error) {
	file, err := os.Open("../../webhook/testdata/reviews.jsonl.gz")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		return nil, err
	}
	all, err := io.ReadAll(plain)
	if err != nil {
		return nil, err
	}
	var pods [][]byte
	for line := range bytes.Lines(all) {
		if bytes.Contains(line, []byte(`"resource":{"group":"","version":"v1","resource":"pods"}`)) {
			pods = append(pods, slices.Clip(line))
		}
	}
	if len(pods) == 0 {
		return nil, errors.New("no pod is recorded")
	}
	return pods, nil
}

func serve(tb testing.TB, h http.Handler, pods [][]byte) {
	for _, body := range pods {
		r := httptest.NewRequest(http.MethodPost, webhook.PathValidate+"?timeout=10s", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK || !bytes.Contains(w.Body.Bytes(), []byte(`"policies":"mesh-membership,node-pools,sidecar-resources,strict-mtls"`)) {
			tb.Fatalf("HTTP %d %s", w.Code, w.Body)
		}
	}
}

func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkGrowth compares the CPU time of pod reviews, garbage collection
// included, in a small and a large cluster: of whole reviews, with the recorded
// bodies and without a network, and of facts and judgement alone. The clusters
// take turns and are never in memory together; an operation is one turn of each.
func BenchmarkGrowth(b *testing.B) {
	pods := recordedPods(b)
	for _, c := range []struct {
		name string
		run  func(*testing.B, *Source)
	}{
		{"review", func(b *testing.B, s *Source) {
			h, err := webhook.New(webhook.Config{
				Policies: policies.All(), Facts: s, Authorizer: everybody{}, Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Fatal(err)
			}
			routes := webhook.Routes(h)
			for range 40 {
				serve(b, routes, pods)
			}
		}},
		{"facts", func(b *testing.B, s *Source) {
			r := podRequest()
			for range 40_000 {
				judge(b, s, r, true)
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.run(b, filled(b, small, true)) // warm up
			spent := map[int]time.Duration{}
			for b.Loop() {
				for _, n := range []int{small, large} {
					s := filled(b, n, true)
					runtime.GC()
					before := cpuTime(b)
					c.run(b, s)
					spent[n] += cpuTime(b) - before
				}
			}
			b.ReportMetric(float64(spent[large])/float64(spent[small]), "x-growth")
		})
	}
}
