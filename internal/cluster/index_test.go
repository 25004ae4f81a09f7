package cluster

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies/facts"
)

func strictPolicy(namespace, name string) *mesh.PeerAuthentication {
	return &mesh.PeerAuthentication{Namespace: namespace, Name: name, Mode: mesh.ModeStrict}
}

func defaultGuards(t testing.TB) []facts.Guard {
	t.Helper()
	g, err := facts.NewGuard(v1alpha1.DefaultGuard())
	if err != nil {
		t.Fatal(err)
	}
	g.MeshMembership, g.SidecarResources, g.NodePools = nil, nil, nil // of strict-mtls alone
	return []facts.Guard{g}
}

// setNamespace is what a watch tells of a namespace.
func (x *index) setNamespace(name string, labels map[string]string, terminating bool, version string) {
	m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, ResourceVersion: version}}
	if terminating {
		m.DeletionTimestamp = &metav1.Time{Time: time.Unix(1e9, 0)}
	}
	x.meetNamespace(m)
}

// setPlane is what a watch tells of the settings of a control plane.
func (x *index) setPlane(configMap string, plane mesh.ControlPlane, err error) {
	x.meetPlane(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: configMap, ResourceVersion: "1"}}, plane, err)
}

func guardedLabels() map[string]string {
	return map[string]string{v1alpha1.GuardedLabel: v1alpha1.GuardedValue}
}

// state is what the index tells, in plain values that can be compared.
func state(t testing.TB, x *index) map[string]string {
	t.Helper()
	c, err := x.all()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"guards": fmt.Sprint(len(c.Guards)), "planes": fmt.Sprint(c.ControlPlanes)}
	for name, ns := range c.Namespaces {
		out[name] = describe(ns)
	}
	return out
}

func describe(ns *facts.Namespace) string {
	s := fmt.Sprintf("%s %v %t:", ns.Name, ns.Labels, ns.Terminating)
	for _, p := range ns.PeerAuthentications {
		s += fmt.Sprintf(" %s=%s", p.Key(), p.Mode)
	}
	return s
}

// Informers of different kinds run side by side, so that the order of events
// across kinds and objects means nothing.
func TestIndexDoesNotDependOnTheOrderOfEvents(t *testing.T) {
	// The events of one object keep their order.
	objects := [][]func(*index){
		{
			func(x *index) { x.setNamespace("prod", nil, false, "1") },
			func(x *index) { x.setNamespace("prod", guardedLabels(), false, "5") },
		},
		{func(x *index) { x.setNamespace("istio-system", nil, false, "2") }},
		{
			func(x *index) { x.setNamespace("gone", nil, false, "3") },
			func(x *index) { x.removeNamespace("gone") },
		},
		{
			func(x *index) { x.setPolicy(strictPolicy("gone", "default"), "4") },
			func(x *index) { x.removePolicy("gone", "default") },
		},
		{func(x *index) { x.setPolicy(strictPolicy("prod", "b"), "6") }},
		{
			func(x *index) {
				x.setPolicy(&mesh.PeerAuthentication{Namespace: "prod", Name: "a", Mode: mesh.ModeDisable}, "7")
			},
			func(x *index) { x.setPolicy(strictPolicy("prod", "a"), "8") },
		},
		{
			func(x *index) { x.setPolicy(strictPolicy("prod", "c"), "9") },
			func(x *index) { x.removePolicy("prod", "c") },
		},
		{func(x *index) { x.setPolicy(strictPolicy("istio-system", "default"), "10") }},
		{func(x *index) { x.setPlane("istio", mesh.DefaultControlPlane(), nil) }},
		{func(x *index) {
			x.setPlane("istio-canary", mesh.ControlPlane{Revision: "canary", RootNamespace: "istio-system"}, nil)
		}},
	}
	var want map[string]string
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		x, left := newIndex(), slices.Clone(objects)
		for len(left) > 0 {
			i := random.IntN(len(left))
			left[i][0](x)
			if left[i] = left[i][1:]; len(left[i]) == 0 {
				left = slices.Delete(left, i, i+1)
			}
		}
		got := state(t, x)
		if want == nil {
			want = got
			if want["prod"] != "prod map[meshvakt.io/guarded:true] false: prod/a=STRICT prod/b=STRICT" {
				t.Fatalf("prod is %q", want["prod"])
			}
			if _, there := want["gone"]; there || len(x.namespaces) != 2 {
				t.Fatalf("what is gone is still there: %v", x.namespaces)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("order %d: got %v\nwant %v", seed, got, want)
		}
	}
}

// Readers hold no lock, so what they were given must stay as it was.
func TestIndexReplacesWhatItHandedOut(t *testing.T) {
	for name, change := range map[string]func(*index){
		"a policy is added":       func(x *index) { x.setPolicy(strictPolicy("prod", "z"), "20") },
		"a policy is replaced":    func(x *index) { x.setPolicy(&mesh.PeerAuthentication{Namespace: "prod", Name: "default"}, "20") },
		"a policy is removed":     func(x *index) { x.removePolicy("prod", "default") },
		"labels change":           func(x *index) { x.setNamespace("prod", map[string]string{"a": "b"}, false, "20") },
		"the namespace goes away": func(x *index) { x.setNamespace("prod", guardedLabels(), true, "20") },
		"the namespace is gone":   func(x *index) { x.removeNamespace("prod") },
		"the cache is verified":   func(x *index) { x.verify("prod", 20) },
		"guards change":           func(x *index) { x.setGuards(nil, 20) },
		"a control plane comes": func(x *index) {
			x.setPlane("istio-b", mesh.ControlPlane{Revision: "b", RootNamespace: "mesh-b"}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			x.setGuards(defaultGuards(t), 1)
			x.setNamespace("prod", guardedLabels(), false, "2")
			x.setPolicy(strictPolicy("prod", "default"), "3")
			part, e, _, err := x.around("prod")
			if err != nil {
				t.Fatal(err)
			}
			whole, err := x.all()
			if err != nil {
				t.Fatal(err)
			}
			tell := func() string {
				return fmt.Sprint(len(part.Guards), len(part.ControlPlanes), describe(part.Namespaces["prod"]), e.exists, e.verified, e.labelled,
					len(e.policies), e.policies[0].version, len(whole.Guards), len(whole.ControlPlanes), describe(whole.Namespaces["prod"]))
			}
			before := tell()
			change(x)
			if after := tell(); after != before {
				t.Errorf("a snapshot changed under its reader:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}

func TestIndexAround(t *testing.T) {
	x := newIndex()
	x.setGuards(defaultGuards(t), 7)
	x.setNamespace("istio-system", nil, false, "3")
	x.setNamespace("other", nil, false, "100")
	x.setNamespace("prod", guardedLabels(), false, "5")

	c, e, newest, err := x.around("prod")
	if err != nil || e == nil || newest != 7 {
		t.Errorf("entry %v, newest %d, error %v; want the revision of the guard", e, newest, err)
	}
	if got := slices.Sorted(maps.Keys(c.Namespaces)); !slices.Equal(got, []string{"istio-system", "prod"}) {
		t.Errorf("namespaces %q; want prod and the root namespace", got)
	}
	x.setNamespace("prod", map[string]string{"team": "blue"}, false, "9")
	if _, _, newest, _ = x.around("prod"); newest != 9 {
		t.Errorf("newest %d after the labels changed; want 9", newest)
	}
	x.setNamespace("prod", map[string]string{"team": "blue"}, false, "11")
	if _, _, newest, _ = x.around("prod"); newest != 9 {
		t.Errorf("newest %d after something else changed; want 9 still", newest)
	}
	if _, e, newest, _ := x.around("unknown"); e != nil || newest != 7 {
		t.Errorf("unknown namespace: entry %v, newest %d", e, newest)
	}
	x.setPolicy(strictPolicy("early", "default"), "12")
	if c, e, _, _ := x.around("early"); e != nil || c.Namespaces["early"] != nil {
		t.Error("a namespace exists because a policy in it was heard of")
	}
	x.setNamespace("early", nil, false, "13")
	if c, e, _, _ := x.around("early"); e == nil || len(c.Namespaces["early"].PeerAuthentications) != 1 {
		t.Error("the policy that was heard of before its namespace is lost")
	}
	// With discovery selectors the labels of the root namespace matter as well.
	x.setNamespace("istio-system", map[string]string{"mesh": "joined"}, false, "40")
	if _, _, newest, _ := x.around("prod"); newest != 9 {
		t.Errorf("newest %d; the labels of the root namespace mean nothing without discovery selectors", newest)
	}
	plane, err := mesh.ParseControlPlane("istio", nil, map[string]string{"mesh": "discoverySelectors: [{matchLabels: {mesh: joined}}]"})
	if err != nil {
		t.Fatal(err)
	}
	x.setPlane("istio", plane, nil)
	if _, _, newest, _ := x.around("prod"); newest != 40 {
		t.Errorf("newest %d; want the revision of the root namespace's labels", newest)
	}
}

// A namespace that was deleted and created again is another one.
func TestIndexNamespaceComesBack(t *testing.T) {
	x := newIndex()
	x.setNamespace("prod", guardedLabels(), false, "5")
	x.setPolicy(strictPolicy("prod", "default"), "6")
	x.verify("prod", 5)
	x.removeNamespace("prod")
	x.setNamespace("prod", guardedLabels(), false, "9")
	_, e, newest, err := x.around("prod")
	if err != nil || newest != 9 || e.verified >= newest {
		t.Errorf("newest %d, verified %d, %v; the new namespace is not verified", newest, e.verified, err)
	}
}

func TestIndexHolds(t *testing.T) {
	x := newIndex()
	x.setNamespace("prod", nil, false, "1")
	x.setPolicy(strictPolicy("prod", "a"), "2")
	x.setPolicy(strictPolicy("prod", "b"), "3")
	for name, c := range map[string]struct {
		namespace string
		versions  map[string]string
		want      bool
	}{
		"exactly these":                     {"prod", map[string]string{"a": "2", "b": "3"}, true},
		"one in another version":            {"prod", map[string]string{"a": "2", "b": "4"}, false},
		"one less":                          {"prod", map[string]string{"a": "2"}, false},
		"one more":                          {"prod", map[string]string{"a": "2", "b": "3", "c": "4"}, false},
		"one of another name":               {"prod", map[string]string{"a": "2", "c": "3"}, false},
		"nothing where something is":        {"prod", nil, false},
		"nothing in an unknown namespace":   {"unknown", nil, true},
		"something in an unknown namespace": {"unknown", map[string]string{"a": "1"}, false},
	} {
		if got := x.holds(c.namespace, c.versions); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestIndexVerify(t *testing.T) {
	x := newIndex()
	x.verify("unknown", 5)
	if len(x.namespaces) != 0 {
		t.Error("verifying an unknown namespace makes it known")
	}
	x.setNamespace("prod", nil, false, "1")
	x.verify("prod", 5)
	x.verify("prod", 3) // a slow read comes late
	if _, e, _, _ := x.around("prod"); e.verified != 5 {
		t.Errorf("verified %d; must not go back from 5", e.verified)
	}
}

func TestIndexGuards(t *testing.T) {
	x := newIndex()
	x.setGuards([]facts.Guard{{Name: "b"}, {Name: "a"}}, 7)
	x.setGuards([]facts.Guard{{Name: "c"}, {Name: "a"}}, 5)
	c, _, newest, err := x.around("x")
	if err != nil || newest != 7 || len(c.Guards) != 2 || c.Guards[0].Name != "a" || c.Guards[1].Name != "c" {
		t.Errorf("guards %v, newest %d, %v", c.Guards, newest, err)
	}
}

func TestIndexControlPlanes(t *testing.T) {
	broken := errors.New("broken")
	a := mesh.ControlPlane{Revision: "a", RootNamespace: "root-a"}
	b := mesh.ControlPlane{Revision: "b", RootNamespace: "root-b"}
	for name, c := range map[string]struct {
		events func(*index)
		want   []mesh.ControlPlane
		err    error
	}{
		"without a trace of Istio its defaults hold": {func(*index) {}, []mesh.ControlPlane{mesh.DefaultControlPlane()}, nil},
		"all are there, sorted by ConfigMap": {
			func(x *index) { x.setPlane("istio-b", b, nil); x.setPlane("istio", a, nil) }, []mesh.ControlPlane{a, b}, nil,
		},
		"the newest settings hold": {
			func(x *index) { x.setPlane("istio", a, nil); x.setPlane("istio", b, nil) }, []mesh.ControlPlane{b}, nil,
		},
		"unreadable settings leave the last good ones": {
			func(x *index) {
				x.setPlane("istio", a, nil)
				x.setPlane("istio", mesh.ControlPlane{}, broken)
			}, []mesh.ControlPlane{a}, nil,
		},
		"settings that were never readable are an error": {
			func(x *index) {
				x.setPlane("istio-b", b, nil)
				x.setPlane("istio", mesh.ControlPlane{}, broken)
			}, nil, broken,
		},
		"mended settings hold": {
			func(x *index) {
				x.setPlane("istio", mesh.ControlPlane{}, broken)
				x.setPlane("istio", a, nil)
			}, []mesh.ControlPlane{a}, nil,
		},
		"a removed one is forgotten with its good settings": {
			func(x *index) {
				x.setPlane("istio", a, nil)
				x.removePlane("istio", "2")
				x.setPlane("istio", mesh.ControlPlane{}, broken)
			}, nil, broken,
		},
		"removing an unreadable one ends the error": {
			func(x *index) {
				x.setPlane("istio", mesh.ControlPlane{}, broken)
				x.setPlane("istio-b", b, nil)
				x.removePlane("istio", "2")
			}, []mesh.ControlPlane{b}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndex()
			c.events(x)
			whole, err := x.all()
			if !errors.Is(err, c.err) || !reflect.DeepEqual(whole.ControlPlanes, c.want) {
				t.Errorf("all: %v, %v", whole.ControlPlanes, err)
			}
			part, _, _, err := x.around("prod")
			if !errors.Is(err, c.err) || !reflect.DeepEqual(part.ControlPlanes, c.want) {
				t.Errorf("around: %v, %v", part.ControlPlanes, err)
			}
			if names := x.configMaps(); !slices.Contains(names, "istio") || !slices.IsSorted(names) || len(names) != len(slices.Compact(slices.Clone(names))) {
				t.Errorf("ConfigMaps %q; must be sorted, with istio, each once", names)
			}
		})
	}
}

func TestRevision(t *testing.T) {
	for in, want := range map[string]uint64{"": 0, "0": 0, "12": 12, "18446744073709551615": 1<<64 - 1, "-1": 0, "abc": 0, "1.5": 0} {
		if got := revision(in); got != want {
			t.Errorf("%q: %d", in, got)
		}
	}
}
