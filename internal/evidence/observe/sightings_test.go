package observe

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/internal/evidence/canonical"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

// TestOwnRepaired: what Meshvakt has put back is told as that, whether the watch or the keeper is faster, and what was changed
// before is told too.
func TestOwnRepaired(t *testing.T) {
	role := func(verb string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt", UID: "u-role"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{verb}}}}
	}
	const self = "system:serviceaccount:meshvakt-system:meshvakt"
	inCluster(t, func(t *testing.T, s *setting) {
		s.observer.config.User = func(context.Context) (string, error) { return self, nil }
		s.opened()
		n := len(s.log.told())
		told := func() (list []string) {
			for _, c := range of[*record.ConfigChanged](s.since(n)) {
				if (c.What == "repaired") != (c.By.ID == self) || c.What != "repaired" && c.By.Kind != record.Unknown {
					t.Errorf("%s by %+v", c.What, c.By)
				}
				list = append(list, c.What)
			}
			n = len(s.log.told())
			return list
		}
		check := func(what string, want ...string) {
			t.Helper()
			if got := told(); !slices.Equal(got, want) {
				t.Errorf("%s: told %q; want %q", what, got, want)
			}
		}
		changed, back := role("*"), role("get")
		s.set(changed)
		s.set(back)
		synctest.Wait() // the watch has told
		s.observer.Remedied(Remedy{What: Own, Outcome: Done, Object: back.DeepCopy(), At: time.Now().UTC()})
		s.pass(3 * time.Second)
		check("within a moment, the keeper last", "changed", "repaired")

		s.remove(role(""))
		s.pass(3 * time.Second)
		check("deleted", "deleted")
		again := role("get")
		s.set(again)
		s.observer.Remedied(Remedy{What: Own, Outcome: Done, Object: again.DeepCopy(), At: time.Now().UTC()})
		s.pass(3 * time.Second)
		check("created anew by the keeper", "repaired")

		s.set(role("list"))
		s.pass(ownHold + time.Second)
		s.set(role("get"))
		s.pass(ownHold + time.Second)
		check("changed and changed back by others", "changed", "changed")

		for i := range 2 * maxSightings { // more than anybody waits for
			s.set(role(fmt.Sprint(i)))
		}
		s.pass(ownHold + time.Second)
		if got := told(); len(got) < 1 || len(got) > maxSightings {
			t.Errorf("%d changes are told of many within a moment", len(got))
		}
		var live rbacv1.ClusterRole
		if err := s.client.Get(t.Context(), client.ObjectKey{Name: "meshvakt"}, &live); err != nil {
			t.Fatal(err)
		}
		if form, err := canonical.Of(&live); err != nil || s.observer.own.told[ownKey{"rbac.authorization.k8s.io/v1/ClusterRole", "meshvakt"}].same(&ownObject{uid: "u-role", form: form}) == false {
			t.Errorf("the last of them is not what was told last, %v", err)
		}
	}, append(prod(), role("get"))...)
}

// TestOwnRepairedAsABeatIsDue: a beat waits for the word of whoever has put an object back, but not until it is late; and
// each change has the time at which it was seen.
func TestOwnRepairedAsABeatIsDue(t *testing.T) {
	role := func(verb string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "meshvakt", UID: "u-role"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{verb}}}}
	}
	for _, c := range []struct {
		what string
		word bool
		want []string
		late time.Duration // of the beat, at most
	}{
		{"somebody has put it back", true, []string{"changed", "repaired", "beat"}, 2 * tick},
		{"nobody says so", false, []string{"changed", "changed", "beat"}, ownHold + tick},
	} {
		t.Run(c.what, func(t *testing.T) {
			inCluster(t, func(t *testing.T, s *setting) {
				s.opened()
				beats := of[*record.Beat](s.log.told())
				if len(beats) == 0 {
					t.Fatal("no beat")
				}
				n := len(s.log.told())
				var due time.Time
				for _, r := range s.log.told() {
					if _, ok := r.Body.(*record.Beat); ok {
						due = r.Time.Add(time.Minute)
					}
				}
				s.pass(time.Until(due) - time.Millisecond)
				found := time.Now()
				back := role("get")
				s.set(role("*"))
				s.set(back)
				s.pass(tick) // it has woken, and a beat is due
				if c.word {
					s.observer.Remedied(Remedy{What: Own, Outcome: Done, Object: back.DeepCopy(), At: time.Now().UTC()})
				}
				s.pass(ownHold + tick)
				var got []string
				for _, r := range s.since(n) {
					switch b := r.Body.(type) {
					case *record.ConfigChanged:
						got = append(got, b.What)
						if !b.Found.Equal(found) {
							t.Errorf("%s: found at %s; must be %s", b.What, b.Found, found)
						}
					case *record.Beat:
						got = append(got, "beat")
						if late := r.Time.Sub(due); late < 0 || late > c.late {
							t.Errorf("a beat %s after it was due; must be at most %s", late, c.late)
						}
					}
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("told %q; want %q", got, c.want)
				}
			}, append(prod(), role("get"))...)
		})
	}
}
