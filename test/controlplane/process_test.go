package controlplane

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newComponent declares a shell script as a component.
func newComponent(t *testing.T, script string) *component {
	spawner := newSpawner()
	dir := t.TempDir()
	c := &component{
		name:    "example",
		logPath: filepath.Join(dir, "example.log"),
		spawner: spawner,
		command: func() *exec.Cmd {
			cmd := exec.Command("sh", "-c", script)
			cmd.Dir = dir
			return cmd
		},
		died: func(error) {},
	}
	t.Cleanup(func() {
		c.close()
		spawner.close()
	})
	return c
}

func never(context.Context) error { return errors.New("not yet") }

func TestComponentThatEndsExplainsItself(t *testing.T) {
	c := newComponent(t, "echo the reason; exit 3")
	c.ready = never
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	err := c.waitReady(t.Context())
	for _, want := range []string{"exit status 3", "the reason", c.logPath} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want it to contain %q", err, want)
		}
	}
}

func TestComponentThatIsNotReadyExplainsItself(t *testing.T) {
	c := newComponent(t, "echo still busy; exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := false
	c.ready = func(ctx context.Context) error {
		// Patience ends when there is an answer and a log to tell of; how soon a shell writes depends on the machine.
		if asked && strings.Contains(c.logTail(), "still busy") {
			cancel()
		}
		asked = true
		return never(ctx)
	}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	err := c.waitReady(ctx)
	for _, want := range []string{"not ready", "not yet", "still busy", c.logPath} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want it to contain %q", err, want)
		}
	}
}

func TestComponentDeathIsReported(t *testing.T) {
	died := make(chan error, 1)
	c := newComponent(t, "exec sleep 60")
	c.died = func(err error) { died <- err }
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	if err := c.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.kill() // ours, so not reported
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	if err := c.waitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.signal(syscall.SIGTERM); err != nil { // not told by kill, so a surprise
		t.Fatal(err)
	}
	select {
	case err := <-died:
		if !strings.Contains(err.Error(), "terminated") {
			t.Errorf("got %v; want the second end", err)
		}
	case <-time.After(time.Minute):
		t.Error("the death is not reported")
	}
}

func TestComponentDoesNotStartAfterClose(t *testing.T) {
	c := newComponent(t, "exec sleep 60")
	c.close()
	if err := c.start(); !errors.Is(err, errStopped) {
		t.Errorf("got %v; want %v", err, errStopped)
	}
}

func TestStartOnFreePortsTriesAgain(t *testing.T) {
	c := newComponent(t, `
		if [ -e tried ]; then exec sleep 60; fi
		touch tried
		echo "listen tcp 127.0.0.1: bind: address already in use"
		exit 1`)
	tried := filepath.Join(filepath.Dir(c.logPath), "tried")
	c.ready = func(context.Context) error {
		_, err := os.Stat(tried)
		if c.logTail() != lastLines(nil) { // the log of the first attempt is still there
			return errors.New("first attempt")
		}
		return err
	}
	var port int
	if err := startOnFreePorts(t.Context(), c, []*int{&port}); err != nil {
		t.Fatal(err)
	}
	if port < firstPort || port > lastPort {
		t.Errorf("port %d; want one in %d-%d", port, firstPort, lastPort)
	}
	if c.pid() == 0 {
		t.Error("the component does not run")
	}
}

func TestAbandonedDirectoriesAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	live, remove, err := claimTempDir()
	if err != nil {
		t.Fatal(err)
	}
	abandoned := filepath.Join(os.TempDir(), tempPattern+"abandoned")
	kept := filepath.Join(os.TempDir(), tempPattern+"kept")
	for _, dir := range []string{abandoned, kept} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(abandoned, ownerLock), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removeAbandoned()
	if _, err := os.Stat(abandoned); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there", abandoned)
	}
	for _, dir := range []string{live, kept} {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
	if err := remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(live); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there", live)
	}
}
