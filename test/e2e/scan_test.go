package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// scanGuard is a guard of strict-mtls and mesh-membership that does the same about both.
func scanGuard(selector string, actions ...v1alpha1.ValidationAction) *v1alpha1.MeshGuard {
	g := v1alpha1.DefaultGuard()
	g.Name = selector
	g.Annotations = map[string]string{v1alpha1.ChangeReasonAnnotation: "the test is over"}
	g.Spec.NamespaceSelector = metav1.LabelSelector{MatchLabels: map[string]string{"scan": selector}}
	g.Spec.SidecarResources, g.Spec.NodePools = nil, nil
	g.Spec.StrictMTLS.ValidationActions, g.Spec.MeshMembership.ValidationActions = actions, actions
	g.Spec.Exceptions = &v1alpha1.Exceptions{MaxDuration: metav1.Duration{Duration: time.Hour}, Approval: v1alpha1.ApprovalNone}
	return g
}

func scanNamespace(name, selector string) *corev1.Namespace {
	ns := namespace(name, false)
	ns.Labels["scan"], ns.Labels["istio-injection"] = selector, "enabled"
	return ns
}

// stands waits until the status of a guard is about its spec and as wanted, and returns it.
func stands(t testing.TB, within time.Duration, name string, want func(*v1alpha1.MeshGuardStatus) error) *v1alpha1.MeshGuard {
	t.Helper()
	g := &v1alpha1.MeshGuard{}
	c := clientFor(t, controlplane.Admin)
	eventually(t, within, func() error {
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, g); err != nil {
			return err
		}
		if g.Status.ObservedGeneration != g.Generation || g.Status.Scan == nil {
			return fmt.Errorf("generation %d, status %+v", g.Generation, g.Status)
		}
		if err := want(&g.Status); err != nil {
			return fmt.Errorf("%w: %+v", err, g.Status)
		}
		return nil
	})
	return g
}

// counts wants so many findings by policy, and so many namespaces with any.
func counts(violating int32, findings map[string]int32) func(*v1alpha1.MeshGuardStatus) error {
	return func(s *v1alpha1.MeshGuardStatus) error {
		have := map[string]int32{}
		for _, f := range s.Scan.Findings {
			have[f.Policy] = f.Findings
		}
		for policy, n := range findings {
			if have[policy] != n {
				return fmt.Errorf("%d findings of %s; want %d", have[policy], policy, n)
			}
		}
		if s.Namespaces.Violating != violating {
			return fmt.Errorf("%d namespaces with findings; want %d", s.Namespaces.Violating, violating)
		}
		if compliant := meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionCompliant); compliant != (violating == 0) {
			return fmt.Errorf("compliant is %t", compliant)
		}
		return nil
	}
}

// eventsOf returns the notes of the events in a namespace with a reason.
func eventsOf(t testing.TB, namespace, reason string) []string {
	t.Helper()
	var list eventsv1.EventList
	must(t, clientFor(t, controlplane.Admin).List(t.Context(), &list, client.InNamespace(namespace)))
	var notes []string
	for _, e := range list.Items {
		if e.Reason == reason {
			notes = append(notes, fmt.Sprintf("%s %s: %s", e.Regarding.Kind, e.Regarding.Name, e.Note))
		}
	}
	return notes
}

// TestScanUpgrade: a guard is put over a cluster that was never guarded, and goes from
// Audit over Warn to Deny. Its status tells at every step what stands, and that alone.
func TestScanUpgrade(t *testing.T) {
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	good, bad := unique("scan-good"), unique("scan-bad")
	create(t, dev, scanNamespace(good, "upgrade"), policy(good, "default", "STRICT"), scanNamespace(bad, "upgrade"))
	serviceAccount(t, bad)
	web := pod(bad, nil)
	create(t, dev, web)

	r := start(t)
	guard(t, scanGuard("upgrade", v1alpha1.Audit))
	enforcing(t, "upgrade")
	for _, step := range []struct {
		action v1alpha1.ValidationAction
		admits bool
	}{{v1alpha1.Audit, true}, {v1alpha1.Warn, true}, {v1alpha1.Deny, false}} {
		t.Run(string(step.action), func(t *testing.T) {
			eventually(t, 10*time.Second, func() error { // its status changes meanwhile
				var g v1alpha1.MeshGuard
				must(t, admin.Get(t.Context(), client.ObjectKey{Name: "upgrade"}, &g))
				g.Spec.StrictMTLS.ValidationActions = []v1alpha1.ValidationAction{step.action}
				g.Spec.MeshMembership.ValidationActions = g.Spec.StrictMTLS.ValidationActions
				return admin.Update(t.Context(), &g)
			})
			began := time.Now()
			got := stands(t, 30*time.Second, "upgrade", counts(1, map[string]int32{"strict-mtls": 1, "mesh-membership": 1}))
			t.Logf("stands after %s: %s", time.Since(began).Round(time.Millisecond), meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionCompliant).Message)
			if s := got.Status; s.Namespaces.Guarded != 2 || s.Namespaces.Strict != 1 || s.Namespaces.Compliant != 1 || s.Scan.Pods != 1 ||
				len(s.Scan.Worst) != 1 || s.Scan.Worst[0].Name != bad || s.Scan.Worst[0].Findings != 2 || !slices.Equal(s.Scan.Worst[0].Reasons, []string{"NamespaceNotStrict", "NotInMesh"}) {
				t.Errorf("status %+v", s)
			}
			another := pod(bad, nil)
			eventually(t, 10*time.Second, func() error { // until the API server asks as the guard says now
				err := client.NewDryRunClient(dev).Create(t.Context(), another)
				another = pod(bad, nil)
				if (err == nil) != step.admits {
					return fmt.Errorf("a pod without a proxy: %w; is to be admitted: %t", err, step.admits)
				}
				return nil
			})
		})
	}
	for reason, kind := range map[string]string{"NotInMesh": "Pod", "NamespaceNotStrict": "Namespace"} {
		eventually(t, 10*time.Second, func() error {
			if notes := eventsOf(t, bad, reason); len(notes) != 1 || !strings.HasPrefix(notes[0], kind) || !strings.Contains(notes[0], "[MV") {
				return fmt.Errorf("events %s: %q; want one on the %s", reason, notes, kind)
			}
			return nil
		})
	}
	for series, want := range map[string]float64{
		`meshvakt_scan_findings{guard="upgrade",policy="mesh-membership",reason="NotInMesh",state="stands"}`: 1,
		`meshvakt_scan_namespaces{guard="upgrade",state="violating"}`:                                        1,
		`meshvakt_scan_pods{guard="upgrade"}`:                                                                1,
		"meshvakt_scan_failures_total":                                                                       0,
	} {
		if got := r.metric(t.Context(), series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}

	must(t, dev.Create(t.Context(), policy(bad, "default", "STRICT")))
	began := time.Now()
	stands(t, 10*time.Second, "upgrade", counts(1, map[string]int32{"strict-mtls": 0, "mesh-membership": 1}))
	t.Logf("a policy counts after %s", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	must(t, dev.Delete(t.Context(), web, client.GracePeriodSeconds(0)))
	got := stands(t, 10*time.Second, "upgrade", counts(0, map[string]int32{"strict-mtls": 0, "mesh-membership": 0}))
	t.Logf("a pod that is gone counts after %s: %s", time.Since(began).Round(time.Millisecond), meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionCompliant).Message)
	quiet(t, "upgrade", 5*time.Second)
}

// quiet demands that the status of a guard is not written while nothing changes.
func quiet(t testing.TB, name string, during time.Duration) {
	t.Helper()
	c := clientFor(t, controlplane.Admin)
	var before, after v1alpha1.MeshGuard
	must(t, c.Get(t.Context(), client.ObjectKey{Name: name}, &before))
	ctx, cancel := context.WithTimeout(t.Context(), during)
	defer cancel()
	w, err := watching(t).Watch(ctx, &v1alpha1.MeshGuardList{}, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: before.ResourceVersion}})
	must(t, err)
	defer w.Stop()
	for {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				return
			}
			if g, ok := event.Object.(*v1alpha1.MeshGuard); ok && g.Name == name {
				must(t, c.Get(t.Context(), client.ObjectKey{Name: name}, &after))
				t.Errorf("the status was written although nothing had changed:\n%+v\n%+v", before.Status, after.Status)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func watching(t testing.TB) client.WithWatch {
	t.Helper()
	c, err := client.NewWithWatch(plane.RestConfig(controlplane.Admin), client.Options{Scheme: scheme})
	must(t, err)
	return c
}

// TestScanExceptionEnds: a pod that runs by an exception becomes a finding in the second
// in which that ends, without anybody doing anything.
func TestScanExceptionEnds(t *testing.T) {
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	name := unique("scan-except")
	create(t, admin, policy("istio-system", "default", "STRICT"))
	create(t, dev, scanNamespace(name, "except"))
	serviceAccount(t, name)
	start(t)
	guard(t, scanGuard("except", v1alpha1.Deny))
	enforcing(t, "except")

	ends := time.Now().Add(16 * time.Second).Truncate(time.Second) // later than what is waited for below
	exception := &v1alpha1.GuardException{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "migration"},
		Spec: v1alpha1.GuardExceptionSpec{
			Policies: []v1alpha1.ExceptedPolicy{{Name: "mesh-membership"}}, Reason: "test", Reference: "T-1", ExpiresAt: metav1.Time{Time: ends},
		},
	}
	must(t, admin.Create(t.Context(), exception))
	eventually(t, 5*time.Second, func() error { return dev.Create(t.Context(), pod(name, nil)) })
	got := stands(t, 8*time.Second, "except", func(s *v1alpha1.MeshGuardStatus) error {
		if s.Scan.Exceptions != (v1alpha1.ExceptionCounts{Active: 1, Expiring: 1}) || len(s.Scan.Findings) != 1 || s.Scan.Findings[0].Excepted != 1 {
			return errors.New("the exception is not in use")
		}
		return counts(0, map[string]int32{"mesh-membership": 0})(s)
	})
	t.Log(meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionCompliant).Message)
	// Whoever writes it knows nothing of the scan.
	eventually(t, time.Until(ends), func() error {
		must(t, admin.Get(t.Context(), client.ObjectKeyFromObject(exception), exception))
		if s := exception.Status; s.State != v1alpha1.ExceptionActive || s.TimeLeft != "<1m" {
			return fmt.Errorf("the exception's status before it ends: %+v", s)
		}
		return nil
	})
	if now := time.Now(); !now.Before(ends) {
		t.Fatalf("the machine is too slow for this test: %s late", now.Sub(ends))
	}
	stands(t, time.Until(ends)+9*time.Second, "except", counts(1, map[string]int32{"mesh-membership": 1}))
	late := time.Since(ends)
	t.Logf("the pod is a finding %s after the exception has ended", late.Round(time.Millisecond))
	if late < 0 || late > 5*time.Second {
		t.Errorf("%s after its end; want some seconds at most", late)
	}
	eventually(t, 5*time.Second, func() error {
		must(t, admin.Get(t.Context(), client.ObjectKeyFromObject(exception), exception))
		if exception.Status.State != v1alpha1.ExceptionExpired {
			return fmt.Errorf("the exception's status: %+v", exception.Status)
		}
		var g v1alpha1.MeshGuard
		must(t, admin.Get(t.Context(), client.ObjectKey{Name: "except"}, &g))
		if g.Status.Scan.Exceptions != (v1alpha1.ExceptionCounts{Expired: 1}) {
			return fmt.Errorf("the guard counts %+v", g.Status.Scan.Exceptions)
		}
		if notes := eventsOf(t, name, "ExceptionExpired"); len(notes) != 1 {
			return fmt.Errorf("events %q", notes)
		}
		return nil
	})
}
