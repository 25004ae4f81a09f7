package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// orderNotes tells where the objects of a desired state cannot be applied in any
// order, or where the order decides what comes out.
func orderNotes(s *State) []string {
	var needMesh, needOwn []string
	for _, k := range s.order {
		ns, ok := s.objects[k].(*corev1.Namespace)
		if !ok || s.docs[k].Stored || s.before[k] != nil || !rejected(&s.cluster, ns) || !policies.Strict(&s.cluster, ns.Name) {
			continue
		}
		alone := s.emptied(ns.Name)
		if !policies.Strict(&alone, ns.Name) {
			needOwn = append(needOwn, ns.Name)
		} else if len(s.rootPolicies(ns.Name)) > 0 {
			needMesh = append(needMesh, ns.Name)
		}
	}
	var notes []string
	if len(needOwn) > 0 {
		notes = append(notes, fmt.Sprintf("%s cannot be created with onMissing Reject: it is STRICT only by a PeerAuthentication of its own, which can only be created after it; "+
			"first apply a STRICT PeerAuthentication for the whole mesh, or set spec.strictMTLS.onMissing of the MeshGuard to Hold", namespaceList(needOwn)))
	}
	if len(needMesh) > 0 {
		notes = append(notes, fmt.Sprintf("apply %s before %s, which would be refused without it",
			strings.Join(s.rootPolicies(""), ", "), namespaceList(needMesh)))
	}
	return append(notes, s.ageNotes()...)
}

// rejected reports whether a guard refuses the namespace while it is not STRICT.
func rejected(c *facts.Cluster, ns *corev1.Namespace) bool {
	return slices.ContainsFunc(c.Guards, func(g facts.Guard) bool {
		return g.StrictMTLS != nil && g.StrictMTLS.OnMissing == v1alpha1.OnMissingReject &&
			slices.Contains(g.StrictMTLS.ValidationActions, v1alpha1.Deny) && c.Selects(&g, ns.Name, ns.Labels)
	})
}

// emptied is the state of one namespace, which is no root namespace, without its
// policies.
func (s *State) emptied(name string) facts.Cluster {
	c := s.cluster
	if slices.Contains(c.RootNamespaces(), name) {
		return c
	}
	ns := *c.Namespaces[name]
	ns.PeerAuthentications = nil
	whole := c.Namespaces
	c.Namespaces = map[string]*facts.Namespace{name: &ns}
	for _, root := range c.RootNamespaces() {
		if r := whole[root]; r != nil {
			c.Namespaces[root] = r
		}
	}
	return c
}

// rootPolicies names the mesh-wide STRICT policies outside the given namespace.
func (s *State) rootPolicies(except string) []string {
	var names []string
	for _, root := range s.cluster.RootNamespaces() {
		ns := s.cluster.Namespaces[root]
		if ns == nil || root == except {
			continue
		}
		for _, p := range ns.PeerAuthentications {
			if p.Mode == mesh.ModeStrict && len(p.Selector) == 0 {
				names = append(names, "PeerAuthentication "+p.Key())
			}
		}
	}
	slices.Sort(names)
	return names
}

// ageNotes tells of policies that compete by age while no file says how old they
// are.
func (s *State) ageNotes() []string {
	type scope struct{ namespace, selector string }
	competing := map[scope][]*mesh.PeerAuthentication{}
	var order []scope
	undated := map[scope]bool{}
	for _, k := range s.order {
		p, ok := s.objects[k].(*mesh.PeerAuthentication)
		if !ok || s.live {
			continue
		}
		in := scope{p.Namespace, fmt.Sprint(p.Selector)} // maps print in the order of their keys
		if competing[in] == nil {
			order = append(order, in)
		}
		competing[in] = append(competing[in], p)
		undated[in] = undated[in] || !dated(s.docs[k])
	}
	var notes []string
	for _, in := range order {
		list := competing[in]
		same := !slices.ContainsFunc(list, func(p *mesh.PeerAuthentication) bool {
			return p.Mode != list[0].Mode || !maps.Equal(p.Ports, list[0].Ports)
		})
		if same || !undated[in] {
			continue
		}
		names := make([]string, 0, len(list))
		for _, p := range list {
			names = append(names, p.Key())
		}
		notes = append(notes, fmt.Sprintf("PeerAuthentications %s hold for the same pods, and Istio applies the one that was created first; "+
			"those without a creationTimestamp are taken to be created in the order of the files", strings.Join(names, ", ")))
	}
	return notes
}

const namedAtMost = 10

func namespaceList(names []string) string {
	quoted := make([]string, 0, namedAtMost)
	for _, n := range names[:min(len(names), namedAtMost)] {
		quoted = append(quoted, fmt.Sprintf("%q", n))
	}
	text := strings.Join(quoted, ", ")
	if more := len(names) - namedAtMost; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	if len(names) == 1 {
		return "namespace " + text
	}
	return "each of the namespaces " + text
}
