package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// TestKeeperCanary takes away the right to write webhook configurations, so that nobody
// puts back what is changed in them, and looks at what the guard says of itself.
func TestKeeperCanary(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: os.Stderr})
	admin := clientFor(t, controlplane.Admin)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	r := start(t) // the roles are not kept here, for that would give the right back
	enforcing(t, "default")

	if age := r.metric(t.Context(), "meshvakt_canary_age_seconds"); age < 0 || age > 60 {
		t.Errorf("the canary is %v seconds old", age)
	}
	if n := r.metric(t.Context(), `meshvakt_admission_decisions_total{decision="deny",kind="GuardException"`); n != 0 {
		t.Errorf("%v canaries are counted as refusals of users", n)
	}
	if n := r.metric(t.Context(), `meshvakt_policy_findings_total{action="Deny",policy="governance"`); n != 0 {
		t.Errorf("%v findings of canaries are counted", n)
	}
	if n := r.metric(t.Context(), `meshvakt_admission_mutations_total{kind="GuardException"`); n != 0 {
		t.Errorf("%v canaries are counted as changes", n)
	}
	var exceptions v1alpha1.GuardExceptionList
	must(t, admin.List(t.Context(), &exceptions))
	if len(exceptions.Items) > 0 {
		t.Errorf("canaries are stored: %v", exceptions.Items)
	}

	for _, c := range []struct {
		name, reason string
		replace      func(*admissionregistrationv1.ValidatingWebhookConfiguration)
	}{
		{"nothing is sent to us", "CanaryLetPass", func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			for i := range c.Webhooks {
				c.Webhooks[i].MatchConditions = append(c.Webhooks[i].MatchConditions, admissionregistrationv1.MatchCondition{Name: "never", Expression: "false"})
			}
		}},
		{"it is sent somewhere else", "CanaryNoAnswer", func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			nobody := "https://" + freeAddress(t)
			for i := range c.Webhooks {
				c.Webhooks[i].ClientConfig.URL = &nobody
			}
		}},
		{"somewhere else, and let pass where nobody answers", "CanaryLetPass", func(c *admissionregistrationv1.ValidatingWebhookConfiguration) {
			nobody, ignore := "https://"+freeAddress(t), admissionregistrationv1.Ignore
			for i := range c.Webhooks {
				c.Webhooks[i].ClientConfig.URL, c.Webhooks[i].FailurePolicy = &nobody, &ignore
			}
		}},
		{"the configuration is gone", "NotRegistered", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			giveBack := withoutRight(t, admin)
			since := time.Now()
			if c.replace == nil {
				must(t, admin.Delete(t.Context(), registered(t, admin)))
			} else {
				eventually(t, 10*time.Second, func() error {
					config := registered(t, admin)
					c.replace(config)
					return admin.Update(t.Context(), config)
				})
			}
			eventually(t, 65*time.Second, func() error { return enforcingIs(t, admin, metav1.ConditionFalse, c.reason) })
			t.Logf("Enforcing is False (%s) after %s", c.reason, time.Since(since).Round(time.Millisecond))
			since = time.Now()
			giveBack()
			eventually(t, 30*time.Second, func() error { return enforcingIs(t, admin, metav1.ConditionTrue, "Registered") })
			t.Logf("... and True %s after the right was given back", time.Since(since).Round(time.Millisecond))
		})
	}
}

func enforcingIs(t testing.TB, c client.Client, status metav1.ConditionStatus, reason string) error {
	t.Helper()
	var g v1alpha1.MeshGuard
	if err := c.Get(t.Context(), client.ObjectKey{Name: "default"}, &g); err != nil {
		return err
	}
	e := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionEnforcing)
	if e == nil || e.Status != status || e.Reason != reason {
		return fmt.Errorf("Enforcing is %+v; want %s, %s", e, status, reason)
	}
	return nil
}

// withoutRight takes the right to write webhook configurations from both roles, and waits
// until it is gone; giveBack undoes it.
func withoutRight(t testing.TB, admin client.Client) (giveBack func()) {
	t.Helper()
	before := map[string][]rbacv1.PolicyRule{}
	edit := func(name string, f func([]rbacv1.PolicyRule) []rbacv1.PolicyRule) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			var role rbacv1.ClusterRole
			if err := admin.Get(context.Background(), client.ObjectKey{Name: name}, &role); err != nil {
				return err
			}
			role.Rules = f(role.Rules)
			return admin.Update(context.Background(), &role)
		})
	}
	names := []string{"meshvakt", "meshvakt-spare"}
	for _, name := range names {
		edit(name, func(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
			before[name] = slices.Clone(rules)
			return slices.DeleteFunc(slices.Clone(rules), func(r rbacv1.PolicyRule) bool {
				return slices.Contains(r.Resources, "validatingwebhookconfigurations")
			})
		})
	}
	config := plane.RestConfig(controlplane.Admin)
	config.Impersonate.UserName = "system:serviceaccount:" + ownNamespace + ":meshvakt"
	leader, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	eventually(t, 10*time.Second, func() error {
		err := leader.Patch(t.Context(), registered(t, admin), mergePatch(`{}`), client.DryRunAll)
		if !apierrors.IsForbidden(err) {
			return fmt.Errorf("got %v; the right is still there", err) //nolint:errorlint // may be nil
		}
		return nil
	})
	return func() {
		for _, name := range names {
			edit(name, func([]rbacv1.PolicyRule) []rbacv1.PolicyRule { return before[name] })
		}
	}
}

// TestKeeperLosesItsLeader kills the leader, and deletes objects in that very moment:
// whoever leads next puts them back, also the guards that only a process remembers.
func TestKeeperLosesItsLeader(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: os.Stderr})
	admin := clientFor(t, controlplane.Admin)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	first := start(t, keeping(t)...)
	enforcing(t, "default")
	second := start(t, keeping(t)...) // under an address of its own, which only the leader registers
	objects := ownManifest(t, keptKey)
	var guardBefore v1alpha1.MeshGuard
	must(t, admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &guardBefore))
	for _, o := range objects {
		if isDefinition(o) {
			must(t, admin.Patch(t.Context(), o.DeepCopy(), mergePatch(`{"metadata":{"annotations":{"meshvakt.io/allow-deletion":"true"}}}`)))
		}
	}

	first.kill()
	since := time.Now()
	var was []*unstructured.Unstructured
	for _, o := range objects {
		u, err := live(t, admin, o)
		must(t, err)
		was = append(was, u)
		// One of each two is enough for who leads next to begin with.
		if strings.HasSuffix(o.GetName(), "-spare") || o.GetKind() == "ValidatingAdmissionPolicyBinding" || isDefinition(o) || o.GetKind() == "Service" {
			must(t, admin.Delete(t.Context(), u.DeepCopy()))
		}
	}
	must(t, admin.Delete(t.Context(), installed(t)))
	// The lease of a leader that was killed lasts for 15 s.
	eventually(t, 60*time.Second, func() error {
		for _, w := range was {
			is, err := live(t, admin, w)
			switch {
			case err != nil:
				return err
			case content(is) != content(w) || is.GetDeletionTimestamp() != nil:
				return fmt.Errorf("%s is not as it was", describe(w))
			}
		}
		var g v1alpha1.MeshGuard
		if err := admin.Get(t.Context(), client.ObjectKey{Name: "default"}, &g); err != nil {
			return err
		}
		if g.UID == guardBefore.UID || !equality.Semantic.DeepEqual(g.Spec, guardBefore.Spec) {
			return fmt.Errorf("the guard is %+v", g.Spec)
		}
		return asInstalled(t, second)
	})
	t.Logf("everything is there again %s after the leader was killed", time.Since(since).Round(time.Millisecond))
	enforcing(t, "default")
}

// With the chart's own Helm, an upgrade is not fought by the replicas of the version before
// it, and what the new version installs is kept by its own.
func TestKeeperDuringUpgrade(t *testing.T) {
	rel := newRelease(t)
	sharedPlane, sharedKubeconfig := plane, serviceAccountKubeconfig
	plane = rel.plane
	t.Cleanup(func() { plane, serviceAccountKubeconfig = sharedPlane, sharedKubeconfig })
	rel.kubectl("", "create", "namespace", "istio-system")
	rel.kubectl("", "create", "namespace", ownNamespace)
	rel.run("install", "meshvakt", "charts/meshvakt")
	var err error
	serviceAccountKubeconfig, err = plane.ServiceAccountKubeconfig(t.Context(), ownNamespace, "meshvakt")
	must(t, err)

	args := func() (own []string) {
		for _, a := range rel.chartArgs() {
			if strings.HasPrefix(a, "--own-objects") {
				own = append(own, a)
			}
		}
		if len(own) != 3 {
			t.Fatalf("the Deployment has arguments %q", own)
		}
		return own
	}
	old := start(t, args()...)
	enforcing(t, "default")
	eventually(t, 10*time.Second, func() error { return asInstalled(t, old) })
	// Put back by Meshvakt, and changed by Helm later all the same.
	rel.kubectl("", "-n", ownNamespace, "delete", "service", "meshvakt")
	rel.kubectl("", "delete", "clusterrole", "meshvakt")
	eventually(t, repairedWithin, func() error {
		if n := old.metric(t.Context(), `meshvakt_own_objects_repaired_total{action="created"`); n != 2 {
			return fmt.Errorf("%v repairs; want 2", n)
		}
		return nil
	})
	rel.run("upgrade", "meshvakt", "charts/meshvakt", "--set", "service.port=8443", "--set", "podDisruptionBudget.maxUnavailable=2")
	port := func() string {
		return rel.kubectl("", "-n", ownNamespace, "get", "service", "meshvakt", "-o", "jsonpath={.spec.ports[0].port}")
	}
	// Longer than an object of another version is left alone without its ConfigMap.
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(500 * time.Millisecond) {
		if got := port(); got != "8443" {
			t.Fatalf("the old replica has turned the port of the Service back to %s", got)
		}
	}
	if n := old.metric(t.Context(), "meshvakt_own_objects_repaired_total"); n != 2 {
		t.Errorf("%v repairs; the old replica has put back what the new version has installed", n)
	}
	old.stop()

	replica := start(t, args()...)
	eventually(t, 30*time.Second, func() error { return asInstalled(t, replica) })
	rel.kubectl("", "-n", ownNamespace, "delete", "service", "meshvakt")
	eventually(t, 30*time.Second, func() error { // another one has to begin to lead first
		if n := replica.metric(t.Context(), `meshvakt_own_objects_repaired_total{action="created",kind="Service"}`); n < 1 {
			return errors.New("not put back")
		}
		return nil
	})
	if got := port(); got != "8443" {
		t.Errorf("port %s; must be that of the new version", got)
	}
}
