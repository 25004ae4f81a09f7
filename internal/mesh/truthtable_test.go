package mesh_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

const (
	unset      = mesh.ModeUnset
	disable    = mesh.ModeDisable
	permissive = mesh.ModePermissive
	strict     = mesh.ModeStrict
)

// at gives the creation time t seconds after the first.
func at(t int) time.Time { return time.Unix(1_800_000_000+int64(t), 0) }

// pa makes a policy without a selector; name is "namespace/name", t its creation second.
func pa(key string, t int, mode mesh.Mode) *mesh.PeerAuthentication {
	p := &mesh.PeerAuthentication{Created: at(t), Mode: mode}
	for i := range key {
		if key[i] == '/' {
			p.Namespace, p.Name = key[:i], key[i+1:]
		}
	}
	return p
}

// sel adds matchLabels app=value.
func sel(p *mesh.PeerAuthentication, value string) *mesh.PeerAuthentication {
	p.SelectorSet, p.Selector = true, map[string]string{"app": value}
	return p
}

// port8080 adds portLevelMtls for 8080.
func port8080(p *mesh.PeerAuthentication, mode mesh.Mode) *mesh.PeerAuthentication {
	p.Ports = map[uint32]mesh.Mode{8080: mode}
	return p
}

func emptySelector(p *mesh.PeerAuthentication) *mesh.PeerAuthentication {
	p.SelectorSet, p.Selector = true, map[string]string{}
	return p
}

// inEveryOrder calls f with each permutation of the policies, or with a sample when there are many.
func inEveryOrder(policies []*mesh.PeerAuthentication, f func([]*mesh.PeerAuthentication)) {
	var permute func(int)
	order := slices.Clone(policies)
	permute = func(n int) {
		if n <= 1 {
			f(order)
			return
		}
		for i := range n {
			order[i], order[n-1] = order[n-1], order[i]
			permute(n - 1)
			order[i], order[n-1] = order[n-1], order[i]
		}
	}
	permute(len(order))
}

// The rows are numbered as in the project's specification of Istio; the workload is foo/app=a unless said.
func TestTruthTable(t *testing.T) {
	type policies = []*mesh.PeerAuthentication
	tests := []struct {
		row          int
		about        string
		in           policies
		rest, on8080 mesh.Mode
		root         string // default istio-system
		namespace    string // default foo
	}{
		{row: 1, about: "nothing", in: nil, rest: permissive, on8080: permissive},
		{row: 2, about: "mesh STRICT", in: policies{pa("istio-system/m", 1, strict)}, rest: strict, on8080: strict},
		{row: 3, about: "mesh UNSET", in: policies{pa("istio-system/m", 1, unset)}, rest: permissive, on8080: permissive},
		{row: 4, about: "mesh DISABLE", in: policies{pa("istio-system/m", 1, disable)}, rest: disable, on8080: disable},
		{row: 5, about: "namespace over mesh", in: policies{pa("istio-system/m", 1, strict), pa("foo/n", 1, permissive)}, rest: permissive, on8080: permissive},
		{row: 6, about: "namespace without mtls inherits", in: policies{pa("istio-system/m", 1, strict), pa("foo/n", 1, unset)}, rest: strict, on8080: strict},
		{row: 7, about: "namespace UNSET only", in: policies{pa("foo/n", 1, unset)}, rest: permissive, on8080: permissive},
		{row: 8, about: "empty selector is none", in: policies{emptySelector(pa("foo/n", 1, strict))}, rest: strict, on8080: strict},
		{row: 9, about: "older wins, whatever its name", in: policies{pa("foo/z", 1, permissive), pa("foo/a", 2, strict)}, rest: permissive, on8080: permissive},
		{row: 10, about: "same second: name", in: policies{pa("foo/a", 1, permissive), pa("foo/b", 1, strict)}, rest: permissive, on8080: permissive},
		{row: 11, about: "older UNSET shadows", in: policies{pa("foo/a", 1, unset), pa("foo/b", 2, strict)}, rest: permissive, on8080: permissive},
		{row: 12, about: "workload over namespace", in: policies{pa("foo/n", 1, strict), sel(pa("foo/w", 2, permissive), "a")}, rest: permissive, on8080: permissive},
		{row: 13, about: "workload UNSET, port DISABLE", in: policies{pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 2, unset), "a"), disable)}, rest: strict, on8080: disable},
		{row: 14, about: "workload and port UNSET", in: policies{pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 2, unset), "a"), unset)}, rest: strict, on8080: strict},
		{row: 15, about: "port STRICT", in: policies{pa("foo/n", 1, strict), port8080(sel(pa("foo/w", 2, permissive), "a"), strict)}, rest: permissive, on8080: strict},
		{row: 16, about: "ports without selector", in: policies{port8080(pa("foo/n", 1, strict), disable)}, rest: strict, on8080: strict},
		{row: 17, about: "root policy with selector", in: policies{pa("foo/n", 1, strict), sel(pa("istio-system/w", 1, disable), "a")}, rest: strict, on8080: strict},
		{row: 18, about: "only root policy with selector", in: policies{sel(pa("istio-system/w", 1, strict), "a")}, rest: permissive, on8080: permissive},
		{row: 19, about: "two workload policies", in: policies{pa("foo/n", 1, strict), sel(pa("foo/v", 1, permissive), "a"), sel(pa("foo/w", 2, strict), "a")}, rest: permissive, on8080: permissive},
		{row: 20, about: "ports of the loser", in: policies{sel(pa("foo/v", 1, strict), "a"), port8080(sel(pa("foo/w", 2, strict), "a"), disable)}, rest: strict, on8080: strict},
		{row: 21, about: "selector does not match", in: policies{pa("foo/n", 1, strict), sel(pa("foo/w", 1, disable), "b")}, rest: strict, on8080: strict},
		{row: 22, about: "another namespace", in: policies{pa("bar/n", 1, strict)}, rest: permissive, on8080: permissive},
		{row: 23, about: "another root namespace", root: "cfg", in: policies{pa("cfg/m", 1, strict)}, rest: strict, on8080: strict},
		{row: 24, about: "istio-system is not the root", root: "cfg", in: policies{pa("istio-system/m", 1, strict)}, rest: permissive, on8080: permissive},
		{row: 25, about: "two mesh policies", in: policies{pa("istio-system/m", 1, permissive), pa("istio-system/a", 2, strict)}, rest: permissive, on8080: permissive},
		{row: 26, about: "three scopes", in: policies{pa("istio-system/m", 1, strict), pa("foo/n", 1, disable), sel(pa("foo/w", 1, unset), "a")}, rest: disable, on8080: disable},
		{row: 27, about: "workload STRICT, port PERMISSIVE", in: policies{port8080(sel(pa("foo/w", 1, strict), "a"), permissive)}, rest: strict, on8080: permissive},
		{row: 28, about: "workload STRICT, port UNSET", in: policies{port8080(sel(pa("foo/w", 1, strict), "a"), unset)}, rest: strict, on8080: strict},
		{row: 29, about: "workload of the root namespace", namespace: "istio-system", in: policies{sel(pa("istio-system/w", 1, strict), "a")}, rest: permissive, on8080: permissive},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprintf("%d %s", tt.row, tt.about), func(t *testing.T) {
			if tt.row != i+1 {
				t.Fatalf("row %d is out of place", tt.row)
			}
			c := mesh.DefaultControlPlane()
			if tt.root != "" {
				c.RootNamespace = tt.root
			}
			w := mesh.Workload{Namespace: "foo", Labels: map[string]string{"app": "a"}}
			if tt.namespace != "" {
				w.Namespace = tt.namespace
			}
			inEveryOrder(tt.in, func(in []*mesh.PeerAuthentication) {
				e := c.Resolve(w, in)
				if e.Mode != tt.rest || e.Port(8080) != tt.on8080 || e.Port(9090) != tt.rest {
					t.Errorf("%v: got %v, 8080 %v, 9090 %v; want %v, 8080 %v", keys(in), e.Mode, e.Port(8080), e.Port(9090), tt.rest, tt.on8080)
				}
			})
		})
	}
}

func keys(in []*mesh.PeerAuthentication) (out []string) {
	for _, p := range in {
		out = append(out, p.Key())
	}
	return out
}

func TestWinnersAndDeciders(t *testing.T) {
	m := pa("istio-system/m", 3, strict)
	n := pa("foo/n", 2, unset)
	w := sel(pa("foo/w", 1, unset), "a")
	w.Ports = map[uint32]mesh.Mode{8080: permissive, 8081: unset, 8082: strict, 0: disable, 70000: disable}
	lost := sel(pa("foo/x", 1, disable), "a")
	e := mesh.DefaultControlPlane().Resolve(mesh.Workload{Namespace: "foo", Labels: map[string]string{"app": "a"}},
		[]*mesh.PeerAuthentication{lost, nil, w, n, m})
	if e.Mesh != m || e.NamespaceWide != n || e.Workload != w {
		t.Fatalf("winners are %v, %v, %v", e.Mesh, e.NamespaceWide, e.Workload)
	}
	if len(e.Ports) != 3 {
		t.Errorf("ports are %v, want 8080, 8081 and 8082 only", e.Ports)
	}
	for port, want := range map[uint32]*mesh.PeerAuthentication{0: m, 9090: m, 8080: w, 8081: m, 8082: w} {
		if got := e.Decider(port); got != want {
			t.Errorf("port %d was decided by %v, want %v", port, got, want)
		}
	}
	if mode, ports := e.Weakest(); mode != permissive || !slices.Equal(ports, []uint32{8080}) {
		t.Errorf("weakest is %v on %v, want PERMISSIVE on 8080", mode, ports)
	}
	if e.Strict() {
		t.Error("strict with a PERMISSIVE port")
	}
	if got := (mesh.DefaultControlPlane()).Resolve(mesh.Workload{Namespace: "foo"}, nil).Decider(0); got != nil {
		t.Errorf("the default was decided by %v", got)
	}
}

func TestWeakest(t *testing.T) {
	type ports = map[uint32]mesh.Mode
	tests := []struct {
		in    mesh.Effective
		mode  mesh.Mode
		ports []uint32
	}{
		{mesh.Effective{Mode: strict}, strict, nil},
		{mesh.Effective{Mode: strict, Ports: ports{1: strict}}, strict, nil},
		{mesh.Effective{Mode: strict, Ports: ports{3: disable, 1: permissive, 2: disable}}, disable, []uint32{2, 3}},
		{mesh.Effective{Mode: permissive, Ports: ports{1: strict}}, permissive, nil},
		{mesh.Effective{Mode: permissive, Ports: ports{1: permissive}}, permissive, nil},
	}
	for _, tt := range tests {
		mode, got := tt.in.Weakest()
		if mode != tt.mode || !slices.Equal(got, tt.ports) {
			t.Errorf("%+v: got %v on %v, want %v on %v", tt.in, mode, got, tt.mode, tt.ports)
		}
		if tt.in.Strict() != (tt.mode == strict) {
			t.Errorf("%+v: Strict is %v", tt.in, tt.in.Strict())
		}
	}
}

// A policy that is being created has no timestamp yet and loses against all that exist; of several, the one
// later in the slice is the younger.
func TestNotCreatedYet(t *testing.T) {
	c, w := mesh.DefaultControlPlane(), mesh.Workload{Namespace: "foo"}
	pending, other := pa("foo/a", 0, strict), pa("foo/0", 0, disable)
	pending.Created, other.Created = time.Time{}, time.Time{}
	existing := pa("foo/z", 5, permissive)
	inEveryOrder([]*mesh.PeerAuthentication{pending, existing}, func(in []*mesh.PeerAuthentication) {
		if e := c.Resolve(w, in); e.NamespaceWide != existing {
			t.Errorf("%v: %s wins over what exists", keys(in), e.NamespaceWide.Key())
		}
	})
	for _, dp := range []mesh.Dataplane{mesh.Sidecar, mesh.Ambient} {
		w.Dataplane = dp
		if e := c.Resolve(w, []*mesh.PeerAuthentication{pending, other}); e.NamespaceWide != pending {
			t.Errorf("dataplane %d: %s wins, want the first of the slice", dp, e.NamespaceWide.Key())
		}
	}
}

// Only the second of a timestamp counts.
func TestSubSecondCreation(t *testing.T) {
	a, b := pa("foo/a", 1, strict), pa("foo/b", 1, permissive)
	a.Created = a.Created.Add(900 * time.Millisecond)
	e := mesh.DefaultControlPlane().Resolve(mesh.Workload{Namespace: "foo"}, []*mesh.PeerAuthentication{b, a})
	if e.NamespaceWide != a {
		t.Errorf("%s wins, want foo/a by name", e.NamespaceWide.Key())
	}
}

// Labels that are absent, or present with an empty value, are different.
func TestSelectorCorners(t *testing.T) {
	c := mesh.DefaultControlPlane()
	empty := sel(pa("foo/w", 1, strict), "")
	for _, tt := range []struct {
		labels map[string]string
		want   mesh.Mode
	}{
		{nil, permissive},
		{map[string]string{"other": ""}, permissive},
		{map[string]string{"app": ""}, strict},
		{map[string]string{"app": "", "other": "x"}, strict},
		{map[string]string{"app": "a"}, permissive},
	} {
		if e := c.Resolve(mesh.Workload{Namespace: "foo", Labels: tt.labels}, []*mesh.PeerAuthentication{empty}); e.Mode != tt.want {
			t.Errorf("%v: %v, want %v", tt.labels, e.Mode, tt.want)
		}
	}
}

func TestModeNames(t *testing.T) {
	for _, m := range []mesh.Mode{unset, disable, permissive, strict} {
		if got, ok := mesh.ParseMode(m.String()); got != m || !ok {
			t.Errorf("ParseMode(%q) = %v, %v", m.String(), got, ok)
		}
	}
	if m, ok := mesh.ParseMode(""); m != unset || !ok {
		t.Errorf("an absent mode is %v, %v", m, ok)
	}
	for _, s := range []string{"strict", "MTLS", "3", " STRICT"} {
		if _, ok := mesh.ParseMode(s); ok {
			t.Errorf("ParseMode(%q) is accepted", s)
		}
	}
	if got := mesh.Mode(9).String(); got != "Mode(9)" {
		t.Errorf("unknown mode prints as %q", got)
	}
}
