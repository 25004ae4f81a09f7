package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// sealAll has all that is in a directory sealed.
func sealAll(t testing.TB, dir string) {
	t.Helper()
	lines := uint64(len(spooled(t, dir)))
	sealer := sealing(t, dir)
	eventually(t, 30*time.Second, func() error {
		at, err := volume.Dir(dir).ReadSealed()
		if err == nil && at.Line < lines {
			err = fmt.Errorf("%d lines are sealed, of %d", at.Line, lines)
		}
		return err
	})
	must(t, sealer.Process.Signal(syscall.SIGTERM))
	if err := sealer.Wait(); err != nil {
		t.Errorf("the sealer ended with %v", err)
	}
}

// TestEvidenceOfExceptions asks who got exceptions, and whether and by whom they were used; and what Meshvakt has
// provided, and put back.
func TestEvidenceOfExceptions(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingProvision))
	dir := t.TempDir()
	r := start(t, append(evidenceOf(dir), "--evidence-beat", "2s")...)
	enforcing(t, "default")
	must(t, plane.Apply(t.Context(), []byte(writings)))
	g := &governed{namespace: unique("excepted"), dev: clientFor(t, controlplane.Developer), platform: clientFor(t, controlplane.Platform), admin: clientFor(t, controlplane.Admin)}
	create(t, g.dev, namespace(g.namespace, true))
	isStrict(t, 30*time.Second, g.namespace) // Meshvakt has provided it
	serviceAccount(t, g.namespace)

	used, unused, pending := g.legacy("used", time.Now().Add(time.Hour)), g.legacy("unused", time.Now().Add(time.Hour)), g.legacy("pending", time.Now().Add(time.Hour))
	unused.Spec.ObjectSelector.MatchLabels = map[string]string{"app": "nothing"}
	create(t, g.dev, used, unused, pending)
	must(t, approve(t.Context(), g.platform, used))
	must(t, approve(t.Context(), g.platform, unused))
	before := time.Now()
	must(t, g.dev.Create(t.Context(), g.weak()))
	must(t, g.dev.Create(t.Context(), pod(g.namespace, map[string]string{"app": "legacy"})))
	must(t, g.dev.Create(t.Context(), pod(g.namespace, map[string]string{"app": "web"})))
	after := time.Now()
	// The scan finds what stands by it.
	eventually(t, 60*time.Second, func() error {
		if n := countOf[*record.ExceptionUsed](spooled(t, dir)); n != 1 {
			return fmt.Errorf("%d records of what stands by an exception; want one", n)
		}
		return nil
	})

	hook := func() *admissionregistrationv1.ValidatingWebhookConfiguration {
		t.Helper()
		var c admissionregistrationv1.ValidatingWebhookConfiguration
		must(t, g.admin.Get(t.Context(), client.ObjectKey{Name: "meshvakt"}, &c))
		return &c
	}
	was := hook()
	must(t, g.admin.Patch(t.Context(), was.DeepCopy(), client.RawPatch("application/json-patch+json", []byte(`[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`))))
	enforcing(t, "default")
	changes := func(what string) int {
		n := 0
		for _, c := range bodies[*record.ConfigChanged](spooled(t, dir)) {
			if c.Name == "meshvakt" && c.What == what && strings.HasSuffix(c.GVK, "ValidatingWebhookConfiguration") {
				n++
			}
		}
		return n
	}
	eventually(t, 30*time.Second, func() error {
		if changes("repaired") != 1 {
			return fmt.Errorf("%d repairs are told of; want one", changes("repaired"))
		}
		return nil
	})
	if is := hook(); is.Webhooks[0].FailurePolicy == nil || *is.Webhooks[0].FailurePolicy != *was.Webhooks[0].FailurePolicy {
		t.Error("the webhook configuration was not put back")
	}
	r.stop()
	unregister(t)

	sealAll(t, dir)
	result := verified(t, dir, time.Now())
	find := func(uid string) *verify.Exception {
		t.Helper()
		i := slices.IndexFunc(result.Exceptions, func(e verify.Exception) bool { return e.UID == uid })
		if i < 0 {
			t.Fatalf("exception %s is not in the register", uid)
		}
		return &result.Exceptions[i]
	}
	e := find(string(used.UID))
	// A policy and a pod, each of which two entries of the webhook ask about.
	if e.Used != 2 || e.FirstUsed.Before(before) || e.LastUsed.After(after) || len(e.Uses) != 2 || e.Uses[0].By != e.By || e.By == e.Approver || e.Granted.IsZero() {
		t.Errorf("the one that was used: %+v", e)
	}
	if e.Standing == 0 || e.StandingFrom.Before(before.Add(-time.Minute)) {
		t.Errorf("%d objects stand by it from %s", e.Standing, e.StandingFrom)
	}
	if e := find(string(unused.UID)); e.Used != 0 || e.Standing != 0 || len(e.Uses) > 0 || e.Granted.IsZero() {
		t.Errorf("the one that was not used: %+v", e)
	}
	if e := find(string(pending.UID)); e.Used != 0 || !e.Granted.IsZero() {
		t.Errorf("the one that nobody has approved: %+v", e)
	}
	const self = "system:serviceaccount:" + ownNamespace + ":meshvakt"
	weakened, put := false, false
	for _, c := range result.Changes {
		weakened = weakened || c.Name == "meshvakt" && c.What == "changed" && c.Weaker
		put = put || c.Name == "meshvakt" && c.What == "repaired" && c.By == self && weakened
	}
	if !weakened || !put {
		t.Errorf("changes %+v; must have one that weakens, and the repair behind it", result.Changes)
	}
	told := map[string]int{}
	for _, m := range result.Remediations {
		told[m.What+" "+m.Outcome+" "+m.Namespace]++
		if m.Found.After(m.Done) || m.After.After(m.Found) {
			t.Errorf("remediation %+v", m)
		}
	}
	if told["provisioned done "+g.namespace] != 1 || told["own done "] != 1 {
		t.Errorf("remediations %v; must have the policy that was provided and the configuration that was put back", told)
	}
	for _, f := range result.Findings {
		if f.Code != verify.FindingWeakened && f.Code != verify.FindingHook {
			t.Errorf("finding %+v", f)
		}
		if f.Code == verify.FindingHook && strings.Contains(f.What, "no record tells") {
			t.Errorf("finding %+v", f)
		}
	}
}
