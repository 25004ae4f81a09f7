package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/meshvakt/meshvakt/test/controlplane"
	"github.com/meshvakt/meshvakt/test/tmpfs"
)

const (
	ownNamespace   = "meshvakt-system"
	evidenceValues = "evidence.enabled=true,evidence.name=evidence.example.org,evidence.retention=9504h"
)

// process is the running Meshvakt.
type process struct {
	binary string
	cmd    *exec.Cmd
	exited chan error
	log    *os.File

	evidence       string // directory of its evidence
	removeEvidence func() error
	sealer         *exec.Cmd
}

// root is the directory of the project, found from this file's place in it.
func root() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("cannot tell where the project is")
	}
	return filepath.Join(filepath.Dir(file), "..", "..", ".."), nil
}

// install builds Meshvakt, installs the chart and starts the process. There are no
// kubelets here that could start the Deployment's pods, so it runs beside the
// control plane, with the rights of its ServiceAccount and no others.
func install(ctx context.Context, plane *controlplane.ControlPlane) (*process, error) {
	dir, err := root()
	if err != nil {
		return nil, err
	}
	fmt.Println("\n== Meshvakt: building it, and Helm to install its chart.")
	p := &process{binary: filepath.Join(plane.Dir, "meshvakt"), exited: make(chan error, 1), removeEvidence: func() error { return nil }}
	if err := command(ctx, dir, nil, "go", "build", "-o", p.binary, "./cmd/meshvakt"); err != nil {
		return nil, err
	}
	// Where istiod and its settings are; the chart grants the right to read them.
	if err := plane.Apply(ctx, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n")); err != nil {
		return nil, err
	}
	helm := []string{"go", "tool", "-modfile=test/tools/helm/go.mod", "helm"}
	env := []string{"KUBECONFIG=" + plane.Kubeconfig(controlplane.Admin)}
	if err := command(ctx, dir, env, append(helm, "install", "meshvakt", "charts/meshvakt", "--namespace", ownNamespace, "--create-namespace",
		"--set", evidenceValues)...); err != nil {
		return nil, err
	}
	fmt.Println("   $ helm install meshvakt charts/meshvakt --namespace meshvakt-system --create-namespace \\\n       --set " + evidenceValues)
	kubeconfig, err := plane.ServiceAccountKubeconfig(ctx, ownNamespace, "meshvakt")
	if err != nil {
		return nil, err
	}
	return p, p.start(ctx, plane, kubeconfig)
}

func (p *process) start(ctx context.Context, plane *controlplane.ControlPlane, kubeconfig string) error {
	webhook, operations, err := addresses()
	if err != nil {
		return err
	}
	if err := p.makeEvidence(plane.Dir); err != nil {
		return err
	}
	logPath := filepath.Join(plane.Dir, "meshvakt.log")
	if p.log, err = os.Create(logPath); err != nil {
		return err
	}
	p.cmd = exec.Command(p.binary, "serve", "--kubeconfig", kubeconfig, "--namespace", ownNamespace, //nolint:noctx // ends by SIGTERM, see stop
		"--listen", webhook, "--webhook-url", "https://"+webhook, "--operations-listen", operations, "--drain-delay", "200ms", "--log-format", "text",
		"--evidence-dir", p.evidence, "--evidence-name", "evidence.example.org", "--evidence-replica", "meshvakt-0", "--evidence-beat", "5s")
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() { p.exited <- p.cmd.Wait() }()
	fmt.Printf("   meshvakt serve runs as process %d, log in %s\n", p.cmd.Process.Pid, logPath)
	if err := p.await(ctx, "http://"+operations+"/readyz"); err != nil {
		return errors.Join(err, p.stop())
	}
	if err := p.seal(plane.Dir); err != nil {
		return errors.Join(err, p.stop())
	}
	_, stderr, err := plane.Kubectl(ctx, controlplane.Admin, "", "wait", "--for=condition=Enforcing", "meshguard/default", "--timeout=60s")
	if err != nil {
		return errors.Join(fmt.Errorf("wait for the guard: %w: %s", err, stderr), p.stop())
	}
	return nil
}

// makeEvidence makes the directory that stands for the replica's volume. It is in memory where there
// is enough, since the disk of whoever looks at this is busy with compiling and etcd.
func (p *process) makeEvidence(otherwise string) error {
	dir, remove, err := tmpfs.Dir()
	if errors.Is(err, errors.ErrUnsupported) {
		p.evidence = filepath.Join(otherwise, "evidence")
		return os.Mkdir(p.evidence, 0o700)
	}
	p.evidence, p.removeEvidence = dir, remove
	return err
}

func (p *process) await(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-p.exited:
			return fmt.Errorf("meshvakt ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("meshvakt is not ready: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *process) stop() error {
	if p.cmd == nil || p.cmd.Process == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended already
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
	}
	if p.sealer != nil {
		_ = p.sealer.Process.Signal(syscall.SIGTERM)
		_ = p.sealer.Wait() // it seals what the other has left, and how it ends is in its log
	}
	return errors.Join(p.log.Close(), p.removeEvidence())
}

// addresses returns two loopback addresses that are free right now.
func addresses() (webhook, operations string, err error) {
	var found [2]string
	for i := range found {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // returns at once
		if err != nil {
			return "", "", err
		}
		defer l.Close()
		found[i] = l.Addr().String()
	}
	return found[0], found[1], nil
}

func command(ctx context.Context, dir string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out.String())
	}
	return nil
}
