package controlplane

import (
	"os"
	"testing"
)

// Start boots a control plane for a test and stops it when the test has ended. The test
// fails when the boot does, and when a component dies while the test runs. Without a
// warm cache the first build takes longer than the default timeout of "go test"; see the
// command's build.
//
// To share one control plane between all tests of a package, call Boot and Stop in
// TestMain instead.
func Start(t testing.TB, o Options) *ControlPlane {
	t.Helper()
	if o.Log == nil {
		o.Log = os.Stderr // what t.Log collects would come too late for whoever waits
	}
	cp, err := Boot(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Err(); err != nil {
			t.Error(err)
		}
		if err := cp.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cp
}
