package policies

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/meshvakt/meshvakt/policies/facts"
)

// Mutate returns what the policies change in the object of the request under the
// guards that select its namespace. It returns an error, and no changes, when any
// policy could not say.
func Mutate(list []Policy, r *facts.Review) ([]facts.Change, error) {
	var changes []facts.Change
	for i := range list {
		m := list[i].Mutation
		if m == nil || !matches(m.Matches, r) {
			continue
		}
		guards, err := m.guards(r, list[i].ID)
		if err == nil && len(guards) == 0 && m.Own == nil {
			continue
		}
		var more []facts.Change
		if err == nil {
			more, err = m.changes(r, guards)
		}
		if err != nil {
			return nil, fmt.Errorf("change by policy %s: %w", list[i].ID, err)
		}
		changes = append(changes, more...)
	}
	return changes, nil
}

// guards are those that want the changes, sorted by name: without those under which an
// exception lets the object break the policy. What is excepted is left as it is.
func (m *Mutation) guards(r *facts.Review, policy string) ([]*facts.Guard, error) {
	var guards []*facts.Guard
	for i := range r.Cluster.Guards {
		if g := &r.Cluster.Guards[i]; m.Enforced(g) {
			guards = append(guards, g)
		}
	}
	if len(guards) == 0 {
		return nil, nil
	}
	ns := r.Cluster.Namespaces[r.Namespace]
	if ns == nil {
		return nil, fmt.Errorf("%w: namespace %q of the %s", ErrMissingFact, r.Namespace, r.Kind.Kind)
	}
	guards = slices.DeleteFunc(guards, func(g *facts.Guard) bool {
		selected := r.Cluster.Selects(g, ns.Name, ns.Labels) || m.ControlPlane != nil && m.ControlPlane(g) && r.Cluster.IsRoot(ns.Name)
		return !selected || r.Excepting(g, policy, "") != nil
	})
	slices.SortFunc(guards, func(a, b *facts.Guard) int { return strings.Compare(a.Name, b.Name) })
	return guards, nil
}

func (m *Mutation) changes(r *facts.Review, guards []*facts.Guard) (changes []facts.Change, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPanic, v, debug.Stack())
		}
	}()
	if m.Own != nil {
		return m.Own(r)
	}
	return m.Changes(r, guards)
}
