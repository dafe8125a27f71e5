package main

import (
	"os/exec"
	"runtime"
	"syscall"
)

// endWithParent has the kernel end the command when this process is killed. The
// kernel goes by the thread that started the command, so that this goroutine
// keeps its own.
func endWithParent(cmd *exec.Cmd) {
	runtime.LockOSThread()
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
