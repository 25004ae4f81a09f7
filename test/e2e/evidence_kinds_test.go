package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// sealAll has all that is in a directory sealed.
func sealAll(t testing.TB, dir string) {
	t.Helper()
	before, err := volume.Dir(dir).ReadSealed()
	must(t, err)
	lines := before.Line
	reader, err := spool.OpenReader(volume.Dir(dir).Spool(), lines+1)
	must(t, err)
	for line, err := range reader.Lines() {
		must(t, err)
		lines = line.Seq
	}
	must(t, reader.Close())
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
	dir := tmpfs.TempDir(t)
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
		n := 0
		for _, used := range bodies[*record.ExceptionUsed](spooled(t, dir)) {
			if used.Object.Namespace == g.namespace {
				n++
			}
		}
		if n != 1 {
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
		if f.Namespace != "" && f.Namespace != g.namespace {
			continue // of another test, on its way out
		}
		if f.Code != verify.FindingWeakened && f.Code != verify.FindingHook {
			t.Errorf("finding %+v", f)
		}
		if f.Code == verify.FindingHook && strings.Contains(f.What, "no record tells") {
			t.Errorf("finding %+v", f)
		}
	}
}

// TestEvidenceSubject looks up what is held about a person, which is told only once it is recorded.
func TestEvidenceSubject(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	r := start(t, append(evidenceOf(dir), "--evidence-beat", "2s")...)
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	ns := unique("subject")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	if err := dev.Create(t.Context(), weakPolicy(ns, "weak")); !apierrors.IsForbidden(err) {
		t.Fatalf("a weak policy: %v", err)
	}
	sealAll(t, dir)
	subject := func(user controlplane.User, args ...string) (string, string, error) {
		t.Helper()
		var out, errs bytes.Buffer
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"evidence", "subject", dir, "--trust-log-key", "--name", string(controlplane.Developer),
			"--from-cluster", "--reason", "Access request 2026-14", "--meshvakt-namespace", ownNamespace, "--kubeconfig", plane.Kubeconfig(user), "--timeout", "10s"}, args...)...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		return out.String(), errs.String(), err
	}
	if out, errs, err := subject(controlplane.Auditor); err == nil || out != "" || !strings.Contains(errs, "meshvakt-evidence") {
		t.Errorf("who may not read the keys is told %q, %q, %v", out, errs, err)
	}
	out, errs, err := subject(controlplane.Admin)
	if err != nil || strings.Count(out, "MV102")+strings.Count(out, "MV103") == 0 || !strings.Contains(errs, "recorded by meshvakt-0/") {
		t.Errorf("told %q, %q, %v", out, errs, err)
	}
	r.stop()
	if out, errs, err := subject(controlplane.Admin); err == nil || out != "" || !strings.Contains(errs, "no replica has recorded") {
		t.Errorf("while nobody can record it: %q, %q, %v", out, errs, err)
	}
	unregister(t)

	sealAll(t, dir)
	var used []verify.Key
	for _, k := range verified(t, dir, time.Now()).Keys {
		if k.What == "used" {
			used = append(used, k)
		}
	}
	lines := uint64(strings.Count(out, "\n"))
	log := sealed(t, dir)
	genesis := log[0].Body.(*record.Genesis)
	if len(used) != 1 || used[0].ID != genesis.Pseudonyms || used[0].Origin != genesis.Origin || used[0].Why != "Access request 2026-14" || used[0].N == 0 || used[0].N > lines || !strings.HasPrefix(used[0].By, "p1:") {
		t.Errorf("recorded %+v; %d lines were told", used, lines)
	}
	for _, d := range bodies[*record.Decision](log) {
		if d.Verdict == "deny" && d.By.ID == used[0].By {
			t.Error("the use is told of the person that was looked up, and not of who looked")
		}
	}
}

// TestEvidenceOfKeysThatEnd destroys a key of pseudonyms by retention, and has a person take out another.
func TestEvidenceOfKeysThatEnd(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	args := append(evidenceOf(dir), "--evidence-retention", "9504h")
	from, _, err := volume.PeriodAt(time.Now()).Bounds()
	must(t, err)
	last := string(volume.PeriodAt(from.Add(-time.Second)))
	admin := clientFor(t, controlplane.Admin)
	var secret corev1.Secret
	patch := func(values string) {
		t.Helper()
		secret.Namespace, secret.Name = ownNamespace, "meshvakt-evidence"
		must(t, admin.Patch(t.Context(), &secret, client.RawPatch("application/merge-patch+json", []byte(`{"data":{`+values+`}}`))))
	}
	old, taken := record.Key{1}, record.Key{2}
	ids := func() (list []string) { // the cluster may have keys of other tests
		for _, k := range bodies[*record.KeyDestroyed](spooled(t, dir)) {
			if k.ID == old.ID() || k.ID == taken.ID() {
				list = append(list, k.ID+" "+k.Why+" "+string(k.By.Kind))
			}
		}
		return list
	}
	r := start(t, args...)
	enforcing(t, "default")
	patch(fmt.Sprintf(`"2020q1":%q,%q:%q`, base64.StdEncoding.EncodeToString(old[:]), last, base64.StdEncoding.EncodeToString(taken[:])))
	r.stop()
	want := []string{old.ID() + " retention sa"}
	r = start(t, args...) // whoever begins to lead looks at once
	eventually(t, 30*time.Second, func() error {
		if got := ids(); !slices.Equal(got, want) {
			return fmt.Errorf("destroyed are %q; want %q", got, want)
		}
		return nil
	})
	patch(fmt.Sprintf(`%q:null`, last))
	if _, there := secret.Data["2020q1"]; there || len(secret.Data) == 0 {
		t.Errorf("the Secret has %d keys, that of 2020q1: %t", len(secret.Data), there)
	}
	r.stop()
	want = append(want, taken.ID()+" request unknown")
	r = start(t, args...)
	eventually(t, 30*time.Second, func() error {
		if got := ids(); !slices.Equal(got, want) {
			return fmt.Errorf("destroyed are %q; want %q", got, want)
		}
		return nil
	})
	r.stop()
	unregister(t)

	sealAll(t, dir)
	ends := map[string]string{}
	for _, k := range verified(t, dir, time.Now()).Keys {
		if k.What == "destroyed" {
			ends[k.ID] = k.Why
		}
	}
	if ends[old.ID()] != "retention" || ends[taken.ID()] != "request" {
		t.Errorf("the verifier tells of the ends of %v", ends)
	}
}

// TestEvidenceDeclaredClock has an operator vouch for the clock. Whether the kernel does depends on the machine: where it does
// not, each beat goes by the word of the operator, for who takes it. What time counts by that is for TestEvidenceOracle.
func TestEvidenceDeclaredClock(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	r := start(t, append(evidenceOf(dir), "--evidence-beat", "4s", "--evidence-clock-error", "250ms", "--evidence-clock-source", "the clock of the test")...)
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	ns := unique("clock")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	observedAs(t, []string{dir}, ns, "STRICT")
	beats := countOf[*record.Beat](spooled(t, dir))
	eventually(t, 30*time.Second, func() error {
		if n := countOf[*record.Beat](spooled(t, dir)); n < beats+3 {
			return fmt.Errorf("%d beats", n)
		}
		return nil
	})
	r.stop()
	unregister(t)
	sealAll(t, dir)

	for _, believe := range []bool{true, false} {
		args := []string{"evidence", "verify", dir, "--trust-log-key", "-o", "json"}
		if !believe {
			args = append(args, "--no-declared-clock")
		}
		cmd := exec.CommandContext(t.Context(), binary, args...)
		out, err := cmd.Output()
		must(t, err)
		var result verify.Result
		must(t, json.Unmarshal(out, &result))
		clock := result.Logs[0].Clock
		declared := clock.Unsynchronised
		if !believe {
			declared = 0
		}
		if len(clock.Declarations) != 1 || clock.Declarations[0].MaxError != 250*time.Millisecond || clock.Declarations[0].Source != "the clock of the test" || clock.Declared != declared {
			t.Errorf("believed: %t: the clock is %+v", believe, clock)
		}
		t.Logf("unsynchronised at %d of %d beats, of which %d go by what is declared", clock.Unsynchronised, clock.Beats, clock.Declared)
	}
}

// TestEvidenceNewVolume has a replica lose its volume within a quarter. It goes on in a log of another name, and the loss of
// the other shows.
func TestEvidenceNewVolume(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	lost, next := tmpfs.TempDir(t), tmpfs.TempDir(t)
	args := append(evidenceOf(lost), "--evidence-beat", "1s")
	beaten := func(dir string) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			if n := countOf[*record.Beat](spooled(t, dir)); n < 2 {
				return fmt.Errorf("%d beats", n)
			}
			return nil
		})
	}
	r := start(t, args...)
	enforcing(t, "default")
	beaten(lost)
	r.kill()
	r = start(t, append(slices.Clone(args), "--evidence-dir", next)...)
	beaten(next)
	r.stop()
	r = start(t, append(slices.Clone(args), "--evidence-dir", next)...) // the same volume again, which goes on
	r.stop()
	unregister(t)

	origin := func(dir string) string { return spooled(t, dir)[0].Body.(*record.Genesis).Origin }
	first, second := origin(lost), origin(next)
	if n := countOf[*record.Genesis](spooled(t, next)); second != first+"-2" || n != 1 {
		t.Errorf("the logs are %s and %s, which begins %d times; the second must have a name of its own", first, second, n)
	}
	sealAll(t, lost)
	sealAll(t, next)
	alone := verified(t, next, time.Now())
	missing := func(r *verify.Result) (list []string) {
		for _, f := range r.Findings {
			if f.Code == verify.FindingMissingShard {
				list = append(list, f.What)
			}
		}
		return list
	}
	if got := missing(alone); len(got) != 1 || !strings.Contains(got[0], first+" is not here") {
		t.Errorf("of the second log alone is said %q; must name the first", got)
	}
	cmd := exec.CommandContext(t.Context(), binary, "evidence", "verify", lost, next, "--trust-log-key", "--max-clock-error", "20s", "-o", "json")
	out, err := cmd.Output()
	must(t, err)
	var both verify.Result
	must(t, json.Unmarshal(out, &both))
	if got := missing(&both); len(both.Problems) > 0 || len(both.Logs) != 2 || len(got) != 1 || !strings.Contains(got[0], "behind its") {
		t.Errorf("of both is said %q, problems %+v; must be whole, and name what the first had behind what is here", got, both.Problems)
	}
}
