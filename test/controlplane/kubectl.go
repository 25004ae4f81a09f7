package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// KubectlPath returns the path of kubectl.
func (cp *ControlPlane) KubectlPath() string { return cp.kubernetes.Kubectl }

// Kubectl runs kubectl as a user, with stdin as its input, and returns what it wrote.
// The error of a kubectl that failed is an *exec.ExitError in a chain with its stderr.
func (cp *ControlPlane) Kubectl(ctx context.Context, user User, stdin string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, cp.kubernetes.Kubectl, args...)
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+cp.Kubeconfig(user),
		"KUBECACHEDIR="+filepath.Join(cp.Dir, "kubectl-cache"),
		"KUBERC=off", // the preferences of whoever runs the tests
	)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errOut.Bytes()))
		return out.String(), errOut.String(), err
	}
	return out.String(), errOut.String(), nil
}
