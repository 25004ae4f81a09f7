package mesh_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/mesh"
)

// The classes must tell the truth about every label set a pod could carry: each class is an outcome some label
// set has, and each label set's outcome is a class.
func TestClassesAgainstEveryLabelSet(t *testing.T) {
	const seed, cases = 20260827, 20_000
	r := rand.New(rand.NewPCG(seed, 0))
	c := mesh.DefaultControlPlane()
	strictNamespaces := 0
	for i := range cases {
		policies := randomPolicies(r, 8)
		namespace := namespaces[r.IntN(2)]
		brute := map[string]bool{}
		allStrict := true
		for _, labels := range everyLabelSet() {
			e := c.Resolve(mesh.Workload{Namespace: namespace, Labels: labels}, policies)
			brute[outcome(e)] = true
			for _, port := range append([]uint32{0}, somePorts...) {
				allStrict = allStrict && e.Port(port) == strict
			}
		}
		classes := map[string]bool{}
		classesStrict := true
		for _, class := range c.Classes(namespace, mesh.Sidecar, policies) {
			if classes[outcome(class.Effective)] {
				t.Fatalf("seed %d, case %d: the class of %s comes twice\n%s", seed, i, key(class.Effective.Workload), dump(policies))
			}
			classes[outcome(class.Effective)] = true
			classesStrict = classesStrict && class.Effective.Strict()
		}
		if !reflect.DeepEqual(classes, brute) || classesStrict != allStrict {
			t.Fatalf("seed %d, case %d, namespace %s: classes %v (strict %v), label sets %v (strict %v)\n%s",
				seed, i, namespace, classes, classesStrict, brute, allStrict, dump(policies))
		}
		if allStrict {
			strictNamespaces++
		}
	}
	if strictNamespaces < cases/100 || strictNamespaces > cases*9/10 {
		t.Errorf("%d of %d namespaces are strict: the generator does not test both verdicts", strictNamespaces, cases)
	}
}

func outcome(e mesh.Effective) string {
	return fmt.Sprint(e.Mode, e.Ports, key(e.Mesh), key(e.NamespaceWide), key(e.Workload))
}

// In ambient, ties have several outcomes: Resolve must be at least as weak as each of them, and a namespace all
// of whose classes are strict must resolve to STRICT for every label set.
func TestAmbientClassesAgainstEveryLabelSet(t *testing.T) {
	const seed, cases = 20260828, 10_000
	r := rand.New(rand.NewPCG(seed, 0))
	c := mesh.DefaultControlPlane()
	strictNamespaces := 0
	for i := range cases {
		policies := randomPolicies(r, 6)
		namespace := namespaces[r.IntN(2)]
		allStrict := true
		for _, labels := range everyLabelSet() {
			e := c.Resolve(mesh.Workload{Namespace: namespace, Labels: labels, Dataplane: mesh.Ambient}, policies)
			allStrict = allStrict && e.Strict()
		}
		classesStrict := true
		for _, class := range c.Classes(namespace, mesh.Ambient, policies) {
			e := class.Effective
			classesStrict = classesStrict && e.Strict()
			worst := c.Resolve(mesh.Workload{Namespace: namespace, Labels: class.Selector, Dataplane: mesh.Ambient}, policies)
			for _, port := range append([]uint32{0}, somePorts...) {
				if worst.Port(port) > e.Port(port) {
					t.Fatalf("seed %d, case %d: Resolve says %v for port %d of %v, a class says %v\n%s",
						seed, i, worst.Port(port), port, class.Selector, e.Port(port), dump(policies))
				}
			}
		}
		if classesStrict != allStrict {
			t.Fatalf("seed %d, case %d, namespace %s: classes strict %v, label sets strict %v\n%s", seed, i, namespace, classesStrict, allStrict, dump(policies))
		}
		if allStrict {
			strictNamespaces++
		}
	}
	if strictNamespaces < cases/100 {
		t.Errorf("%d of %d namespaces are strict: the generator does not test both verdicts", strictNamespaces, cases)
	}
}

// A policy is shadowed exactly when it wins for no label set.
func TestShadowedAgainstEveryLabelSet(t *testing.T) {
	const seed, cases = 20260829, 20_000
	r := rand.New(rand.NewPCG(seed, 0))
	c := mesh.DefaultControlPlane()
	for i := range cases {
		policies := randomPolicies(r, 8)
		if len(policies) > 1 && r.IntN(4) == 0 {
			policies[r.IntN(len(policies))].Created = time.Time{}
			policies[r.IntN(len(policies))].Created = time.Time{}
		}
		wins := map[*mesh.PeerAuthentication]bool{}
		for _, namespace := range namespaces {
			for _, labels := range everyLabelSet() {
				e := c.Resolve(mesh.Workload{Namespace: namespace, Labels: labels}, policies)
				wins[e.Mesh], wins[e.NamespaceWide], wins[e.Workload] = true, true, true
			}
		}
		for _, p := range policies {
			by, ok := c.Shadowed(p, policies)
			if ok != (c.ScopeOf(p) != mesh.ScopeNone) || (ok && by == nil) != wins[p] {
				t.Fatalf("seed %d, case %d: Shadowed(%s) = %q, %v; wins %v\n%s", seed, i, p.Key(), key(by), ok, wins[p], dump(policies))
			}
			if by != nil {
				e := c.Resolve(mesh.Workload{Namespace: p.Namespace, Labels: p.Selector}, policies)
				if by != e.Mesh && by != e.NamespaceWide && by != e.Workload {
					t.Fatalf("seed %d, case %d: %s is shadowed by %s, which does not win\n%s", seed, i, p.Key(), by.Key(), dump(policies))
				}
			}
		}
	}
}

func TestShadowedNewcomer(t *testing.T) {
	c := mesh.DefaultControlPlane()
	old := pa("foo/z", 1, unset)
	next := pa("foo/a", 0, strict)
	next.Created = time.Time{}
	if by, ok := c.Shadowed(next, []*mesh.PeerAuthentication{old}); by != old || !ok {
		t.Errorf("newcomer: %q, %v", key(by), ok)
	}
	earlier := pa("foo/a", 0, permissive) // the same object before an update
	if by, ok := c.Shadowed(next, []*mesh.PeerAuthentication{earlier}); by != nil || !ok {
		t.Errorf("own earlier state: %q, %v", key(by), ok)
	}
	if by, ok := c.Shadowed(sel(pa("istio-system/w", 1, strict), "a"), nil); by != nil || ok {
		t.Errorf("root policy with selector: %q, %v", key(by), ok)
	}
}

// The verdicts do not depend on the order of the input, and the input comes back unchanged.
func TestOrderAndInputUnchanged(t *testing.T) {
	const seed, cases = 20260830, 3000
	r := rand.New(rand.NewPCG(seed, 0))
	c := mesh.DefaultControlPlane()
	for i := range cases {
		policies := randomPolicies(r, 8)
		before := dump(policies)
		labels := everyLabelSet()[r.IntN(18)]
		for _, dp := range []mesh.Dataplane{mesh.Sidecar, mesh.Ambient} {
			w := mesh.Workload{Namespace: namespaces[r.IntN(3)], Labels: labels, Dataplane: dp}
			want, classes := c.Resolve(w, policies), c.Classes(w.Namespace, dp, policies)
			for range 5 {
				shuffled := slices.Clone(policies)
				r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
				if got := c.Resolve(w, shuffled); !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d, case %d: %+v, shuffled %+v\n%s", seed, i, want, got, before)
				}
				if got := c.Classes(w.Namespace, dp, shuffled); !reflect.DeepEqual(got, classes) {
					t.Fatalf("seed %d, case %d: classes differ when shuffled\n%s", seed, i, before)
				}
			}
		}
		if after := dump(policies); after != before {
			t.Fatalf("seed %d, case %d: input changed from\n%s\nto\n%s", seed, i, before, after)
		}
	}
}

func dump(policies []*mesh.PeerAuthentication) string {
	s := ""
	for _, p := range policies {
		s += fmt.Sprintf("%s created %d selector %v %v mode %v ports %v\n", p.Key(), p.Created.Unix(), p.SelectorSet, p.Selector, p.Mode, p.Ports)
	}
	return s
}
