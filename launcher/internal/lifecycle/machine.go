package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// Starter makes the domain. Start reads the annotations again, builds and defines the domain, starts QEMU and lets the
// guest run, unless the VM is to start paused. It is called for a restart in place, too.
type Starter interface {
	Start(ctx context.Context) (virt.Domain, error)
}

// Options of a Machine.
type Options struct {
	Starter Starter
	Events  <-chan virt.Event
	Policy  func() Policy
	// Explain turns an error of Start into an outcome.
	Explain func(error) Outcome
	// Death says how QEMU died, where that is known: "qemu died of SIGSEGV", or that the cgroup's memory ran out.
	Death func() Outcome
	// Mended says whether all disks of a VM that stands still for them work again; it may block. nil: nobody looks.
	Mended    func() bool
	MendEvery time.Duration
	// Notify is told of every event after it was acted on; nil: nobody is.
	Notify func(virt.Event)
	// Clock is time.Now.
	Clock func() time.Time
}

// Machine follows one VM. Its methods may be called from any goroutine while Run runs.
type Machine struct {
	opt Options

	requests chan request
	mend     *mending // what Run alone touches; nil: the VM does not wait for its disks

	mu     sync.Mutex
	domain virt.Domain // nil while the VM is off
	status Status
	stop   *stopping // a graceful stop under way
	doing  intent
	// reboots are the times of the guest's last reboots, at most loopReboots.
	reboots []time.Time
}

// intent is what the launcher itself has asked for, so that the events that follow are not taken for the guest's doing.
type intent struct {
	destroy   *Outcome // we pulled the power cord, and this is why
	restart   bool     // start again when the VM is off
	reset     bool     // the next reset is ours
	watchdog  string   // the action of a watchdog that has just expired
	byHost    bool     // QEMU was ended by a signal from outside
	panicked  bool
	lastReset time.Time     // the first of a reboot
	rebooted  chan struct{} // who waits for a reboot that was asked for; nil: nobody
	begins    bool          // the guest runs, and the events of its start are still to come: the vCPUs stood still, and go
}

// tellRebooted ends the wait for a reboot.
func (i *intent) tellRebooted() {
	if i.rebooted != nil {
		close(i.rebooted)
		i.rebooted = nil
	}
}

type request struct {
	do   func(ctx context.Context) error
	done chan error
}

// Status is what is known of the VM at one moment.
type Status struct {
	State          api.State
	Reason         string // why it is paused
	Started        time.Time
	Boots          int
	GuestReboots   int
	RebootLoop     bool // the guest rebooted loopReboots times within loopSpan
	GuestPanics    int
	WatchdogFired  int
	AgentConnected bool
	IOErrors       map[string]int // by device alias
	LastIOError    string
}

// ErrNotRunning says that the verb needs a VM that is on.
var ErrNotRunning = fmt.Errorf("%w: it is off", virt.ErrWrongState)

// New returns a Machine that has not started.
func New(opt Options) *Machine {
	if opt.Clock == nil {
		opt.Clock = time.Now
	}
	if opt.Notify == nil {
		opt.Notify = func(virt.Event) {}
	}
	return &Machine{opt: opt, requests: make(chan request), status: Status{State: api.StateStarting}}
}

// Status returns what is known now.
func (m *Machine) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.IOErrors = maps.Clone(m.status.IOErrors)
	s.RebootLoop = loops(m.reboots, m.opt.Clock())
	return s
}

// Domain returns the running domain, or ErrNotRunning.
func (m *Machine) Domain() (virt.Domain, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.domain == nil {
		return nil, ErrNotRunning
	}
	return m.domain, nil
}

// Run follows the VM until it ends, and returns how. The VM is running already where domain is not nil, because an
// earlier launcher started it at that time; else Run starts it. When ctx ends the guest is asked to shut down.
func (m *Machine) Run(ctx context.Context, domain virt.Domain, started time.Time) Outcome {
	work := context.WithoutCancel(ctx)
	if domain != nil {
		if outcome := m.adopt(work, domain, started); outcome != nil {
			return *outcome
		}
	} else if err := m.start(ctx); err != nil {
		return m.opt.Explain(err)
	}
	asked := ctx.Done()
	for {
		select {
		case <-asked:
			asked = nil
			if outcome := m.beginStop(work, stopForGood); outcome != nil {
				return *outcome
			}
		case e, ok := <-m.opt.Events:
			if !ok {
				return Outcome{Reason: api.ReasonInternal, Text: "the hypervisor's driver has closed"}
			}
			outcome := m.event(work, e)
			m.opt.Notify(e)
			if outcome != nil {
				return *outcome
			}
		case r := <-m.requests:
			r.done <- r.do(work)
		case <-m.mendTimer():
			m.look()
		case works := <-m.mendAnswer():
			m.looked(work, works)
		case <-m.stopTimer():
			if outcome := m.continueStop(work); outcome != nil {
				return *outcome
			}
		}
	}
}

// start starts the VM and takes note of it.
func (m *Machine) start(ctx context.Context) error {
	m.setState(api.StateStarting)
	domain, err := m.opt.Starter.Start(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.domain, m.doing = domain, intent{}
	m.status.Started = m.opt.Clock()
	m.status.Boots++
	m.status.AgentConnected = false
	m.refreshLocked("boot")
	m.doing.begins = m.status.State == api.StateRunning
	return nil
}

// adopt takes over a domain that an earlier launcher started.
func (m *Machine) adopt(ctx context.Context, domain virt.Domain, started time.Time) *Outcome {
	state, err := domain.State()
	if err != nil {
		return &Outcome{Reason: api.ReasonInternal, Text: err.Error()}
	}
	m.mu.Lock()
	m.domain = domain
	m.status.Started, m.status.Boots = started, 1
	m.refreshLocked("user")
	m.mu.Unlock()
	if state == virt.StateCrashed {
		return m.panicked(ctx)
	}
	return nil
}

// refreshLocked asks the domain for its state. The caller holds mu. pausedBecause is the reason if it is paused.
func (m *Machine) refreshLocked(pausedBecause string) {
	state, err := m.domain.State()
	switch {
	case err != nil:
	case state == virt.StatePaused:
		m.status.State, m.status.Reason = api.StatePaused, pausedBecause
	case state == virt.StateCrashed:
		m.status.State, m.status.Reason = api.StatePaused, "panic"
	default:
		m.status.State, m.status.Reason = api.StateRunning, ""
	}
}

func (m *Machine) setState(s api.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.State, m.status.Reason = s, ""
}

// event acts on one event of the hypervisor. An outcome ends the VM.
func (m *Machine) event(ctx context.Context, e virt.Event) *Outcome {
	klog.FromContext(ctx).V(2).Info("event", "kind", e.Kind, "reason", e.Reason, "device", e.Device, "detail", e.Detail)
	switch e.Kind {
	case virt.EventResumed:
		m.resumed()
	case virt.EventSuspended:
		m.suspended(e)
	case virt.EventShutdownByHost:
		m.doing.byHost = true
	case virt.EventPanicked:
		return m.panicked(ctx)
	case virt.EventReset:
		return m.reset(ctx, e)
	case virt.EventStopped:
		return m.stopped(ctx, e)
	default:
		m.news(e)
	}
	return nil
}

func (m *Machine) resumed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doing.begins = false
	m.status.State, m.status.Reason = api.StateRunning, ""
	if m.stop != nil {
		m.status.State = api.StateStopping
	}
}

func (m *Machine) suspended(e virt.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.domain == nil || (m.status.State == api.StatePaused && m.status.Reason == "boot") || (m.doing.begins && e.Detail == "user") {
		return // QEMU starts with its vCPUs stopped
	}
	reason := e.Detail
	if reason == "io-error" && m.status.LastIOError == "enospc" {
		reason = "no-space"
	}
	m.status.State, m.status.Reason = api.StatePaused, reason
}

// news are events that change figures only.
func (m *Machine) news(e virt.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Kind {
	case virt.EventWatchdog:
		m.status.WatchdogFired++
		m.doing.watchdog = e.Detail
		m.doing.reset = e.Detail == "reset"
	case virt.EventIOError:
		if m.status.IOErrors == nil {
			m.status.IOErrors = map[string]int{}
		}
		m.status.IOErrors[e.Device]++
		m.status.LastIOError = e.Detail
	case virt.EventAgentConnected:
		m.status.AgentConnected = true
	case virt.EventAgentGone:
		m.status.AgentConnected = false
	default:
	}
}

// panicked acts on a guest that told of its panic; QEMU holds it still.
func (m *Machine) panicked(ctx context.Context) *Outcome {
	m.doing.panicked = true
	m.mu.Lock()
	m.status.GuestPanics++
	m.status.State, m.status.Reason = api.StatePaused, "panic"
	m.mu.Unlock()
	outcome := Outcome{Reason: api.ReasonGuestPanic, Text: "the guest kernel panicked (pvpanic)"}
	if m.stop != nil {
		return m.destroy(outcome)
	}
	switch m.opt.Policy().OnCrash {
	case api.CrashHold:
		return nil
	case api.CrashReset:
		m.doing.reset, m.doing.panicked = true, false
		if err := errors.Join(m.domain.Reset(), m.domain.Resume()); err != nil {
			klog.FromContext(ctx).Error(err, "reset after a panic")
			return m.destroy(outcome)
		}
		return nil
	case api.CrashRestart:
		m.doing.restart = true
		return m.destroy(outcome)
	default:
		return m.destroy(outcome)
	}
}

// destroy pulls the power cord; the outcome counts when the event says that the VM is off.
func (m *Machine) destroy(why Outcome) *Outcome {
	m.doing.destroy = &why
	if m.domain == nil {
		return &why
	}
	if err := m.domain.Destroy(); err != nil {
		return &Outcome{Reason: api.ReasonInternal, Text: "QEMU does not end: " + err.Error()}
	}
	return nil
}

// stopped decides what the end of QEMU means.
func (m *Machine) stopped(ctx context.Context, e virt.Event) *Outcome {
	if m.domain == nil || m.runs() {
		return nil // the end of a start that failed
	}
	m.mu.Lock()
	m.domain = nil
	doing, stop, started := m.doing, m.stop, m.status.Started
	m.doing.tellRebooted()
	m.doing, m.stop = intent{}, nil
	m.status.AgentConnected = false
	m.mu.Unlock()

	outcome := m.explainEnd(e, doing, stop, started)
	if stop != nil {
		return m.endStop(ctx, stop, outcome)
	}
	if doing.restart || (outcome.Reason == api.ReasonPoweredOff && m.opt.Policy().OnPoweroff == api.PoweroffRestart) {
		return m.startAgain(ctx)
	}
	if outcome.Reason == api.ReasonPoweredOff && m.opt.Policy().OnPoweroff == api.PoweroffHold {
		m.setState(api.StateHeld)
		return nil
	}
	if crashed(outcome.Reason) {
		switch m.opt.Policy().OnCrash {
		case api.CrashRestart, api.CrashReset:
			return m.startAgain(ctx)
		case api.CrashHold:
			m.setState(api.StateHeld)
			return nil
		default:
		}
	}
	return &outcome
}

// runs asks whether QEMU is there, whatever the events say.
func (m *Machine) runs() bool {
	state, err := m.domain.State()
	return err == nil && state != virt.StateOff && state != virt.StateStopping
}

// crashed says whether on-crash speaks of such an end. A reset is not to be had from a QEMU that is gone, so it starts
// again.
func crashed(r api.Reason) bool {
	return r == api.ReasonGuestPanic || r == api.ReasonHypervisorCrash
}

func (m *Machine) startAgain(ctx context.Context) *Outcome {
	if err := m.start(ctx); err != nil {
		outcome := m.opt.Explain(err)
		return &outcome
	}
	return nil
}

func (m *Machine) explainEnd(e virt.Event, doing intent, stop *stopping, started time.Time) Outcome {
	switch {
	case doing.destroy != nil:
		return *doing.destroy
	case doing.watchdog == "poweroff": // QEMU ends by itself then
		return Outcome{Reason: api.ReasonWatchdog, Text: "the watchdog expired"}
	case e.Reason == virt.StopFailed || doing.byHost:
		return m.opt.Death()
	case doing.panicked || e.Reason == virt.StopCrashed:
		return Outcome{Reason: api.ReasonGuestPanic, Text: "the guest kernel panicked (pvpanic)"}
	case stop != nil:
		return stop.obeyed(m.opt.Clock())
	case e.Reason == virt.StopDestroyed:
		return m.opt.Death()
	default:
		return Outcome{Reason: api.ReasonPoweredOff, Text: "the guest shut down after " + span(m.opt.Clock().Sub(started))}
	}
}

// span writes a duration as people do: 4.2s, 3m7s, 3h12m.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return d.Round(time.Second).String()
	default:
		d = d.Round(time.Minute)
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
}
