package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

func restoreGuard(selector string) *v1alpha1.MeshGuard {
	g := scanGuard(selector, v1alpha1.Deny)
	g.Spec.MeshMembership = nil
	g.Spec.Remediation = v1alpha1.RemediationRestore
	return g
}

// isStrict waits until a policy in a namespace is STRICT for all of it.
func isStrict(t testing.TB, within time.Duration, namespace string) *objects.PeerAuthentication {
	t.Helper()
	c := clientFor(t, controlplane.Admin)
	var found *objects.PeerAuthentication
	eventually(t, within, func() error {
		var list objects.PeerAuthenticationList
		if err := c.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		for i := range list.Items {
			if p := &list.Items[i]; p.Spec.Selector == nil && p.Spec.MTLS != nil && p.Spec.MTLS.Mode == "STRICT" {
				found = p
				return nil
			}
		}
		return fmt.Errorf("no STRICT policy among %d", len(list.Items))
	})
	return found
}

var gapBounds = regexp.MustCompile(`after (\S+), found at (\S+), until (\S+)$`)

// gap waits for the one report of a gap in a namespace, and returns its bounds.
func gap(t testing.TB, within time.Duration, namespace string) (after, found, until time.Time) {
	t.Helper()
	eventually(t, within, func() error {
		notes := eventsOf(t, namespace, "StrictGap")
		if len(notes) != 1 {
			return fmt.Errorf("gaps %q; want one", notes)
		}
		bounds := gapBounds.FindStringSubmatch(notes[0])
		if bounds == nil {
			return fmt.Errorf("no bounds in %q", notes[0])
		}
		for i, into := range []*time.Time{&after, &found, &until} {
			at, err := time.Parse(time.RFC3339, bounds[i+1])
			if err != nil {
				return err
			}
			*into = at
		}
		return nil
	})
	return after, found, until
}

// remembers waits until the leader has written down that a namespace is STRICT.
func remembers(t testing.TB, namespace string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if r := memory(t); !slices.Contains(r.Strict, namespace) {
			return fmt.Errorf("record %+v", r)
		}
		return nil
	})
}

type memoryRecord struct {
	Strict []string
	Gaps   map[string]any
}

func memory(t testing.TB) (r memoryRecord) {
	t.Helper()
	out, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "-n", ownNamespace, "get", "configmap", "meshvakt-standing", "--ignore-not-found", "-o", "jsonpath={.data.record}")
	must(t, err)
	if out != "" {
		must(t, json.Unmarshal([]byte(out), &r))
	}
	return r
}

// TestScanRestoresRacedDeletes: a namespace has two STRICT policies, each of which may be
// deleted because of the other. Both are, at the same moment, by way of two replicas.
func TestScanRestoresRacedDeletes(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	name := unique("scan-race")
	create(t, dev, scanNamespace(name, "race"))
	replicas := balanced(t)
	must(t, dev.Create(t.Context(), policy(name, "one", "STRICT")))
	guard(t, restoreGuard("race"))
	enforcing(t, "race")
	remembers(t, name)

	var deleted time.Time
	for try := 1; ; try++ {
		if try > 200 {
			t.Fatal("the API server never let both deletions meet, so that nothing is shown")
		}
		for _, p := range []string{"one", "two"} {
			must(t, client.IgnoreAlreadyExists(dev.Create(t.Context(), policy(name, p, "STRICT"))))
		}
		errs := make([]error, 2)
		var both sync.WaitGroup
		begin := make(chan struct{})
		for i, p := range []string{"one", "two"} {
			c := clientFor(t, controlplane.Developer)
			both.Go(func() {
				<-begin
				errs[i] = c.Delete(t.Context(), policy(name, p, ""))
			})
		}
		deleted = time.Now()
		close(begin)
		both.Wait()
		if errs[0] == nil && errs[1] == nil {
			t.Logf("both were deleted at try %d", try)
			break
		}
	}
	made := isStrict(t, 10*time.Second, name)
	t.Logf("STRICT again %s after the deletions", time.Since(deleted).Round(time.Millisecond))
	if made.Name != "default" || made.Labels["app.kubernetes.io/managed-by"] != "meshvakt" {
		t.Errorf("restored by %s with labels %v", made.Name, made.Labels)
	}
	after, found, until := gap(t, 10*time.Second, name)
	t.Logf("the gap is told of as after %s, found %s, until %s", after, found, until)
	const aMoment = 10 * time.Second
	if after.After(found) || found.After(until) || after.Before(deleted.Add(-aMoment)) || found.Before(deleted.Add(-time.Millisecond)) || until.After(deleted.Add(aMoment)) {
		t.Errorf("bounds do not fit a deletion at %s", deleted)
	}
	// Each is written by itself, so that what was told first may come last.
	for reason, want := range map[string]int{"StrictLost": 1, "StrictRestored": 1, "StrictGap": 1} {
		eventually(t, 10*time.Second, func() error {
			if notes := eventsOf(t, name, reason); len(notes) != want {
				return fmt.Errorf("events %s: %q; want %d", reason, notes, want)
			}
			return nil
		})
	}
	var restored float64
	for _, r := range replicas {
		restored += r.metric(t.Context(), `meshvakt_remediations_total{outcome="restored"}`)
	}
	if restored != 1 {
		t.Errorf("%v remediations are counted, want 1", restored)
	}
}

// behind does something that the webhook would refuse, by taking away its configuration.
func behind(t testing.TB, do func() error) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		unregister(t)
		return do()
	})
}

// TestScanRestoresForeignPolicy: behind the webhook's back a policy becomes PERMISSIVE,
// as when a backup is restored. It is set to STRICT, and told on it; all else in it stays.
func TestScanRestoresForeignPolicy(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	name := unique("scan-foreign")
	create(t, dev, scanNamespace(name, "foreign"))
	mine := policy(name, "mine", "STRICT")
	mine.Labels = map[string]string{"team": "payments"}
	create(t, dev, mine)
	start(t)
	guard(t, restoreGuard("foreign"))
	enforcing(t, "foreign")
	remembers(t, name)
	behind(t, func() error {
		return dev.Patch(t.Context(), &objects.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "mine"}},
			client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"mtls":{"mode":"PERMISSIVE"}}}`)))
	})
	began := time.Now()
	p := isStrict(t, 10*time.Second, name)
	t.Logf("STRICT again after %s", time.Since(began).Round(time.Millisecond))
	if p.Name != "mine" || p.Labels["team"] != "payments" || len(p.Labels) != 1 {
		t.Errorf("%+v", p)
	}
	eventually(t, 10*time.Second, func() error {
		notes := eventsOf(t, name, "StrictRestored")
		on := func(kind string) bool {
			return slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, kind) })
		}
		if !on("PeerAuthentication mine") || !on("Namespace "+name) {
			return fmt.Errorf("events %q; want one on the policy and one on the namespace", notes)
		}
		return nil
	})
	gap(t, 10*time.Second, name)
}

// TestScanLeaderDies: the leader is killed when it has found a gap and cannot close it
// yet. The other replica takes over, closes it, and tells of one gap with the bounds that
// the first has found; and it scans all, so that nothing the dead one knew is missing.
func TestScanLeaderDies(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	name, bad := unique("scan-dies"), unique("scan-dies-bad")
	create(t, dev, scanNamespace(name, "dies"), policy(name, "mine", "STRICT"), scanNamespace(bad, "dies"))
	replicas := balanced(t)
	guard(t, restoreGuard("dies"))
	goAway(t, "dies")
	enforcing(t, "dies")
	remembers(t, name)
	before := stands(t, 30*time.Second, "dies", counts(1, map[string]int32{"strict-mtls": 1}))

	allow := forbidPolicies(t, name)
	behind(t, func() error { return dev.Delete(t.Context(), policy(name, "mine", "")) })
	deleted := time.Now()
	eventually(t, 10*time.Second, func() error {
		if r := memory(t); r.Gaps[name] == nil {
			return errors.New("the gap is not written down")
		}
		// The event comes after that, and is lost with a leader that dies before.
		if notes := eventsOf(t, name, "StrictLost"); len(notes) == 0 {
			return errors.New("the gap is not told of")
		}
		return nil
	})
	leads := leader(t, replicas)
	leads.kill()
	killed := time.Now()
	allow()

	isStrict(t, 60*time.Second, name)
	t.Logf("STRICT again %s after the leader was killed", time.Since(killed).Round(time.Millisecond))
	after, found, until := gap(t, 20*time.Second, name)
	t.Logf("the gap is told of as after %s, found %s, until %s; the leader was killed at %s", after, found, until, killed)
	if after.After(deleted) || found.After(killed) || until.Before(killed) {
		t.Errorf("the bounds are not those of the deletion at %s and the restoration after %s", deleted, killed)
	}
	if notes := eventsOf(t, name, "StrictLost"); len(notes) != 1 {
		t.Errorf("told %d times that the namespace is not STRICT any more: %q", len(notes), notes)
	}
	stands(t, 60*time.Second, "dies", func(s *v1alpha1.MeshGuardStatus) error {
		if !s.Scan.LastScanTime.After(before.Status.Scan.LastScanTime.Time) {
			return errors.New("nobody has scanned since")
		}
		return counts(1, map[string]int32{"strict-mtls": 1})(s)
	})
}

// TestScanLeaderDiesScanning: the leader is killed in the moment in which it begins to
// look at all anew, for its guard has changed. The status that it leaves behind stays until
// the other replica has looked at all, and then is right.
func TestScanLeaderDiesScanning(t *testing.T) {
	admin, dev := clientFor(t, controlplane.Admin), clientFor(t, controlplane.Developer)
	const pods = 600
	names := []string{unique("scan-half"), unique("scan-half")}
	for _, name := range names {
		create(t, dev, scanNamespace(name, "half"), policy(name, "default", "STRICT"))
		serviceAccount(t, name)
		for range pods {
			must(t, dev.Create(t.Context(), pod(name, nil)))
		}
	}
	replicas := balanced(t)
	guard(t, scanGuard("half", v1alpha1.Audit))
	goAway(t, "half")
	enforcing(t, "half")
	before := stands(t, 60*time.Second, "half", counts(2, map[string]int32{"mesh-membership": 2 * pods}))

	leads := leader(t, replicas)
	passes := leads.metric(t.Context(), "meshvakt_scan_duration_seconds_count")
	eventually(t, 10*time.Second, func() error { // its status changes meanwhile
		var g v1alpha1.MeshGuard
		must(t, admin.Get(t.Context(), client.ObjectKey{Name: "half"}, &g))
		g.Spec.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpNotIn, Values: names[1:]}}
		g.Annotations[v1alpha1.ChangeReasonAnnotation] = "half of it is enough"
		return admin.Update(t.Context(), &g)
	})
	ended := false
	eventually(t, 10*time.Second, func() error {
		// It may begin and end between two looks.
		ended = leads.metric(t.Context(), "meshvakt_scan_duration_seconds_count") > passes
		if !ended && leads.metric(t.Context(), `controller_runtime_active_workers{controller="scan"}`) == 0 {
			return errors.New("nothing is scanned")
		}
		return nil
	})
	leads.kill()
	t.Logf("the leader is killed; it had ended the pass: %t", ended)
	after := stands(t, 60*time.Second, "half", func(s *v1alpha1.MeshGuardStatus) error {
		if !s.Scan.LastScanTime.After(before.Status.Scan.LastScanTime.Time) {
			return errors.New("nobody has scanned since")
		}
		return counts(1, map[string]int32{"mesh-membership": pods})(s)
	})
	if s := after.Status; s.Scan.Pods != pods || s.Namespaces.Guarded != 1 {
		t.Errorf("status %+v", s)
	}
}

// goAway deletes a guard when the test is over, before the harness does: half of the
// requests about it go to the replica that is dead.
func goAway(t testing.TB, name string) {
	t.Helper()
	c := clientFor(t, controlplane.Admin)
	t.Cleanup(func() {
		for try := range 20 {
			err := client.IgnoreNotFound(c.Delete(context.Background(), &v1alpha1.MeshGuard{ObjectMeta: metav1.ObjectMeta{Name: name}}))
			if err == nil {
				return
			}
			if try == 19 {
				t.Error(err)
			}
		}
	})
}

// leader returns the replica that leads, by who has scanned.
func leader(t testing.TB, replicas []*replica) *replica {
	t.Helper()
	var lease coordinationv1.Lease
	must(t, clientFor(t, controlplane.Admin).Get(t.Context(), client.ObjectKey{Namespace: ownNamespace, Name: "meshvakt-leader"}, &lease))
	for _, r := range replicas {
		if r.metric(t.Context(), "meshvakt_scan_duration_seconds_count") > 0 {
			return r
		}
	}
	t.Fatalf("no replica has scanned; the lease is held by %v", lease.Spec.HolderIdentity)
	return nil
}

// forbidPolicies keeps everybody from creating PeerAuthentications in a namespace until
// allow is called.
func forbidPolicies(t testing.TB, namespace string) (allow func()) {
	t.Helper()
	admin := clientFor(t, controlplane.Admin)
	meta := metav1.ObjectMeta{Name: namespace + ".example.com"}
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
			RuleWithOperations: admissionregistrationv1.RuleWithOperations{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{"security.istio.io"}, APIVersions: []string{"*"}, Resources: []string{"peerauthentications"}},
			},
		}}},
		Validations: []admissionregistrationv1.Validation{{Expression: fmt.Sprintf("object.metadata.namespace != %q", namespace), Message: "kept out for the test"}},
	}}
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: meta.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
	}}
	create(t, admin, policy, binding)
	eventually(t, 20*time.Second, func() error {
		err := client.NewDryRunClient(admin).Create(t.Context(), policyNamed(namespace))
		if err == nil || !strings.Contains(err.Error(), "kept out for the test") {
			return fmt.Errorf("a policy can still be created: %w", err)
		}
		return nil
	})
	return func() {
		must(t, admin.Delete(t.Context(), binding))
	}
}

func policyNamed(namespace string) *objects.PeerAuthentication {
	return policy(namespace, "x", "STRICT")
}
