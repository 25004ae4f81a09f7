package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/cluster"
	"github.com/meshvakt/meshvakt/internal/evidence/verify"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// truth is what the test did: from when on a namespace stood otherwise.
type truth struct {
	from, to time.Time // when it began at the earliest, and at the latest
	grade    verify.Grade
}

// TestEvidenceOracle lives through what happens in a cluster: an exception that is used, a change
// past the webhook, a crash in which nobody looks. Then the verifier, from the signed log alone, must
// say of each second what the test knows, but for seconds so near to an event that the clock could be wrong
// about them, and so near before a change that the API server had not said yet how far it is. With the audit log
// of the API server it says of the crash what that tells.
func TestEvidenceOracle(t *testing.T) {
	ownPlane(t, controlplane.Options{Log: t.Output()})
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	must(t, plane.Apply(t.Context(), []byte(writings)))
	dir := tmpfs.TempDir(t)
	address := freeAddress(t)
	args := append([]string{"--listen", address, "--webhook-url", "https://" + address, "--evidence-beat", beatOfOracle.String(), "--evidence-clock-error", margin.String(), "--evidence-clock-source", "the test, which goes by the same clock"}, evidenceOf(dir)...)
	r := startReplica(t, args...).ready(t.Context())
	enforcing(t, "default")
	sealer := sealing(t, dir)
	dev, platform, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Platform), clientFor(t, controlplane.Admin)
	quiet, excepted, violated := unique("quiet"), unique("excepted"), unique("violated")
	know := map[string][]truth{}
	since := func(namespace string, began time.Time, grade verify.Grade) {
		know[namespace] = append(know[namespace], truth{began, time.Now(), grade})
	}
	create(t, dev, namespace("elsewhere", false), pod("elsewhere", nil)) // so that the audit log has a pod
	for _, ns := range []string{quiet, excepted, violated} {
		create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
		began := time.Now()
		must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
		since(ns, began, verify.Observed)
	}
	pass := func() { waitUntil(t, time.Now().Add(2*nearBy+heard+4*time.Second)) } // with some seconds that are near to nothing
	pass()

	g := &governed{namespace: excepted}
	e := g.legacy("legacy", time.Now().Add(time.Hour))
	must(t, dev.Create(t.Context(), e))
	must(t, approve(t.Context(), platform, e))
	began := time.Now()
	eventually(t, 10*time.Second, func() error {
		return client.IgnoreAlreadyExists(dev.Create(t.Context(), weakPolicy(excepted, "legacy")))
	})
	since(excepted, began, verify.Excepted)
	setMode := func(mode string) {
		t.Helper()
		began := time.Now()
		eventually(t, 20*time.Second, func() error {
			return admin.Patch(t.Context(), policy(violated, "default", mode), client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"mtls":{"mode":%q}}}`, mode)))
		})
		since(violated, began, map[string]verify.Grade{"STRICT": verify.Observed, "PERMISSIVE": verify.Violated}[mode])
	}
	giveBack := withoutRight(t, admin)
	must(t, admin.Delete(t.Context(), registered(t, admin)))
	setMode("PERMISSIVE")
	giveBack()
	enforcing(t, "default")
	pass()

	setMode("STRICT")
	began = time.Now()
	must(t, dev.Delete(t.Context(), weakPolicy(excepted, "legacy")))
	since(excepted, began, verify.Observed)
	pass()

	began = time.Now()
	r.kill()
	for ns := range know {
		since(ns, began, verify.Inferred)
	}
	pass()
	began = time.Now()
	r = startReplica(t, args...).ready(t.Context())
	waitUntil(t, time.Now().Add(6*time.Second)) // its first beat
	for ns := range know {
		since(ns, began, verify.Observed)
	}
	pass()
	end := time.Now()
	pass()
	r.stop()
	unregister(t)
	must(t, sealer.Process.Signal(syscall.SIGTERM))
	must(t, sealer.Wait())

	audited := verified(t, dir, end, "--audit-log", plane.AuditLogPath)
	if a := audited.Audit; a == nil || !a.Used || a.Untold > 0 || a.Receipts == 0 {
		t.Errorf("the audit log is held against the log: %+v", a)
	}
	for _, ns := range []string{quiet, excepted, violated} {
		byAudit := slices.Clone(know[ns])
		for i := range byAudit {
			if byAudit[i].grade == verify.Inferred {
				byAudit[i].grade = verify.ObservedByAudit
			}
		}
		agree(t, audited, ns, byAudit, end)
	}
	result := verified(t, dir, end)
	for _, ns := range []string{quiet, excepted, violated} {
		agree(t, result, ns, know[ns], end)
	}
	unexplained := 0
	ours := []string{"", quiet, excepted, violated} // namespaces of other tests may be going away still
	for _, f := range result.Findings {
		if !slices.Contains(ours, f.Namespace) {
			continue
		}
		t.Logf("finding %s %s %s to %s: %s", f.Code, f.Namespace, f.From.Format(time.TimeOnly), f.To.Format(time.TimeOnly), f.What)
		if f.Code == verify.FindingUnexplained {
			unexplained++
			if f.Namespace != violated {
				t.Errorf("a change of namespace %s is called unexplained", f.Namespace)
			}
		} else if !slices.Contains([]string{verify.FindingWeakened, verify.FindingHook, verify.FindingNotAsked}, f.Code) {
			t.Errorf("finding %s", f.Code)
		}
	}
	if unexplained != 1 {
		t.Errorf("%d changes are unexplained; must be the one past the webhook", unexplained)
	}
	register := slices.DeleteFunc(result.Exceptions, func(e verify.Exception) bool { return e.Namespace != excepted })
	if len(register) != 1 || register[0].Reference != "SEC-1234" {
		t.Errorf("the register of exceptions is %+v", register)
	}
}

// margin is the declared error of the clock, which all of the test has in common.
const margin = 500 * time.Millisecond

// beatOfOracle is the shortest at which a verifier takes what one replica sees for seen without a break, however late a beat
// may be: it allows for two and a half of them from one to the next, which is 12.5 s. A beat comes up to a tick late, that is
// a second, and waits for up to 5 s for a watch that is just being opened again: 11 s after the one before.
const beatOfOracle = 5 * time.Second

// nearBy is how near to an event the second may be about which nothing is demanded: the last beat before it may be as far
// away as beats may be, and the clock wrong.
const nearBy = margin + beatOfOracle + 6*time.Second

// heard is how long before a change the API server may have said last how far it is.
const heard = cluster.WordEvery

// verified is what the command makes of the log.
func verified(t testing.TB, dir string, end time.Time, args ...string) *verify.Result {
	t.Helper()
	args = append([]string{"evidence", "verify", dir, "--trust-log-key", "-o", "json",
		"--claim", "mtls=STRICT,namespace=*", "--from", end.Add(-time.Minute).UTC().Format(time.RFC3339), "--to", end.UTC().Format(time.RFC3339)}, args...)
	cmd := exec.CommandContext(t.Context(), binary, args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 2) {
		t.Fatalf("verify: %v\n%s", err, out)
	}
	var result verify.Result
	must(t, json.Unmarshal(out, &result))
	if len(result.Problems) > 0 {
		t.Fatalf("the log is not whole: %+v", result.Problems)
	}
	return &result
}

// agree holds what the verifier says of a namespace against what is known, second by second.
func agree(t testing.TB, result *verify.Result, namespace string, known []truth, end time.Time) {
	t.Helper()
	at := slices.IndexFunc(result.Namespaces, func(l verify.Timeline) bool { return l.Namespace == namespace })
	if at < 0 {
		t.Errorf("nothing is said of namespace %s", namespace)
		return
	}
	seen := map[verify.Grade]int{}
	for second := known[0].to.Add(nearBy); second.Before(end.Add(-nearBy - heard)); second = second.Add(time.Second) {
		want := verify.Grade("")
		for i, k := range known {
			next := end.Add(nearBy)
			if i+1 < len(known) {
				next = known[i+1].from
			}
			if second.After(k.to.Add(nearBy)) && second.Before(next.Add(-nearBy-heard)) {
				want = k.grade
			}
		}
		if want == "" {
			continue
		}
		got := verify.Grade("nothing")
		for _, in := range result.Namespaces[at].Intervals {
			if !second.Before(in.From) && second.Before(in.To) {
				got = in.Grade
			}
		}
		if got != want {
			t.Errorf("namespace %s at %s is called %s; was %s: %+v", namespace, second.Format(time.TimeOnly), got, want, result.Namespaces[at].Intervals)
			return
		}
		seen[want]++
	}
	t.Logf("namespace %s: %v seconds agree", namespace, seen)
	for _, k := range known {
		if seen[k.grade] == 0 {
			t.Errorf("namespace %s: no second that is %s was compared", namespace, k.grade)
		}
	}
}
