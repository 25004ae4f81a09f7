package controlplane

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lockedBuffer is a log that several goroutines may write and read.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func TestBuilderCompilesOnce(t *testing.T) {
	const builders = 4
	cache, log := t.TempDir(), &lockedBuffer{}
	var compiled atomic.Int32
	compile := func(ctx context.Context, _ build, out string, mains []mainPackage) error {
		compiled.Add(1)
		// The others must be seen waiting before this one finishes.
		err := poll(ctx, func(context.Context) error {
			if strings.Count(log.String(), "waiting for another process") < builders-1 {
				return errors.New("the others do not wait yet")
			}
			return nil
		})
		for _, m := range mains {
			err = errors.Join(err, os.WriteFile(filepath.Join(out, m.binary), []byte("program"), 0o700))
		}
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Setenv("KUBEBUILDER_ASSETS", "")
	errs := make(chan error, builders)
	for range builders {
		go func() {
			b := &Builder{CacheDir: cache, Log: log, compile: compile}
			errs <- b.complete(ctx, etcdGroup(), map[string]string{})
		}()
	}
	for range builders {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := compiled.Load(); n != 1 {
		t.Errorf("compiled %d times; want once", n)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "controlplane", "*.building")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBuilderDoesNotKeepAFailedBuild(t *testing.T) {
	broken := errors.New("broken")
	b := &Builder{CacheDir: t.TempDir(), compile: func(_ context.Context, _ build, out string, mains []mainPackage) error {
		return errors.Join(broken, os.WriteFile(filepath.Join(out, mains[0].binary), nil, 0o700))
	}}
	for range 2 {
		if err := b.complete(t.Context(), etcdGroup(), map[string]string{}); !errors.Is(err, broken) {
			t.Errorf("got %v; want the failure of the build, both times", err)
		}
	}
}

func TestBuilderWaitEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := lockFile(t.Context(), path, &lockedBuffer{})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path, &lockedBuffer{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v; want the end of the context", err)
	}
}

func TestBuilderUsesAssets(t *testing.T) {
	assets := t.TempDir()
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if err := os.WriteFile(filepath.Join(assets, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBEBUILDER_ASSETS", assets)
	var built []string
	b := &Builder{CacheDir: t.TempDir(), compile: func(_ context.Context, _ build, out string, mains []mainPackage) error {
		for _, m := range mains {
			built = append(built, m.binary)
			if err := os.WriteFile(filepath.Join(out, m.binary), nil, 0o700); err != nil {
				return err
			}
		}
		return nil
	}}
	got, err := b.Kubernetes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := "kube-controller-manager kube-scheduler"; strings.Join(built, " ") != want {
		t.Errorf("built %v; want %s", built, want)
	}
	if want := filepath.Join(assets, "kube-apiserver"); got.APIServer != want {
		t.Errorf("API server %s; want %s", got.APIServer, want)
	}
	if filepath.Dir(got.Scheduler) == assets {
		t.Errorf("scheduler %s; want it from the cache", got.Scheduler)
	}
}

// TestBuildSettings pins what reaches the linker: another stamp means another program
// under the same name.
func TestBuildSettings(t *testing.T) {
	got := kubernetesLdflags("v1.37.2")
	want := "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2" +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestGoBuild runs the real go command on a module small enough for a test.
func TestGoBuild(t *testing.T) {
	source, out, log := t.TempDir(), t.TempDir(), &lockedBuffer{}
	files := map[string]string{
		"go.mod":      "module example.com/m\n\ngo 1.26.0\n",
		"good/m.go":   "package main\n\nfunc main() {}\n",
		"broken/m.go": "package main\n\nfunc main() { undefined() }\n",
	}
	for name, content := range files {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := &Builder{Log: log}
	bd := build{group: group{name: "example"}, dir: source, version: "v1.0.0", ldflags: "-s -w"}
	if err := b.goBuild(t.Context(), bd, out, []mainPackage{{"renamed", "example.com/m/good"}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Access(filepath.Join(out, "renamed"), unix.X_OK); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "building example v1.0.0 (renamed)") {
		t.Errorf("the log does not say what is built: %s", log)
	}
	err := b.goBuild(t.Context(), bd, out, []mainPackage{{"broken", "example.com/m/broken"}})
	if err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("got %v; want what the compiler said", err)
	}
}
