package keeper

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func TestReadBelievesTheDigestAlone(t *testing.T) {
	for name, c := range map[string]struct {
		edit     func(*corev1.ConfigMap)
		resigned bool
		want     string
	}{
		"as installed":  {func(*corev1.ConfigMap) {}, false, ""},
		"other content": {func(cm *corev1.ConfigMap) { cm.Data[KeyKept] += "\n" }, false, "another digest"},
		"nothing":       {func(cm *corev1.ConfigMap) { cm.Data = nil }, true, "no objects"},
		"no mark": {func(cm *corev1.ConfigMap) {
			cm.Data[KeyKept] = strings.Replace(kept, "meshvakt.io/installation: one", "", 1)
		}, true, "has no label"},
		"two marks": {func(cm *corev1.ConfigMap) {
			cm.Data[KeyKept] = strings.Replace(kept, "installation: one", "installation: two", 1)
		}, true, "like the others"},
		"the same twice": {func(cm *corev1.ConfigMap) { cm.Data[KeyWatched] = kept }, true, "twice"},
		"no YAML":        {func(cm *corev1.ConfigMap) { cm.Data[KeyKept] = "\t{" }, true, "decode"},
	} {
		t.Run(name, func(t *testing.T) {
			cm := installedConfigMap()
			digest := Digest(cm.Data)
			c.edit(cm)
			if c.resigned {
				digest = Digest(cm.Data)
			}
			d, err := Read(cm, digest)
			if c.want == "" && (err != nil || len(d.objects) != 4) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, %v; want %q", d, err, c.want)
			}
		})
	}
}

func TestKeeperPutsBack(t *testing.T) {
	for name, c := range map[string]struct {
		ref   Ref
		harm  func(*testing.T, *setting)
		count string
	}{
		"deleted": {role, func(t *testing.T, s *setting) { must(t, s.client.Delete(t.Context(), s.role(t))) }, "ClusterRole created"},
		"a rule less": {role, func(t *testing.T, s *setting) {
			r := s.role(t)
			r.Rules = nil
			must(t, s.client.Update(t.Context(), r))
		}, "ClusterRole changed"},
		"rules gathered from others": {role, func(t *testing.T, s *setting) {
			r := s.role(t)
			r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}}}
			must(t, s.client.Update(t.Context(), r))
		}, "ClusterRole changed"},
		"another role bound": {binding, func(t *testing.T, s *setting) {
			var b rbacv1.ClusterRoleBinding
			must(t, s.client.Get(t.Context(), client.ObjectKey{Name: "meshvakt"}, &b))
			b.RoleRef.Name = "view"
			must(t, s.client.Update(t.Context(), &b))
		}, "ClusterRoleBinding changed"},
		"its mark taken off": {role, func(t *testing.T, s *setting) {
			r := s.role(t)
			r.Labels = nil
			must(t, s.client.Update(t.Context(), r))
		}, "ClusterRole changed"},
		"the ConfigMap deleted": {config, func(t *testing.T, s *setting) { must(t, s.client.Delete(t.Context(), installedConfigMap())) }, "ConfigMap created"},
		"the ConfigMap emptied": {config, func(t *testing.T, s *setting) {
			cm := installedConfigMap()
			cm.Data[KeyKept] = ""
			must(t, s.client.Update(t.Context(), cm))
		}, "ConfigMap changed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetting(t, interceptor.Funcs{})
			s.settled(t, c.ref)
			if len(s.counts) > 0 {
				t.Fatalf("repaired what was right: %v", s.counts)
			}
			var repaired []string
			s.keeper.Ledger.OnRepair(func(o client.Object, r Repair) {
				if r.Done && o.GetResourceVersion() == "" {
					t.Errorf("%s was put back in no version", o.GetName())
				}
				repaired = append(repaired, fmt.Sprintf("%s%s %t %t", o.GetName(), r.At.Sub(s.now), r.Done, r.GivenUp))
			})
			c.harm(t, s)
			if _, err := s.reconcile(t, c.ref); err != nil {
				t.Fatal(err)
			}
			s.settled(t, c.ref)
			if want := c.ref.Name + "0s true false"; len(repaired) != 1 || repaired[0] != want {
				t.Errorf("told of repairs %q; want %q", repaired, want)
			}
			if len(s.counts) != 1 || s.counts[c.count] != 1 {
				t.Errorf("counted %v; want one %s", s.counts, c.count)
			}
			if len(s.events.Events) != 1 || !strings.Contains(<-s.events.Events, "OwnObjectRepaired") {
				t.Error("no Event tells of it")
			}
			if reason, message := s.keeper.Ledger.Degradation(); reason != "OwnObjectsRepaired" || !strings.Contains(message, c.ref.Name) {
				t.Errorf("degradation %q, %q", reason, message)
			}
			s.now = s.now.Add(recent)
			if reason, message := s.keeper.Ledger.Degradation(); reason != "" {
				t.Errorf("degradation %q, %q; must be over", reason, message)
			}
		})
	}
}

// Another version is being installed: its ConfigMap has another mark.
func TestKeeperStandsDown(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{})
	cm := installedConfigMap()
	cm.Labels[MarkLabel] = "two"
	must(t, s.client.Update(t.Context(), cm))
	must(t, s.client.Delete(t.Context(), s.role(t)))
	for _, ref := range []Ref{role, config} {
		if wait, err := s.reconcile(t, ref); err != nil || wait != reload {
			t.Errorf("%s: looks again after %s, %v", ref, wait, err)
		}
	}
	if len(s.counts) > 0 {
		t.Errorf("repaired %v", s.counts)
	}
	// Rolled back.
	must(t, s.client.Update(t.Context(), installedConfigMap()))
	if _, err := s.reconcile(t, role); err != nil || s.counts["ClusterRole created"] != 1 {
		t.Errorf("repaired %v, %v", s.counts, err)
	}
}

// An upgrade that does not end, or somebody who has changed the mark to be left alone, does
// not stay silent, also when the mark is changed time after time.
func TestKeeperSaysThatItStandsDown(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{})
	for i := range 4 {
		cm := installedConfigMap()
		cm.Labels[MarkLabel] = fmt.Sprintf("other-%d", i%2)
		must(t, s.client.Update(t.Context(), cm))
		if wait, err := s.reconcile(t, config); err != nil || wait != reload {
			t.Errorf("looks again after %s, %v", wait, err)
		}
		if reason, message := s.keeper.Ledger.Degradation(); reason != "" {
			t.Errorf("after %d minutes: degradation %q, %q", 3*i, reason, message)
		}
		s.now = s.now.Add(3 * time.Minute)
	}
	for range 3 {
		if _, err := s.reconcile(t, config); err != nil {
			t.Fatal(err)
		}
	}
	if reason, message := s.keeper.Ledger.Degradation(); reason != "OwnObjectsNotAsInstalled" ||
		!strings.Contains(message, `ConfigMap meshvakt-system/meshvakt-own-objects (its label meshvakt.io/installation is "other-1" and that of the leader "one"`) {
		t.Errorf("degradation %q, %q", reason, message)
	}
	if len(s.events.Events) != 1 || s.keeper.Ledger.Wrong()["ConfigMap"] != 1 {
		t.Errorf("%d Events, wrong %v; want it said once", len(s.events.Events), s.keeper.Ledger.Wrong())
	}
	must(t, s.client.Update(t.Context(), installedConfigMap()))
	s.settled(t, config)
	// The time counts from the beginning again.
	cm := installedConfigMap()
	cm.Labels[MarkLabel] = "two"
	must(t, s.client.Update(t.Context(), cm))
	if _, err := s.reconcile(t, config); err != nil || len(s.keeper.Ledger.Wrong()) > 0 {
		t.Errorf("wrong %v, %v", s.keeper.Ledger.Wrong(), err)
	}
}

// A replica that never sees the ConfigMap as it was started with it says so.
func TestKeeperSaysThatItCannotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSetting(t, interceptor.Funcs{})
		s.keeper.Now = time.Now
		other := installedConfigMap()
		other.Data[KeyKept] += "\n"
		must(t, s.client.Update(t.Context(), other))
		ended := make(chan error, 1)
		go func() { ended <- s.keeper.Load(t.Context()) }()
		time.Sleep(rollout - time.Second)
		if reason, message := s.keeper.Ledger.Degradation(); reason != "" {
			t.Errorf("before its time: degradation %q, %q", reason, message)
		}
		time.Sleep(time.Minute)
		if reason, message := s.keeper.Ledger.Degradation(); reason != "OwnObjectsNotAsInstalled" || !strings.Contains(message, "meshvakt-own-objects (for more than 10 minutes") {
			t.Errorf("degradation %q, %q", reason, message)
		}
		if len(s.events.Events) != 1 {
			t.Errorf("%d Events; want it said once", len(s.events.Events))
		}
		must(t, s.client.Update(t.Context(), installedConfigMap()))
		must(t, <-ended)
		if reason, message := s.keeper.Ledger.Degradation(); reason != "" {
			t.Errorf("once it has begun: degradation %q, %q", reason, message)
		}
	})
}

// Installers write some objects before the ConfigMap. A mark alone, without it, protects
// a change for a moment and no longer.
func TestKeeperWaitsForTheConfigMap(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{})
	r := s.role(t)
	r.Labels[MarkLabel], r.Rules = "two", nil
	must(t, s.client.Update(t.Context(), r))
	for range 2 {
		if wait, err := s.reconcile(t, role); err != nil || wait != time.Second {
			t.Errorf("looks again after %s, %v", wait, err)
		}
	}
	s.now = s.now.Add(installing)
	if _, err := s.reconcile(t, role); err != nil || s.counts["ClusterRole changed"] != 1 {
		t.Errorf("repaired %v, %v", s.counts, err)
	}
	s.settled(t, role)
}

func TestKeeperOnlyWatchesRolesForPeople(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{})
	s.settled(t, approve)
	must(t, s.client.Delete(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt-approve"}}))
	for range 3 {
		if _, err := s.reconcile(t, approve); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.counts) > 0 || s.keeper.Ledger.Wrong()["ClusterRole"] != 1 {
		t.Errorf("repaired %v, wrong %v", s.counts, s.keeper.Ledger.Wrong())
	}
	if reason, message := s.keeper.Ledger.Degradation(); reason != "OwnObjectsNotAsInstalled" || !strings.Contains(message, "ClusterRole meshvakt-approve (it is not there") {
		t.Errorf("degradation %q, %q", reason, message)
	}
	if len(s.events.Events) != 1 {
		t.Errorf("%d Events; want it said once", len(s.events.Events))
	}
}

// Whoever shows how it stands is told when that changes, and only then.
func TestLedgerTellsOfChanges(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{})
	told := 0
	s.keeper.Ledger.OnChange(func() { told++ })
	expect := func(want int) {
		t.Helper()
		if told != want {
			t.Errorf("told %d times; want %d", told, want)
		}
	}
	s.settled(t, approve)
	expect(0)
	gone := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt-approve"}}
	var was rbacv1.ClusterRole
	must(t, s.client.Get(t.Context(), client.ObjectKeyFromObject(gone), &was))
	must(t, s.client.Delete(t.Context(), gone))
	for range 2 {
		_, err := s.reconcile(t, approve)
		must(t, err)
	}
	expect(1)
	was.ResourceVersion = ""
	must(t, s.client.Create(t.Context(), &was))
	s.settled(t, approve)
	expect(2)
	must(t, s.client.Delete(t.Context(), s.role(t)))
	_, err := s.reconcile(t, role)
	must(t, err)
	expect(3)
}

func TestKeeperSaysWhatHindersIt(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"no right":         {apierrors.NewForbidden(schema.GroupResource{Resource: "clusterroles"}, "meshvakt", errors.New("no")), "lost the right"},
		"no identity":      {apierrors.NewUnauthorized("who are you"), "lost the right"},
		"API server fails": {apierrors.NewInternalError(errors.New("down")), "error of the API server"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetting(t, failing(c.err))
			var came []Repair
			s.keeper.Ledger.OnRepair(func(_ client.Object, r Repair) { came = append(came, r) })
			defer func() {
				if len(came) != 1 || came[0].Done || came[0].GivenUp {
					t.Errorf("told %+v; want one that failed", came)
				}
			}()
			if _, err := s.reconcile(t, role); !errors.Is(err, c.err) {
				t.Errorf("got %v", err)
			}
			if _, message := s.keeper.Ledger.Degradation(); !strings.Contains(message, c.want) {
				t.Errorf("degradation %q; want %q", message, c.want)
			}
		})
	}
}

// A program that wants something else is not raced with.
func TestKeeperTires(t *testing.T) {
	s := newSetting(t, interceptor.Funcs{})
	done, givenUp := 0, 0
	s.keeper.Ledger.OnRepair(func(_ client.Object, r Repair) {
		switch {
		case r.Done:
			done++
		case r.GivenUp:
			givenUp++
		}
	})
	defer func() {
		if done != often+1 || givenUp != 1 {
			t.Errorf("told of %d repairs, and %d times that it was given up; want %d, the last of them a minute later, and once", done, givenUp, often+1)
		}
	}()
	for range often + 5 {
		if r := s.role(t); len(r.Rules) > 0 {
			r.Rules = nil
			must(t, s.client.Update(t.Context(), r))
		}
		if _, err := s.reconcile(t, role); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.counts["ClusterRole changed"]; n != often {
		t.Errorf("put back %d times; want %d", n, often)
	}
	if _, message := s.keeper.Ledger.Degradation(); !strings.Contains(message, "again and again") {
		t.Errorf("degradation %q", message)
	}
	s.now = s.now.Add(time.Minute)
	if _, err := s.reconcile(t, role); err != nil {
		t.Fatal(err)
	}
	s.settled(t, role)
}
