package observe

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// What a record of a row has room for.
const (
	maxGuards = 8
	maxWeak   = 16
	maxInputs = 12
)

const unknown = "UNKNOWN"

// standing is how one guarded namespace stands, with names that are not pseudonyms yet: those are of a shard, and the
// same standing may be told in several. What it points to belongs to the caches and is never written to.
type standing struct {
	namespace, uid string
	guards         []string // sorted
	mode, least    string
	weak           []weak // sorted
	unexcused      string
	excused        []excuse // sorted
	outside        uint64
	inputs         []cluster.Input
}

// weak is a place where less holds than in the namespace at large.
type weak struct {
	policy *mesh.PeerAuthentication
	port   uint32
	mode   mesh.Mode
}

// standingOf returns nil for a namespace that no guard selects, or that is not there.
func standingOf(v *cluster.View, outside func(namespace string, ambient bool) uint64) *standing {
	if v.Namespace == nil {
		return nil
	}
	name := v.Namespace.Name
	s := &standing{namespace: name, uid: v.UID, mode: unknown, least: unknown, unexcused: unknown, inputs: v.Inputs}
	for i := range v.Guards {
		if g := &v.Guards[i]; v.Selects(g, name, v.Namespace.Labels) {
			s.guards = append(s.guards, g.Name)
		}
	}
	if len(s.guards) == 0 {
		return nil
	}
	slices.Sort(s.guards)
	ambient := v.Namespace.Labels["istio.io/dataplane-mode"] == "ambient"
	s.outside = outside(name, ambient)
	slices.SortFunc(s.inputs, compareInputs)
	if v.Err != nil || len(v.ControlPlanes) == 0 {
		return s
	}
	classes := classesOf(&v.Cluster, v.Namespace, ambient)
	mode, least := mesh.ModeStrict, mesh.ModeStrict
	for _, c := range classes {
		if c.Selector == nil {
			mode = min(mode, c.Effective.Mode)
		}
		weakest, _ := c.Effective.Weakest()
		least = min(least, weakest)
	}
	s.mode, s.least, s.weak = mode.String(), least.String(), weakerThan(mode, classes)
	excused, unexcused := excuses(classes, v.Namespace.Exceptions)
	s.excused, s.unexcused = excused, unexcused.String()
	return s
}

// classesOf are the workloads that policies can tell apart, as each control plane and data plane sees them. Which of
// several serves a pod is not asked: the weakest counts.
func classesOf(c *facts.Cluster, ns *facts.Namespace, ambient bool) []mesh.Class {
	planes := []mesh.Dataplane{mesh.Sidecar}
	if ambient {
		planes = append(planes, mesh.Ambient) // pods with a sidecar are still served by it
	}
	var classes []mesh.Class
	for _, cp := range c.ControlPlanes {
		read := slices.Clone(readBy(cp, ns))
		if root := c.Namespaces[cp.RootNamespace]; root != nil && root.Name != ns.Name {
			read = append(read, readBy(cp, root)...)
		}
		for _, plane := range planes {
			classes = append(classes, cp.Classes(ns.Name, plane, read)...)
		}
	}
	return classes
}

// readBy keeps policies that are being deleted: until they are gone, Istio applies them.
func readBy(cp mesh.ControlPlane, ns *facts.Namespace) []*mesh.PeerAuthentication {
	var read []*mesh.PeerAuthentication
	for _, p := range ns.PeerAuthentications {
		if cp.Reads(p, ns.Labels) {
			read = append(read, p)
		}
	}
	return read
}

// weakerThan lists the policies by which some workload or port takes more than mode lets in.
func weakerThan(mode mesh.Mode, classes []mesh.Class) []weak {
	type place struct {
		policy string
		port   uint32
	}
	found := map[place]weak{}
	note := func(e *mesh.Effective, port uint32, m mesh.Mode) {
		policy := e.Decider(port)
		if policy == nil {
			policy = e.Workload // which has kept those out that would have decided
		}
		if m >= mode || policy == nil {
			return
		}
		at := place{policy.Key(), port}
		if was, ok := found[at]; !ok || m < was.mode {
			found[at] = weak{policy, port, m}
		}
	}
	for i := range classes {
		e := &classes[i].Effective
		note(e, 0, e.Mode)
		for port, m := range e.Ports {
			note(e, port, m)
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b weak) int {
		return cmp.Or(cmp.Compare(a.policy.Key(), b.policy.Key()), cmp.Compare(a.port, b.port))
	})
}

// compareInputs is an order by which two standings can be compared.
func compareInputs(a, b cluster.Input) int {
	return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.ResourceVersion, b.ResourceVersion))
}

// same reports whether two standings make the same row.
func (s *standing) same(o *standing) bool {
	return s.namespace == o.namespace && s.uid == o.uid && s.mode == o.mode && s.least == o.least && s.outside == o.outside &&
		s.unexcused == o.unexcused && slices.EqualFunc(s.excused, o.excused, func(a, b excuse) bool { return compareExcuses(a, b) == 0 }) &&
		slices.Equal(s.guards, o.guards) &&
		slices.EqualFunc(s.weak, o.weak, func(a, b weak) bool {
			return a.policy.Key() == b.policy.Key() && a.port == b.port && a.mode == b.mode
		}) &&
		slices.EqualFunc(s.inputs, o.inputs, func(a, b cluster.Input) bool { return compareInputs(a, b) == 0 })
}

// writer makes rows of standings, with the pseudonyms of one shard. Objects that many namespaces share are looked at
// once.
type writer struct {
	pseudonyms record.Pseudonymiser
	inputs     map[any]record.Input
}

func newWriter(p record.Pseudonymiser) *writer { return &writer{p, map[any]record.Input{}} }

// row is the record of a standing.
func (w *writer) row(s *standing) (record.Row, error) {
	r := record.Row{
		Namespace: s.namespace, UID: s.uid, Mode: s.mode, Least: s.least, Outside: s.outside,
		Guards: s.guards[:min(len(s.guards), maxGuards)], GuardsN: uint64(len(s.guards)),
		WeakN: uint64(len(s.weak)), Unexcused: s.unexcused, Excused: excused(s.excused), InputsN: uint64(len(s.inputs)),
		// No policies of authorization are watched.
		Authorization: "unknown",
	}
	for _, at := range s.weak {
		ref := canonical.Reference(at.policy)
		r.Weak = append(r.Weak, record.Weak{Policy: w.pseudonyms.Object(ref.GVK, ref.Namespace, ref.Name), Port: uint64(at.port), Mode: at.mode.String()})
	}
	slices.SortFunc(r.Weak, func(a, b record.Weak) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Port, b.Port))
	})
	r.Weak = r.Weak[:min(len(r.Weak), maxWeak)]
	inputs := make([]record.Input, 0, len(s.inputs))
	for i := range s.inputs {
		in, err := w.input(&s.inputs[i])
		if err != nil {
			return record.Row{}, fmt.Errorf("row of namespace %q: %w", s.namespace, err)
		}
		inputs = append(inputs, in)
	}
	slices.SortFunc(inputs, func(a, b record.Input) int {
		return cmp.Or(cmp.Compare(a.Object.GVK, b.Object.GVK), cmp.Compare(a.Object.Namespace, b.Object.Namespace),
			cmp.Compare(a.Object.Name, b.Object.Name), cmp.Compare(a.Object.UID, b.Object.UID))
	})
	var err error
	if r.InputsHash, err = record.HashInputs(inputs); err != nil {
		return record.Row{}, fmt.Errorf("row of namespace %q: %w", s.namespace, err)
	}
	r.Inputs = inputs[:min(len(inputs), maxInputs)]
	return r, nil
}

func (w *writer) input(in *cluster.Input) (record.Input, error) {
	if known, ok := w.inputs[in.Object]; ok {
		return known, nil
	}
	var ref canonical.Ref
	switch o := in.Object.(type) {
	case *facts.Namespace: // which does not know its own
		ref = canonical.Ref{GVK: "v1/Namespace", Namespace: o.Name, Name: o.Name}
	case *mesh.PeerAuthentication, *corev1.ConfigMap:
		ref = canonical.Reference(o)
	default:
		return record.Input{}, fmt.Errorf("no reference to a %T is known", o)
	}
	form, err := canonical.Of(in.Object)
	if err != nil {
		return record.Input{}, err
	}
	made := record.Input{
		ResourceVersion: in.ResourceVersion,
		Object: record.Object{
			GVK: ref.GVK, Namespace: ref.Namespace, Name: w.pseudonyms.Object(ref.GVK, ref.Namespace, ref.Name),
			UID: in.UID, Generation: ref.Generation, Digest: w.pseudonyms.Digest(form),
		},
	}
	w.inputs[in.Object] = made
	return made, nil
}
