// Command pause holds a Pod's namespaces open: it is the process of a Pod's sandbox container. It ends at SIGTERM or
// SIGINT, and as process 1 of a shared process namespace it reaps every orphan. It imports nothing but syscall and
// os/signal, so that a sandbox stays small.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap collects every child that has ended.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if pid <= 0 && err != syscall.EINTR {
			return
		}
	}
}
