package observe

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/objects"
)

// opened starts with a shard, and lets the first minute pass.
func (s *setting) opened() {
	s.log.open("2026q4")
	s.start()
	s.pass(90 * time.Second)
}

// since are the records behind the first n.
func (s *setting) since(n int) []record.Record { return s.log.told()[n:] }

func prod() []client.Object {
	return []client.Object{defaultGuard(), namespaceNamed("prod"), policyOf("prod", "default", "STRICT"), meshConfig("")}
}

func TestFirstSnapshotAndBeats(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.start()
		s.pass(10 * time.Second)
		if n := len(s.log.told()); n != 0 {
			t.Fatalf("%d records without a shard", n)
		}
		s.log.open("2026q4")
		s.pass(3*time.Minute + 30*time.Second)
		list := s.log.told()
		table := replay(t, list)
		snapshots := of[*record.Snapshot](list)
		if len(snapshots) != 1 || snapshots[0].Why != "boot" || len(snapshots[0].Rows) != 2 {
			t.Fatalf("snapshots %+v; want one of two rows", snapshots)
		}
		beats := of[*record.Beat](list)
		if len(beats) != 4 {
			t.Fatalf("%d beats in three and a half minutes; want 4", len(beats))
		}
		b := beats[3]
		if !b.Enforcing || b.CanaryMillis != 3000 || b.Unsealed != 4 || b.LagMillis != 5000 || b.Counts.In != 3 || b.Clock.MaxErrorMicros != 1500 {
			t.Errorf("beat %+v", b)
		}
		var kinds []string
		for _, w := range b.Watches {
			kinds = append(kinds, w.GVK)
			if !w.Healthy || w.Epoch != 1 {
				t.Errorf("watch %+v; want it open, of the first epoch", w)
			}
		}
		if want := []string{
			"meshvakt.io/v1alpha1/GuardException", "meshvakt.io/v1alpha1/MeshGuard", "security.istio.io/v1/PeerAuthentication",
			"v1/ConfigMap", "v1/Namespace", "v1/Pod",
		}; !slices.Equal(kinds, want) {
			t.Errorf("watches of %q; want %q", kinds, want)
		}
		row := table["prod"]
		if row.Mode != "STRICT" || row.Least != "STRICT" || row.UID != "u--prod" || row.Authorization != "unknown" || len(row.Inputs) != 3 || !slices.Equal(row.Guards, []string{"default"}) {
			t.Errorf("%+v", row)
		}
		if row := table["open"]; row.Mode != "PERMISSIVE" || row.Least != "PERMISSIVE" {
			t.Errorf("%+v", row)
		}
	}, append(prod(), namespaceNamed("open"))...)
}

// TestInputDigests: a decision about the same object has the same digest.
func TestInputDigests(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		p := record.NewPseudonymiser(s.log.key)
		row := replay(t, s.log.told())["prod"]
		for _, in := range row.Inputs {
			if in.Object.GVK != "security.istio.io/v1/PeerAuthentication" {
				continue
			}
			m, err := policyOf("prod", "default", "STRICT").Mesh()
			if err != nil {
				t.Fatal(err)
			}
			form, err := canonical.Of(m)
			if err != nil {
				t.Fatal(err)
			}
			if in.Object.Digest != p.Digest(form) || in.Object.Generation != 1 || in.Object.UID != "u-prod-default" || in.Object.Name != p.Object(in.Object.GVK, "prod", "default") {
				t.Errorf("%+v", in)
			}
			return
		}
		t.Errorf("the policy is no input: %+v", row.Inputs)
	}, prod()...)
}

func TestState(t *testing.T) {
	policy := policyOf("prod", "default", "STRICT")
	for name, c := range map[string]struct {
		change func(s *setting)
		what   string
		want   func(r record.Row) bool
	}{
		"a policy is deleted": {
			func(s *setting) { s.remove(policy) }, "set",
			func(r record.Row) bool { return r.Mode == "PERMISSIVE" && r.Least == "PERMISSIVE" && r.InputsN == 2 },
		},
		"a policy is changed": {
			func(s *setting) { p := policyOf("prod", "default", "DISABLE"); p.Generation = 2; s.set(p) }, "set",
			func(r record.Row) bool { return r.Mode == "DISABLE" && r.Least == "DISABLE" && r.WeakN == 0 },
		},
		"a port is opened for some workloads": {
			func(s *setting) {
				p := policyOf("prod", "legacy", "STRICT")
				p.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "legacy"}}
				p.Spec.PortLevelMTLS = map[string]*objects.MutualTLS{"8080": {Mode: "DISABLE"}, "9090": {Mode: "STRICT"}}
				s.set(p)
			}, "set",
			func(r record.Row) bool {
				return r.Mode == "STRICT" && r.Least == "DISABLE" && r.WeakN == 1 && r.Weak[0].Port == 8080 && r.Weak[0].Mode == "DISABLE"
			},
		},
		"the settings of the mesh cannot be read": {
			func(s *setting) { // from the beginning: what could be read before stays
				s.remove(meshConfig(""))
				s.pass(time.Second)
				s.set(meshConfig("rootNamespace: [1"))
			}, "set",
			func(r record.Row) bool { return r.Mode == "UNKNOWN" && r.Least == "UNKNOWN" },
		},
		"the guard lets go of it": {
			func(s *setting) { ns := namespaceNamed("prod"); ns.Labels = nil; s.set(ns) }, "unguarded",
			func(r record.Row) bool { return r.Mode == "STRICT" },
		},
		"it is gone": {
			func(s *setting) { s.remove(namespaceNamed("prod")) }, "gone",
			func(r record.Row) bool { return r.Mode == "STRICT" && r.UID == "u--prod" },
		},
		"a pod comes that is outside": {
			func(s *setting) { s.set(podNamed("prod", "bare", "app")) }, "set",
			func(r record.Row) bool { return r.Outside == 1 && r.Least == "STRICT" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, func(t *testing.T, s *setting) {
				s.opened()
				n := len(s.log.told())
				at := time.Now()
				c.change(s)
				s.pass(2 * time.Minute)
				states := of[*record.State](s.since(n))
				if len(states) == 0 {
					t.Fatal("nothing was told")
				}
				last := states[len(states)-1]
				if last.What != c.what || !c.want(last.Row) {
					t.Errorf("told %s %+v", last.What, last.Row)
				}
				if last.After.After(at) && len(states) == 1 {
					t.Errorf("the row before is said to have held at %s, and was changed at %s", last.After, at)
				}
				replay(t, s.log.told())
				if found := of[*record.Snapshot](s.since(n)); len(found) != 0 {
					t.Errorf("a snapshot for one row: %+v", found[0].Why)
				}
			}, prod()...)
		})
	}
}

// TestAfter: what is known moves on with what the API server says, and not past it.
func TestAfter(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		first := s.observer.known.at
		// Something is said on every watch, as bookmarks are once a minute.
		heard := time.Now()
		s.set(namespaceNamed("other"))
		s.set(policyOf("elsewhere", "default", "STRICT"))
		s.set(defaultGuard())
		s.set(meshConfig(""))
		s.set(exceptionOf("other", "x"))
		s.set(podNamed("other", "in", "istio-proxy"))
		s.pass(settled + 2*time.Second)
		if got := s.observer.known.at; !got.Equal(heard) {
			t.Errorf("known until %s; want %s, when all was heard (first %s)", got, heard, first)
		}
		s.pass(10 * time.Minute)
		if got := s.observer.known.at; !got.Equal(heard) {
			t.Errorf("known until %s, of which nobody has said anything; want %s", got, heard)
		}
	}, prod()...)
}

// TestManyRows: a policy of the whole mesh changes all rows, which a snapshot says once.
func TestManyRows(t *testing.T) {
	stored := []client.Object{defaultGuard(), meshConfig(""), namespaceNamed("istio-system")}
	for i := range 300 { // of more than one chunk, and of many parts
		stored = append(stored, namespaceNamed(fmt.Sprintf("team-%d", i)))
	}
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		s.set(policyOf("istio-system", "default", "STRICT"))
		s.pass(2 * time.Minute)
		snapshots := of[*record.Snapshot](s.since(n))
		if len(snapshots) == 0 || snapshots[0].Why != "changed" || len(of[*record.State](s.since(n))) != 0 {
			t.Errorf("told %d snapshots, %d states", len(snapshots), len(of[*record.State](s.since(n))))
		}
		for name, row := range replay(t, s.log.told()) {
			if row.Mode != "STRICT" {
				t.Errorf("%s: %+v", name, row)
			}
		}
	}, stored...)
}

func TestNewShard(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		s.log.open("2027q1")
		s.pass(90 * time.Second)
		list := s.since(n)
		if snapshots := of[*record.Snapshot](list); len(snapshots) != 1 || snapshots[0].Why != "shard" {
			t.Errorf("%d snapshots in the new shard", len(snapshots))
		}
		if gaps := of[*record.Gap](list); len(gaps) != 0 {
			t.Errorf("a gap between two shards: %+v", gaps[0])
		}
		if x := of[*record.ExceptionRequested](list); len(x) != 1 {
			t.Errorf("the exception was asked for %d times in the new shard", len(x))
		}
		replay(t, list)
	}, append(prod(), exceptionOf("prod", "x"))...)
}

// TestLogLost: while nothing can be written nothing is kept but that, and then it is told.
func TestLogLost(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		s.log.breaks(unix.ENOSPC)
		s.remove(policyOf("prod", "default", "STRICT"))
		s.pass(10 * time.Minute)
		s.set(policyOf("prod", "default", "STRICT"))
		s.set(namespaceNamed("late"))
		s.pass(time.Minute)
		if len(s.since(n)) != 0 {
			t.Fatal("something was written")
		}
		back := time.Now()
		s.log.breaks(nil)
		s.pass(90 * time.Second)
		list := s.since(n)
		gap, ok := list[0].Body.(*record.Gap)
		if !ok || gap.Of != "observation" || gap.Cause != "full" || !gap.Exact || gap.From.After(back.Add(-11*time.Minute)) || gap.To.Before(back) {
			t.Fatalf("first %+v", list[0].Body)
		}
		if snapshot, ok := list[1].Body.(*record.Snapshot); !ok || snapshot.Why != "changed" || len(snapshot.Rows) != 2 || snapshot.After.After(gap.From) {
			t.Errorf("second %+v", list[1].Body)
		}
		if len(of[*record.Beat](list)) == 0 {
			t.Error("no beat after the gap")
		}
		replay(t, list)
	}, prod()...)
}

// TestRelist: what came and went between two lists has told nobody.
func TestRelist(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		s.sources.forget(&objects.PeerAuthentication{})
		s.pass(3 * time.Minute)
		snapshots := of[*record.Snapshot](s.since(n))
		if len(snapshots) != 1 || snapshots[0].Why != "relist" {
			t.Fatalf("%d snapshots", len(snapshots))
		}
		beats := of[*record.Beat](s.since(n))
		for _, w := range beats[len(beats)-1].Watches {
			want := uint64(1)
			if w.GVK == "security.istio.io/v1/PeerAuthentication" {
				want = 2
			}
			if w.Epoch != want {
				t.Errorf("%s is of epoch %d; want %d", w.GVK, w.Epoch, want)
			}
		}
	}, prod()...)
}

func TestPeriodicSnapshot(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		s.observer.snapshotAt -= snapshotAfter - 10*time.Minute // as if most of a day had passed
		s.observer.rouse()
		s.pass(8 * time.Minute)
		if n := len(of[*record.Snapshot](s.log.told())); n != 1 {
			t.Errorf("%d snapshots before a day is over", n)
		}
		s.pass(5 * time.Minute)
		var whys []string
		for _, b := range of[*record.Snapshot](s.log.told()) {
			whys = append(whys, b.Why)
		}
		if want := []string{"boot", "periodic"}; !slices.Equal(whys, want) {
			t.Errorf("snapshots %q; want %q", whys, want)
		}
		replay(t, s.log.told())
	}, prod()...)
}

func TestClockJumps(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		inCluster(t, func(t *testing.T, s *setting) {
			s.opened()
			n := len(s.log.told())
			s.ahead.Store(int64(by))
			s.pass(2 * time.Second)
			gaps := of[*record.Gap](s.since(n))
			if len(gaps) != 1 || gaps[0].Of != "clock" || gaps[0].Cause != "clock" {
				t.Fatalf("%+v", gaps)
			}
			if apart := gaps[0].To.Sub(gaps[0].From); (apart - by).Abs() > 2*time.Second {
				t.Errorf("by %s: the gap says %s", by, apart)
			}
			s.ahead.Add(int64(100 * time.Millisecond))
			s.pass(2 * time.Second)
			if n := len(of[*record.Gap](s.since(n))); n != 1 {
				t.Errorf("a clock that is adjusted makes a gap")
			}
		}, prod()...)
	}
}

// A disk that takes its time over the record of a gap is no clock that was set.
func TestSlowGapIsNoClockJump(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		s.log.breaks(errors.New("it is full"))
		s.set(policyOf("prod", "weak", "PERMISSIVE"))
		s.pass(2 * time.Second)
		s.log.mu.Lock()
		s.log.fail, s.log.slow = nil, 3*time.Second
		s.log.mu.Unlock()
		s.pass(time.Minute)
		for _, g := range of[*record.Gap](s.since(n)) {
			if g.Of == "clock" {
				t.Errorf("a gap of the clock from %s to %s", g.From, g.To)
			}
		}
	}, prod()...)
}

func TestRoster(t *testing.T) {
	yes, no := true, false
	pod := func(name string) *corev1.ObjectReference { return &corev1.ObjectReference{Kind: "Pod", Name: name} }
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-x", Labels: map[string]string{discoveryv1.LabelServiceName: "meshvakt"}},
		Endpoints: []discoveryv1.Endpoint{
			{TargetRef: pod("meshvakt-1"), Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{TargetRef: pod("meshvakt-0")},
			{TargetRef: pod("meshvakt-2"), Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{TargetRef: pod("meshvakt-3"), Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
		},
	}
	lease := func(pod, boot string) *coordinationv1.Lease {
		renewed := metav1.NewMicroTime(time.Date(2000, 1, 1, 0, 0, 30, 0, time.UTC)) // where the bubble begins
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "meshvakt-system", Name: "meshvakt-evidence-" + pod}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &boot, RenewTime: &renewed}}
	}
	other := "ffffffffffffffffffffffffffffffff"
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		beats := of[*record.Beat](s.log.told())
		last := beats[len(beats)-1]
		want := []record.Replica{{Pod: "meshvakt-0", Boot: s.log.boot}, {Pod: "meshvakt-1", Boot: other}, {Pod: "meshvakt-3"}}
		if !slices.Equal(last.Ready, want) || last.ReadyN != 3 {
			t.Errorf("ready %+v of %d; want %+v", last.Ready, last.ReadyN, want)
		}
		var own coordinationv1.Lease
		if err := s.client.Get(t.Context(), client.ObjectKey{Namespace: "meshvakt-system", Name: "meshvakt-evidence-meshvakt-0"}, &own); err != nil || *own.Spec.HolderIdentity != s.log.boot {
			t.Errorf("%+v, %v", own.Spec, err)
		}
		// Nobody renews the other's Lease: it may have started again since.
		s.pass(5 * time.Minute)
		beats = of[*record.Beat](s.log.told())
		if got := beats[len(beats)-1].Ready[1]; got != (record.Replica{Pod: "meshvakt-1"}) {
			t.Errorf("%+v; want no ID of a start", got)
		}
	}, append(prod(), endpoints, lease("meshvakt-1", other), lease("meshvakt-3", "Nobody's"))...)
}

// TestDeclaredClock: what the operator says is told in each shard, before the first beat.
func TestDeclaredClock(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.observer.config.Declared = &record.ClockDeclared{Source: "chrony on the node", MaxErrorMicros: 500_000}
		s.clock.Unsynchronised = true
		s.opened()
		s.log.open("2027q1")
		s.pass(90 * time.Second)
		declared, shards := false, 0
		for _, r := range s.log.told() {
			switch b := r.Body.(type) {
			case *record.Genesis:
				declared = false
			case *record.ClockDeclared:
				declared = true
				shards++
				if b.Source != "chrony on the node" || b.MaxErrorMicros != 500_000 {
					t.Errorf("told %+v", b)
				}
			case *record.Beat:
				if !declared || !b.Clock.Unsynchronised || b.Clock.MaxErrorMicros != 1500 {
					t.Errorf("a beat has %+v, declared before: %t", b.Clock, declared)
				}
			}
		}
		if shards != 2 {
			t.Errorf("told %d times; must be once in each shard", shards)
		}
	}, prod()...)
}

// TestOwnObjects: the hooks of a beat, and what is changed behind the back of whoever would be asked.
func TestOwnObjects(t *testing.T) {
	open := admissionregistrationv1.Ignore
	config := func(policy admissionregistrationv1.FailurePolicyType) *admissionregistrationv1.ValidatingWebhookConfiguration {
		return &admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "meshvakt", UID: "u-hook"},
			Webhooks: []admissionregistrationv1.ValidatingWebhook{
				{Name: "pods.meshvakt.io", FailurePolicy: &policy},
				{Name: "everywhere.mesh.meshvakt.io", FailurePolicy: &open}, // is meant to
			},
		}
	}
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		hooks := func() []record.Hook {
			beats := of[*record.Beat](s.log.told())
			return beats[len(beats)-1].Hooks
		}
		if h := hooks(); len(h) != 1 || h[0].Name != "meshvakt" || h[0].Failure != "Fail" || h[0].UID != "u-hook" {
			t.Errorf("hooks %+v", h)
		}
		n := len(s.log.told())
		s.set(config(admissionregistrationv1.Ignore))
		s.pass(2 * time.Second)
		s.remove(config(admissionregistrationv1.Ignore))
		s.pass(2 * time.Minute)
		s.set(config(admissionregistrationv1.Fail))
		s.pass(ownHold + time.Second)
		changes := of[*record.ConfigChanged](s.since(n))
		var told []string
		for _, c := range changes {
			told = append(told, fmt.Sprintf("%s %t", c.What, c.Weaker))
		}
		if want := []string{"changed true", "deleted true", "created false"}; !slices.Equal(told, want) {
			t.Fatalf("told %q; want %q", told, want)
		}
		if changes[0].After != changes[1].Before || changes[0].Before != changes[2].After || changes[0].By.Kind != record.Unknown {
			t.Errorf("%+v", changes)
		}
	}, append(prod(), config(admissionregistrationv1.Fail))...)
}

// TestOwnRights: of what is no hook, the first that is seen is no change either.
func TestOwnRights(t *testing.T) {
	role := func(verbs ...string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt", UID: "u-role"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: verbs}}}
	}
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		if c := of[*record.ConfigChanged](s.log.told()); len(c) != 0 {
			t.Fatalf("told at the start: %+v", c[0])
		}
		s.set(role("get"))
		s.pass(2 * time.Second)
		s.remove(role())
		s.pass(2 * time.Second)
		var told []string
		for _, c := range of[*record.ConfigChanged](s.log.told()) {
			told = append(told, c.GVK+" "+c.Name+" "+c.What)
		}
		if want := []string{"rbac.authorization.k8s.io/v1/ClusterRole meshvakt changed", "rbac.authorization.k8s.io/v1/ClusterRole meshvakt deleted"}; !slices.Equal(told, want) {
			t.Errorf("told %q; want %q", told, want)
		}
	}, append(prod(), role("get", "list"))...)
}

func TestGuardChanged(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		status := defaultGuard()
		status.ResourceVersion = "99"
		s.set(status) // in nothing that is demanded
		s.pass(2 * time.Second)
		if c := of[*record.ConfigChanged](s.since(n)); len(c) != 0 {
			t.Fatalf("told %+v", c[0])
		}
		weaker := defaultGuard()
		weaker.Generation = 2
		weaker.Annotations = map[string]string{v1alpha1.ChangeReasonAnnotation: "CHG-1"}
		weaker.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{v1alpha1.Warn}
		s.set(weaker)
		s.pass(2 * time.Minute)
		c := of[*record.ConfigChanged](s.since(n))
		if len(c) != 1 || !c[0].Weaker || c[0].Reason != "CHG-1" || c[0].GVK != "meshvakt.io/v1alpha1/MeshGuard" || c[0].Name != "default" {
			t.Fatalf("told %+v", c)
		}
		beats := of[*record.Beat](s.log.told())
		if beats[0].Guards == beats[len(beats)-1].Guards {
			t.Error("the beats have the same digest of the guards")
		}
	}, prod()...)
}

// podNamed has one container.
func podNamed(namespace, name, container string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: container}}}}
	p.UID = uid(p)
	return p
}

func exceptionOf(namespace, name string) *v1alpha1.GuardException {
	e := &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1, CreationTimestamp: metav1.NewTime(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))},
		Spec: v1alpha1.GuardExceptionSpec{
			Policies: []v1alpha1.ExceptedPolicy{{Name: "strict-mtls"}, {Name: "mesh-membership", Reasons: []string{"HostNetwork"}}},
			Reason:   "vendor appliance", Reference: "CHG-8841", Requester: "ola@example.org",
			ExpiresAt: metav1.NewTime(time.Date(2000, 1, 1, 2, 0, 0, 0, time.UTC)),
		},
	}
	e.UID = uid(e)
	return e
}

// TestRemedies: what Meshvakt has put right itself, and how often it took.
func TestRemedies(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.opened()
		n := len(s.log.told())
		at := time.Now().UTC()
		policy := policyOf("prod", "default", "STRICT")
		after, found := at.Add(-time.Minute), at.Add(-time.Second)
		s.observer.Remedied(Remedy{What: Restored, Outcome: Failed, Object: policy, After: after, Found: found, At: at})
		s.observer.Remedied(Remedy{What: Restored, Outcome: Done, Object: policy, After: after, Found: found, At: at})
		s.observer.Remedied(Remedy{What: Own, Outcome: Done, At: at, Object: &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt", UID: "u"}}})
		s.observer.Remedied(Remedy{What: Provisioned, Outcome: Done, Object: policyOf("other", "default", "STRICT"), Found: found, At: at})
		s.observer.Remedied(Remedy{What: Restored, Outcome: GivenUp, Object: namespaceNamed("lost"), After: after, Found: found, At: at})
		s.pass(time.Second)
		var told []string
		for _, r := range of[*record.Remediation](s.since(n)) {
			told = append(told, fmt.Sprintf("%s %s %s %d", r.What, r.Object.GVK, r.Outcome, r.Tries))
			if !r.Done.Equal(at) || r.After.After(r.Found) || r.Found.After(r.Done) || (r.Outcome == GivenUp) != (r.Object.Digest == "") {
				t.Errorf("%+v", r)
			}
			if unknown := r.What != Restored; unknown != r.After.Equal(time.Unix(0, 0)) {
				t.Errorf("%s came about after %s", r.What, r.After)
			}
		}
		if want := []string{
			"restored security.istio.io/v1/PeerAuthentication failed 1", "restored security.istio.io/v1/PeerAuthentication done 2",
			"own admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration done 1",
			"provisioned security.istio.io/v1/PeerAuthentication done 1", "restored v1/Namespace givenUp 1",
		}; !slices.Equal(told, want) {
			t.Errorf("told %q; want %q", told, want)
		}
		// What fails again and again is told ever more seldom.
		n = len(s.log.told())
		for range 20 {
			s.observer.Remedied(Remedy{What: Provisioned, Outcome: Failed, Object: policyOf("other", "default", "STRICT"), At: at})
			s.pass(time.Second)
		}
		s.observer.Remedied(Remedy{What: Provisioned, Outcome: Done, Object: policyOf("other", "default", "STRICT"), At: at})
		s.pass(time.Second)
		var tries []uint64
		for _, r := range of[*record.Remediation](s.since(n)) {
			tries = append(tries, r.Tries)
		}
		if want := []uint64{1, 2, 4, 8, 16, 21}; !slices.Equal(tries, want) {
			t.Errorf("told tries %d; want %d", tries, want)
		}
		// Those that wait are bounded.
		s.log.breaks(unix.EIO)
		for range 2 * maxRemedies {
			s.observer.Remedied(Remedy{What: Restored, Outcome: Done, Object: policy, At: at})
		}
		s.pass(time.Minute)
		n = len(s.log.told())
		s.log.breaks(nil)
		s.pass(2 * time.Second)
		if got := len(of[*record.Remediation](s.since(n))); got != maxRemedies {
			t.Errorf("%d are told after all; want %d", got, maxRemedies)
		}
	}, prod()...)
}

// A log that is open and takes nothing, as one on a full disk, is asked at each tick and no more often; once it takes records
// the shard begins with all there is, and nothing was lost.
func TestAShardThatTakesNothingYet(t *testing.T) {
	inCluster(t, func(t *testing.T, s *setting) {
		s.start()
		for _, shard := range []string{"2026q4", "2027q1"} {
			s.log.open(shard)
			s.log.breaks(unix.ENOSPC)
			n, failed := len(s.log.told()), s.log.refused()
			s.pass(time.Minute)
			if asked := s.log.refused() - failed; asked == 0 || asked > 120 {
				t.Errorf("%s: asked %d times in a minute", shard, asked)
			}
			s.log.breaks(nil)
			s.pass(3 * time.Second)
			snapshots := of[*record.Snapshot](s.since(n))
			if len(snapshots) != 1 || len(snapshots[0].Rows) != 1 || len(of[*record.Gap](s.since(n))) > 0 {
				t.Errorf("%s: told %d snapshots, %d gaps; must be one with one row, and none", shard, len(snapshots), len(of[*record.Gap](s.since(n))))
			}
		}
		replay(t, s.log.told())
	}, prod()...)
}
