package cluster

import (
	"maps"
	"slices"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// View is what the caches know of a namespace at one moment, together with the objects that say it.
type View struct {
	// Cluster has the namespace and the mesh root namespaces alone, as of Cached. Without control planes their
	// settings are not known, and Err says why.
	facts.Cluster
	Err error
	// Namespace is nil where there is none.
	Namespace *facts.Namespace
	UID       string
	// Inputs are the objects by which policies of the mesh come to apply to the namespace, in no order.
	Inputs []Input
}

// Input is an object that was read, in a form of which canonical.Of knows the digest: a *facts.Namespace, a
// *mesh.PeerAuthentication or a *corev1.ConfigMap.
type Input struct {
	Object          any
	UID             string
	ResourceVersion string
}

// View is of one moment: what it says holds for just these inputs.
func (s *Source) View(namespace string) (View, error) {
	if !s.Synced() {
		return View{}, ErrNotSynced
	}
	v := s.index.view(namespace)
	v.Unguardable = s.unguardable()
	return v, nil
}

// Namespaces are the names of all that there are, in no order.
func (s *Source) Namespaces() []string {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	names := make([]string, 0, len(s.index.namespaces))
	for name, e := range s.index.namespaces {
		if e.exists {
			names = append(names, name)
		}
	}
	return names
}

// Guards are the MeshGuards, sorted by name.
func (s *Source) Guards() []facts.Guard {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	return s.index.guards
}

func (x *index) view(name string) View {
	x.mu.RLock()
	defer x.mu.RUnlock()
	v := View{Cluster: facts.Cluster{Guards: x.guards, Namespaces: make(map[string]*facts.Namespace, 2)}}
	// How sidecars are injected has no part in what policies come to, and may be unknown.
	v.ControlPlanes, v.Err = controlPlanes(x.planes)
	for _, r := range x.planes {
		if !r.gone && r.object != nil {
			v.Inputs = append(v.Inputs, Input{r.object, string(r.object.UID), r.object.ResourceVersion})
		}
	}
	around := map[string]bool{} // by name, whether its labels count
	for i := range v.ControlPlanes {
		p := &v.ControlPlanes[i]
		around[p.RootNamespace] = around[p.RootNamespace] || len(p.DiscoverySelectors) > 0
	}
	around[name] = true
	for _, at := range slices.Sorted(maps.Keys(around)) {
		e := x.namespaces[at]
		if e == nil || !e.exists {
			continue
		}
		v.Cluster.Namespaces[at] = e.namespace
		if at == name {
			v.Namespace, v.UID = e.namespace, e.uid
		}
		if around[at] {
			v.Inputs = append(v.Inputs, Input{e.namespace, e.uid, e.version})
		}
		for _, p := range e.policies {
			v.Inputs = append(v.Inputs, Input{p.policy, p.policy.UID, p.version})
		}
	}
	return v
}
