package e2e

import (
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
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/internal/evidence/spool"
	"github.com/meshvakt/meshvakt/internal/evidence/volume"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// evidenceOf are the flags of a replica that keeps evidence in dir.
func evidenceOf(dir string) []string {
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

// evidenceRights gives Meshvakt what evidence takes beyond its other rights.
func evidenceRights(t testing.TB) {
	t.Helper()
	must(t, plane.Apply(t.Context(), []byte(strings.ReplaceAll(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: evidence, namespace: NS}
rules:
- {apiGroups: [""], resources: [secrets], verbs: [get, create, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: evidence, namespace: NS}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: evidence}
subjects: [{kind: ServiceAccount, name: meshvakt, namespace: NS}]
`, "NS", ownNamespace))))
}

// TestEvidence asks for what is recorded, with a person's name, and reads the log.
func TestEvidence(t *testing.T) {
	evidenceRights(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := t.TempDir()
	since := time.Now()
	r := start(t, evidenceOf(dir)...)
	enforcing(t, "default")
	dev := clientFor(t, controlplane.Developer)
	ns := unique("evidence")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	serviceAccount(t, ns)
	if err := dev.Create(t.Context(), policy(ns, "weak", "PERMISSIVE"), client.DryRunAll); err == nil {
		t.Error("a weak policy is let through in a dry run")
	}
	must(t, dev.Create(t.Context(), policy(ns, "strong", "STRICT"), client.DryRunAll))
	before := r.metric(t.Context(), `meshvakt_evidence_answers_total`)
	must(t, dev.Create(t.Context(), policy(ns, "strong2", "STRICT"), client.DryRunAll))
	if after := r.metric(t.Context(), `meshvakt_evidence_answers_total`); after != before {
		t.Errorf("a dry run has left %v records", after-before)
	}
	if err := dev.Create(t.Context(), policy(ns, "weak", "PERMISSIVE")); !apierrors.IsForbidden(err) {
		t.Errorf("a weak policy: %v", err)
	}
	must(t, dev.Create(t.Context(), policy(ns, "strong", "STRICT")))
	r.stop()

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
	if verdicts["deny"] != 1 || verdicts["allow"] != 1 {
		t.Errorf("verdicts about policies are %v; must be a denial and a permission, and none of the dry runs", verdicts)
	}
	if _, stopped := log[len(log)-1].Body.(*record.Stop); !stopped {
		t.Errorf("the last record is of kind %s; must be stop", log[len(log)-1].Body.Kind())
	}
	files, err := filepath.Glob(filepath.Join(volume.Dir(dir).Spool(), "*"))
	must(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		for _, secret := range []string{string(controlplane.Developer), "PERMISSIVE", "strong"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s has %q in clear", filepath.Base(f), secret)
			}
		}
	}
}

// TestEvidenceOnAFullVolume fills the volume and reads what users are told.
func TestEvidenceOnAFullVolume(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system takes root")
	}
	dir := filepath.Join(t.TempDir(), "volume")
	must(t, os.Mkdir(dir, 0o700))
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=160m", "evidence", dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	evidenceRights(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	r := start(t, evidenceOf(dir)...)
	enforcing(t, "default")
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	ns := unique("evidence")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))

	filler := filepath.Join(dir, "filler")
	fillUp(t, filler)
	// Room is left in the segment that is open; the log is full when that is.
	eventually(t, 60*time.Second, func() error {
		for range 500 {
			_ = dev.Create(t.Context(), policy(ns, "weak", "PERMISSIVE"))
		}
		if r.metric(t.Context(), "meshvakt_evidence_available ") != 0 {
			return errors.New("records can be written still")
		}
		return nil
	})
	t.Logf("the log is full")
	if err := dev.Create(t.Context(), policy(ns, "weak", "PERMISSIVE")); !apierrors.IsForbidden(err) || strings.Contains(err.Error(), "EvidenceUnavailable") {
		t.Errorf("a weak policy: %v; must be refused for what it is", err)
	}
	err := dev.Create(t.Context(), policy(ns, "strong", "STRICT"))
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "EvidenceUnavailable") || !strings.Contains(err.Error(), "its volume is full") {
		t.Errorf("a policy without a record: %v", err)
	}
	t.Logf("told: %v", err)
	must(t, dev.Create(t.Context(), policy(ns, "strong", "STRICT"), client.DryRunAll))
	must(t, admin.Create(t.Context(), policy(ns, "emergency", "STRICT"))) // system:masters
	must(t, os.Remove(filler))
	eventually(t, 30*time.Second, func() error { return dev.Create(context.Background(), policy(ns, "strong", "STRICT")) })
	r.stop()
	gaps, broken := 0, 0
	for _, rec := range spooled(t, dir) {
		switch b := rec.Body.(type) {
		case *record.Gap:
			gaps++
			if b.Cause != "full" {
				t.Errorf("the cause of a gap is %s", b.Cause)
			}
		case *record.Decision:
			if b.BreakGlass {
				broken++
			}
		}
	}
	if gaps == 0 || broken != 1 {
		t.Errorf("%d gaps, %d changes by breaking the glass; must be some, and one", gaps, broken)
	}
}

// fillUp writes until the file system is full.
func fillUp(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for block := make([]byte, 1<<16); err == nil; {
		_, err = f.Write(block)
	}
}

// kills is how often TestEvidenceKilled kills the replica.
func kills(t testing.TB) int {
	t.Helper()
	if text := os.Getenv("E2E_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		return n
	}
	return 10
}

// TestEvidenceKilled kills the webhook again and again while it answers. What the API server was
// told of, by its own audit log, is in the log of the replica.
func TestEvidenceKilled(t *testing.T) {
	evidenceRights(t)
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dir := t.TempDir()
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
				mode := "PERMISSIVE"
				if i%4 == 0 {
					mode = "STRICT"
				}
				_ = c.Create(ctx, policy(ns, fmt.Sprintf("p-%d-%d", w, i), mode)) // the audit log tells
			}
		})
	}
	for range kills(t) {
		n := r.metric(t.Context(), `meshvakt_evidence_answers_total{record="own"}`)
		eventually(t, 30*time.Second, func() error {
			if now := r.metric(t.Context(), `meshvakt_evidence_answers_total{record="own"}`); now < n+20 {
				return fmt.Errorf("%v records, and %v before", now, n)
			}
			return nil
		})
		r.kill()
		r = startReplica(t, args...).ready(t.Context())
	}
	cancel()
	group.Wait()
	r.stop()
	log := spooled(t, dir)
	list, _ := receipts(t, since)
	boots := 0
	for _, rec := range log {
		if rec.Body.Kind() == record.KindBoot {
			boots++
		}
	}
	t.Logf("%d kills, %d records, %d receipts in the audit log", kills(t), len(log), len(list))
	if boots != kills(t)+1 || len(list) < 20*kills(t) {
		t.Errorf("%d boots and %d receipts; must be %d, and at least %d", boots, len(list), kills(t)+1, 20*kills(t))
	}
	inLog(t, list, log)
}
