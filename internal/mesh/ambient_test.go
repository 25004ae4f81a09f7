package mesh_test

import (
	"slices"
	"testing"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// Rows of the specification's table of ambient differences, and what istiod's own code adds to them. Istio's
// answers to the same inputs are compared in test/conformance.
func TestAmbient(t *testing.T) {
	type policies = []*mesh.PeerAuthentication
	ports := func(p *mesh.PeerAuthentication, modes map[uint32]mesh.Mode) *mesh.PeerAuthentication {
		p.Ports = modes
		return p
	}
	tests := []struct {
		name         string
		in           policies
		namespace    string // default foo
		rest, on8080 mesh.Mode
		on9090       mesh.Mode // as rest when unset
		by0, by8080  string    // deciders
	}{
		{name: "nothing", rest: permissive, on8080: permissive},
		{name: "DISABLE is PERMISSIVE", in: policies{pa("foo/n", 1, disable)}, rest: permissive, on8080: permissive, by0: "foo/n", by8080: "foo/n"},
		{name: "mesh STRICT", in: policies{pa("istio-system/m", 1, strict)}, rest: strict, on8080: strict, by0: "istio-system/m", by8080: "istio-system/m"},
		{name: "root policy with empty selector", in: policies{emptySelector(pa("istio-system/m", 1, strict))}, rest: permissive, on8080: permissive},
		{name: "root policy with empty selector, workload in root", namespace: "istio-system",
			in: policies{emptySelector(pa("istio-system/m", 1, strict))}, rest: strict, on8080: strict, by0: "istio-system/m", by8080: "istio-system/m"},
		{name: "root policy with labels, workload in root", namespace: "istio-system",
			in: policies{sel(pa("istio-system/m", 1, strict), "a")}, rest: permissive, on8080: permissive},
		{name: "namespace policy with empty selector", in: policies{emptySelector(pa("foo/n", 1, strict))}, rest: strict, on8080: strict, by0: "foo/n", by8080: "foo/n"},
		{name: "namespace STRICT, workload UNSET, port PERMISSIVE",
			in: policies{pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 1, unset), "a"), permissive)}, rest: strict, on8080: permissive, by0: "foo/n", by8080: "foo/w"},
		{name: "namespace STRICT, workload UNSET, port DISABLE",
			in: policies{pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 1, unset), "a"), disable)}, rest: strict, on8080: strict, by0: "foo/n", by8080: "foo/n"},
		{name: "DISABLE port beside a PERMISSIVE one is exempt after all",
			in:   policies{pa("foo/n", 1, strict), ports(sel(pa("foo/w", 1, unset), "a"), map[uint32]mesh.Mode{8080: disable, 9090: permissive})},
			rest: strict, on8080: permissive, on9090: permissive, by0: "foo/n", by8080: "foo/w"},
		{name: "workload STRICT, port DISABLE",
			in: policies{port8080(sel(pa("foo/w", 1, strict), "a"), disable)}, rest: strict, on8080: permissive, by0: "foo/w", by8080: "foo/w"},
		{name: "workload PERMISSIVE, port STRICT",
			in: policies{pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 1, permissive), "a"), strict)}, rest: permissive, on8080: strict, by0: "foo/w", by8080: "foo/w"},
		{name: "workload UNSET, port STRICT under nothing",
			in: policies{port8080(sel(pa("foo/w", 1, unset), "a"), strict)}, rest: permissive, on8080: strict, by0: "", by8080: "foo/w"},

		// The reference to the converted policy replaces the static one, and the conversion finds nothing.
		{name: "STRICT by an empty selector is lost to an exempt port",
			in: policies{emptySelector(pa("foo/n", 1, strict)), port8080(sel(pa("foo/w", 1, unset), "a"), permissive)}, rest: permissive, on8080: permissive, by0: "foo/w", by8080: "foo/w"},
		{name: "mesh STRICT behind an UNSET namespace is lost to an exempt port",
			in: policies{pa("istio-system/m", 1, strict), pa("foo/n", 1, unset), port8080(sel(pa("foo/w", 1, unset), "a"), permissive)}, rest: permissive, on8080: permissive, by0: "foo/w", by8080: "foo/w"},
		{name: "STRICT port of a PERMISSIVE workload is lost under a STRICT mesh",
			in: policies{pa("istio-system/m", 1, strict), port8080(sel(pa("foo/w", 1, permissive), "a"), strict)}, rest: permissive, on8080: permissive, by0: "foo/w", by8080: "foo/w"},
		{name: "but not under a STRICT namespace",
			in: policies{pa("istio-system/m", 1, strict), pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 1, permissive), "a"), strict)}, rest: permissive, on8080: strict, by0: "foo/w", by8080: "foo/w"},
		{name: "a younger STRICT namespace policy is seen by the conversion only",
			in:   policies{emptySelector(pa("foo/a", 1, permissive)), pa("foo/b", 2, strict), ports(sel(pa("foo/w", 1, unset), "a"), map[uint32]mesh.Mode{8080: strict, 9090: permissive})},
			rest: strict, on8080: strict, on9090: permissive, by0: "foo/w", by8080: "foo/w"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := mesh.Workload{Namespace: "foo", Labels: map[string]string{"app": "a"}, Dataplane: mesh.Ambient}
			if tt.namespace != "" {
				w.Namespace = tt.namespace
			}
			if tt.on9090 == unset {
				tt.on9090 = tt.rest
			}
			inEveryOrder(tt.in, func(in []*mesh.PeerAuthentication) {
				e := mesh.DefaultControlPlane().Resolve(w, in)
				if e.Mode != tt.rest || e.Port(8080) != tt.on8080 || e.Port(9090) != tt.on9090 {
					t.Errorf("%v: got %v, 8080 %v, 9090 %v; want %v, %v, %v", keys(in), e.Mode, e.Port(8080), e.Port(9090), tt.rest, tt.on8080, tt.on9090)
				}
				if got := key(e.Decider(0)); got != tt.by0 {
					t.Errorf("%v: decided by %q, want %q", keys(in), got, tt.by0)
				}
				if got := key(e.Decider(8080)); got != tt.by8080 {
					t.Errorf("%v: 8080 decided by %q, want %q", keys(in), got, tt.by8080)
				}
			})
		})
	}
}

func key(p *mesh.PeerAuthentication) string {
	if p == nil {
		return ""
	}
	return p.Key()
}

// With policies of the same second any of them may win: one class for each, and Resolve assumes the worst.
func TestAmbientTies(t *testing.T) {
	c := mesh.DefaultControlPlane()
	workload := mesh.Workload{Namespace: "foo", Labels: map[string]string{"app": "a"}, Dataplane: mesh.Ambient}
	a, b := pa("foo/a", 1, strict), pa("foo/b", 1, permissive)
	v := port8080(sel(pa("foo/v", 1, strict), "a"), permissive)
	w := sel(pa("foo/w", 1, strict), "a")
	w.Ports = map[uint32]mesh.Mode{9090: permissive}

	inEveryOrder([]*mesh.PeerAuthentication{a, b}, func(in []*mesh.PeerAuthentication) {
		classes := c.Classes("foo", mesh.Ambient, in)
		if len(classes) != 2 || classes[0].Effective.NamespaceWide != a || classes[1].Effective.NamespaceWide != b {
			t.Errorf("%v: classes are %+v, want one for each winner", keys(in), classes)
		}
		if e := c.Resolve(workload, in); e.Mode != permissive || e.NamespaceWide != b {
			t.Errorf("%v: resolved to %v by %s", keys(in), e.Mode, key(e.NamespaceWide))
		}
	})
	inEveryOrder([]*mesh.PeerAuthentication{v, w}, func(in []*mesh.PeerAuthentication) {
		if classes := c.Classes("foo", mesh.Ambient, in); len(classes) != 3 || classes[1].Effective.Workload != v || classes[2].Effective.Workload != w {
			t.Errorf("%v: classes are %+v, want the unselected, v and w", keys(in), classes)
		}
		e := c.Resolve(workload, in)
		mode, ports := e.Weakest()
		if e.Mode != strict || mode != permissive || !slices.Equal(ports, []uint32{8080, 9090}) {
			t.Errorf("%v: resolved to %+v, want both ports PERMISSIVE", keys(in), e)
		}
		if e.Decider(8080) != v || e.Decider(9090) != w {
			t.Errorf("%v: decided by %s and %s", keys(in), key(e.Decider(8080)), key(e.Decider(9090)))
		}
	})
	if classes := c.Classes("foo", mesh.Sidecar, []*mesh.PeerAuthentication{a, b, v, w}); len(classes) != 2 {
		t.Errorf("sidecar: %d classes, want the unselected and v: names break ties there", len(classes))
	}
}
