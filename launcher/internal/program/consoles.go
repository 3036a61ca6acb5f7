package program

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/console"
)

// consoles connects the first serial port with the container's own streams (podvirt.dev/console).
func (i *instance) consoles(ctx context.Context, beside *sync.WaitGroup) {
	port := i.ports[0]
	switch i.vm.Console.Mode {
	case api.ConsoleLog:
		i.log = console.NewLogWriter(i.std.Out, i.vm.Console.Rate, time.Now)
		beside.Go(func() { copyConsole(ctx, port, i.log, i.log.Drop) })
	case api.ConsoleAttach:
		raw(ctx, i.std.In)
		beside.Go(func() { copyConsole(ctx, port, i.std.Out, func(int64) {}) })
		go typed(ctx, port, i.std.In) // ends with the process: a read of a terminal cannot be called off
	default:
	}
}

// copyConsole copies what the guest says to out until ctx ends.
func copyConsole(ctx context.Context, port *console.Port, out io.Writer, lost func(int64)) {
	session, err := port.Attach(console.Mode{ReadOnly: true})
	if err != nil {
		klog.FromContext(ctx).Error(err, "console")
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		n, err := session.Read(buf)
		lost(session.Lost())
		if n > 0 {
			if _, err := out.Write(buf[:n]); err != nil {
				klog.FromContext(ctx).Error(err, "console to stdout")
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// raw makes the container's terminal hand every key to the guest, which echoes it itself.
func raw(ctx context.Context, in io.Reader) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return
	}
	if _, err := term.MakeRaw(int(f.Fd())); err != nil {
		klog.FromContext(ctx).Error(err, "terminal")
	}
}

// typingEnds is how long whoever types by kubectl attach keeps others from writing after the last key.
const typingEnds = 10 * time.Second

// typed sends what comes on stdin to the guest. It takes the writer's place at the first key and leaves it a while after
// the last, so that ctl console need not take over from nobody. As nobody can ask for a take-over here, it takes the place
// of a writer who is idle: kubectl exec leaves ctl console running when its client vanishes (kubernetes/kubernetes#60140).
func typed(ctx context.Context, port *console.Port, in io.Reader) {
	var (
		mu      sync.Mutex
		session *console.Session
	)
	leave := time.AfterFunc(typingEnds, func() {
		mu.Lock()
		defer mu.Unlock()
		if session != nil {
			_ = session.Close()
			session = nil
		}
	})
	buf := make([]byte, 4<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			mu.Lock()
			if session == nil {
				session, _ = port.Attach(console.Mode{NoHistory: true, TakeOverIdle: typingEnds}) // busy: the keys are lost, as on a locked terminal
			}
			if session != nil {
				if _, err := session.Write(buf[:n]); errors.Is(err, console.ErrTakenOver) {
					session = nil
				}
			}
			mu.Unlock()
			leave.Reset(typingEnds)
		}
		if err != nil || ctx.Err() != nil {
			return
		}
	}
}
