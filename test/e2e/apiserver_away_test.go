package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestAPIServerIsAway takes the API server away for longer than a Lease lasts. The leader must not end, for a kubelet
// that has seen it end a few times comes back to it minutes later; and a replica that is started meanwhile must wait
// rather than end. When the API server is back both answer at once, and the same one leads.
func TestAPIServerIsAway(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: t.Output()})
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	leader := start(t)
	enforcing(t, "default")
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	ns := unique("away")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	lease := func() *coordinationv1.LeaseSpec {
		t.Helper()
		var l coordinationv1.Lease
		must(t, admin.Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: "meshvakt-leader"}, &l))
		return &l.Spec
	}
	led := lease()

	must(t, plane.Kill(controlplane.APIServer))
	began := time.Now()
	address := freeAddress(t)
	late := startReplica(t, "--listen", address, "--webhook-url", "https://"+address, "--operations-listen", freeAddress(t))
	waitsFor := func(r *replica, what string) {
		t.Helper()
		eventually(t, 90*time.Second, func() error {
			if body, err := get(t.Context(), "http://"+r.operations+"/readyz"); err == nil || !strings.Contains(body, what) {
				return fmt.Errorf("readyz: %v\n%s\nmust be %q", err, body, what)
			}
			return nil
		})
		if body, err := get(t.Context(), "http://"+r.operations+"/healthz"); err != nil {
			t.Errorf("healthz, which a restart follows: %v\n%s", err, body)
		}
	}
	waitsFor(late, "[-] api-server: the API server at https://")
	waitsFor(leader, "[-] facts: watch of ")
	waitUntil(t, began.Add(time.Duration(*led.LeaseDurationSeconds)*time.Second*3))

	must(t, plane.Restart(t.Context(), controlplane.APIServer))
	back := time.Now()
	if err := dev.Create(t.Context(), weakPolicy(ns, "weak")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "MV103") {
		t.Errorf("a weak policy, right after the API server came back: %v", err)
	}
	late.ready(t.Context())
	leader.ready(t.Context())
	t.Logf("both ready %s after the API server came back", time.Since(back).Round(time.Millisecond))

	// It leads: what only the leader keeps is put back.
	must(t, admin.Delete(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "before-istio.meshvakt.io"}}))
	eventually(t, 30*time.Second, func() error {
		return admin.Get(t.Context(), client.ObjectKey{Name: "before-istio.meshvakt.io"}, &admissionregistrationv1.MutatingWebhookConfiguration{})
	})
	if now := lease(); *now.HolderIdentity != *led.HolderIdentity || *now.LeaseTransitions != *led.LeaseTransitions {
		t.Errorf("%s leads after %d changes; must be %s after %d, as before", *now.HolderIdentity, *now.LeaseTransitions, *led.HolderIdentity, *led.LeaseTransitions)
	}
	for name, r := range map[string]*replica{"leader": leader, "late replica": late} {
		select {
		case <-r.exited:
			t.Errorf("the %s ended: %v", name, r.exitErr)
		default:
		}
	}
}
