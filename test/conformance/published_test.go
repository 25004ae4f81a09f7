package conformance

import (
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The scenarios that Istio's own tests state about PeerAuthentication: TestComposePeerAuthentication and
// TestGetMutualTLSModeForPort of pilot/pkg/security/authn/policy_applier_test.go, and the peer authentication
// part of TestGetPoliciesForWorkload of pilot/pkg/model/authentication_test.go. Those tests hand policies
// without a timestamp, or not sorted, to an inner function; here they go all the way, created as listed unless
// a second says otherwise. Both resolvers must give the published answer.
func TestPublishedScenarios(t *testing.T) {
	const (
		unset, disable, permissive, strict = mesh.ModeUnset, mesh.ModeDisable, mesh.ModePermissive, mesh.ModeStrict
		root                               = "istio-system"
	)
	policy := func(ns, name string, second int, mode mesh.Mode) *mesh.PeerAuthentication {
		return &mesh.PeerAuthentication{Namespace: ns, Name: name, Created: start.Add(time.Duration(second) * time.Second), Mode: mode}
	}
	foo := func(p *mesh.PeerAuthentication, ports map[uint32]mesh.Mode) *mesh.PeerAuthentication {
		p.SelectorSet, p.Selector, p.Ports = true, map[string]string{"app": "foo"}, ports
		return p
	}
	all := func(m mesh.Mode) answer { return answer{m, m, m, m, m} }
	type policies = []*mesh.PeerAuthentication
	tests := []struct {
		name string
		in   policies
		want answer // rest, 1, 80, 8080, 65535
	}{
		{"no config", nil, all(permissive)},
		{"mesh only", policies{policy(root, "default", 0, strict)}, all(strict)},
		{"mesh vs namespace", policies{policy(root, "default", 0, strict), policy("bar", "default", 0, permissive)}, all(permissive)},
		{"non-empty selector in root namespace is ignored", policies{foo(policy(root, "default", 0, strict), nil)}, all(permissive)},
		{"workload vs namespace", policies{policy("bar", "default", 0, unset), foo(policy("bar", "foo", 0, unset), nil)}, all(permissive)},
		{"namespace vs mesh", policies{policy("bar", "default", 0, permissive), policy(root, "default", 0, disable)}, all(permissive)},
		{"three mesh policies", policies{policy(root, "now", 1, disable), policy(root, "second ago", 0, permissive), policy(root, "second later", 2, strict)}, all(permissive)},
		{"three mesh policies, two in the same second", policies{policy(root, "now", 1, disable), policy(root, "second ago", 0, permissive), policy(root, "second later", 0, strict)}, all(permissive)},
		{"three namespace policies", policies{policy("bar", "now", 1, disable), policy("bar", "second ago", 0, permissive), policy("bar", "second later", 0, strict)}, all(permissive)},
		{"three workload policies", policies{foo(policy("bar", "now", 1, disable), nil), foo(policy("bar", "second ago", 0, permissive), nil), foo(policy("bar", "second later", 0, strict), nil)}, all(permissive)},
		{"inheritance: default mesh", policies{policy(root, "default", 0, unset)}, all(permissive)},
		{"inheritance: mesh to workload", policies{policy(root, "default", 0, strict), foo(policy("bar", "foo", 0, unset), nil)}, all(strict)},
		{"inheritance: namespace to workload", policies{policy("bar", "default", 0, strict), foo(policy("bar", "foo", 0, unset), nil)}, all(strict)},
		{"inheritance: mesh to namespace to workload", policies{policy(root, "default", 0, strict), policy("bar", "default", 0, unset), foo(policy("bar", "foo", 0, unset), nil)}, all(strict)},
		{"port level", policies{policy(root, "default", 0, strict), foo(policy("bar", "foo", 0, unset), map[uint32]mesh.Mode{1: disable, 80: unset, 8080: unset})}, answer{strict, disable, strict, strict, strict}},
		{"workload policies resolved to STRICT", policies{foo(policy("bar", "now", 0, strict), nil), foo(policy("bar", "later", 1, disable), nil)}, all(strict)},
		{"workload policies resolved to PERMISSIVE", policies{foo(policy("bar", "now", 1, disable), nil), foo(policy("bar", "earlier", 0, permissive), nil)}, all(permissive)},
		{"port level hit and miss", policies{foo(policy("bar", "foo", 0, disable), map[uint32]mesh.Mode{8080: strict})}, answer{disable, disable, disable, strict, disable}},
		{"partial match of a selector", policies{policy("bar", "default", 0, strict), {Namespace: "bar", Name: "v", Created: start, SelectorSet: true,
			Selector: map[string]string{"app": "foo", "version": "v9"}, Mode: disable}}, all(strict)},
	}
	i := newIstio(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tc := testCase{revision: "default", root: root, namespaces: map[string]map[string]string{root: {}, "bar": {}}, policies: tt.in,
				workloads: []mesh.Workload{{Namespace: "bar", Labels: map[string]string{"app": "foo", "version": "v1"}}}}
			got, err := ours(tc, mesh.ControlPlane.Reads)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := i.answers(tc)
			if err != nil {
				t.Fatal(err)
			}
			if got[0] != tt.want || theirs[0] != tt.want {
				t.Errorf("want %v, ours %v, Istio %v\n%s", tt.want, got[0], theirs[0], tc)
			}
		})
	}
}
