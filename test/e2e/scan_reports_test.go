package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

// openReports is where the CustomResourceDefinition of Report comes from. Its module has
// another name than the repository, by which alone it can be fetched everywhere.
const openReports = "github.com/openreports/reports-api@v0.2.1"

// reportsCRD reads the CustomResourceDefinition from its module, which is checked against
// Go's checksum database as every other.
func reportsCRD(t testing.TB) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", openReports)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	out, err := cmd.Output()
	must(t, err)
	var module struct{ Dir string }
	must(t, json.Unmarshal(out, &module))
	crd, err := os.ReadFile(filepath.Join(module.Dir, "config", "crd", "openreports.io_reports.yaml"))
	must(t, err)
	return crd
}

func reportIn(t testing.TB, namespace string) (*unstructured.Unstructured, error) {
	t.Helper()
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "openreports.io", Version: "v1alpha1", Kind: "Report"})
	return u, clientFor(t, controlplane.Admin).Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "meshvakt"}, u)
}

// TestScanReports: with the CustomResourceDefinition of OpenReports, every guarded
// namespace has a report that follows what stands in it, and is taken away with the guard.
func TestScanReports(t *testing.T) {
	dev := clientFor(t, controlplane.Developer)
	must(t, plane.Apply(t.Context(), reportsCRD(t)))
	t.Cleanup(func() {
		_, _, err := plane.Kubectl(context.Background(), controlplane.Admin, "", "delete", "crd", "reports.openreports.io", "--wait=false")
		if err != nil {
			t.Error(err)
		}
	})
	_, _, err := plane.Kubectl(t.Context(), controlplane.Admin, "", "wait", "--for=condition=Established", "crd/reports.openreports.io", "--timeout=60s")
	must(t, err)
	good, bad := unique("scan-report-good"), unique("scan-report-bad")
	create(t, dev, scanNamespace(good, "report"), policy(good, "default", "STRICT"), scanNamespace(bad, "report"))
	serviceAccount(t, bad)
	web := pod(bad, nil)
	create(t, dev, web)
	start(t)
	guard(t, scanGuard("report", v1alpha1.Deny))
	enforcing(t, "report")

	summaries := func(namespace, want string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			u, err := reportIn(t, namespace)
			if err != nil {
				return err
			}
			if got := fmt.Sprint(u.Object["summary"]); got != want {
				return fmt.Errorf("summary %s; want %s", got, want)
			}
			return nil
		})
	}
	summaries(good, "map[error:0 fail:0 pass:2 skip:0 warn:0]")
	summaries(bad, "map[error:0 fail:2 pass:0 skip:0 warn:0]")
	u, err := reportIn(t, bad)
	must(t, err)
	raw, err := json.Marshal(u.Object)
	must(t, err)
	for _, has := range []string{`"source":"meshvakt"`, `"policy":"mesh-membership"`, `"rule":"NotInMesh"`, `"kind":"Pod"`, web.Name, `"rule":"NamespaceNotStrict"`} {
		if !strings.Contains(string(raw), has) {
			t.Errorf("the report lacks %s: %s", has, raw)
		}
	}
	for _, user := range controlplane.Users() {
		if content := fmt.Sprint(u.Object["results"], u.Object["summary"]); strings.Contains(content, string(user)) {
			t.Errorf("the report names user %s: %s", user, content)
		}
	}
	untouched, err := reportIn(t, good)
	must(t, err)
	must(t, dev.Delete(t.Context(), web, client.GracePeriodSeconds(0)))
	summaries(bad, "map[error:0 fail:1 pass:1 skip:0 warn:0]")
	if u, err = reportIn(t, good); err != nil || u.GetResourceVersion() != untouched.GetResourceVersion() {
		t.Errorf("a report was written again although nothing had changed in its namespace: %v", err)
	}
	must(t, clientFor(t, controlplane.Admin).Delete(t.Context(), scanGuard("report")))
	for _, namespace := range []string{good, bad} {
		eventually(t, 20*time.Second, func() error {
			if _, err := reportIn(t, namespace); client.IgnoreNotFound(err) != nil || err == nil {
				return fmt.Errorf("the report is still there, without a guard: %w", err)
			}
			return nil
		})
	}
}
