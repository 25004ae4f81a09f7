package telemetry

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshvakt/meshvakt/internal/scan"
	"github.com/meshvakt/meshvakt/policies"
)

func newScan(t *testing.T) (*Scan, *scan.Ledger, *prometheus.Registry) {
	t.Helper()
	registry, ledger := prometheus.NewPedanticRegistry(), scan.NewLedger()
	now := time.Unix(1_800_000_100, 0)
	s, err := NewScan(registry, policies.All(), ledger, func() []string { return []string{"default"} }, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return s, ledger, registry
}

func scanned(ledger *scan.Ledger) {
	at := time.Unix(1_800_000_000, 0)
	ledger.Put(&scan.Standing{
		Namespace: "prod", Guards: []string{"default"}, Pods: 4, Stale: 1, Counts: []scan.Count{{Guard: "default", Policy: "mesh-membership", Reason: "NotInMesh", Found: 2, Excepted: 1}},
		Exceptions: []scan.Exception{{Guard: "default", Name: "x", Ends: at.Add(time.Hour)}, {Guard: "default", Name: "y", Ends: at, Ended: true}},
	})
	ledger.Complete(at, at, map[string]bool{"prod": true})
}

func TestScanLint(t *testing.T) {
	_, ledger, registry := newScan(t)
	scanned(ledger)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestScanSeries(t *testing.T) {
	s, ledger, registry := newScan(t)
	count := func(name string) int {
		t.Helper()
		n, err := testutil.GatherAndCount(registry, name)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// A replica that does not lead knows nothing of the cluster; what it counts begins at 0.
	for name, want := range map[string]int{"meshvakt_scan_findings": 0, "meshvakt_scan_age_seconds": 0, "meshvakt_scan_failures_total": 1, "meshvakt_scan_duration_seconds": 1, "meshvakt_remediations_total": 3, "meshvakt_scan_events_total": 2} {
		if got := count(name); got != want {
			t.Errorf("%s has %d series before a scan, want %d", name, got, want)
		}
	}
	scanned(ledger)
	reasons := 0
	for _, p := range policies.All() {
		reasons += len(p.Reasons)
	}
	if got := count("meshvakt_scan_findings"); got != 2*reasons {
		t.Errorf("%d series of findings, want %d", got, 2*reasons)
	}
	s.ScanEnded(time.Second, nil)
	s.ScanEnded(time.Second, errors.New("boom"))
	s.Remediated("restored")
	s.Remediated("made up")
	s.Announced(true)
	const want = `
# HELP meshvakt_remediations_total Attempts to make a guarded namespace STRICT again that had ceased to be, by what came of them.
# TYPE meshvakt_remediations_total counter
meshvakt_remediations_total{outcome="failed"} 0
meshvakt_remediations_total{outcome="impossible"} 0
meshvakt_remediations_total{outcome="other"} 1
meshvakt_remediations_total{outcome="restored"} 1
# HELP meshvakt_scan_age_seconds Time since the last pass of the scan over all namespaces ended. Told by the leader, once there was one.
# TYPE meshvakt_scan_age_seconds gauge
meshvakt_scan_age_seconds 100
# HELP meshvakt_scan_exceptions GuardExceptions of a guard's namespaces: active ones apply, expiring are those of them that end within a day, and expired ones have ended and are there still. Told by the leader.
# TYPE meshvakt_scan_exceptions gauge
meshvakt_scan_exceptions{guard="default",state="active"} 1
meshvakt_scan_exceptions{guard="default",state="expired"} 1
meshvakt_scan_exceptions{guard="default",state="expiring"} 1
# HELP meshvakt_scan_failures_total Passes of the scan over all namespaces that failed; they are tried again.
# TYPE meshvakt_scan_failures_total counter
meshvakt_scan_failures_total 1
# HELP meshvakt_scan_namespaces Namespaces that a guard selects, by how they stand; not_strict are counted among compliant or violating too. Told by the leader.
# TYPE meshvakt_scan_namespaces gauge
meshvakt_scan_namespaces{guard="default",state="compliant"} 0
meshvakt_scan_namespaces{guard="default",state="not_strict"} 1
meshvakt_scan_namespaces{guard="default",state="violating"} 1
# HELP meshvakt_scan_stale_proxies Running pods of a guard's namespaces whose proxy is of another revision or image than they would get now. Told by the leader.
# TYPE meshvakt_scan_stale_proxies gauge
meshvakt_scan_stale_proxies{guard="default"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "meshvakt_remediations_total", "meshvakt_scan_age_seconds",
		"meshvakt_scan_exceptions", "meshvakt_scan_failures_total", "meshvakt_scan_namespaces", "meshvakt_scan_stale_proxies"); err != nil {
		t.Error(err)
	}
}
