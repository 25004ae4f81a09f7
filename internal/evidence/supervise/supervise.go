// Package supervise keeps another program running, and itself with it. A pod is ready only while
// all of its containers run; so a container whose program may have to end, as the sealer on a disk
// that fails, would take the webhook beside it from the API server. Under this one it does not.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"syscall"
	"time"
)

// Config is what to run, and when to run it again.
type Config struct {
	Path           string
	Args           []string
	Stdout, Stderr io.Writer
	// First is the pause after an end, doubled from one to the next up to Most. After Steady of
	// running it is First again.
	First, Most, Steady time.Duration
	// Grace is how long the program has after SIGTERM, once the context ends.
	Grace time.Duration
	Now   func() time.Time
	After func(time.Duration) <-chan time.Time
	Log   *slog.Logger
}

// Run returns when ctx ends and the program with it. Whatever else ends the program, it is started
// again.
func Run(ctx context.Context, c Config) error {
	if c.Path == "" || c.First <= 0 || c.Most < c.First || c.Grace <= 0 || c.Now == nil || c.After == nil || c.Log == nil {
		return errors.New("supervise: program, pauses, grace, clock and log must be set")
	}
	pause := c.First
	for {
		started := c.Now()
		ended := how(once(ctx, &c))
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		if c.Now().Sub(started) >= c.Steady {
			pause = c.First
		}
		c.Log.ErrorContext(ctx, "the program has ended, and is started again", "how", ended, "ran", c.Now().Sub(started).String(), "pause", pause.String())
		select {
		case <-ctx.Done():
			return nil
		case <-c.After(pause):
		}
		pause = min(2*pause, c.Most)
	}
}

func once(ctx context.Context, c *Config) error {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = c.Grace
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	return cmd.Wait()
}

func how(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
