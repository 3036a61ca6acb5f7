// Command reaper is process 1 of container vm: it runs the launcher as its child, passes SIGTERM and SIGINT on, and
// reaps every orphan, QEMU among them, which is daemonised. Where the launcher dies of a signal or a panic while QEMU
// lives, the reaper starts it again: the new one opens the same libvirt root and has the running guest back (VM-125).
//
// usage: reaper PROGRAM [ARG]...
//
// It ends with the launcher's exit code, 70 where the launcher panicked, or 128 + the signal that it died of. Every package costs every VM
// memory, so that there is neither fmt nor a logger here.
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Environ())) }
