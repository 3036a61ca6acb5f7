// Device-hook raises resource limits of a container's first process. The device plugin names it in CDI specs as a
// createRuntime hook: the runtime runs it on the host after it made the process and before that process becomes the
// container's program, so one process of one container gets the limit and no capability is needed in the Pod.
// It uses nothing but the syscall package: it is copied to every node and started before every such container.
package main

import "syscall"

func main() {
	if msg := start(); msg != "" {
		msg = "device-hook: " + msg + "\n"
		_, _ = syscall.Write(syscall.Stderr, []byte(msg)) // there is nobody else to tell
		syscall.Exit(1)
	}
}
