package policies

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

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

// holeGroup is holes that one sentence can tell of: of one mode, by one decider
// and for the same pods, on any number of ports in any number of namespaces.
type holeGroup struct {
	holes      []hole
	namespaces []string
	ports      []uint32 // empty: all that no other group names
}

// groupHoles gathers holes that one sentence can tell of.
func groupHoles(list []hole) []holeGroup {
	type key struct {
		everyPort         bool
		mode              mesh.Mode
		decider, selector string
	}
	groups := map[key]*holeGroup{}
	var order []key
	for _, h := range list {
		k := key{h.port == 0, h.mode, deciderKey(h.decider), selectorText(h.selector)}
		g := groups[k]
		if g == nil {
			g = &holeGroup{}
			groups[k] = g
			order = append(order, k)
		}
		g.holes = append(g.holes, h)
		g.namespaces = append(g.namespaces, h.namespace)
		if h.port != 0 {
			g.ports = append(g.ports, h.port)
		}
	}
	slices.SortStableFunc(order, func(a, b key) int {
		return cmp.Or(
			cmp.Compare(a.mode, b.mode),
			cmp.Compare(a.selector, b.selector),
			cmp.Compare(a.decider, b.decider),
		)
	})
	out := make([]holeGroup, 0, len(order))
	for _, k := range order {
		g := groups[k]
		slices.Sort(g.namespaces)
		g.namespaces = slices.Compact(g.namespaces)
		slices.Sort(g.ports)
		g.ports = slices.Compact(g.ports)
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
	if len(g.namespaces) == 1 {
		return "guarded namespace " + quoted[0]
	}
	return fmt.Sprintf("%d guarded namespaces (%s)", len(g.namespaces), firstOf(quoted, len(g.namespaces)))
}

// portsText names the ports: the first ten, then a count.
func (g holeGroup) portsText() string {
	if len(g.ports) == 1 {
		return fmt.Sprintf("port %d", g.ports[0])
	}
	shown := make([]string, 0, namedAtMost)
	for _, p := range g.ports[:min(len(g.ports), namedAtMost)] {
		shown = append(shown, strconv.FormatUint(uint64(p), 10))
	}
	return "ports " + firstOf(shown, len(g.ports))
}

// firstOf joins what is shown and counts what is not.
func firstOf(shown []string, all int) string {
	text := strings.Join(shown, ", ")
	if more := all - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// subject is who takes plaintext: "pods labelled app=web in guarded namespace
// "prod"", with the ports after it.
func (g holeGroup) subject() string {
	h := g.holes[0]
	var b strings.Builder
	if len(g.ports) > 0 {
		b.WriteString(g.portsText() + " of ")
	}
	if h.selector != nil {
		fmt.Fprintf(&b, "pods labelled %s in ", selectorText(h.selector))
	}
	return b.String() + g.names()
}

// makes completes "the change makes …".
func (g holeGroup) makes() string {
	if m := g.holes[0].mode; m == mesh.ModeDisable {
		return g.subject() + " take plaintext only (DISABLE)"
	}
	return fmt.Sprintf("%s accept plaintext (%s)", g.subject(), g.holes[0].mode)
}

// stands is how the group is after a change that did not make it so.
func (g holeGroup) stands() string {
	h := g.holes[0]
	one := len(g.ports) == 1 || h.selector == nil && len(g.namespaces) == 1
	verb := "are"
	if one {
		verb = "is"
	}
	return fmt.Sprintf("%s %s still %s", g.subject(), verb, h.mode)
}

// within says which pods of a namespace, named before, a hole is about.
func (g holeGroup) within(c *facts.Cluster) string {
	var b strings.Builder
	if len(g.ports) > 0 {
		b.WriteString(g.portsText() + " of ")
	}
	b.WriteString("its pods")
	switch h := g.holes[0]; {
	case h.selector != nil:
		b.WriteString(" labelled " + selectorText(h.selector))
	case slices.ContainsFunc(c.Namespaces[h.namespace].PeerAuthentications, func(p *mesh.PeerAuthentication) bool {
		return h.view.controlPlane.ScopeOf(p) == mesh.ScopeWorkload
	}):
		b.WriteString(" that no selector of a PeerAuthentication matches")
	}
	return b.String()
}

// asked is the mode that the decider sets.
func (h hole) asked() mesh.Mode {
	if h.byPort() {
		return h.decider.Ports[h.port]
	}
	return h.decider.Mode
}

// because says why the mode of the group is what it is.
func (g holeGroup) because(c *facts.Cluster) string {
	h := g.holes[0]
	var b strings.Builder
	switch {
	case h.decider == nil:
		b.WriteString(" because no PeerAuthentication sets a mode, which leaves Istio's default")
	case h.asked() == mesh.ModeUnset, h.asked() == mesh.ModeStrict:
		// Only ztunnel can come to this: see package mesh.
		fmt.Fprintf(&b, " because in ambient mode the ports of %s keep the STRICT mode from being applied", named(h.decider))
	case h.byPort():
		fmt.Fprintf(&b, " because %s sets %s in spec.portLevelMtls", named(h.decider), h.asked())
	default:
		fmt.Fprintf(&b, " because %s sets %s", named(h.decider), h.asked())
	}
	if h.view.dataplane == mesh.Ambient && (h.decider == nil || h.asked() < mesh.ModeStrict && h.asked() != mesh.ModeUnset) {
		b.WriteString(" in ambient mode")
	}
	if h.view.settled {
		b.WriteString(" once the policies that are being deleted are gone")
	}
	for _, n := range inertNotes(c, h) {
		fmt.Fprintf(&b, "; %s (STRICT) has no effect: %s", named(n.policy), n.reason)
	}
	return b.String()
}

// named is how messages call a policy; its own name may be yet to be generated.
func named(p *mesh.PeerAuthentication) string {
	if p.Name == "" {
		return fmt.Sprintf("the new PeerAuthentication in %q", p.Namespace)
	}
	return "PeerAuthentication " + p.Key()
}

// remedy is the cheapest way to close the holes of the group.
func (g holeGroup) remedy(c *facts.Cluster) string {
	h := g.holes[0]
	switch {
	case h.decider != nil && (h.asked() == mesh.ModeUnset || h.asked() == mesh.ModeStrict):
		return "leave spec.portLevelMtls out of " + named(h.decider)
	case h.byPort():
		return fmt.Sprintf("set %s to STRICT in spec.portLevelMtls of %s, or take the entry out", g.portsText(), named(h.decider))
	}
	for _, n := range inertNotes(c, h) {
		if h.decider == nil || h.decider.Namespace != n.policy.Namespace {
			return n.remedy
		}
	}
	if h.decider != nil {
		return fmt.Sprintf("set spec.mtls.mode of %s to STRICT", named(h.decider))
	}
	root := h.view.controlPlane.RootNamespace
	if !h.view.controlPlane.Discovered(c.Namespaces[h.namespace].Labels) {
		return fmt.Sprintf("label namespace %q so that Istio's discoverySelectors match it, and apply a PeerAuthentication with spec.mtls.mode STRICT and without a selector there", h.namespace)
	}
	text := fmt.Sprintf("apply a PeerAuthentication with spec.mtls.mode STRICT and without a selector in namespace %q", h.namespace)
	if root != "" && h.namespace != root {
		text += fmt.Sprintf(", or for the whole mesh in %q", root)
	}
	return text
}

// findingsAtMost bounds what one request is told.
const findingsAtMost = 10

// atMost keeps the first findings and counts the others in the last of them.
func atMost(found []Finding) []Finding {
	more := len(found) - findingsAtMost
	if more <= 0 {
		return found
	}
	kept := slices.Clone(found[:findingsAtMost])
	kept[findingsAtMost-1].Message += fmt.Sprintf(" (and %d more like this)", more)
	return kept
}

// byPort reports whether an entry of portLevelMtls opened the hole.
func (h hole) byPort() bool {
	return h.decider != nil && h.decider.Ports[h.port] != mesh.ModeUnset
}

func selectorText(selector map[string]string) string {
	parts := make([]string, 0, len(selector))
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		parts = append(parts, k+"="+selector[k])
	}
	return strings.Join(parts, ",")
}
