package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/evidence/record"
	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

// observedTable is the table that the records of a log come to. The hash of it must be that of each beat.
func observedTable(t testing.TB, log []record.Record) (table map[string]record.Row, beats int) {
	t.Helper()
	table = map[string]record.Row{}
	var parts map[string]record.Row
	for _, r := range log {
		switch b := r.Body.(type) {
		case *record.Snapshot:
			if b.Part == 1 {
				parts = map[string]record.Row{}
			}
			for _, row := range b.Rows {
				parts[row.Namespace] = row
			}
			if b.Part == b.Of {
				table = parts
			}
		case *record.State:
			if b.What == "set" {
				table[b.Row.Namespace] = b.Row
			} else {
				delete(table, b.Row.Namespace)
			}
		case *record.Beat:
			beats++
			rows := make([]record.Row, 0, len(table))
			for _, row := range table {
				rows = append(rows, row)
			}
			whole, err := record.Snapshots("boot", r.Time, rows)
			must(t, err)
			if whole[0].Table != b.Table {
				t.Errorf("record %d: replayed, the table has hash %s; the beat says %s", r.Seq, whole[0].Table, b.Table)
			}
		}
	}
	return table, beats
}

// observedAs waits until every log has a namespace stand like that.
func observedAs(t testing.TB, dirs []string, namespace, mode string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		for _, dir := range dirs {
			table, _ := observedTable(t, spooled(t, dir))
			if row := table[namespace]; row.Mode != mode {
				return fmt.Errorf("%s: namespace %q is %q; want %s", dir, namespace, row.Mode, mode)
			}
		}
		return nil
	})
}

// TestEvidenceObserved has two replicas watch while a policy is deleted behind their back.
func TestEvidenceObserved(t *testing.T) {
	guard(t, defaultGuard(v1alpha1.OnMissingReject))
	dev, admin := clientFor(t, controlplane.Developer), clientFor(t, controlplane.Admin)
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ownNamespace, Name: unique("meshvakt"), Labels: map[string]string{discoveryv1.LabelServiceName: "meshvakt"}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	var dirs []string
	var replicas []*replica
	for i := range 2 {
		name, dir := fmt.Sprintf("meshvakt-%d", i), tmpfs.TempDir(t)
		endpoints.Endpoints = append(endpoints.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ownNamespace, Name: name}})
		dirs = append(dirs, dir)
		replicas = append(replicas, start(t, append(evidenceOf(dir), "--evidence-replica", name, "--evidence-beat", "2s")...))
	}
	create(t, admin, endpoints)
	enforcing(t, "default")
	ns := unique("observed")
	create(t, dev, namespace(ns, false), policy(ns, "default", "STRICT"))
	must(t, relabel(t.Context(), dev, namespace(ns, false), v1alpha1.GuardedLabel, "true"))
	observedAs(t, dirs, ns, "STRICT")

	before := time.Now()
	behind(t, func() error { return admin.Delete(t.Context(), policy(ns, "default", "")) })
	weakened := time.Now()
	observedAs(t, dirs, ns, "PERMISSIVE")
	enforcing(t, "default")
	restoring := time.Now()
	must(t, dev.Create(t.Context(), policy(ns, "default", "STRICT")))
	restored := time.Now()
	observedAs(t, dirs, ns, "STRICT")
	serviceAccount(t, ns)
	bare := pod(ns, map[string]string{"app": "bare"})
	behind(t, func() error { return admin.Create(t.Context(), bare) })
	eventually(t, 30*time.Second, func() error {
		for _, dir := range dirs {
			if table, _ := observedTable(t, spooled(t, dir)); table[ns].Outside != 1 {
				return fmt.Errorf("%d pods are outside", table[ns].Outside)
			}
		}
		return nil
	})
	var latest []*record.Beat
	eventually(t, 30*time.Second, func() error {
		latest = nil
		for _, dir := range dirs {
			beats := bodies[*record.Beat](spooled(t, dir))
			last := beats[len(beats)-1]
			if len(last.Ready) != 2 || last.Ready[0].Boot == "" || last.Ready[1].Boot == "" {
				return fmt.Errorf("ready %+v", last.Ready)
			}
			latest = append(latest, last)
		}
		return nil
	})
	for _, r := range replicas {
		r.stop()
	}
	unregister(t)

	decided := map[string]bool{} // uid and digest of allowed policies
	var logs [][]record.Record
	for _, dir := range dirs {
		log := spooled(t, dir)
		logs = append(logs, log)
		for _, d := range bodies[*record.Decision](log) {
			if d.Verdict == "allow" {
				decided[d.Object.UID+d.Object.Digest] = true
			}
		}
	}
	boots := map[string]bool{}
	var rows []record.Row
	for i, log := range logs {
		table, beats := observedTable(t, log)
		rows = append(rows, table[ns])
		t.Logf("replica %d: %d records, %d beats, table of %d rows", i, len(log), beats, len(table))
		boots[log[0].Boot] = true
		for _, r := range latest[i].Ready {
			boots[r.Boot] = true
		}
		for _, w := range latest[i].Watches {
			if !w.Healthy || w.Epoch == 0 || w.ResourceVersion == "" {
				t.Errorf("watch %+v", w)
			}
		}
		checkStates(t, log, ns, [2][2]time.Time{{before, weakened}, {restoring, restored}})
		if c := bodies[*record.ConfigChanged](log); len(c) < 2 {
			t.Errorf("%d changes of Meshvakt's own; must tell that the webhook configuration went, and came back", len(c))
		}
	}
	if len(boots) != 2 {
		t.Errorf("starts %v; must be two, which know each other", boots)
	}
	hashes := make([]record.Hash, len(rows))
	for i := range rows {
		h, err := record.HashRow(rows[i])
		must(t, err)
		hashes[i] = h
	}
	if hashes[0] != hashes[1] {
		t.Errorf("the replicas disagree: %+v and %+v", rows[0], rows[1])
	}
	explained := false
	for _, in := range rows[0].Inputs {
		explained = explained || in.Object.GVK == "security.istio.io/v1/PeerAuthentication" && decided[in.Object.UID+in.Object.Digest]
	}
	if !explained {
		t.Errorf("no decision has let in the policy that is observed: %+v", rows[0].Inputs)
	}
}

// checkStates holds the bounds of what was seen against when it was done.
func checkStates(t *testing.T, log []record.Record, namespace string, done [2][2]time.Time) {
	t.Helper()
	want := []string{"PERMISSIVE", "STRICT"}
	var modes []string
	for _, r := range log {
		s, is := r.Body.(*record.State)
		if !is || s.Row.Namespace != namespace || r.Time.Before(done[0][0]) {
			continue
		}
		if last := len(modes) - 1; last >= 0 && modes[last] == s.Row.Mode {
			continue // something else has changed
		}
		modes = append(modes, s.Row.Mode)
		if n := len(modes); n <= len(want) {
			if s.Row.Mode != want[n-1] {
				t.Errorf("change %d is to %s; must be to %s", n, s.Row.Mode, want[n-1])
			}
			from, to := done[n-1][0], done[n-1][1]
			if s.After.After(to) || r.Time.Before(from) {
				t.Errorf("%s between %s and %s; it was done between %s and %s", s.Row.Mode, s.After, r.Time, from, to)
			}
			t.Logf("%s seen %s after it was done, not before %s before", s.Row.Mode, r.Time.Sub(to), to.Sub(s.After))
		}
	}
	if len(modes) != len(want) {
		t.Errorf("changes %q; want %q", modes, want)
	}
}

// bodies are those of one kind.
func bodies[B record.Body](log []record.Record) []B {
	var list []B
	for _, r := range log {
		if b, is := r.Body.(B); is {
			list = append(list, b)
		}
	}
	return list
}
