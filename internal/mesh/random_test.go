package mesh_test

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The random inputs are dense in what makes policies collide: two namespaces, four creation seconds, few names,
// labels from a small alphabet.
var (
	alphabet   = map[string][]string{"app": {"a", "b"}, "v": {"1", "2"}, "z": {""}}
	someKeys   = []string{"app", "v", "z"}
	somePorts  = []uint32{80, 8080, 9090}
	namespaces = []string{"foo", "istio-system", "bar"}
)

func randomPolicies(r *rand.Rand, most int) []*mesh.PeerAuthentication {
	taken := make(map[string]bool)
	var out []*mesh.PeerAuthentication
	for range r.IntN(most + 1) {
		p := &mesh.PeerAuthentication{
			Namespace: namespaces[min(r.IntN(6)/2, r.IntN(3))],
			Name:      fmt.Sprintf("p%d", r.IntN(9)),
			Created:   at(r.IntN(4)).Add(time.Duration(r.IntN(2)) * 400 * time.Millisecond),
			Mode:      mesh.Mode(r.IntN(4)),
		}
		if r.IntN(3) > 0 {
			p.Mode = max(p.Mode, mesh.Mode(r.IntN(4)))
		}
		if taken[p.Key()] {
			continue
		}
		taken[p.Key()] = true
		if r.IntN(4) > 0 {
			p.SelectorSet, p.Selector = true, map[string]string{}
			for _, k := range someKeys {
				if r.IntN(2) == 0 {
					p.Selector[k] = alphabet[k][r.IntN(len(alphabet[k]))]
				}
			}
		}
		if r.IntN(3) > 0 {
			p.Ports = map[uint32]mesh.Mode{}
			for _, port := range somePorts {
				if r.IntN(3) == 0 {
					p.Ports[port] = max(mesh.Mode(r.IntN(4)), mesh.Mode(r.IntN(4)))
				}
			}
		}
		out = append(out, p)
	}
	return out
}

// everyLabelSet lists all label sets over the alphabet, the empty one included.
func everyLabelSet() []map[string]string {
	out := []map[string]string{{}}
	for _, k := range someKeys {
		for _, smaller := range out[:len(out):len(out)] {
			for _, v := range alphabet[k] {
				larger := map[string]string{k: v}
				for have, value := range smaller {
					larger[have] = value
				}
				out = append(out, larger)
			}
		}
	}
	return out
}
