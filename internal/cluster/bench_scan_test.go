//go:build unix

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/policytest"
)

// scannedPods is how many pods the scan is measured with, evenly over the namespaces.
const scannedPods = 150_000

// generated lists pods that are decoded as they would be from an API server's answer.
type generated struct {
	client.Reader
	namespaces []string // in the order of keys
	pod        []byte
	requests   int
	bytes      int
	peak       uint64
}

func (g *generated) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	g.requests++
	l, ok := list.(*corev1.PodList)
	if !ok {
		return nil
	}
	o := (&client.ListOptions{}).ApplyOptions(opts)
	at, _ := strconv.Atoi(o.Continue)
	*l = corev1.PodList{}
	for ; at < scannedPods && len(l.Items) < int(o.Limit); at++ {
		var pod corev1.Pod
		if err := pod.Unmarshal(g.pod); err != nil {
			return err
		}
		pod.Namespace, pod.Name = g.namespaces[at*len(g.namespaces)/scannedPods], fmt.Sprintf("web-%d", at)
		l.Items = append(l.Items, pod)
		g.bytes += len(g.pod)
	}
	if at < scannedPods {
		l.Continue = strconv.Itoa(at)
	}
	if g.requests%50 == 0 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		g.peak = max(g.peak, m.HeapInuse)
	}
	return nil
}

// BenchmarkScan is a pass over 10,000 namespaces with 150,000 injected pods, all of
// which are in order, or none of which has a proxy.
func BenchmarkScan(b *testing.B) {
	for _, clean := range []bool{true, false} {
		b.Run(fmt.Sprintf("clean=%t", clean), func(b *testing.B) {
			s := filled(b, large, true)
			reader := &generated{}
			state, err := s.Snapshot()
			if err != nil {
				b.Fatal(err)
			}
			for name := range state.Namespaces {
				reader.namespaces = append(reader.namespaces, name)
			}
			slices.SortFunc(reader.namespaces, func(x, y string) int {
				if before(x, y) {
					return -1
				}
				return 1
			})
			reader.pod = packedPod(b, clean)
			s.cfg.Live = reader
			ledger, touched := scan.NewLedger(), NewTouched(nil, slog.New(slog.DiscardHandler))
			idle := heapInUse()
			for b.Loop() {
				*reader = generated{namespaces: reader.namespaces, pod: reader.pod}
				began := time.Now()
				pass(b, s, ledger, touched)
				found := ledger.Totals("default", time.Now())
				if found.Pods != scannedPods || (found.Found == 0) != clean {
					b.Fatalf("%+v", found)
				}
				b.ReportMetric(time.Since(began).Seconds(), "s/pass")
			}
			b.ReportMetric(float64(reader.requests), "requests")
			b.ReportMetric(float64(reader.bytes>>20), "MiB-read")
			b.ReportMetric((float64(heapInUse())-float64(idle))/(1<<20), "MiB-kept")
			b.ReportMetric((float64(reader.peak)-float64(idle))/(1<<20), "MiB-peak")
			runtime.KeepAlive(ledger)
			runtime.KeepAlive(touched)
			runtime.KeepAlive(state)
			runtime.KeepAlive(s)
		})
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// pass is what the scan does with all namespaces.
func pass(b *testing.B, s *Source, ledger *scan.Ledger, touched *Touched) {
	b.Helper()
	list, now := policies.All(), time.Now()
	touched.Begin()
	var e *scan.Examination
	at := ""
	finish := func() {
		if e == nil {
			return
		}
		standing, err := e.Finish()
		if err != nil {
			b.Fatal(err)
		}
		ledger.Put(standing)
	}
	for o, err := range s.Running(b.Context(), "") {
		if err != nil {
			b.Fatal(err)
		}
		if o.Namespace() != at {
			finish()
			at = o.Namespace()
			c, err := s.Cached(at)
			if err != nil {
				b.Fatal(err)
			}
			e = scan.Begin(list, c, at, now, now)
		}
		e.Pod(o.Pod)
		touched.Judged(&o)
	}
	finish()
	touched.End(true)
}

func packedPod(b *testing.B, clean bool) []byte {
	b.Helper()
	raw, err := policytest.Injected("../../policies/testdata", "native")
	if err != nil {
		b.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		b.Fatal(err)
	}
	pod.Spec.NodeName = "n"
	if !clean {
		pod.Annotations = nil
		pod.Spec.InitContainers = nil
	}
	packed, err := pod.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	return packed
}
