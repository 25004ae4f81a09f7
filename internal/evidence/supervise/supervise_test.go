package supervise

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The test binary is the program that is run, where this is set: it says its process ID and ends
// as it is told.
const roleVariable = "MESHVAKT_TEST_SUPERVISED"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "exits":
		fmt.Println("started", os.Getpid())
		os.Exit(3)
	case "obeys", "ignores":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		fmt.Println("started", os.Getpid())
		for range signals {
			fmt.Println("asked to end")
			if role == "obeys" {
				os.Exit(0)
			}
		}
	}
}

// run supervises a program of a role. It returns what the program says, line by line, and the
// pauses; nobody waits for a pause.
type run struct {
	lines  *bufio.Scanner
	end    context.CancelFunc
	ended  chan error
	mu     sync.Mutex
	pauses []time.Duration
	now    time.Time
}

func start(t *testing.T, role string) *run {
	t.Helper()
	grace := time.Minute
	if role == "ignores" {
		grace = 100 * time.Millisecond
	}
	t.Setenv(roleVariable, role)
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	r := &run{lines: bufio.NewScanner(reader), end: cancel, ended: make(chan error, 1), now: time.Unix(0, 0)}
	go func() {
		r.ended <- Run(ctx, Config{
			Path: os.Args[0], Stdout: writer, Stderr: os.Stderr,
			First: time.Second, Most: 5 * time.Second, Steady: time.Minute, Grace: grace,
			Now:   r.time,
			After: r.after,
			Log:   slog.New(slog.DiscardHandler),
		})
		writer.Close()
	}()
	return r
}

func (r *run) time() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *run) after(d time.Duration) <-chan time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pauses = append(r.pauses, d)
	c := make(chan time.Time, 1)
	c <- r.now
	return c
}

// next is the process ID of the next start.
func (r *run) next(t *testing.T) int {
	t.Helper()
	if !r.lines.Scan() {
		t.Fatalf("it says nothing more: %v", r.lines.Err())
	}
	pid, err := strconv.Atoi(strings.TrimPrefix(r.lines.Text(), "started "))
	if err != nil {
		t.Fatalf("it says %q", r.lines.Text())
	}
	return pid
}

// stop ends the context and returns what else was said.
func (r *run) stop(t *testing.T) []string {
	t.Helper()
	r.end()
	var rest []string
	for r.lines.Scan() {
		rest = append(rest, r.lines.Text())
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	return rest
}

func TestItIsStartedAgain(t *testing.T) {
	r := start(t, "exits")
	seen := map[int]bool{}
	for range 6 {
		seen[r.next(t)] = true
	}
	r.stop(t)
	if len(seen) != 6 {
		t.Errorf("of 6 starts there were %d processes", len(seen))
	}
	if want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}; !slices.Equal(r.pauses[:5], want) {
		t.Errorf("pauses %v; must be %v", r.pauses[:5], want)
	}
}

// What has run well for a while is not punished for what was long ago.
func TestPausesBeginAnew(t *testing.T) {
	r := start(t, "obeys")
	for _, ran := range []time.Duration{0, 0, time.Hour, 0} {
		pid := r.next(t)
		r.mu.Lock()
		r.now = r.now.Add(ran)
		r.mu.Unlock()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	r.next(t)
	r.stop(t)
	if want := []time.Duration{time.Second, 2 * time.Second, time.Second, 2 * time.Second}; !slices.Equal(r.pauses, want) {
		t.Errorf("pauses %v; must be %v", r.pauses, want)
	}
}

func TestItEndsWithTheContext(t *testing.T) {
	for _, role := range []string{"obeys", "ignores"} {
		t.Run(role, func(t *testing.T) {
			r := start(t, role)
			pid := r.next(t)
			// One that is killed may not have come to say it.
			if rest := r.stop(t); !slices.Equal(rest, []string{"asked to end"}) && (role == "obeys" || len(rest) > 0) {
				t.Errorf("then it said %q; must be asked to end, once, and not be started again", rest)
			}
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("process %d is still there: %v", pid, err)
			}
		})
	}
}

// One that cannot be started, for want of memory as it may be, is tried again.
func TestItIsTriedAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	err := Run(ctx, Config{
		Path: "/nowhere/at/all", First: 1, Most: 1, Grace: 1, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		After: func(time.Duration) <-chan time.Time {
			if tries++; tries == 3 {
				cancel()
			}
			c := make(chan time.Time, 1)
			c <- time.Time{}
			return c
		},
	})
	if err != nil || tries < 3 {
		t.Errorf("tried %d times, %v", tries, err)
	}
}
