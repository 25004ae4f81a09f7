package journal

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// guardsMemo keeps the canonical text of the guards that were last asked for: reviews come by the
// thousand between two changes of a guard.
type guardsMemo struct {
	mu     sync.Mutex
	guards []facts.Guard
	text   string
}

func (m *guardsMemo) of(guards []facts.Guard) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.text != "" && same(m.guards, guards) {
		return m.text, nil
	}
	text, err := Guards(guards)
	if err != nil {
		return "", err
	}
	m.guards, m.text = guards, string(text)
	return m.text, nil
}

// same compares pointers: what they point to belongs to caches, and is never written to.
func same(a, b []facts.Guard) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := &a[i], &b[i]
		told := x.StrictMTLS != nil || x.MeshMembership != nil || x.SidecarResources != nil || x.NodePools != nil || x.Exceptions != nil
		if !told || x.Name != y.Name || x.StrictMTLS != y.StrictMTLS || x.MeshMembership != y.MeshMembership ||
			x.SidecarResources != y.SidecarResources || x.NodePools != y.NodePools || x.Exceptions != y.Exceptions || x.Remediation != y.Remediation {
			return false
		}
	}
	return true
}

// Guards is the canonical text of what guards demand, of which a record has the digest. Guards
// come sorted by name.
func Guards(guards []facts.Guard) ([]byte, error) {
	type guard struct {
		Name             string                     `json:"name"`
		Selector         string                     `json:"selector"`
		StrictMTLS       *v1alpha1.StrictMTLS       `json:"strictMTLS"`
		MeshMembership   *v1alpha1.MeshMembership   `json:"meshMembership"`
		SidecarResources *v1alpha1.SidecarResources `json:"sidecarResources"`
		NodePools        *v1alpha1.NodePools        `json:"nodePools"`
		Exceptions       *v1alpha1.Exceptions       `json:"exceptions"`
		Remediation      v1alpha1.Remediation       `json:"remediation"`
	}
	list := make([]guard, 0, len(guards))
	for i := range guards {
		g := &guards[i]
		list = append(list, guard{g.Name, g.Selector.String(), g.StrictMTLS, g.MeshMembership, g.SidecarResources, g.NodePools, g.Exceptions, g.Remediation})
	}
	text, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("write guards for their digest: %w", err)
	}
	return text, nil
}
