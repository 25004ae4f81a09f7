package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// What the scan is measured with on a real API server.
const (
	scannedNamespaces = 300
	scannedPods       = 3_000
)

// TestScanScale measures a pass over some thousand pods, none of which is in order, and
// what the leader asks of the API server while nothing changes.
func TestScanScale(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: t.Output()})
	c := clientFor(t, controlplane.Admin)
	each := func(n int, do func(int) error) {
		next := make(chan int)
		var workers sync.WaitGroup
		for range 16 {
			workers.Go(func() {
				for i := range next {
					if err := do(i); err != nil {
						t.Errorf("object %d: %v", i, err)
					}
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		workers.Wait()
	}
	name := func(i int) string { return fmt.Sprintf("scan-%04d", i%scannedNamespaces) }
	ctx := context.Background()
	create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "scan"}})
	each(scannedNamespaces, func(i int) error {
		if err := c.Create(ctx, scanNamespace(name(i), "scale")); err != nil {
			return err
		}
		return c.Create(ctx, policy(name(i), "default", "STRICT"))
	})
	serviceAccount(t, name(scannedNamespaces-1))
	each(scannedPods, func(i int) error {
		p := pod(name(i), nil)
		p.Spec.NodeName = "scan" // else the scheduler goes on telling that there is none
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "other", Image: "registry.example/app:1"})
		return c.Create(ctx, p)
	})
	guard(t, scanGuard("scale", v1alpha1.Audit))
	began := time.Now()
	r := start(t)
	stands(t, 120*time.Second, "scale", counts(scannedNamespaces, map[string]int32{"mesh-membership": scannedPods, "strict-mtls": 0}))
	t.Logf("%d pods of %d namespaces stand %s after the start; the pass took %.2f s; %d MiB resident", scannedPods, scannedNamespaces,
		time.Since(began).Round(time.Millisecond), r.metric(t.Context(), "meshvakt_scan_duration_seconds_sum"), r.rss()>>20)
	if left, off := r.metric(t.Context(), `meshvakt_scan_events_total{outcome="left"}`), r.metric(t.Context(), `meshvakt_scan_events_total{outcome="put_off"}`); left > 200 || off < scannedPods/2 {
		t.Errorf("%v events were left and %v put off", left, off)
	}
	enforcing(t, "scale") // the canary answers a moment later
	const requests = "rest_client_requests_total"
	before, since := r.metric(t.Context(), requests), time.Now()
	quiet(t, "scale", 10*time.Second)
	if asked := r.metric(t.Context(), requests) - before; asked > 60 {
		t.Errorf("%v requests in 10 s in which nothing changes; of those that are audited %v", asked, audited(t, since))
	} else {
		t.Logf("%v requests in 10 s in which nothing changes", asked)
	}
}

// audited counts Meshvakt's requests in the audit log by what they are about.
func audited(t testing.TB, since time.Time) map[string]int {
	t.Helper()
	tally := map[string]int{}
	_, err := plane.Audited(func(e controlplane.AuditEvent) bool {
		if e.User.Username == "system:serviceaccount:"+ownNamespace+":meshvakt" && e.Received.After(since) {
			tally[e.Verb+" "+e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource]++
		}
		return false
	})
	must(t, err)
	return tally
}
