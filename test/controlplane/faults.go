package controlplane

import (
	"context"
	"fmt"
	"syscall"
)

// Pause freezes a component (SIGSTOP): its connections stay open and nothing answers.
func (cp *ControlPlane) Pause(name string) error {
	c, err := cp.component(name)
	if err != nil {
		return err
	}
	return c.signal(syscall.SIGSTOP)
}

// Resume continues a paused component.
func (cp *ControlPlane) Resume(name string) error {
	c, err := cp.component(name)
	if err != nil {
		return err
	}
	return c.signal(syscall.SIGCONT)
}

// Kill ends a component (SIGKILL), paused or not. Restart brings it back.
func (cp *ControlPlane) Kill(name string) error {
	c, err := cp.component(name)
	if err != nil {
		return err
	}
	c.kill()
	return nil
}

// Restart kills a component if it runs, starts it on the same port and data, and waits
// until it is ready.
func (cp *ControlPlane) Restart(ctx context.Context, name string) error {
	c, err := cp.component(name)
	if err != nil {
		return err
	}
	c.kill()
	if err := c.start(); err != nil {
		return err
	}
	return c.waitReady(ctx)
}

// PIDs returns the process ids of the components that run, by name.
func (cp *ControlPlane) PIDs() map[string]int {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	pids := map[string]int{}
	for _, c := range cp.components {
		if pid := c.pid(); pid != 0 {
			pids[c.name] = pid
		}
	}
	return pids
}

// LogPath returns the path of a component's log.
func (cp *ControlPlane) LogPath(name string) (string, error) {
	c, err := cp.component(name)
	if err != nil {
		return "", err
	}
	return c.logPath, nil
}

func (cp *ControlPlane) component(name string) (*component, error) {
	cp.mu.Lock()
	defer cp.mu.Unlock()
	for _, c := range cp.components {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no component %q in this control plane", name)
}
