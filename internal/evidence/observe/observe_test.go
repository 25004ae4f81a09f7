package observe

import (
	"testing"
	"time"

	"github.com/meshvakt/meshvakt/internal/evidence/record"
)

func TestFirstSnapshotAndBeats(t *testing.T) {
	inCluster(t, func(s *setting) {
		s.start()
		s.pass(10 * time.Second)
		if n := len(s.log.told()); n != 0 {
			t.Fatalf("%d records without a shard", n)
		}
		s.log.open("2026q4")
		s.pass(3 * time.Minute)
		list := s.log.told()
		table := replay(t, list)
		snapshots := of[*record.Snapshot](list)
		if len(snapshots) != 1 || snapshots[0].Why != "boot" || len(snapshots[0].Rows) != 2 {
			t.Fatalf("snapshots %+v; want one of two rows", snapshots)
		}
		if beats := of[*record.Beat](list); len(beats) != 3 && len(beats) != 4 {
			t.Errorf("%d beats in three minutes", len(beats))
		}
		if row := table["prod"]; row.Mode != "STRICT" || row.Least != "STRICT" || row.UID != "u--prod" || row.Authorization != "unknown" || len(row.Inputs) != 3 {
			t.Errorf("%+v", row)
		}
		if row := table["open"]; row.Mode != "PERMISSIVE" || row.Least != "PERMISSIVE" {
			t.Errorf("%+v", row)
		}
	}, defaultGuard(), namespaceNamed("prod"), namespaceNamed("open"), policyOf("prod", "default", "STRICT"), meshConfig(""))
}
