package mesh_test

import (
	"fmt"
	"testing"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// benchPolicies are what a namespace usually has: one mesh, one namespace, the rest workload policies.
func benchPolicies(n int) []*mesh.PeerAuthentication {
	out := []*mesh.PeerAuthentication{pa("istio-system/default", 1, strict), pa("foo/default", 2, strict)}
	for i := range n - len(out) {
		out = append(out, port8080(sel(pa(fmt.Sprintf("foo/w%d", i), 3+i, unset), fmt.Sprintf("a%d", i)), permissive))
	}
	return out
}

func BenchmarkResolve(b *testing.B) {
	c := mesh.DefaultControlPlane()
	labels := map[string]string{"app": "a0", "pod-template-hash": "5d4f", "version": "v1"}
	for _, dp := range []mesh.Dataplane{mesh.Sidecar, mesh.Ambient} {
		for _, n := range []int{2, 5, 100} {
			policies := benchPolicies(n)
			w := mesh.Workload{Namespace: "foo", Labels: labels, Dataplane: dp}
			b.Run(fmt.Sprintf("%s/%d", [...]string{"sidecar", "ambient"}[dp], n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c.Resolve(w, policies)
				}
			})
		}
	}
}

func BenchmarkClasses(b *testing.B) {
	c := mesh.DefaultControlPlane()
	for _, n := range []int{5, 100} {
		policies := benchPolicies(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Classes("foo", mesh.Sidecar, policies)
			}
		})
	}
}
