package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/policies/celpack"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// What a replica may take with this many namespaces and as many policies. The time
// until it is ready, which should be below 3 s, is reported: what else the machine
// does would decide a test of it.
const (
	scaleNamespaces = 10_000
	scaleRSS        = 128 << 20
	// scaleEvidenceRSS is for a replica that keeps evidence, also after all rows of its table have changed at once.
	scaleEvidenceRSS = 160 << 20
	// scaleLimit is the limit of the chart, which the garbage collector is told.
	scaleLimit = "512MiB"
)

// asShipped has the test run the binary without the race detector.
func asShipped(t *testing.T) {
	t.Helper()
	plain, err := plainBinary()
	must(t, err)
	shared := binary
	binary = plain
	t.Cleanup(func() { binary = shared })
}

// ownPlane gives the test a control plane of its own, and the binary as it is shipped.
func ownPlane(t *testing.T, o controlplane.Options) {
	t.Helper()
	asShipped(t)
	sharedPlane, sharedKubeconfig := plane, serviceAccountKubeconfig
	var err error
	plane, serviceAccountKubeconfig, err = setUp(t.Context(), o)
	must(t, err)
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
		plane, serviceAccountKubeconfig = sharedPlane, sharedKubeconfig
	})
	if o.Istio {
		webhookAlone(t)
	}
}

// webhookAlone takes away the admission policy, which the API server asks first: what
// is tested with istiod is what the webhook answers.
func webhookAlone(t *testing.T) {
	t.Helper()
	p := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: celpack.PolicyName}}
	must(t, clientFor(t, controlplane.Admin).Delete(t.Context(), p))
}

// A cluster of 10,000 guarded namespaces, each with a policy of its own. It gets a
// control plane of its own, which need not clean up behind them, and the binary
// as it is shipped: the race detector multiplies time and memory.
func TestScale(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: t.Output()})
	t.Setenv("GOMEMLIMIT", scaleLimit)
	admin := clientFor(t, controlplane.Admin)
	fill(t, func(ctx context.Context, c client.Client, i int) error {
		name := fmt.Sprintf("scale-%05d", i)
		if err := c.Create(ctx, namespace(name, true)); err != nil {
			return err
		}
		return c.Create(ctx, policy(name, "default", "STRICT"))
	})
	guard(t, defaultGuard(v1alpha1.OnMissingReject))

	dev := clientFor(t, controlplane.Developer)
	mesh := policy("istio-system", "default", "STRICT")
	takes := func(r *replica, most int) {
		t.Helper()
		// What was read to begin with, or to answer, is given back to the machine by and by.
		eventually(t, 30*time.Second, func() error {
			if rss := r.rss(); rss > most {
				return fmt.Errorf("%d MiB resident; want at most %d", rss>>20, most>>20)
			}
			return nil
		})
	}
	measure := func(most int, args ...string) *replica {
		started := time.Now()
		r := start(t, args...)
		ready := time.Since(started)
		enforcing(t, "default")
		if len(args) == 0 {
			create(t, admin, mesh)
		}
		// Reads all namespaces and policies live, page by page.
		asked := time.Now()
		if err := client.NewDryRunClient(dev).Delete(t.Context(), mesh); err != nil {
			t.Fatalf("the mesh's policy, which nobody rests on, cannot be deleted: %v", err)
		}
		t.Logf("a change in the root namespace is answered after %s", time.Since(asked).Round(time.Millisecond))
		eventually(t, 30*time.Second, func() error {
			var g v1alpha1.MeshGuard
			if err := admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &g); err != nil {
				return err
			}
			if g.Status.Namespaces.Strict < scaleNamespaces {
				return fmt.Errorf("the status counts %+v", g.Status.Namespaces)
			}
			return nil
		})
		t.Logf("%q: %d namespaces and policies: ready after %s, %d MiB resident", args, scaleNamespaces, ready.Round(time.Millisecond), r.rss()>>20)
		takes(r, most)
		t.Logf("%q: %d MiB resident %s after the start", args, r.rss()>>20, time.Since(started).Round(time.Second))
		return r
	}
	measure(scaleRSS).stop()
	unregister(t)
	// With evidence, which has a row of each namespace, and all of them in one snapshot.
	dir := tmpfs.TempDir(t)
	r := measure(scaleEvidenceRSS, evidenceOf(dir)...)
	eventually(t, 60*time.Second, func() error {
		if table, beats := observedTable(t, spooled(t, dir)); len(table) != scaleNamespaces || beats == 0 {
			return fmt.Errorf("%d rows, %d beats", len(table), beats)
		}
		return nil
	})
	// A policy of the whole mesh is an input of each row.
	must(t, dev.Delete(t.Context(), mesh))
	eventually(t, 60*time.Second, func() error {
		snapshots := bodies[*record.Snapshot](spooled(t, dir))
		if last := snapshots[len(snapshots)-1]; last.Why != "changed" || last.Part != last.Of {
			return fmt.Errorf("the last snapshot is one of %s, part %d of %d", last.Why, last.Part, last.Of)
		}
		return nil
	})
	t.Logf("with evidence and after %d rows have changed at once: %d MiB resident", scaleNamespaces, r.rss()>>20)
	takes(r, scaleEvidenceRSS)
	t.Logf("and then %d MiB", r.rss()>>20)
}

// fill runs f for every number below scaleNamespaces, 32 at a time.
func fill(t testing.TB, f func(context.Context, client.Client, int) error) {
	t.Helper()
	c := clientFor(t, controlplane.Admin)
	next := make(chan int)
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for i := range next {
				if err := f(context.Background(), c, i); err != nil {
					t.Errorf("object %d: %v", i, err)
				}
			}
		})
	}
	for i := range scaleNamespaces {
		next <- i
	}
	close(next)
	workers.Wait()
}
