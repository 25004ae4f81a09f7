package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const progressInterval = 15 * time.Second

// goBuild compiles main packages into out and reports progress.
func (b *Builder) goBuild(ctx context.Context, bd build, out string, mains []mainPackage) error {
	var names, packages []string
	for _, m := range mains {
		names = append(names, m.binary)
		packages = append(packages, m.path)
	}
	what := fmt.Sprintf("%s %s (%s)", bd.group.name, bd.version, strings.Join(names, ", "))
	fmt.Fprintf(b.log(), "controlplane: building %s, once for this version\n", what)

	target := out + string(filepath.Separator)
	if len(mains) == 1 { // the go command would call etcd "server"
		target = filepath.Join(out, mains[0].binary)
	}
	listed, err := goCommand(ctx, bd.dir, append([]string{"list", "-deps"}, packages...)...)
	if err != nil {
		return err
	}
	progress := &compileProgress{}
	args := []string{"build", "-v", "-buildvcs=false", "-ldflags", bd.ldflags, "-o", target}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = bd.dir
	cmd.Env = goEnvironment()
	cmd.Stderr = progress
	cmd.SysProcAttr = childAttributes(os.Interrupt.(syscall.Signal))
	// The go command passes an interrupt on to no one, but it stops starting compilers
	// and removes its work directory.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second

	start := time.Now()
	ended := make(chan error, 1)
	go func() {
		// The parent-death signal is tied to the thread that forks; see spawner.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- cmd.Run()
	}()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprintf(b.log(), "controlplane: building %s: %s, %d of at most %d packages compiled\n",
				bd.group.name, elapsed(start), progress.packages(), bytes.Count(listed, []byte("\n")))
		case err := <-ended:
			if ctx.Err() != nil {
				return fmt.Errorf("go build: %w", context.Cause(ctx))
			}
			if err != nil {
				return fmt.Errorf("go build: %w\n%s", err, progress.tail())
			}
			fmt.Fprintf(b.log(), "controlplane: built %s in %s\n", bd.group.name, elapsed(start))
			return nil
		}
	}
}

func elapsed(start time.Time) time.Duration {
	return time.Since(start).Round(time.Second / 10)
}

// compileProgress reads what "go build -v" writes: one line for each package it
// compiles, and errors. It keeps the last lines, where an error would be.
type compileProgress struct {
	mu    sync.Mutex
	lines int
	last  []byte
}

func (p *compileProgress) Write(chunk []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines += bytes.Count(chunk, []byte("\n"))
	p.last = append(p.last, chunk...)
	if drop := len(p.last) - tailBytes; drop > 0 {
		p.last = append([]byte(nil), p.last[drop:]...)
	}
	return len(chunk), nil
}

func (p *compileProgress) packages() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines
}

func (p *compileProgress) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lastLines(p.last)
}
