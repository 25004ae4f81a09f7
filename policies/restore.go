package policies

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// Restoration is what makes a namespace STRICT again that has ceased to be.

// Repair is a change of one PeerAuthentication.
type Repair struct {
	// Old is nil for a policy that is to be created.
	Old, New *mesh.PeerAuthentication
}

// repairsAtMost bounds the policies of a namespace that are changed for one restoration.
const repairsAtMost = 32

// Open says how plaintext gets into a namespace against the will of a guard that demands
// STRICT and that no exception speaks for, "" where it does not. restoring counts those
// guards alone that have it restored.
func Open(c *facts.Cluster, name string, now time.Time, restoring bool) string {
	h, found := openHole(c, name, now, restoring)
	if !found {
		return ""
	}
	g := groupHoles([]hole{h})[0]
	return fmt.Sprintf("Istio applies %s to %s%s", h.mode, g.within(c), g.because(c))
}

// Demanded reports whether a guard of the namespace demands STRICT, and whether one has
// it restored. A guard that only warns has nothing restored.
func Demanded(c *facts.Cluster, name string) (demanded, restored bool) {
	ns := c.Namespaces[name]
	if ns == nil || ns.Terminating {
		return false, false
	}
	for i := range c.Guards {
		if g := &c.Guards[i]; g.StrictMTLS != nil && c.Selects(g, name, ns.Labels) {
			demanded, restored = true, restored || restores(g)
		}
	}
	return demanded, restored
}

func restores(g *facts.Guard) bool {
	return g.Remediation == v1alpha1.RemediationRestore && g.StrictMTLS != nil && slices.Contains(g.StrictMTLS.ValidationActions, v1alpha1.Deny)
}

// Repairs returns the fewest changes after which the namespace is STRICT for the guards
// that have it restored: a policy is created where the namespace has none of its own for
// all its pods, and otherwise the fields that let plaintext in are set to STRICT, in
// policies of this namespace alone. obstacle says what is in the way where that is not
// enough; then nothing is to be changed.
func Repairs(c *facts.Cluster, name string, now time.Time) (list []Repair, obstacle string) {
	if c.IsRoot(name) {
		return nil, "the policies of a mesh root namespace hold for the whole mesh"
	}
	for range repairsAtMost {
		h, found := openHole(c, name, now, true)
		if !found {
			return list, ""
		}
		r := repair(c.Namespaces[name], h)
		c = withPolicy(c, r.Old, r.New)
		if at := slices.IndexFunc(list, func(o Repair) bool { return o.New.Name == r.New.Name }); at >= 0 {
			list[at].New = r.New
		} else {
			list = append(list, r)
		}
		if again, still := openHole(c, name, now, true); still && again.port == h.port && maps.Equal(again.selector, h.selector) && deciderKey(again.decider) == deciderKey(h.decider) {
			break
		}
	}
	return nil, Open(c, name, now, true)
}

// repair closes one hole.
func repair(ns *facts.Namespace, h hole) Repair {
	old := h.decider
	if old == nil || old.Namespace != ns.Name {
		if old = eldestForAll(ns, h.view); old == nil {
			return Repair{New: created(ns)}
		}
		h.port = 0 // what it leaves to others, it is to decide
	}
	changed := *old
	if h.port == 0 {
		changed.Mode = mesh.ModeStrict
	} else {
		changed.Ports = maps.Clone(old.Ports)
		changed.Ports[h.port] = mesh.ModeStrict
	}
	return Repair{Old: old, New: &changed}
}

// eldestForAll is the policy that speaks for all pods of the namespace, nil if none does.
func eldestForAll(ns *facts.Namespace, v view) *mesh.PeerAuthentication {
	var eldest *mesh.PeerAuthentication
	for _, p := range v.readOf(ns) {
		if len(p.Selector) == 0 && !p.Terminating && (eldest == nil || p.Created.Before(eldest.Created)) {
			eldest = p
		}
	}
	return eldest
}

// created is a policy under a name that is free.
func created(ns *facts.Namespace) *mesh.PeerAuthentication {
	p := Provisioned(ns.Name)
	for n := 0; slices.ContainsFunc(ns.PeerAuthentications, func(o *mesh.PeerAuthentication) bool { return o.Name == p.Name }); n++ {
		p.Name = "meshvakt"
		if n > 0 {
			p.Name = fmt.Sprintf("meshvakt-%d", n)
		}
	}
	return p
}

// openHole returns the first hole that a guard minds and no exception covers.
func openHole(c *facts.Cluster, name string, now time.Time, restoring bool) (hole, bool) {
	ns := c.Namespaces[name]
	if ns == nil || ns.Terminating {
		return hole{}, false
	}
	for _, h := range holes(c, ns) {
		for i := range c.Guards {
			g := &c.Guards[i]
			if g.StrictMTLS != nil && c.Selects(g, name, ns.Labels) && (!restoring || restores(g)) && excuse(c, g, ns, h, now) == nil {
				return h, true
			}
		}
	}
	return hole{}, false
}

// ExcusedBy returns the exception by which a namespace that is not STRICT stands under the
// guard: each of its holes has one that speaks for it, and that of the first is returned.
// It is nil where one has none.
func ExcusedBy(c *facts.Cluster, g *facts.Guard, name string, now time.Time) *facts.Exception {
	ns := c.Namespaces[name]
	if ns == nil || len(ns.Exceptions) == 0 {
		return nil
	}
	var first *facts.Exception
	for _, h := range holes(c, ns) {
		e := excuse(c, g, ns, h, now)
		if e == nil {
			return nil
		}
		if first == nil {
			first = e
		}
	}
	return first
}

// excuse is the exception that speaks for the hole: one for the namespace, or for all pods
// that lead into it.
func excuse(c *facts.Cluster, g *facts.Guard, ns *facts.Namespace, h hole, now time.Time) *facts.Exception {
	of := facts.Review{Cluster: *c, Now: now}
	if h.selector == nil {
		of.Kind, of.Name = corev1.SchemeGroupVersion.WithKind("Namespace"), ns.Name
		of.Object = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels}}
	} else {
		of.Kind, of.Namespace = schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "PeerAuthentication"}, ns.Name
		of.Object = &mesh.PeerAuthentication{Namespace: ns.Name, Selector: h.selector}
	}
	for _, r := range []Reason{reasonNamespaceNotStrict(), reasonWorkloadNotStrict(), reasonPolicyWeakensMTLS()} {
		if e := of.Excepting(g, "strict-mtls", r.Name); e != nil {
			return e
		}
	}
	return nil
}
