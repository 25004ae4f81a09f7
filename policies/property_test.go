package policies_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// TestPolicyChangesAgainstBruteForce makes random changes of PeerAuthentications in
// random clusters and compares the decision with the definition: a change is
// refused exactly when some port of some pod that a guarded namespace could hold
// falls below STRICT and below what it was. The definition is computed here over
// all label sets of a small alphabet, by package mesh alone.
func TestPolicyChangesAgainstBruteForce(t *testing.T) {
	t.Parallel()
	const changes = 30_000
	random := rand.New(rand.NewPCG(20260101, 7))
	seen := map[string]int{}
	for i := range changes {
		w := newWorld(random)
		r := w.change()
		want := w.expect(r)
		d, err := policies.Evaluate(policies.All(), r)
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		if got := d.Outcome == policies.Deny; got != (len(want.lost) > 0) {
			t.Fatalf("change %d: denied %v, but these ports get worse: %v\n%s\nfindings: %v", i, got, want.lost, describe(r), texts(&d))
		}
		if d.Outcome == policies.Deny {
			checkNamed(t, r, &d, want)
		} else if warned := has(&d, "StillNotStrict"); warned != want.open {
			t.Fatalf("change %d: warned of an open namespace %v, must be %v\n%s", i, warned, want.open, describe(r))
		}
		seen[string(r.Operation)+" "+string(d.Outcome)]++
		if has(&d, "PolicyHasNoEffect") {
			seen["no effect"]++
		}
	}
	// The test is worth nothing if one kind of answer hardly occurs.
	for _, kind := range []string{
		"CREATE Allow", "CREATE Warn", "CREATE Deny", "UPDATE Allow", "UPDATE Warn", "UPDATE Deny",
		"DELETE Allow", "DELETE Warn", "DELETE Deny", "no effect",
	} {
		if seen[kind] < changes/200 {
			t.Errorf("%s: only %d of %d changes", kind, seen[kind], changes)
		}
	}
	t.Log(seen)
}

// checkNamed demands that the findings name the namespaces that get worse, and
// no other.
func checkNamed(t *testing.T, r *facts.Review, d *policies.Decision, want expected) {
	t.Helper()
	var all strings.Builder
	for _, f := range d.Findings {
		all.WriteString(f.Message + "\n")
	}
	for name := range r.Cluster.Namespaces {
		named := strings.Contains(all.String(), fmt.Sprintf("%q", name))
		if want.lost[name] != "" && !named {
			t.Fatalf("namespace %s gets worse and is not named\n%s\n%s", name, all.String(), describe(r))
		}
	}
}

func has(d *policies.Decision, reason string) bool {
	return slices.ContainsFunc(d.Findings, func(f policies.Ruling) bool { return f.Reason.Name == reason })
}

func texts(d *policies.Decision) []string {
	var out []string
	for _, f := range d.Findings {
		out = append(out, f.Text())
	}
	return out
}

// world is a random cluster, dense in what makes policies collide: few
// namespaces, creation seconds, names and labels.
type world struct {
	*rand.Rand
	cluster facts.Cluster
}

func propertyLabels() []string { return []string{"app", "v"} }

func propertyPorts() []uint32 { return []uint32{80, 8080} }

// propertyValues has one value for v, so that selectors are often nested.
func propertyValues(key string) []string {
	if key == "app" {
		return []string{"a", "b"}
	}
	return []string{"1"}
}

func newWorld(random *rand.Rand) *world {
	w := &world{Rand: random}
	c := &w.cluster
	c.Unguardable = facts.SystemNamespaces()
	c.ControlPlanes = []mesh.ControlPlane{mesh.DefaultControlPlane()}
	if w.IntN(3) == 0 {
		canary := mesh.DefaultControlPlane()
		canary.Revision = "canary"
		if w.IntN(2) == 0 {
			canary.RootNamespace = "mesh-b"
		}
		c.ControlPlanes = append(c.ControlPlanes, canary)
	}
	if w.IntN(6) == 0 {
		joined := labels.SelectorFromSet(labels.Set{"mesh": "joined"})
		c.ControlPlanes[w.IntN(len(c.ControlPlanes))].DiscoverySelectors = []labels.Selector{joined}
	}
	guard, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		panic(err)
	}
	guard.MeshMembership = nil // of strict-mtls alone
	c.Guards = []facts.Guard{guard}
	c.Namespaces = map[string]*facts.Namespace{}
	for _, name := range []string{"prod", "stage", "dev", "istio-system", "mesh-b"} {
		ns := &facts.Namespace{Name: name, Labels: map[string]string{}}
		if name == "prod" || name == "stage" || name == "istio-system" && w.IntN(8) == 0 {
			ns.Labels[v1alpha1.GuardedLabel] = v1alpha1.GuardedValue
		}
		if w.IntN(3) > 0 {
			ns.Labels["mesh"] = "joined"
		}
		if w.IntN(5) == 0 {
			ns.Labels["istio.io/dataplane-mode"] = "ambient"
		}
		ns.Terminating = w.IntN(25) == 0
		c.Namespaces[name] = ns
		for i := range w.IntN(4) {
			p := w.policy(name, fmt.Sprintf("p%d", i))
			p.Created = time.Unix(1_800_000_000+int64(w.IntN(3)), 0)
			p.Terminating = w.IntN(10) == 0
			ns.PeerAuthentications = append(ns.PeerAuthentications, p)
		}
	}
	return w
}

func (w *world) policy(namespace, name string) *mesh.PeerAuthentication {
	p := &mesh.PeerAuthentication{Namespace: namespace, Name: name, Mode: w.mode()}
	if w.IntN(6) == 0 {
		p.HasRevision, p.Revision = true, []string{"default", "canary", "gone"}[w.IntN(3)]
	}
	if w.IntN(3) > 0 {
		p.SelectorSet, p.Selector = true, map[string]string{}
		for _, k := range propertyLabels() {
			if w.IntN(2) == 0 {
				p.Selector[k] = propertyValues(k)[w.IntN(len(propertyValues(k)))]
			}
		}
	}
	if w.IntN(2) == 0 {
		p.Ports = map[uint32]mesh.Mode{}
		for _, port := range propertyPorts() {
			if w.IntN(2) == 0 {
				p.Ports[port] = w.mode()
			}
		}
	}
	return p
}

func (w *world) mode() mesh.Mode {
	return []mesh.Mode{mesh.ModeStrict, mesh.ModeStrict, mesh.ModeStrict, mesh.ModePermissive, mesh.ModeDisable, mesh.ModeUnset}[w.IntN(6)]
}

// change makes a random request to create, update or delete a policy.
func (w *world) change() *facts.Review {
	names := []string{"prod", "prod", "stage", "dev", "istio-system", "istio-system", "mesh-b"}
	ns := w.cluster.Namespaces[names[w.IntN(len(names))]]
	r := &facts.Review{
		Kind:      objects.PeerAuthenticationKind(),
		Namespace: ns.Name,
		Operation: admissionv1.Create,
		Cluster:   w.cluster,
	}
	if n := len(ns.PeerAuthentications); n == 0 || w.IntN(3) == 0 {
		r.Name = "new"
		r.Object = w.policy(ns.Name, r.Name)
		return r
	}
	old := ns.PeerAuthentications[w.IntN(len(ns.PeerAuthentications))]
	r.Name, r.OldObject = old.Name, old
	if w.IntN(2) == 0 {
		r.Operation = admissionv1.Delete
		return r
	}
	r.Operation = admissionv1.Update
	next := w.policy(old.Namespace, old.Name)
	next.Created, next.Terminating = old.Created, old.Terminating
	// Most updates change one thing.
	switch w.IntN(5) {
	case 0:
		next.Selector, next.SelectorSet, next.Ports, next.Revision, next.HasRevision = old.Selector, old.SelectorSet, old.Ports, old.Revision, old.HasRevision
	case 1:
		next.Mode, next.Ports, next.Revision, next.HasRevision = old.Mode, old.Ports, old.Revision, old.HasRevision
	case 2:
		next.Mode, next.Selector, next.SelectorSet, next.Revision, next.HasRevision = old.Mode, old.Selector, old.SelectorSet, old.Revision, old.HasRevision
	case 3:
		next.Mode, next.Selector, next.SelectorSet, next.Ports = old.Mode, old.Selector, old.SelectorSet, old.Ports
	}
	r.Object = next
	return r
}

// expected is what the definition says about a change.
type expected struct {
	lost map[string]string // guarded namespaces that get worse, and where
	open bool              // a namespace that the policy can count for is not STRICT afterwards
}

func (w *world) expect(r *facts.Review) expected {
	out := expected{lost: map[string]string{}}
	if r.Cluster.Namespaces[r.Namespace].Terminating {
		return out // nothing in a namespace that is being deleted is held up
	}
	old, _ := r.OldObject.(*mesh.PeerAuthentication)
	next, _ := r.Object.(*mesh.PeerAuthentication)
	for name, ns := range r.Cluster.Namespaces {
		if ns.Terminating || ns.Labels[v1alpha1.GuardedLabel] != v1alpha1.GuardedValue {
			continue
		}
		root := slices.ContainsFunc(r.Cluster.ControlPlanes, func(cp mesh.ControlPlane) bool { return cp.RootNamespace == r.Namespace })
		if name != r.Namespace && !root {
			continue
		}
		for _, cp := range r.Cluster.ControlPlanes {
			for _, settled := range []bool{false, true} {
				before := w.read(cp, name, settled, nil, nil)
				after := w.read(cp, name, settled, old, next)
				for _, dp := range dataplanes(ns) {
					where, open := compareEverywhere(cp, dp, name, before, after)
					if where != "" && !(next == nil && old.Terminating) {
						out.lost[name] = where
					}
					out.open = out.open || open
				}
			}
		}
	}
	return out
}

func dataplanes(ns *facts.Namespace) []mesh.Dataplane {
	if ns.Labels["istio.io/dataplane-mode"] == "ambient" {
		return []mesh.Dataplane{mesh.Sidecar, mesh.Ambient}
	}
	return []mesh.Dataplane{mesh.Sidecar}
}

// read lists the policies that a control plane reads, with old replaced by next;
// settled is the time when all deletions are done.
func (w *world) read(cp mesh.ControlPlane, name string, settled bool, old, next *mesh.PeerAuthentication) []*mesh.PeerAuthentication {
	var out []*mesh.PeerAuthentication
	take := func(p *mesh.PeerAuthentication) {
		if (p.Namespace == name || p.Namespace == cp.RootNamespace) &&
			cp.Reads(p, w.cluster.Namespaces[p.Namespace].Labels) && !(settled && p.Terminating) {
			out = append(out, p)
		}
	}
	for _, ns := range slices.Sorted(maps.Keys(w.cluster.Namespaces)) {
		for _, p := range w.cluster.Namespaces[ns].PeerAuthentications {
			if p != old {
				take(p)
			}
		}
	}
	if next != nil {
		take(next)
	}
	return out
}

// compareEverywhere resolves every label set and port before and after.
func compareEverywhere(cp mesh.ControlPlane, dp mesh.Dataplane, namespace string, before, after []*mesh.PeerAuthentication) (worse string, open bool) {
	return compareDataplanes(cp, dp, dp, namespace, before, after)
}

// compareDataplanes does so for pods that change their data plane.
func compareDataplanes(cp mesh.ControlPlane, from, to mesh.Dataplane, namespace string, before, after []*mesh.PeerAuthentication) (worse string, open bool) {
	for _, set := range labelSets() {
		was := cp.Resolve(mesh.Workload{Namespace: namespace, Labels: set, Dataplane: from}, before)
		is := cp.Resolve(mesh.Workload{Namespace: namespace, Labels: set, Dataplane: to}, after)
		for _, port := range append(propertyPorts(), 1) { // port 1 stands for those that nobody names
			if is.Port(port) < mesh.ModeStrict {
				open = true
				if is.Port(port) < was.Port(port) {
					worse = fmt.Sprintf("%v:%d %s to %s", set, port, was.Port(port), is.Port(port))
				}
			}
		}
	}
	return worse, open
}

// labelSets lists every label set of the alphabet.
func labelSets() []map[string]string {
	out := []map[string]string{{}}
	for _, k := range propertyLabels() {
		for _, smaller := range slices.Clone(out) {
			for _, v := range propertyValues(k) {
				larger := maps.Clone(smaller)
				larger[k] = v
				out = append(out, larger)
			}
		}
	}
	return out
}

func describe(r *facts.Review) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n  old %+v\n  new %+v\n", r.Operation, r.OldObject, r.Object)
	for _, cp := range r.Cluster.ControlPlanes {
		fmt.Fprintf(&b, "  %+v\n", cp)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Cluster.Namespaces)) {
		ns := r.Cluster.Namespaces[name]
		fmt.Fprintf(&b, "  %s %v terminating %v\n", name, ns.Labels, ns.Terminating)
		for _, p := range ns.PeerAuthentications {
			fmt.Fprintf(&b, "    %+v\n", *p)
		}
	}
	return b.String()
}
