package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// What a replica may take with this many namespaces and as many policies.
const (
	scaleNamespaces = 10_000
	scaleReady      = 3 * time.Second
	scaleRSS        = 128 << 20
)

// A cluster of 10,000 guarded namespaces, each with a policy of its own. The
// bounds on time and memory hold for the binary as it is shipped; the race
// detector multiplies both, so under it they are only reported.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("creates 20,000 objects")
	}
	admin := clientFor(t, controlplane.Admin)
	fill(t, func(ctx context.Context, c client.Client, i int) error {
		name := fmt.Sprintf("scale-%05d", i)
		if err := c.Create(ctx, namespace(name, true)); err != nil {
			return err
		}
		return c.Create(ctx, policy(name, "default", "STRICT"))
	})
	t.Cleanup(func() { // without controllers in the way: namespaces go by themselves later
		fill(t, func(ctx context.Context, c client.Client, i int) error {
			name := fmt.Sprintf("scale-%05d", i)
			_ = c.Delete(ctx, policy(name, "default", ""))
			return client.IgnoreNotFound(c.Delete(ctx, namespace(name, true)))
		})
	})
	guard(t, defaultGuard(v1alpha1.OnMissingReject))

	started := time.Now()
	r := start(t)
	ready := time.Since(started)
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	mesh := policy("istio-system", "default", "STRICT")
	create(t, admin, mesh)
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
	rss := r.rss()
	t.Logf("%d namespaces and policies: ready after %s, %d MiB resident", scaleNamespaces, ready.Round(time.Millisecond), rss>>20)
	if raceBuild() {
		return
	}
	if ready > scaleReady {
		t.Errorf("ready after %s; want %s", ready, scaleReady)
	}
	if rss > scaleRSS {
		t.Errorf("%d MiB resident; want at most %d", rss>>20, scaleRSS>>20)
	}
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
