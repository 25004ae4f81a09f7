package journal

import (
	"sync"

	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
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
	text, err := canonical.Guards(guards)
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
