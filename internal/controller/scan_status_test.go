package controller

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/scan"
)

func standingOf(name string, counts ...scan.Count) *scan.Standing {
	return &scan.Standing{Namespace: name, Guards: []string{"default"}, Strict: true, Pods: 2, Counts: counts}
}

func found(policy, reason string, n, excepted int) scan.Count {
	return scan.Count{Guard: "default", Policy: policy, Reason: reason, Found: n, Excepted: excepted}
}

func TestFillScan(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		stored    []client.Object
		standings []*scan.Standing
		compliant metav1.ConditionStatus
		reason    string
		message   string
		counts    v1alpha1.NamespaceCounts
	}{
		"nothing is found": {
			[]client.Object{policyOf("prod", "default", "STRICT")}, []*scan.Standing{standingOf("prod")},
			metav1.ConditionTrue, "NothingFound", "all 1 guarded namespaces are STRICT, and none of 2 pods nor anything else in them breaks a policy",
			v1alpha1.NamespaceCounts{Guarded: 1, Strict: 1, Compliant: 1},
		},
		"something is": {
			[]client.Object{policyOf("prod", "default", "STRICT")}, []*scan.Standing{standingOf("prod", found("mesh-membership", "NotInMesh", 2, 0))},
			metav1.ConditionFalse, "FindingsStand", "2 findings stand in 1 of 1 guarded namespaces: prod (2, NotInMesh)",
			v1alpha1.NamespaceCounts{Guarded: 1, Strict: 1, Violating: 1},
		},
		"by an exception": {
			[]client.Object{policyOf("prod", "default", "STRICT")}, []*scan.Standing{standingOf("prod", found("mesh-membership", "NotInMesh", 0, 1))},
			metav1.ConditionTrue, "NothingFound", "but for 1 finding that an exception lets pass",
			v1alpha1.NamespaceCounts{Guarded: 1, Strict: 1, Compliant: 1},
		},
		"a namespace is not STRICT": {
			nil, []*scan.Standing{standingOf("prod", found("strict-mtls", "NamespaceNotStrict", 1, 0))},
			metav1.ConditionFalse, reasonNotStrict, "1 of 1 guarded namespaces are not STRICT: prod; 1 finding stands",
			v1alpha1.NamespaceCounts{Guarded: 1, NotStrict: 1, Violating: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
			s := newSetting(t, interceptor.Funcs{}, append([]client.Object{guard, namespaceOf("prod", true), webhookWith("default.guard.meshvakt.io")}, c.stored...)...)
			ledger := scan.NewLedger()
			for _, standing := range c.standings {
				ledger.Put(standing)
			}
			ledger.Complete(now, now, map[string]bool{"prod": true})
			standing := &Standing{Client: s.client, Source: s.source, Events: events.NewFakeRecorder(10), Ledger: ledger, Canary: &Canary{verdict: CanaryVerdict{Known: true, Answered: true}}, Now: func() time.Time { return now }}
			var got [2]v1alpha1.MeshGuard
			for i := range got {
				if _, err := standing.Reconcile(t.Context(), request("default")); err != nil {
					t.Fatal(err)
				}
				if err := s.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &got[i]); err != nil {
					t.Fatal(err)
				}
			}
			condition := meta.FindStatusCondition(got[0].Status.Conditions, v1alpha1.ConditionCompliant)
			if condition.Status != c.compliant || condition.Reason != c.reason || !strings.Contains(condition.Message, c.message) || got[0].Status.Namespaces != c.counts {
				t.Errorf("%+v, counts %+v", condition, got[0].Status.Namespaces)
			}
			if got[0].Status.Scan == nil || !got[0].Status.Scan.LastScanTime.Time.Equal(now) || !meta.IsStatusConditionFalse(got[0].Status.Conditions, v1alpha1.ConditionDegraded) {
				t.Errorf("%+v", got[0].Status)
			}
			if got[0].ResourceVersion != got[1].ResourceVersion {
				t.Errorf("the status was written although nothing had changed:\n%+v\n%+v", got[0].Status, got[1].Status)
			}
		})
	}
}

// What stands for one moment and for the next is one condition, with one beginning.
func TestConditionKeepsItsBeginning(t *testing.T) {
	long := metav1.Time{Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
	ledger := scan.NewLedger()
	ledger.Put(standingOf("prod", found("mesh-membership", "NotInMesh", 2, 0)))
	ledger.Complete(time.Now(), time.Now(), map[string]bool{"prod": true})
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	before := v1alpha1.MeshGuardStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionCompliant, Status: metav1.ConditionFalse, Reason: "FindingsStand", LastTransitionTime: long}}}
	// As the modes alone would have it.
	guard.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionCompliant, Status: metav1.ConditionTrue, Reason: "AllStrict", LastTransitionTime: metav1.Now()}}
	(&Standing{Ledger: ledger, Now: time.Now}).fillScan(guard, &before)
	if c := meta.FindStatusCondition(guard.Status.Conditions, v1alpha1.ConditionCompliant); c.Status != metav1.ConditionFalse || !c.LastTransitionTime.Equal(&long) {
		t.Errorf("%+v", c)
	}
}

// A new leader does not take back what the one before it has found.
func TestNewLeaderKeepsTheStatus(t *testing.T) {
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	before := v1alpha1.MeshGuardStatus{
		Scan: &v1alpha1.ScanStatus{Pods: 7}, Namespaces: v1alpha1.NamespaceCounts{Guarded: 2, Strict: 2, Violating: 1, Compliant: 1},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionCompliant, Status: metav1.ConditionFalse, Reason: "FindingsStand", Message: "m"}},
	}
	guard.Status = *before.DeepCopy()
	guard.Status.Namespaces = v1alpha1.NamespaceCounts{Guarded: 2, Strict: 2}
	guard.Status.Conditions[0].Status, guard.Status.Conditions[0].Reason = metav1.ConditionTrue, "AllStrict"
	(&Standing{Ledger: scan.NewLedger(), Now: time.Now}).fillScan(guard, &before)
	meta.RemoveStatusCondition(&guard.Status.Conditions, v1alpha1.ConditionDegraded)
	if !reflect.DeepEqual(guard.Status, before) {
		t.Errorf("%+v; want %+v", guard.Status, before)
	}
}

func TestDegradedWhenTheScanFails(t *testing.T) {
	ledger := scan.NewLedger()
	ledger.Failed(errors.New("list pods: forbidden"))
	guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
	(&Standing{Ledger: ledger, Now: time.Now}).fillScan(guard, &v1alpha1.MeshGuardStatus{})
	if c := meta.FindStatusCondition(guard.Status.Conditions, v1alpha1.ConditionDegraded); c == nil || c.Status != metav1.ConditionTrue || c.Reason != "ScanFails" || !strings.Contains(c.Message, "forbidden") {
		t.Errorf("%+v", c)
	}
}

func TestScanStatusIsBounded(t *testing.T) {
	ledger := scan.NewLedger()
	for i := range 200 {
		var list []scan.Count
		for j := range 20 {
			list = append(list, found(fmt.Sprintf("policy-%d", j%4), fmt.Sprintf("Reason%02d", j), i+1, 0))
		}
		ledger.Put(standingOf(fmt.Sprintf("ns-%03d", i), list...))
	}
	totals := ledger.Totals("default", time.Now())
	s := scanStatus(&totals, time.Now())
	if len(s.Worst) != 10 || s.Worst[0].Name != "ns-199" || len(s.Worst[0].Reasons) != reasonsInStatus || len(s.Findings) != 4 || s.Findings[0].Findings != 5*200*201/2 {
		t.Errorf("%+v", s)
	}
}

// ownObjects is a state of Meshvakt's own objects.
type ownObjects struct{ reason, message string }

func (o ownObjects) Degradation() (reason, message string) { return o.reason, o.message }
func (ownObjects) OnChange(func())                         {}

func TestDegradedByOwnObjects(t *testing.T) {
	for _, c := range []struct {
		own  ownObjects
		want metav1.ConditionStatus
	}{
		{ownObjects{"OwnObjectsRepaired", "put back: Service meshvakt"}, metav1.ConditionTrue},
		{ownObjects{}, metav1.ConditionFalse},
	} {
		guard := guardWith("default", guardedSelector(), v1alpha1.OnMissingReject)
		s := newSetting(t, interceptor.Funcs{}, guard)
		standing := &Standing{
			Client: s.client, Source: s.source, Events: events.NewFakeRecorder(10), Ledger: scan.NewLedger(), Own: c.own,
			Canary: &Canary{verdict: CanaryVerdict{Known: true, Answered: true}}, Now: time.Now,
		}
		again, err := standing.Reconcile(t.Context(), request("default"))
		if err != nil {
			t.Fatal(err)
		}
		var got v1alpha1.MeshGuard
		if err := s.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &got); err != nil {
			t.Fatal(err)
		}
		degraded := meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionDegraded)
		if degraded.Status != c.want || c.own.reason != "" && degraded.Reason != c.own.reason || (again.RequeueAfter > 0) != (c.want == metav1.ConditionTrue) {
			t.Errorf("%+v: condition %+v, looked at again after %s", c.own, degraded, again.RequeueAfter)
		}
	}
}
