// Package virttest is a hypervisor for tests of what stands on package virt: a domain that does what it is told and
// reports it as the real one does.
package virttest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"podvirt.dev/launcher/internal/virt"
)

var _ virt.Domain = (*Domain)(nil)

// Domain is a domain without a QEMU. The zero value is off; use New.
type Domain struct {
	// Obeys says by which means the guest shuts down and reboots when asked.
	Obeys map[virt.ShutdownMode]bool
	// Agent is false where nobody answers in the guest.
	Agent bool
	// Description is what XML returns.
	Description string

	events chan virt.Event

	mu    sync.Mutex
	state virt.State
	calls []string
}

// New returns a domain that is off, and its events.
func New() (*Domain, <-chan virt.Event) {
	d := &Domain{events: make(chan virt.Event, 64), state: virt.StateOff, Obeys: map[virt.ShutdownMode]bool{}}
	return d, d.events
}

// Calls are the names of the calls so far.
func (d *Domain) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.calls...)
}

// Emit reports an event of the guest or of QEMU and brings the domain into a state.
func (d *Domain) Emit(state virt.State, e virt.Event) {
	d.mu.Lock()
	d.state = state
	d.mu.Unlock()
	e.Time = time.Now()
	d.events <- e
}

func (d *Domain) called(name string, state virt.State, events ...virt.Event) error {
	d.mu.Lock()
	d.calls = append(d.calls, name)
	if d.state == virt.StateOff && name != "start" && name != "destroy" {
		d.mu.Unlock()
		return virt.ErrWrongState
	}
	if state != "" {
		d.state = state
	}
	d.mu.Unlock()
	for _, e := range events {
		e.Time = time.Now()
		d.events <- e
	}
	return nil
}

// Start starts with the vCPUs stopped.
func (d *Domain) Start() error {
	return d.called("start", virt.StatePaused, virt.Event{Kind: virt.EventStarted}, virt.Event{Kind: virt.EventSuspended, Detail: "user"})
}

// State is what it is now.
func (d *Domain) State() (virt.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state, nil
}

// Suspend stops the vCPUs.
func (d *Domain) Suspend() error {
	return d.called("suspend", virt.StatePaused, virt.Event{Kind: virt.EventSuspended, Detail: "user"})
}

// Resume lets them go on.
func (d *Domain) Resume() error {
	return d.called("resume", virt.StateRunning, virt.Event{Kind: virt.EventResumed})
}

// Shutdown powers off where the guest obeys.
func (d *Domain) Shutdown(mode virt.ShutdownMode) error {
	if mode == virt.ByAgent && !d.Agent {
		_ = d.called("shutdown-agent", "")
		return virt.ErrAgentUnavailable
	}
	if !d.Obeys[mode] {
		return d.called("shutdown-"+string(mode), "")
	}
	return d.called("shutdown-"+string(mode), virt.StateOff,
		virt.Event{Kind: virt.EventShutdownByGuest}, virt.Event{Kind: virt.EventStopped, Reason: virt.StopShutdown})
}

// Reboot resets where the guest obeys.
func (d *Domain) Reboot(mode virt.ShutdownMode) error {
	return d.called("reboot-"+string(mode), "", virt.Event{Kind: virt.EventReset})
}

// Reset resets.
func (d *Domain) Reset() error { return d.called("reset", "", virt.Event{Kind: virt.EventReset}) }

// Destroy powers off.
func (d *Domain) Destroy() error {
	return d.called("destroy", virt.StateOff, virt.Event{Kind: virt.EventStopped, Reason: virt.StopDestroyed})
}

// InjectNMI is taken note of.
func (d *Domain) InjectNMI() error { return d.called("nmi", "") }

// PressKeys is taken note of.
func (d *Domain) PressKeys(codes []uint) error { return d.called(fmt.Sprint("keys ", codes), "") }

// SyncTime is taken note of.
func (d *Domain) SyncTime() error { return d.called("sync-time", "") }

// AgentCommand answers nothing.
func (d *Domain) AgentCommand(context.Context, string) (string, error) {
	return "", virt.ErrAgentUnavailable
}

// Stats are empty.
func (d *Domain) Stats() (virt.Stats, error) { return virt.Stats{State: d.state}, nil }

// ResizeDisk is taken note of.
func (d *Domain) ResizeDisk(source string, size int64) error {
	return d.called(fmt.Sprint("resize ", source, " ", size), "")
}

// UpdateDevice is taken note of.
func (d *Domain) UpdateDevice(xml string) error { return d.called("update "+xml, "") }

// XML is what Description says.
func (d *Domain) XML() (string, error) { return d.Description, nil }

// Undefine does nothing.
func (d *Domain) Undefine() error { return nil }
