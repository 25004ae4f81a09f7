package policies_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/mesh"
	"github.com/meshvakt/meshvakt/policies"
	"github.com/meshvakt/meshvakt/policies/facts"
)

// TestNamespaceChangesAgainstBruteForce relabels random namespaces: into and out of
// the guard, Istio's discovery and the ambient data plane. A change is refused
// exactly when it unguards without the right, guards what is not STRICT, or makes
// some port of some pod in a guarded namespace worse.
func TestNamespaceChangesAgainstBruteForce(t *testing.T) {
	t.Parallel()
	const changes = 20_000
	random := rand.New(rand.NewPCG(20260102, 7))
	seen := map[policies.Outcome]int{}
	for i := range changes {
		w := newWorld(random)
		r := w.relabel()
		want := w.refusesRelabelling(r)
		d, err := policies.Evaluate(policies.All(), r)
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		if got := d.Outcome == policies.Deny; got != (want != "") {
			t.Fatalf("change %d: denied %v, must be for %q\n%s\nfindings: %v", i, got, want, describe(r), texts(&d))
		}
		seen[d.Outcome]++
	}
	for _, outcome := range []policies.Outcome{policies.Allow, policies.Warn, policies.Deny} {
		if seen[outcome] < changes/20 {
			t.Errorf("%s: only %d of %d changes", outcome, seen[outcome], changes)
		}
	}
	t.Log(seen)
}

// relabel makes a random update of a namespace's labels.
func (w *world) relabel() *facts.Review {
	names := []string{"prod", "stage", "dev", "istio-system", "mesh-b"}
	was := w.cluster.Namespaces[names[w.IntN(len(names))]]
	toggled := maps.Clone(was.Labels)
	for _, label := range [][2]string{
		{v1alpha1.GuardedLabel, v1alpha1.GuardedValue}, {"mesh", "joined"}, {"istio.io/dataplane-mode", "ambient"},
	} {
		if w.IntN(2) == 0 {
			continue
		}
		if _, has := toggled[label[0]]; has {
			delete(toggled, label[0])
		} else {
			toggled[label[0]] = label[1]
		}
	}
	next := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: was.Name, Labels: toggled}}
	old := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: was.Name, Labels: was.Labels}}
	if was.Terminating {
		old.DeletionTimestamp = &metav1.Time{}
		next.DeletionTimestamp = old.DeletionTimestamp
	}
	r := &facts.Review{
		Kind: schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}, Name: was.Name,
		Operation: admissionv1.Update, Object: next, OldObject: old, Cluster: w.cluster,
	}
	if w.IntN(2) == 0 {
		r.MayUnguard = map[string]bool{v1alpha1.DefaultGuardName: true}
	}
	return r
}

// refusesRelabelling says why the change must be refused, "" if it must not.
func (w *world) refusesRelabelling(r *facts.Review) string {
	old, _ := r.OldObject.(*corev1.Namespace)
	next, _ := r.Object.(*corev1.Namespace)
	if next.DeletionTimestamp != nil {
		return ""
	}
	after := &world{Rand: w.Rand, cluster: w.cluster}
	after.cluster.Namespaces = maps.Clone(w.cluster.Namespaces)
	changed := *w.cluster.Namespaces[next.Name]
	changed.Labels = next.Labels
	after.cluster.Namespaces[next.Name] = &changed

	guarded := next.Labels[v1alpha1.GuardedLabel] == v1alpha1.GuardedValue
	wasGuarded := old.Labels[v1alpha1.GuardedLabel] == v1alpha1.GuardedValue
	if wasGuarded && !guarded && !r.MayUnguard[v1alpha1.DefaultGuardName] {
		return "unguarded"
	}
	root := slices.ContainsFunc(w.cluster.ControlPlanes, func(cp mesh.ControlPlane) bool { return cp.RootNamespace == next.Name })
	for name, ns := range after.cluster.Namespaces {
		if ns.Terminating || ns.Labels[v1alpha1.GuardedLabel] != v1alpha1.GuardedValue || name != next.Name && !root {
			continue
		}
		worse, open := compareStates(w, after, name)
		if name == next.Name && !wasGuarded {
			if open {
				return name + " is guarded and not STRICT"
			}
			continue
		}
		if worse != "" {
			return name + " " + worse
		}
	}
	return ""
}

// compareStates resolves every pod of a namespace in two states of the cluster.
func compareStates(before, after *world, name string) (worse string, open bool) {
	for _, cp := range after.cluster.ControlPlanes {
		for _, settled := range []bool{false, true} {
			was, is := before.read(cp, name, settled, nil, nil), after.read(cp, name, settled, nil, nil)
			for _, dp := range dataplanes(after.cluster.Namespaces[name]) {
				former := dp
				if len(dataplanes(before.cluster.Namespaces[name])) == 1 {
					former = mesh.Sidecar // before it turned ambient
				}
				w, o := compareDataplanes(cp, former, dp, name, was, is)
				if w != "" {
					worse = w
				}
				open = open || o
			}
		}
	}
	return worse, open
}
