package controlplane

import "syscall"

// childAttributes makes the kernel send a signal to the child when the thread that
// forked it ends, so that not even a killed test leaves it behind. The group of its own
// keeps a Ctrl-C at the terminal from it: stopping in order is our task.
func childAttributes(whenParentDies syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: whenParentDies}
}
