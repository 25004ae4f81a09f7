package mesh_test

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// policiesFrom spends the bytes on policies, eight for each, without respect for what the CRD would refuse.
func policiesFrom(data []byte) []*mesh.PeerAuthentication {
	var out []*mesh.PeerAuthentication
	taken := map[string]bool{}
	for ; len(data) >= 8; data = data[8:] {
		p := &mesh.PeerAuthentication{
			Namespace:   namespaces[int(data[0])%len(namespaces)],
			Name:        string('a' + rune(data[1]%16)),
			Created:     at(int(data[2] % 8)),
			Mode:        mesh.Mode(data[3] % 4),
			SelectorSet: data[4]&1 != 0,
		}
		if taken[p.Key()] {
			continue
		}
		taken[p.Key()] = true
		for i, k := range someKeys {
			if data[4]&(2<<i) != 0 {
				if p.Selector == nil {
					p.Selector = map[string]string{}
				}
				p.Selector[k] = alphabet[k][int(data[5]>>i)%len(alphabet[k])]
			}
		}
		for i, port := range []uint32{0, 80, 8080, 70000} {
			if data[6]&(1<<i) != 0 {
				if p.Ports == nil {
					p.Ports = map[uint32]mesh.Mode{}
				}
				p.Ports[port] = mesh.Mode(data[7] >> (2 * i) % 4)
			}
		}
		out = append(out, p)
	}
	return out
}

// Any policies: no panic, the same answer in any order, and an Effective that agrees with itself.
func FuzzResolve(f *testing.F) {
	f.Add([]byte{}, uint8(0), uint64(1))
	f.Add([]byte{0, 0, 0, 3, 0, 0, 0, 0}, uint8(1), uint64(1))
	f.Add([]byte{1, 0, 0, 3, 0, 0, 0, 0, 0, 1, 1, 0, 3, 0, 15, 0b10_01_00_11}, uint8(7), uint64(2))
	f.Add([]byte{0, 0, 0, 3, 1, 0, 0, 0, 0, 1, 0, 0, 3, 0, 6, 0b00_01_10_00, 0, 2, 0, 1, 0, 0, 0, 0}, uint8(35), uint64(3))
	sets := everyLabelSet()
	f.Fuzz(func(t *testing.T, data []byte, pick uint8, shuffle uint64) {
		policies := policiesFrom(data[:min(len(data), 64)])
		w := mesh.Workload{Namespace: namespaces[int(pick)%2], Labels: sets[int(pick/2)%len(sets)]}
		if pick >= 128 {
			w.Dataplane = mesh.Ambient
		}
		c := mesh.DefaultControlPlane()
		e := c.Resolve(w, policies)

		shuffled := slices.Clone(policies)
		rand.New(rand.NewPCG(shuffle, 0)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := c.Resolve(w, shuffled); !reflect.DeepEqual(again, e) {
			t.Errorf("shuffled: %+v, before %+v", again, e)
		}
		checkEffective(t, w, e)
		for _, class := range c.Classes(w.Namespace, w.Dataplane, shuffled) {
			checkEffective(t, mesh.Workload{Namespace: w.Namespace, Labels: class.Selector, Dataplane: w.Dataplane}, class.Effective)
		}
		for _, p := range policies {
			c.Shadowed(p, shuffled)
			p.Created = time.Time{} // a slice of newcomers must not panic either
		}
		c.Resolve(w, policies)
	})
}

func checkEffective(t *testing.T, w mesh.Workload, e mesh.Effective) {
	t.Helper()
	if e.Mode == unset || w.Dataplane == mesh.Ambient && e.Mode == disable {
		t.Errorf("mode is %v", e.Mode)
	}
	weakest := e.Mode
	for port, m := range e.Ports {
		if m == unset || port == 0 || port > 65535 {
			t.Errorf("port %d is %v", port, m)
		}
		if e.Port(port) != m {
			t.Errorf("Port(%d) is %v, Ports says %v", port, e.Port(port), m)
		}
		weakest = min(weakest, m)
	}
	for _, port := range []uint32{1, 443, 65535} {
		if _, named := e.Ports[port]; !named && (e.Port(port) != e.Mode || e.Decider(port) != e.Decider(0)) {
			t.Errorf("Port(%d) is %v without an override, the mode is %v", port, e.Port(port), e.Mode)
		}
	}
	mode, ports := e.Weakest()
	if mode != weakest || (ports == nil) != (weakest == e.Mode) || e.Strict() != (weakest == strict) {
		t.Errorf("Weakest is %v %v, Strict %v; want %v", mode, ports, e.Strict(), weakest)
	}
	if e.Workload == nil && e.Ports != nil {
		t.Errorf("ports %v without a workload policy", e.Ports)
	}
	if d := e.Decider(0); d == nil && e.Mode != permissive {
		t.Errorf("nobody decided %v", e.Mode)
	}
}
