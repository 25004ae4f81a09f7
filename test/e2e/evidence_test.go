package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// evidenceOf are the flags of a replica that keeps evidence in dir. Tests share a cluster, which remembers what logs there
// were: each directory would be a new volume in the place of one that was lost.
func evidenceOf(dir string) []string {
	forget := []string{"-n", ownNamespace, "annotate", "secret", "meshvakt-evidence"}
	for i := range 3 {
		forget = append(forget, fmt.Sprintf("evidence.meshvakt.io/meshvakt-%d-", i))
	}
	_, _, _ = plane.Kubectl(context.Background(), controlplane.Admin, "", forget...) // there may be no Secret yet
	return []string{"--evidence-dir", dir, "--evidence-name", "evidence.example.org", "--evidence-replica", "meshvakt-0"}
}

// spooled reads the records of a directory, whose chain must hold.
func spooled(t testing.TB, dir string) []record.Record {
	t.Helper()
	reader, err := spool.OpenReader(volume.Dir(dir).Spool(), 1)
	must(t, err)
	defer reader.Close()
	var list []record.Record
	chain := record.Begin(record.Hash{})
	for line, err := range reader.Lines() {
		must(t, err)
		if sha256.Sum256(line.Text) != line.Hash {
			t.Fatalf("line %d has another hash", line.Seq)
		}
		r, next, err := chain.Follow(line.Text)
		if err != nil {
			t.Fatalf("line %d: %v\n%s", line.Seq, err, line.Text)
		}
		list, chain = append(list, r), next
	}
	return list
}

// receipt is what the API server's audit log says of a record.
type receipt struct {
	origin string
	seq    int
	hash   string
}

// receipts are those of events since a time, by the audit ID; of one request to more than one
// entry of the webhook there are several.
func receipts(t testing.TB, since time.Time) (list []receipt, without []controlplane.AuditEvent) {
	t.Helper()
	_, err := plane.Audited(func(e controlplane.AuditEvent) bool {
		if e.Received.Before(since) || e.Stage != "ResponseComplete" {
			return false
		}
		for key, value := range e.Annotations {
			if !strings.HasSuffix(key, "meshvakt.io/evidence") {
				continue
			}
			place, hash, found := strings.Cut(value, " ")
			if !found {
				without = append(without, e)
				continue
			}
			origin, seq, _ := strings.Cut(place, "#")
			n, err := strconv.Atoi(seq)
			must(t, err)
			list = append(list, receipt{origin, n, hash})
		}
		return false
	})
	must(t, err)
	return list, without
}

// inLog demands that each receipt names a record of the log, of which the last is not named.
func inLog(t testing.TB, list []receipt, log []record.Record) {
	t.Helper()
	genesis := log[0].Body.(*record.Genesis)
	for _, r := range list {
		if r.origin != genesis.Origin || r.seq+1 >= len(log) {
			t.Errorf("the audit log has %+v; the log of %s ends with %d", r, genesis.Origin, len(log)-1)
			continue
		}
		if got := log[r.seq+1].Prev.String(); got != r.hash {
			t.Errorf("record %d has the hash %s; the audit log says %s", r.seq, got, r.hash)
		}
	}
}

// TestEvidence asks for what is recorded, with a person's name, and reads the log.
func TestEvidence(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	since := time.Now()
	r := start(t, evidenceOf(dir)...)
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	ns := unique("evidence")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	serviceAccount(t, ns)
	if err := dev.Create(t.Context(), weakPolicy(ns, "weak"), client.DryRunAll); err == nil {
		t.Error("a weak policy is let through in a dry run")
	}
	must(t, dev.Create(t.Context(), policy(ns, "strong", "STRICT"), client.DryRunAll))
	// What is left of other tests may be asked about at the same moment, but not each time.
	eventually(t, 30*time.Second, func() error {
		before := r.metric(t.Context(), `meshvakt_evidence_answers_total`)
		must(t, dev.Create(t.Context(), policy(ns, "strong2", "STRICT"), client.DryRunAll))
		if after := r.metric(t.Context(), `meshvakt_evidence_answers_total`); after != before {
			return fmt.Errorf("a dry run has left %v records", after-before)
		}
		return nil
	})
	if err := dev.Create(t.Context(), weakPolicy(ns, "weak")); !apierrors.IsForbidden(err) {
		t.Errorf("a weak policy: %v", err)
	}
	must(t, dev.Create(t.Context(), policy(ns, "strong", "STRICT")))
	r.stop()
	unregister(t)

	log := spooled(t, dir)
	list, _ := receipts(t, since)
	if len(list) < 3 {
		t.Errorf("the audit log has %d receipts; must have those of the namespace, the refusal and the policy", len(list))
	}
	inLog(t, list, log)
	verdicts := map[string]int{}
	for _, rec := range log {
		if d, is := rec.Body.(*record.Decision); is && d.Object.GVK == "security.istio.io/v1/PeerAuthentication" && d.Object.Namespace == ns {
			verdicts[d.Verdict]++
			if d.By.Kind != record.User || !strings.HasPrefix(d.By.ID, "p1:") {
				t.Errorf("decided for %+v; must be a pseudonym", d.By)
			}
		}
	}
	// Two entries of the webhook configuration ask about each: that of the guard, and the one for
	// namespaces whose label the API server may not know yet. Before the label there was none to ask.
	if verdicts["deny"] != 2 || verdicts["allow"] != 2 {
		t.Errorf("verdicts about policies are %v; must be a denial and a permission, by each entry, and none of the dry runs", verdicts)
	}
	if _, stopped := log[len(log)-1].Body.(*record.Stop); !stopped {
		t.Errorf("the last record is of kind %s; must be stop", log[len(log)-1].Body.Kind())
	}
	files, err := filepath.Glob(filepath.Join(volume.Dir(dir).Spool(), "*"))
	must(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		for _, secret := range []string{string(controlplane.Developer), "strong"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s has %q in clear", filepath.Base(f), secret)
			}
		}
	}
}

// TestEvidenceWhileTheVolumeStalls suspends the volume, as one does that has lost its server, and
// reads what users are told.
func TestEvidenceWhileTheVolumeStalls(t *testing.T) {
	dir, freeze := volumeThatFreezes(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	r := start(t, evidenceOf(dir)...)
	enforcing(t, "default")
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	ns := unique("evidence")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	serviceAccount(t, ns)

	freeze(true)
	if err := dev.Create(t.Context(), weakPolicy(ns, "weak")); !apierrors.IsForbidden(err) || strings.Contains(err.Error(), "EvidenceUnavailable") {
		t.Errorf("a weak policy: %v; must be refused for what it is", err)
	}
	err := dev.Create(t.Context(), policy(ns, "strong", "STRICT"))
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "EvidenceUnavailable") || !strings.Contains(err.Error(), "does not answer in time") {
		t.Errorf("a policy without a record: %v", err)
	}
	t.Logf("told: %v", err)
	must(t, dev.Create(t.Context(), policy(ns, "strong", "STRICT"), client.DryRunAll))
	must(t, admin.Create(t.Context(), policy(ns, "emergency", "STRICT"))) // system:masters
	web := pod(ns, map[string]string{"app": "web", "sidecar.istio.io/inject": "true"})
	if err := dev.Create(t.Context(), web); err != nil && strings.Contains(err.Error(), "EvidenceUnavailable") {
		t.Errorf("a pod: %v", err)
	}
	if r.metric(t.Context(), "meshvakt_evidence_available ") != 0 || r.metric(t.Context(), `meshvakt_evidence_unavailable{cause="slow"}`) != 1 {
		t.Error("the metrics say that records can be written")
	}
	freeze(false)
	eventually(t, 30*time.Second, func() error { return dev.Create(context.Background(), policy(ns, "strong", "STRICT")) })
	r.stop()
	unregister(t)
	gaps, broken := uint64(0), 0
	for _, rec := range spooled(t, dir) {
		switch b := rec.Body.(type) {
		case *record.Gap:
			for _, c := range b.Counts {
				gaps += c.N
			}
			if b.Cause != "slow" {
				t.Errorf("the cause of a gap is %s", b.Cause)
			}
		case *record.Decision:
			if b.BreakGlass {
				broken++
			}
		}
	}
	if gaps < 6 || broken != 2 {
		t.Errorf("gaps tell of %d answers, and there are %d changes by breaking the glass; must be at least 6, and 2: two entries ask about each", gaps, broken)
	}
}

// volumeThatFreezes is a file system whose writes can be suspended.
func volumeThatFreezes(t testing.TB) (dir string, freeze func(bool)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system takes root")
	}
	dir, image := filepath.Join(t.TempDir(), "volume"), filepath.Join(tmpfs.TempDir(t), "image")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 512<<20))
	for _, command := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v %s", command[0], err, out)
		}
	}
	f, err := os.Open(dir)
	must(t, err)
	freeze = func(is bool) {
		t.Helper()
		const fifreeze, fithaw = 0xc0045877, 0xc0045878
		request := uint(fithaw)
		if is {
			request = fifreeze
		}
		if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != nil && (is || !errors.Is(err, unix.EINVAL)) {
			t.Errorf("freeze %v: %v", is, err)
		}
	}
	t.Cleanup(func() {
		freeze(false)
		must(t, f.Close())
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir, freeze
}

// weakPolicy takes plain text for some workloads.
func weakPolicy(namespace, name string) *objects.PeerAuthentication {
	p := policy(namespace, name, "PERMISSIVE")
	p.Spec.Selector = &objects.WorkloadSelector{MatchLabels: map[string]string{"app": "legacy"}}
	return p
}

// kills is how often TestEvidenceKilled kills the replica.
const kills = 50

// TestEvidenceKilled kills webhook and sealer again and again while there is much to answer. What the
// API server was told of, by its own audit log, is in the log that the sealer has signed, which a
// verifier finds whole. It takes the binary as it is shipped, a hundred of which start in a fraction of
// the time; data races are for the tests in which it ends by itself and tells of them.
func TestEvidenceKilled(t *testing.T) {
	asShipped(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := tmpfs.TempDir(t)
	since := time.Now()
	address := freeAddress(t)
	args := append([]string{"--listen", address, "--webhook-url", "https://" + address}, evidenceOf(dir)...)
	r := startReplica(t, args...).ready(t.Context())
	enforcing(t, "default")
	ns := unique("killed")
	dev := clientFor(t, controlplane.Developer)
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))

	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			c := clientFor(t, controlplane.Developer)
			for i := 0; ctx.Err() == nil; i++ {
				p := weakPolicy(ns, fmt.Sprintf("p-%d-%d", w, i))
				if i%4 == 0 {
					p.Spec.MTLS.Mode = "STRICT"
				}
				_ = c.Create(ctx, p) // the audit log tells
			}
		})
	}
	sealer := sealing(t, dir)
	for range kills {
		n := r.metric(t.Context(), `meshvakt_evidence_answers_total{record="own"}`)
		eventually(t, 30*time.Second, func() error {
			if now := r.metric(t.Context(), `meshvakt_evidence_answers_total{record="own"}`); now < n+20 {
				return fmt.Errorf("%v records, and %v before", now, n)
			}
			return nil
		})
		must(t, sealer.Process.Kill())
		r.kill()
		_ = sealer.Wait()
		r = startReplica(t, args...).ready(t.Context())
		sealer = sealing(t, dir)
	}
	cancel()
	group.Wait()
	r.stop()
	unregister(t)
	must(t, sealer.Process.Signal(syscall.SIGTERM)) // it seals the rest
	if err := sealer.Wait(); err != nil {
		t.Errorf("the sealer ended with %v", err)
	}
	out, err := exec.CommandContext(t.Context(), binary, "evidence", "verify", dir, "--trust-log-key").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("the log is not whole: %v", err)
	}
	log := sealed(t, dir)
	list, _ := receipts(t, since)
	boots := countOf[*record.Boot](log)
	t.Logf("%d kills, %d records, %d receipts in the audit log", kills, len(log), len(list))
	if boots != kills+1 || len(list) < 20*kills {
		t.Errorf("%d boots and %d receipts; must be %d, and at least %d", boots, len(list), kills+1, 20*kills)
	}
	inLog(t, list, log)
}

// sealing starts a sealer.
func sealing(t testing.TB, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary, "evidence", "seal", "--dir", dir, "--checkpoint-interval", "1s", "--log-level", "warn")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

// sealed reads the records of a log that is signed, whose chain must hold.
func sealed(t testing.TB, dir string) []record.Record {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, "evidence", "inspect", dir, "-o", "json")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(t, err)
	var list []record.Record
	chain := record.Begin(record.Hash{})
	for line := range bytes.Lines(out) {
		r, next, err := chain.Follow(bytes.TrimSuffix(line, []byte("\n")))
		must(t, err)
		list, chain = append(list, r), next
	}
	return list
}
