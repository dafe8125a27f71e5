//go:build unix

package containers

import (
	"os"
	"os/exec"
	"syscall"
)

// lockFile locks f for as long as it is open, or fails when somebody else does.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// detach puts the command out of reach of the terminal's signals.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
}
