package main

import (
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"podvirt.dev/launcher/internal/shrink"
)

const (
	prSetChildSubreaper = 36 // linux/prctl.h; lets the reaper work without being process 1, and so be tested

	exitUsage    = 64 // sysexits.h
	exitInternal = 70 // api.ExitInternal
	goPanic      = 2  // exit status of a Go program that panicked

	// reapedFile takes one line "PID STATUS" per orphan, so that the launcher can say how QEMU died. STATUS is as in wait(2).
	reapedFile = "/run/podvirt/reaped"
	// reapedEnv overrides reapedFile, stoppingEnv tells a launcher that was started again that a stop is under way.
	reapedEnv   = "PODVIRT_REAPED"
	stoppingEnv = "PODVIRT_STOPPING=1"
	// messageFile is where the kubelet reads why the container ended; messageEnv overrides it.
	messageFile  = "/dev/termination-log"
	messageEnv   = "PODVIRT_MESSAGE"
	panicMessage = "Internal: the launcher panicked; its stack is in the log"
	// reapedLimit is the size in bytes above which the file is begun anew.
	reapedLimit = 64 << 10

	// quickDeath is a life so short that the next start has to wait, twice as long each time up to maxPause.
	quickDeath = 2 * time.Second
	firstPause = 250 * time.Millisecond
	maxPause   = 10 * time.Second
)

// reaper is one thread of control: signals, deaths and the timer meet in loop.
type reaper struct {
	argv, env []string
	reaped    string // path of the file of reaped processes
	message   string // path of the termination message

	launcher int // process ID; 0: none runs
	started  time.Time
	pause    time.Duration
	stopping bool // a stop was asked for
}

// run starts the program argv and returns the exit code of the reaper.
func run(argv, env []string) int {
	if len(argv) == 0 {
		say("usage: reaper PROGRAM [ARG]...")
		return exitUsage
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	r := &reaper{argv: argv, env: env, reaped: lookup(env, reapedEnv, reapedFile), message: lookup(env, messageEnv, messageFile)}
	if !r.start() {
		return exitInternal
	}
	return r.loop(signals)
}

func lookup(env []string, name, otherwise string) string {
	for _, e := range env {
		if len(e) > len(name) && e[:len(name)] == name && e[len(name)] == '=' {
			return e[len(name)+1:]
		}
	}
	return otherwise
}

func (r *reaper) loop(signals <-chan os.Signal) int {
	var again <-chan time.Time
	for {
		shrink.Code()
		select {
		case s := <-signals:
			if s != syscall.SIGCHLD {
				r.stopping = true
				r.forward(s)
				continue
			}
			status, died := r.reap()
			if !died {
				continue
			}
			if code, over := r.verdict(status); over {
				return code
			}
			again = time.After(r.nextPause())
		case <-again:
			again = nil
			if !r.start() {
				return exitInternal
			}
		}
	}
}

func (r *reaper) forward(s os.Signal) {
	if n, ok := s.(syscall.Signal); ok && r.launcher != 0 {
		_ = syscall.Kill(r.launcher, n)
	}
}

// start runs the launcher. Its standard streams are the reaper's own.
func (r *reaper) start() bool {
	env := r.env
	if r.stopping {
		env = append(append([]string(nil), env...), stoppingEnv)
	}
	pid, err := syscall.ForkExec(r.argv[0], r.argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		say("cannot start " + r.argv[0] + ": " + err.Error())
		return false
	}
	r.launcher, r.started = pid, time.Now()
	return true
}

// reap collects every process that has ended, and says whether the launcher was one of them.
func (r *reaper) reap() (status syscall.WaitStatus, died bool) {
	for {
		var s syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &s, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil || pid == 0:
			return status, died
		case pid == r.launcher:
			status, died, r.launcher = s, true, 0
		default:
			r.record(pid, s)
		}
	}
}

// verdict decides what the launcher's end means: with over the reaper ends with code, else the launcher starts again.
// Other children that live are QEMU and its helpers, since whoever is left over in the container falls to process 1.
func (r *reaper) verdict(status syscall.WaitStatus) (code int, over bool) {
	code = status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if !status.Signaled() && code != goPanic {
		return code, true
	}
	if !hasChildren() {
		if code == goPanic {
			r.explainPanic()
			code = exitInternal
		}
		return code, true
	}
	say("the launcher ended with status " + strconv.Itoa(code) + " while the guest runs; starting it again")
	return 0, false
}

func hasChildren() bool {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_WAITID, 0 /* P_ALL */, 0, 0,
		syscall.WEXITED|syscall.WNOHANG|syscall.WNOWAIT, 0, 0)
	return errno == 0
}

// explainPanic writes the termination message of a launcher that could not any more.
func (r *reaper) explainPanic() {
	fd, err := syscall.Open(r.message, syscall.O_WRONLY|syscall.O_TRUNC|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = syscall.Write(fd, []byte(panicMessage))
	_ = syscall.Close(fd)
}

// nextPause is nothing for the first death and grows for a launcher that cannot live.
func (r *reaper) nextPause() time.Duration {
	now := time.Since(r.started)
	switch {
	case now > quickDeath:
		r.pause = 0
	case r.pause == 0:
		r.pause = firstPause
	default:
		r.pause = min(2*r.pause, maxPause)
	}
	return r.pause
}

// record appends one line to the file of reaped processes. A file that cannot be written costs a detail of a message.
func (r *reaper) record(pid int, s syscall.WaitStatus) {
	var st syscall.Stat_t
	flags := syscall.O_WRONLY | syscall.O_CREAT | syscall.O_APPEND | syscall.O_CLOEXEC
	if syscall.Stat(r.reaped, &st) == nil && st.Size > reapedLimit {
		flags |= syscall.O_TRUNC
	}
	fd, err := syscall.Open(r.reaped, flags, 0o600)
	if err != nil {
		return
	}
	_, _ = syscall.Write(fd, []byte(strconv.Itoa(pid)+" "+strconv.Itoa(int(s))+"\n"))
	_ = syscall.Close(fd)
}

// say writes one line in the form of the launcher's log.
func say(text string) {
	_, _ = syscall.Write(2, []byte(`{"level":"INFO","msg":`+strconv.Quote(text)+`,"pos":"reaper"}`+"\n"))
}
