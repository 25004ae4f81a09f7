package policies

import (
	"maps"
	"slices"

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
	changed.PeerAuthentications = slices.DeleteFunc(slices.Clone(changed.PeerAuthentications), func(p *mesh.PeerAuthentication) bool { return p.Name == one.Name })
	if pa != nil {
		changed.PeerAuthentications = append(changed.PeerAuthentications, pa)
	}
	return with(c, &changed)
}

func with(c *facts.Cluster, ns *facts.Namespace) *facts.Cluster {
	changed := *c
	changed.Namespaces = make(map[string]*facts.Namespace, len(c.Namespaces)+1)
	maps.Copy(changed.Namespaces, c.Namespaces)
	changed.Namespaces[ns.Name] = ns
	return &changed
}
