// Package e2e plays Meshvakt's users: the real binary, with the rights of its
// ServiceAccount, against a real control plane.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/meshvakt/meshvakt/api/v1alpha1"
	"github.com/meshvakt/meshvakt/internal/objects"
	"github.com/meshvakt/meshvakt/test/controlplane"
)

const ownNamespace = "meshvakt-system"

// What the tests of the package share; set by TestMain before any test runs.
var (
	plane                    *controlplane.ControlPlane
	binary                   string // the meshvakt binary under test
	serviceAccountKubeconfig string
	scheme                   = runtime.NewScheme()

	// plainBinary is that without the race detector, as it is shipped. It is built once, by the first
	// test that wants it.
	plainBinary func() (string, error)
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	// With the race detector a process sleeps for a second before it exits, lest it miss a race of that
	// second. Each replica here has ended all that it does by then.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		return 0, err
	}
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, objects.AddToScheme} {
		if err := add(scheme); err != nil {
			return 0, err
		}
	}
	dir, err := os.MkdirTemp("", "meshvakt-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if binary, err = build(ctx, dir, raceBuild()); err != nil {
		return 0, err
	}
	built := binary
	plainBinary = sync.OnceValues(func() (string, error) {
		if !raceBuild() {
			return built, nil
		}
		plain := filepath.Join(dir, "plain")
		if err := os.Mkdir(plain, 0o700); err != nil {
			return "", err
		}
		return build(ctx, plain, false)
	})
	if plane, serviceAccountKubeconfig, err = setUp(ctx, controlplane.Options{Log: os.Stderr}); err != nil {
		return 0, err
	}
	defer plane.Stop()
	return m.Run(), nil
}

// setUp boots a control plane with the chart in it.
func setUp(ctx context.Context, o controlplane.Options) (p *controlplane.ControlPlane, kubeconfig string, err error) {
	if p, err = controlplane.Boot(ctx, o); err != nil {
		return nil, "", err
	}
	if err = install(ctx, p); err == nil {
		kubeconfig, err = p.ServiceAccountKubeconfig(ctx, ownNamespace, "meshvakt")
	}
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("install the chart: %w", err), p.Stop())
	}
	return p, kubeconfig, nil
}

// raceBuild tells whether the binary is built with the race detector, which makes
// every test of this package a test for data races too.
func raceBuild() bool { return os.Getenv("E2E_RACE") != "" }

// build compiles the binary under test.
func build(ctx context.Context, dir string, race bool, tags ...string) (string, error) {
	out := filepath.Join(dir, strings.Join(append([]string{"meshvakt"}, tags...), "-"))
	// Debuggers are not needed, and linking for them takes seconds.
	args := []string{"build", "-tags", strings.Join(tags, ","), "-o", out, "-ldflags=-s -w"}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/meshvakt")...)
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	return out, cmd.Run()
}

// install applies what the chart renders, but for the StatefulSet: there are no
// kubelets to run it, so the tests start the process themselves.
func install(ctx context.Context, plane *controlplane.ControlPlane) error {
	cmd := exec.CommandContext(ctx, "go", "tool", "-modfile=test/tools/helm/go.mod", "helm",
		"template", "meshvakt", "charts/meshvakt", "--namespace", ownNamespace, "--no-hooks", "--set", "guard.create=false",
		"--set", "evidence.enabled=true,evidence.name=evidence.example.org,evidence.retention=9504h")
	cmd.Dir = "../.."
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("helm template: %w\n%s", err, stderr.String())
	}
	c, err := client.New(plane.RestConfig(controlplane.Admin), client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	if err := c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ownNamespace}}); err != nil {
		return err
	}
	if err := c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}); client.IgnoreAlreadyExists(err) != nil {
		return err
	}
	var keep []string
	for _, doc := range strings.Split(stdout.String(), "\n---") {
		if strings.Contains(doc, "\nkind: StatefulSet") || strings.TrimSpace(doc) == "" {
			continue
		}
		keep = append(keep, doc)
	}
	if err := plane.Apply(ctx, []byte(strings.Join(keep, "\n---"))); err != nil {
		return err
	}
	_, _, err = plane.Kubectl(ctx, controlplane.Admin, "", "wait", "--for=condition=Established", "crd/meshguards.meshvakt.io", "--timeout=60s")
	return err
}

// clientFor returns an uncached client with the rights of a user.
func clientFor(t testing.TB, user controlplane.User) client.Client {
	t.Helper()
	c, err := client.New(plane.RestConfig(user), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// guard creates a MeshGuard that is deleted with the test.
func guard(t testing.TB, g *v1alpha1.MeshGuard) {
	t.Helper()
	c := clientFor(t, controlplane.Admin)
	if err := c.Create(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := deleteGuard(context.Background(), c, g.Name)
		if apierrors.IsInternalError(err) { // nobody answers for guards: the test has stopped all replicas
			unregister(t)
			eventually(t, 10*time.Second, func() error {
				err = deleteGuard(context.Background(), c, g.Name)
				return err
			})
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// deleteGuard deletes a MeshGuard, if it is there, and says why, without which it is held.
func deleteGuard(ctx context.Context, c client.Client, name string) error {
	g := guardObject(name)
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"the test is over"}}}`, v1alpha1.ChangeReasonAnnotation)
	if err := c.Patch(ctx, g, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		return client.IgnoreNotFound(err)
	}
	return client.IgnoreNotFound(c.Delete(ctx, g))
}

// enforcing waits until the API server has been told of the guard.
func enforcing(t testing.TB, name string) {
	t.Helper()
	c := clientFor(t, controlplane.Admin)
	eventually(t, 30*time.Second, func() error {
		var g v1alpha1.MeshGuard
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &g); err != nil {
			return err
		}
		for _, condition := range g.Status.Conditions {
			if condition.Type == v1alpha1.ConditionEnforcing && condition.Status == metav1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("MeshGuard %s is not enforcing: %v", name, g.Status.Conditions)
	})
}
