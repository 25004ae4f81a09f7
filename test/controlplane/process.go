package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	tailBytes = 16 << 10
	tailLines = 25
	readyPoll = 50 * time.Millisecond
)

// spawner starts processes from one OS thread that lives until the last of them has
// ended. Linux ties the parent-death signal to the thread that forked, not to the
// process, and the Go runtime may end an ordinary thread while the process lives on:
// a component started from there would be killed for no visible reason.
type spawner struct {
	requests chan spawnRequest
}

type spawnRequest struct {
	cmd    *exec.Cmd
	result chan<- error
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan spawnRequest)}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread() // without it the thread would end with the goroutine
		for r := range s.requests {
			r.result <- r.cmd.Start()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.requests <- spawnRequest{cmd, result}
	return <-result
}

func (s *spawner) close() { close(s.requests) }

// component is one program of the control plane. Its fields up to ready are fixed
// before the first start; command is called at every start.
type component struct {
	name    string
	logPath string
	spawner *spawner
	command func() *exec.Cmd
	ready   func(context.Context) error // nil: ready once started
	died    func(error)                 // called when it ends by itself after it was ready

	mu      sync.Mutex
	running *process
	closed  bool // no more starts
}

// process is one run of a component.
type process struct {
	cmd    *exec.Cmd
	done   chan struct{} // closed once reaped
	err    error         // how it ended; read after done
	wanted bool          // that it ends; guarded by the component's mu
	ready  bool          // has been ready; guarded by the component's mu
}

// start runs the component and does not wait until it is ready.
func (c *component) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("start %s: %w", c.name, errStopped)
	}
	if c.running != nil {
		return fmt.Errorf("start %s: it runs already", c.name)
	}
	log, err := os.OpenFile(c.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close() // the child has its own descriptor
	cmd := c.command()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttributes(syscall.SIGKILL)
	if err := c.spawner.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	c.running = p
	Stall(cmd.Process, p.done)
	go c.reap(p)
	return nil
}

func (c *component) reap(p *process) {
	p.err = p.cmd.Wait()
	c.mu.Lock()
	died := p.ready && !p.wanted // before it is ready, waitReady reports the end
	c.running = nil
	c.mu.Unlock()
	close(p.done)
	if died {
		c.died(c.failure(p))
	}
}

// failure describes a component that ended by itself.
func (c *component) failure(p *process) error {
	ended := "exit status 0"
	if p.err != nil {
		ended = p.err.Error()
	}
	return c.withLog(fmt.Errorf("%s ended: %s", c.name, ended))
}

// withLog adds the end of the component's log, which is where its reason is.
func (c *component) withLog(err error) error {
	return fmt.Errorf("%w; its log %s ends with:\n%s", err, c.logPath, c.logTail())
}

func (c *component) logTail() string {
	f, err := os.Open(c.logPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	tail, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return lastLines(tail)
}

func lastLines(text []byte) string {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	lines = lines[max(0, len(lines)-tailLines):]
	var tail strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&tail, "\t%s\n", line)
	}
	return tail.String()
}

// waitReady polls until the component is ready. It gives up at once when the component
// ends, because nothing will make it ready then.
func (c *component) waitReady(ctx context.Context) error {
	c.mu.Lock()
	p := c.running
	c.mu.Unlock()
	if p == nil {
		return c.withLog(fmt.Errorf("%s ended", c.name))
	}
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		err := c.askReady(ctx)
		if err == nil {
			c.mu.Lock()
			p.ready = true
			c.mu.Unlock()
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-p.done:
			return c.failure(p)
		case <-ctx.Done():
			return c.withLog(fmt.Errorf("%s is not ready: %w (last answer: %w)", c.name, context.Cause(ctx), last))
		case <-tick.C:
		}
	}
}

func (c *component) askReady(ctx context.Context) error {
	if c.ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return c.ready(ctx)
}

// signal sends a signal to the running component.
func (c *component) signal(s syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return fmt.Errorf("send %s to %s: it does not run", s, c.name)
	}
	if err := c.running.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %s to %s: %w", s, c.name, err)
	}
	return nil
}

// kill ends the component, paused or not, and waits until it is gone.
func (c *component) kill() {
	c.mu.Lock()
	p := c.running
	if p != nil {
		p.wanted = true
		p.cmd.Process.Kill() // fails only when the process is gone already
	}
	c.mu.Unlock()
	if p != nil {
		<-p.done
	}
}

// close kills the component and refuses to start it again.
func (c *component) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.kill()
}

// pid is the process id, or 0 when the component does not run.
func (c *component) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return 0
	}
	return c.running.cmd.Process.Pid
}

// addressInUse tells whether the component ended because another process had its port.
func (c *component) addressInUse() bool {
	return c.pid() == 0 && strings.Contains(c.logTail(), "address already in use")
}

// resetLog empties the log, so that a failed attempt does not explain the next one.
func (c *component) resetLog() error {
	if err := os.Remove(c.logPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", filepath.Base(c.logPath), err)
	}
	return nil
}
