//go:build unix && !linux

package controlplane

import "syscall"

// childAttributes gives the child a process group of its own, which keeps a Ctrl-C at
// the terminal from it. Only Linux can tie its life to ours as well.
func childAttributes(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
