package conformance

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// A comparison that finds nothing proves nothing unless it would find something. Each mutant is a resolver with
// one rule wrong; the differential comparison must notice it. The mistakes are made outside internal/mesh: by
// changing what our side is told, or which policies it is told of.
func TestMutantsAreDetected(t *testing.T) {
	each := func(change func(*mesh.PeerAuthentication, testCase)) func(testCase) testCase {
		return func(tc testCase) testCase {
			changed := make([]*mesh.PeerAuthentication, len(tc.policies))
			for i, p := range tc.policies {
				q := *p
				change(&q, tc)
				changed[i] = &q
			}
			tc.policies = changed
			return tc
		}
	}
	type reads = func(mesh.ControlPlane, *mesh.PeerAuthentication, map[string]string) bool
	mutants := []struct {
		name   string
		change func(testCase) testCase
		reads  reads
	}{
		{name: "newest wins", change: each(func(p *mesh.PeerAuthentication, _ testCase) { p.Created = start.Add(start.Sub(p.Created) + time.Hour) })},
		{name: "name before time", change: each(func(p *mesh.PeerAuthentication, _ testCase) { p.Created = start })},
		{name: "ties by reverse name", change: each(func(p *mesh.PeerAuthentication, _ testCase) {
			p.Name = strings.Map(func(r rune) rune { return 0x100 - r }, p.Name) + "\u0200"
		})},
		{name: "selector policies of the root namespace apply in their own", change: each(func(p *mesh.PeerAuthentication, tc testCase) {
			if p.Namespace == tc.root {
				p.Selector = nil
			}
		})},
		{name: "selector policies of the root namespace apply everywhere", change: rootSelectorsEverywhere},
		{name: "ports of losing policies are merged", change: mergedPorts},
		{name: "UNSET overrides", change: each(func(p *mesh.PeerAuthentication, _ testCase) {
			if p.Mode == mesh.ModeUnset {
				p.Mode = mesh.ModePermissive
			}
		})},
		{name: "UNSET port is PERMISSIVE", change: each(func(p *mesh.PeerAuthentication, _ testCase) {
			p.Ports = maps.Clone(p.Ports)
			for port, m := range p.Ports {
				if m == mesh.ModeUnset {
					p.Ports[port] = mesh.ModePermissive
				}
			}
		})},
		{name: "UNSET port is dropped with its policy's ports", change: each(func(p *mesh.PeerAuthentication, _ testCase) {
			if slices.Contains(slices.Collect(maps.Values(p.Ports)), mesh.ModeUnset) {
				p.Ports = nil
			}
		})},
		{name: "UNSET policies do not shadow", change: func(tc testCase) testCase {
			tc.policies = slices.DeleteFunc(slices.Clone(tc.policies), func(p *mesh.PeerAuthentication) bool {
				return p.Mode == mesh.ModeUnset && len(p.Ports) == 0
			})
			return tc
		}},
		{name: "empty selector selects nothing", change: func(tc testCase) testCase {
			tc.policies = slices.DeleteFunc(slices.Clone(tc.policies), func(p *mesh.PeerAuthentication) bool {
				return p.SelectorSet && len(p.Selector) == 0
			})
			return tc
		}},
		{name: "any label matches", change: anyLabel},
		{name: "root namespace is istio-system", change: func(tc testCase) testCase { tc.root = "istio-system"; return tc }},
		{name: "revision label is ignored", change: each(func(p *mesh.PeerAuthentication, _ testCase) { p.HasRevision = false })},
		{name: "empty revision label is none", change: each(func(p *mesh.PeerAuthentication, _ testCase) { p.HasRevision = p.HasRevision && p.Revision != "" })},
		{name: "empty revision is default", change: func(tc testCase) testCase {
			if tc.revision == "" {
				tc.revision = "default"
			}
			return tc
		}},
		{name: "discovery selectors are ignored", change: func(tc testCase) testCase { tc.selectors = 0; return tc }},
		{name: "root namespace is always discovered", reads: func(c mesh.ControlPlane, p *mesh.PeerAuthentication, labels map[string]string) bool {
			if p.Namespace == c.RootNamespace {
				c.DiscoverySelectors = nil
			}
			return c.Reads(p, labels)
		}},
	}
	const within = 3000
	i, s := newIstio(t), seed(t)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			if m.change == nil {
				m.change = func(tc testCase) testCase { return tc }
			}
			if m.reads == nil {
				m.reads = mesh.ControlPlane.Reads
			}
			for c := range within {
				tc := randomCase(sequence(s, c), 8)
				got, err := ours(m.change(tc), m.reads)
				if err != nil {
					t.Fatal(err)
				}
				want, err := i.answers(tc)
				if err != nil {
					t.Fatal(err)
				}
				if differ(tc, got, want) != "" {
					t.Logf("detected by case %d", c)
					return
				}
			}
			t.Errorf("not detected within %d cases", within)
		})
	}
}

// The same for the rules that only ambient has.
func TestAmbientMutantsAreDetected(t *testing.T) {
	mutants := []struct {
		name   string
		change func(*mesh.PeerAuthentication)
	}{
		{"empty selector is none", func(p *mesh.PeerAuthentication) { p.SelectorSet = len(p.Selector) > 0 }},
		{"DISABLE port is PERMISSIVE", func(p *mesh.PeerAuthentication) {
			p.Ports = maps.Clone(p.Ports)
			for port, m := range p.Ports {
				if m == mesh.ModeDisable {
					p.Ports[port] = mesh.ModePermissive
				}
			}
		}},
		{"UNSET namespace policy is seen through", func(p *mesh.PeerAuthentication) {
			if p.Mode == mesh.ModeUnset && len(p.Selector) == 0 {
				p.Namespace = "elsewhere"
			}
		}},
	}
	const within = 5000
	s := seed(t)
	newIstio(t) // for the log levels
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			for c := range within {
				tc := ambientCase(s, c, false)
				changed := tc
				changed.policies = nil
				for _, p := range tc.policies {
					q := *p
					m.change(&q)
					changed.policies = append(changed.policies, &q)
				}
				got, err := ours(changed, mesh.ControlPlane.Reads)
				if err != nil {
					t.Fatal(err)
				}
				if differ(tc, got, ambientAnswers(tc)) != "" {
					t.Logf("detected by case %d", c)
					return
				}
			}
			t.Errorf("not detected within %d cases", within)
		})
	}
}

// rootSelectorsEverywhere is the reading of the API's field comment: such a policy selects in all namespaces.
func rootSelectorsEverywhere(tc testCase) testCase {
	for _, p := range slices.Clone(tc.policies) {
		if p.Namespace == tc.root && len(p.Selector) > 0 {
			for _, ns := range namespaceNames {
				q := *p
				q.Namespace = ns
				tc.policies = append(tc.policies[:len(tc.policies):len(tc.policies)], &q)
			}
		}
	}
	return tc
}

// mergedPorts gives each workload policy the ports of the others of its namespace that select whatever it does.
func mergedPorts(tc testCase) testCase {
	merged := make([]*mesh.PeerAuthentication, len(tc.policies))
	for i, p := range tc.policies {
		q := *p
		for _, other := range tc.policies {
			if other.Namespace == p.Namespace && len(other.Selector) > 0 && len(p.Selector) > 0 {
				ports := maps.Clone(other.Ports)
				if ports == nil {
					ports = make(map[uint32]mesh.Mode)
				}
				maps.Copy(ports, q.Ports)
				q.Ports = ports
			}
		}
		merged[i] = &q
	}
	tc.policies = merged
	return tc
}

// anyLabel lets one matching label of a selector do.
func anyLabel(tc testCase) testCase {
	var split []*mesh.PeerAuthentication
	for _, p := range tc.policies {
		if len(p.Selector) < 2 {
			split = append(split, p)
			continue
		}
		for k, v := range p.Selector {
			q := *p
			q.Selector = map[string]string{k: v}
			split = append(split, &q)
		}
	}
	tc.policies = split
	return tc
}
