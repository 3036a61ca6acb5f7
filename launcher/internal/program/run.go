package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
	"podvirt.dev/launcher/internal/console"
	"podvirt.dev/launcher/internal/control"
	"podvirt.dev/launcher/internal/disks"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/lifecycle"
	"podvirt.dev/launcher/internal/virt"
	"podvirt.dev/launcher/internal/virt/libvirt"
)

// Memory of the Go runtime. The launcher has little to do and lives as long as its guest: it is worth more to collect
// often than to keep a heap of twice the live data (N3: 32 MiB with libvirt).
const (
	gcPercent   = 40
	memoryLimit = 12 << 20
)

// killedMessage stands in the termination file while nobody knows better (vm.md 2.9).
const killedMessage = "Killed: the launcher was ended without notice (SIGKILL or out of memory)"

func itoa(n int) string { return strconv.Itoa(n) }

// runVM is launcher run.
func runVM(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) > 0 {
		fmt.Fprintln(std.Err, "usage: launcher run")
		return int(api.ExitInternal)
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	vm, _, loadErr := load()
	ctx, log := withLog(ctx, vm, std)
	defer log.close()
	logger := klog.FromContext(ctx)
	if err := say(killedMessage); err != nil {
		logger.Error(err, "termination message")
	}
	outcome := supervise(ctx, vm, loadErr, log, std)
	logger.Info("the VM has ended", "reason", outcome.Reason, "message", outcome.Text, "code", outcome.Reason.ExitCode())
	if err := say(outcome.Message()); err != nil {
		logger.Error(err, "termination message")
	}
	return int(outcome.Reason.ExitCode())
}

// say writes the termination message. The kubelet has made the file; without one there is nobody to read it.
func say(message string) error {
	f, err := os.OpenFile(terminationLog, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(message)
	return errors.Join(err, f.Close())
}

// instance is the VM of this process: everything that lives longer than one QEMU.
type instance struct {
	vm      api.Machine // as it was read last
	std     cli.Streams
	conn    *libvirt.Conn
	machine *lifecycle.Machine
	network *network
	ports   []*console.Port
	log     *console.LogWriter // nil unless console=log
	ownLog  *launcherLog
	starter *starter
	outside *outside

	settled chan struct{} // a start is over
	memory  memoryEvents

	mu     sync.Mutex
	mark   mark
	disks  []domain.Disk
	policy lifecycle.Policy
}

// supervise runs the VM and returns how it ended.
func supervise(ctx context.Context, vm api.Machine, loadErr error, log *launcherLog, std cli.Streams) lifecycle.Outcome {
	name := vm.PodName
	if loadErr != nil {
		logMistakes(ctx, loadErr)
		return explain(name)(loadErr)
	}
	if os.Getenv(stoppingEnv) != "" {
		stopped, cancel := context.WithCancel(ctx)
		cancel()
		ctx = stopped
	}
	earlier, err := readMark()
	if err == nil && earlier == nil {
		err = sweep()
	}
	if err != nil {
		return lifecycle.Outcome{Reason: api.ReasonInternal, Text: err.Error()}
	}
	i, err := newInstance(ctx, vm, std)
	if err != nil {
		return explain(name)(err)
	}
	i.ownLog = log
	defer i.close()
	return i.run(ctx, earlier)
}

// newInstance opens the driver and builds the parts. Nothing of the VM runs yet.
func newInstance(ctx context.Context, vm api.Machine, std cli.Streams) (*instance, error) {
	if err := libvirt.Prime(libvirtRoot, emulator, nodeCapabilities, imageCapabilities); err != nil {
		klog.FromContext(ctx).V(2).Info("no answers of QEMU are kept; it is asked again", "why", err.Error())
	}
	conn, err := libvirt.Open(context.WithoutCancel(ctx), libvirtRoot)
	if err != nil {
		return nil, err
	}
	i := &instance{vm: vm, std: std, conn: conn, network: newNetwork(), memory: readMemoryEvents(), settled: make(chan struct{}, 1)}
	for n := range 1 + vm.Serial {
		port, err := console.New(api.PathRun + "/" + domain.SerialPipes(n))
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		i.ports = append(i.ports, port)
	}
	i.starter = &starter{instance: i}
	i.machine = lifecycle.New(lifecycle.Options{
		Starter: i.starter, Events: conn.Events(), Policy: i.currentPolicy, Explain: explain(vm.PodName),
		Death:  func() lifecycle.Outcome { return death(context.WithoutCancel(ctx), i.pid(), i.memory) },
		Notify: func(e virt.Event) { i.outside.notify(e) },
		Mended: i.disksWork, MendEvery: lifecycle.MendEvery,
	})
	i.outside = newOutside(i)
	i.policy = lifecycle.PolicyOf(vm.Lifecycle)
	return i, nil
}

// disksWork looks at every disk.
func (i *instance) disksWork() bool {
	i.mu.Lock()
	list := slices.Clone(i.disks)
	i.mu.Unlock()
	return !slices.ContainsFunc(list, func(d domain.Disk) bool { return !disks.Works(d) })
}

// run follows the VM, with everything beside it, until it ends.
func (i *instance) run(ctx context.Context, earlier *mark) lifecycle.Outcome {
	side, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	for _, p := range i.ports {
		beside.Go(func() { p.Run(side) })
	}
	i.consoles(side, &beside)
	if err := i.serve(side, &beside); err != nil {
		return lifecycle.Outcome{Reason: api.ReasonInternal, Text: err.Error()}
	}
	i.outside.run(side, &beside)
	beside.Go(func() { newForeignLogs().run(side) })
	beside.Go(func() { i.follow(side) })
	beside.Go(func() { settle(side, i.settled) })
	beside.Go(func() { i.growth(earlier != nil).run(side) })
	beside.Go(func() { i.cables().run(side) })
	if earlier == nil {
		return i.machine.Run(ctx, nil, time.Time{})
	}
	return i.goOn(ctx, earlier)
}

// goOn takes over the guest that an earlier launcher of this container left.
func (i *instance) goOn(ctx context.Context, earlier *mark) lifecycle.Outcome {
	i.mu.Lock()
	i.mark = *earlier
	i.mu.Unlock()
	dom, err := i.conn.Lookup(ctx, earlier.Domain)
	if err != nil {
		return i.lost(ctx, err)
	}
	state, err := dom.State()
	if err != nil || state == virt.StateOff {
		return i.lost(ctx, err)
	}
	_, err = i.starter.takeCPU(dom)
	if err := errors.Join(err, i.starter.again(ctx), i.network.hear(dom)); err != nil {
		klog.FromContext(ctx).Error(err, "what belongs to the running guest is not all there again")
	}
	i.begun()
	i.outside.news.Adopt(state == virt.StatePaused)
	klog.FromContext(ctx).Info("the running guest is back", "state", state, "pid", earlier.PID)
	return i.machine.Run(ctx, dom, earlier.Started)
}

// lost is the end of a guest that ran when the earlier launcher died and runs no more.
func (i *instance) lost(ctx context.Context, err error) lifecycle.Outcome {
	if err != nil && !errors.Is(err, virt.ErrDomainNotFound) {
		return lifecycle.Outcome{Reason: api.ReasonInternal, Text: err.Error()}
	}
	return death(ctx, i.pid(), i.memory)
}

// begun wakes who waits for the end of a start.
func (i *instance) begun() {
	select {
	case i.settled <- struct{}{}:
	default:
	}
}

func (i *instance) pid() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.mark.PID
}

// currentPolicy reads the annotations again: on-poweroff and its kin are obeyed as they stand when something happens. An
// edit with a mistake changes nothing.
func (i *instance) currentPolicy() lifecycle.Policy {
	vm, _, err := load()
	i.mu.Lock()
	defer i.mu.Unlock()
	if err == nil {
		i.policy = lifecycle.PolicyOf(vm.Lifecycle)
	}
	return i.policy
}

// close ends what newInstance opened. QEMU is gone, or goes with the container.
func (i *instance) close() {
	i.starter.release()
	_ = i.conn.Close()
}

// serve opens the control socket.
func (i *instance) serve(ctx context.Context, beside *sync.WaitGroup) error {
	l, err := control.Listen(ctx, control.Socket)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server := control.Server{Verbs: i.verbs(), Port: func(n int) *console.Port {
		if n < 0 || n >= len(i.ports) {
			return nil
		}
		return i.ports[n]
	}}
	beside.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			klog.FromContext(ctx).Error(err, "control socket")
		}
	})
	return nil
}
