package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// orphanHelper makes the test binary boot a control plane, tell what runs, and wait to
// be killed.
const orphanHelper = "CONTROLPLANE_TEST_ORPHANS"

func TestMain(m *testing.M) {
	if os.Getenv(orphanHelper) != "" {
		bootAndWait()
		return
	}
	os.Exit(m.Run())
}

type booted struct {
	Dir  string
	PIDs map[string]int
}

func bootAndWait() {
	cp, err := Boot(context.Background(), Options{Log: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(booted{cp.Dir, cp.PIDs()}); err != nil {
		os.Exit(1)
	}
	<-cp.stopped // a signal ends it, one way or the other
	select {}
}

// TestNoOrphans proves that no component outlives the process that booted it, whichever
// way that ends.
func TestNoOrphans(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a control plane")
	}
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			helper := exec.CommandContext(t.Context(), os.Args[0])
			helper.Env = append(os.Environ(), orphanHelper+"=1")
			helper.Stderr = os.Stderr
			stdout, err := helper.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := helper.Start(); err != nil {
				t.Fatal(err)
			}
			var b booted
			if err := json.NewDecoder(stdout).Decode(&b); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{Etcd, APIServer, ControllerManager, Scheduler} {
				if !alive(b.PIDs[name]) {
					t.Fatalf("%s does not run: %v", name, b.PIDs)
				}
			}
			if err := helper.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			helper.Wait()
			status, ok := helper.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || status.Signal() != s {
				t.Errorf("the process ended with %v; want %v", helper.ProcessState, s)
			}
			err = poll(within(t), func(context.Context) error {
				for name, pid := range b.PIDs {
					if alive(pid) {
						return fmt.Errorf("%s is alive, pid %d", name, pid)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			_, err = os.Stat(b.Dir)
			if removed := errors.Is(err, os.ErrNotExist); removed != (s != syscall.SIGKILL) {
				t.Errorf("directory removed: %t", removed)
			}
			removeAbandoned() // what SIGKILL leaves behind, the next boot removes
			if _, err = os.Stat(b.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left behind", b.Dir)
			}
		})
	}
}

// alive tells whether a process runs. One that nobody has reaped yet does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return !strings.HasPrefix(string(state), "Z")
}
