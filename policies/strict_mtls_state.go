package policies

import (
	"maps"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// withNamespace returns the state with the namespace as the request has it.
func withNamespace(c *facts.Cluster, ns *corev1.Namespace) *facts.Cluster {
	changed := facts.Namespace{Name: ns.Name, Labels: ns.Labels}
	if was := c.Namespaces[ns.Name]; was != nil {
		changed.PeerAuthentications = was.PeerAuthentications
	}
	return with(c, &changed)
}

// withPolicy returns the state with old replaced by pa; one of them may be nil.
func withPolicy(c *facts.Cluster, old, pa *mesh.PeerAuthentication) *facts.Cluster {
	one := pa
	if one == nil {
		one = old
	}
	changed := facts.Namespace{Name: one.Namespace}
	if was := c.Namespaces[one.Namespace]; was != nil {
		changed = *was
	}
	list := make([]*mesh.PeerAuthentication, 0, len(changed.PeerAuthentications)+1)
	// The policy keeps its place: among policies without a creation time, the
	// order of the list is their age.
	placed := false
	for _, p := range changed.PeerAuthentications {
		switch {
		case p.Name != one.Name:
			list = append(list, p)
		case pa != nil:
			list, placed = append(list, pa), true
		}
	}
	if pa != nil && !placed {
		list = append(list, pa)
	}
	changed.PeerAuthentications = list
	return with(c, &changed)
}

func with(c *facts.Cluster, ns *facts.Namespace) *facts.Cluster {
	changed := *c
	changed.Namespaces = maps.Clone(c.Namespaces)
	if changed.Namespaces == nil {
		changed.Namespaces = map[string]*facts.Namespace{}
	}
	changed.Namespaces[ns.Name] = ns
	return &changed
}
