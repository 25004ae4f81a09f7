package policies

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// ErrMissingFact is returned when the facts lack something the judgement rests
// on.
var ErrMissingFact = errors.New("missing fact")

func errWrongObject(r *facts.Review) error {
	return fmt.Errorf("%s of %s %q: object %T and old object %T do not fit", r.Operation, r.Kind.Kind, r.Name, r.Object, r.OldObject)
}

// namedAtMost is how many namespaces a message names before it counts the rest.
const namedAtMost = 10

// holeGroup is holes of the same kind in one or more namespaces.
type holeGroup struct {
	holes      []hole
	namespaces []string
}

// groupHoles gathers holes that differ only in the namespace, or in selectors
// under the same decider.
func groupHoles(list []hole) []holeGroup {
	type key struct {
		port    uint32
		mode    mesh.Mode
		decider string
	}
	groups := map[key]*holeGroup{}
	var order []key
	for _, h := range list {
		k := key{h.port, h.mode, deciderKey(h.decider)}
		if groups[k] == nil {
			groups[k] = &holeGroup{}
			order = append(order, k)
		}
		groups[k].holes = append(groups[k].holes, h)
		if !slices.Contains(groups[k].namespaces, h.namespace) {
			groups[k].namespaces = append(groups[k].namespaces, h.namespace)
		}
	}
	slices.SortStableFunc(order, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.mode, b.mode), cmp.Compare(a.decider, b.decider))
	})
	out := make([]holeGroup, 0, len(order))
	for _, k := range order {
		g := groups[k]
		slices.Sort(g.namespaces)
		out = append(out, *g)
	}
	return out
}

// names lists the namespaces: the first ten, then a count.
func (g holeGroup) names() string {
	quoted := make([]string, 0, namedAtMost)
	for _, n := range g.namespaces[:min(len(g.namespaces), namedAtMost)] {
		quoted = append(quoted, fmt.Sprintf("%q", n))
	}
	word := "guarded namespace "
	if len(g.namespaces) > 1 {
		word = fmt.Sprintf("%d guarded namespaces: ", len(g.namespaces))
	}
	text := word + strings.Join(quoted, ", ")
	if more := len(g.namespaces) - namedAtMost; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// text completes "the change makes …".
func (g holeGroup) text() string {
	h := g.holes[0]
	return fmt.Sprintf("%s%s %s %s", g.scope(), g.names(), effect(h.mode), modeWords(h.mode))
}

// textIs is a sentence about how the namespaces stand.
func (g holeGroup) textIs() string {
	h := g.holes[0]
	return fmt.Sprintf("%s%s is %s", g.scope(), g.names(), h.mode)
}

// scope names the ports and pods of the group: "" for everything.
func (g holeGroup) scope() string {
	h := g.holes[0]
	var b strings.Builder
	if h.port != 0 {
		fmt.Fprintf(&b, "port %d of ", h.port)
	}
	if len(g.holes) == 1 && h.selector != nil {
		fmt.Fprintf(&b, "pods labelled %s in ", selectorText(h.selector))
	} else if h.port != 0 {
		b.WriteString("pods in ")
	}
	return b.String()
}

func effect(m mesh.Mode) string {
	if m == mesh.ModeDisable {
		return "take"
	}
	return "accept"
}

func modeWords(m mesh.Mode) string {
	if m == mesh.ModeDisable {
		return "plaintext only (DISABLE)"
	}
	return fmt.Sprintf("plaintext (%s)", m)
}

// where says on which ports and pods a hole is, "" for everywhere.
func (h hole) where() string {
	switch {
	case h.port != 0 && h.selector != nil:
		return fmt.Sprintf(" on port %d of pods labelled %s", h.port, selectorText(h.selector))
	case h.port != 0:
		return fmt.Sprintf(" on port %d", h.port)
	case h.selector != nil:
		return " for pods labelled " + selectorText(h.selector)
	}
	return ""
}

// because says why the mode of a hole is what it is.
func because(c *facts.Cluster, h hole) string {
	var b strings.Builder
	if h.decider == nil {
		b.WriteString(" because no PeerAuthentication sets a mode and Istio's default is PERMISSIVE")
	} else {
		fmt.Fprintf(&b, " because PeerAuthentication %s sets %s", h.decider.Key(), h.mode)
		if h.port != 0 && h.decider.Ports[h.port] != mesh.ModeUnset {
			fmt.Fprintf(&b, " for port %d", h.port)
		}
		if !h.decider.Created.IsZero() {
			fmt.Fprintf(&b, " (created %s)", h.decider.Created.UTC().Format(time.RFC3339))
		}
	}
	if h.view.settled {
		b.WriteString(" once the policies that are being deleted are gone")
	}
	for i, note := range inertNotes(c, h) {
		if i == 3 {
			break
		}
		b.WriteString("; PeerAuthentication " + note)
	}
	return b.String()
}

// inertNotes tells of STRICT policies that people may think apply to the hole.
func inertNotes(c *facts.Cluster, h hole) []string {
	var notes []string
	spaces := []string{h.namespace}
	if root := h.view.controlPlane.RootNamespace; root != h.namespace {
		spaces = append(spaces, root)
	}
	for _, name := range spaces {
		ns := c.Namespaces[name]
		if ns == nil {
			continue
		}
		list := slices.Clone(ns.PeerAuthentications)
		slices.SortFunc(list, func(a, b *mesh.PeerAuthentication) int { return cmp.Compare(a.Name, b.Name) })
		for _, p := range list {
			if p.Mode != mesh.ModeStrict || !subset(p.Selector, h.selector) {
				continue
			}
			if reason, ok := inert(c, p); ok {
				notes = append(notes, fmt.Sprintf("%s (STRICT) has no effect: %s", p.Key(), reason))
			}
		}
	}
	return notes
}

// inert says why Istio does not apply a policy in the state it is in.
func inert(c *facts.Cluster, p *mesh.PeerAuthentication) (reason string, ok bool) {
	ns := c.Namespaces[p.Namespace]
	if ns == nil {
		return "", false
	}
	for _, cp := range c.ControlPlanes {
		if !cp.Reads(p, ns.Labels) {
			if !cp.Discovered(ns.Labels) {
				return fmt.Sprintf("namespace %q is outside the discoverySelectors of Istio revision %q", ns.Name, cp.Revision), true
			}
			return fmt.Sprintf("its label istio.io/rev is %q, and revision %q does not read it", p.Revision, cp.Revision), true
		}
		by, effective := cp.Shadowed(p, readable(cp, ns))
		if by != nil {
			return fmt.Sprintf("%s (%s) is older, and of several in one scope Istio applies the oldest", by.Key(), by.Mode), true
		}
		if !effective {
			return "Istio ignores policies with a selector in the root namespace", true
		}
	}
	return "", false
}

func readable(cp mesh.ControlPlane, ns *facts.Namespace) []*mesh.PeerAuthentication {
	var list []*mesh.PeerAuthentication
	for _, p := range ns.PeerAuthentications {
		if cp.Reads(p, ns.Labels) {
			list = append(list, p)
		}
	}
	return list
}

// remedy is the cheapest way to close a hole.
func remedy(c *facts.Cluster, h hole) string {
	switch {
	case h.decider == nil:
		return fmt.Sprintf("apply a PeerAuthentication without selector and with spec.mtls.mode STRICT in namespace %q (or, for the whole mesh, in %q)", h.namespace, h.view.controlPlane.RootNamespace)
	case h.port != 0 && h.decider.Ports[h.port] != mesh.ModeUnset:
		return fmt.Sprintf("set port %d to STRICT in spec.portLevelMtls of PeerAuthentication %s, or take it out there", h.port, h.decider.Key())
	default:
		return fmt.Sprintf("set spec.mtls.mode of PeerAuthentication %s to STRICT", h.decider.Key())
	}
}

func selectorText(selector map[string]string) string {
	parts := make([]string, 0, len(selector))
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		parts = append(parts, k+"="+selector[k])
	}
	return strings.Join(parts, ",")
}

// withNamespace returns the state with the namespace as the request has it.
func withNamespace(c *facts.Cluster, ns *corev1.Namespace) *facts.Cluster {
	changed := facts.Namespace{Name: ns.Name, Labels: ns.Labels}
	if was := c.Namespaces[ns.Name]; was != nil {
		changed.PeerAuthentications = was.PeerAuthentications
	}
	return with(c, &changed)
}

// withPolicy returns the state with old replaced by pa; either may be nil.
func withPolicy(c *facts.Cluster, old, pa *mesh.PeerAuthentication) *facts.Cluster {
	one := pa
	if one == nil {
		one = old
	}
	changed := facts.Namespace{Name: one.Namespace}
	if was := c.Namespaces[one.Namespace]; was != nil {
		changed = *was
	}
	changed.PeerAuthentications = make([]*mesh.PeerAuthentication, 0, len(changed.PeerAuthentications)+1)
	if was := c.Namespaces[one.Namespace]; was != nil {
		for _, p := range was.PeerAuthentications {
			if p.Name != one.Name {
				changed.PeerAuthentications = append(changed.PeerAuthentications, p)
			}
		}
	}
	if pa != nil {
		changed.PeerAuthentications = append(changed.PeerAuthentications, pa)
	}
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
