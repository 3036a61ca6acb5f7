// Package virt says in podvirt's own words what the launcher needs of a hypervisor: one connection, one domain,
// its states, its events and its figures. Package virt/libvirt implements it; nothing else knows libvirt.
package virt

import (
	"context"
	"errors"
	"time"
)

// Errors that callers tell apart. Implementations wrap them around their own text.
var (
	// ErrDomainNotFound says that the driver knows no domain of that name.
	ErrDomainNotFound = errors.New("no such domain")
	// ErrWrongState says that the domain is not in a state in which the call makes sense.
	ErrWrongState = errors.New("the VM is not in a state for this")
	// ErrAgentUnavailable says that no guest agent is connected, or it does not answer.
	ErrAgentUnavailable = errors.New("the guest agent does not answer")
	// ErrTimeout says that the hypervisor or the guest agent did not answer in time.
	ErrTimeout = errors.New("timed out")
)

// State of a domain.
type State string

// The states of a domain.
const (
	StateOff      State = "off"
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateStopping State = "stopping" // the guest is shutting down, or QEMU is on its way out
	StateCrashed  State = "crashed"  // the guest panicked and QEMU still holds its memory
)

// EventKind says what happened.
type EventKind string

// The kinds of events. Started, Suspended, Resumed, ShutdownByGuest, Stopped and Crashed are steps in the life of the
// domain; the others are news of a device or of the guest.
const (
	EventStarted         EventKind = "started"
	EventSuspended       EventKind = "suspended"
	EventResumed         EventKind = "resumed"
	EventShutdownByGuest EventKind = "shutdown-by-guest" // the guest has powered itself off; QEMU still runs
	EventShutdownByHost  EventKind = "shutdown-by-host"  // QEMU was told to end by a signal
	EventStopped         EventKind = "stopped"           // QEMU is gone; Reason says why
	EventPanicked        EventKind = "panicked"          // the guest told of its panic
	EventReset           EventKind = "reset"             // the machine was reset, by the guest or by us
	EventWatchdog        EventKind = "watchdog"          // the watchdog expired; Detail is the action taken
	EventIOError         EventKind = "io-error"          // Device is the disk's alias, Detail the reason
	EventAgentConnected  EventKind = "agent-connected"
	EventAgentGone       EventKind = "agent-gone"
)

// StopReason is the reason of EventStopped.
type StopReason string

// The reasons for which a domain stops.
const (
	StopShutdown  StopReason = "shutdown"  // the guest shut down
	StopDestroyed StopReason = "destroyed" // we asked for a hard power-off
	StopCrashed   StopReason = "crashed"   // the guest panicked
	StopFailed    StopReason = "failed"    // QEMU died
	StopOther     StopReason = "other"
)

// Event is one piece of news of the domain.
type Event struct {
	Kind   EventKind
	Reason StopReason // only with EventStopped
	Device string     // only with EventIOError
	Detail string     // for people
	Time   time.Time
}

// ShutdownMode says by which way a guest is asked to shut down or reboot.
type ShutdownMode string

// The two ways to ask a guest.
const (
	ByAgent ShutdownMode = "agent"
	ByACPI  ShutdownMode = "acpi"
)

// Conn is an open driver. It is safe for concurrent use.
type Conn interface {
	// Define records the domain described by the XML. A domain of the same name and UUID that does not run is replaced.
	Define(xml string) (Domain, error)
	// Lookup returns the domain of that name, running or not, or ErrDomainNotFound. It waits until the driver has found
	// out whether a domain that an earlier process left still runs: from then on State is true, and its end is an event.
	Lookup(ctx context.Context, name string) (Domain, error)
	// Events delivers the news of every domain in order. The channel is closed by Close. Nothing is dropped.
	Events() <-chan Event
	// Capabilities returns the driver's host capabilities as XML.
	Capabilities() (string, error)
	// DomainCapabilities returns what this machine's QEMU offers for an architecture ("x86_64"), a machine type ("q35")
	// and an accelerator ("kvm", "qemu"), as XML. Empty words stand for the default.
	DomainCapabilities(arch, machine, accelerator string) (string, error)
	// ExpandCPU returns a CPU description (the XML element cpu) with every feature written out that a guest with it would
	// have under an architecture, machine type and accelerator, as DomainCapabilities takes them.
	ExpandCPU(arch, machine, accelerator, cpu string) (string, error)
	// Version of the driver and of the hypervisor, each major*1000000 + minor*1000 + release.
	Version() (library, hypervisor uint32, err error)
	// Close leaves the driver; domains go on running.
	Close() error
}

// Domain is the one VM. It is safe for concurrent use.
type Domain interface {
	// Start starts QEMU with the vCPUs stopped; Resume lets the guest run.
	Start() error
	// State of the domain now.
	State() (State, error)
	// Suspend stops the vCPUs and Resume lets them go on. Both succeed when that is so already.
	Suspend() error
	Resume() error
	// Shutdown and Reboot ask the guest. That the guest obeys is seen from the events only.
	Shutdown(ShutdownMode) error
	Reboot(ShutdownMode) error
	// Reset is the reset button.
	Reset() error
	// Destroy is the power cord. It succeeds when the domain is off already.
	Destroy() error
	// InjectNMI presses the NMI button.
	InjectNMI() error
	// PressKeys presses keys of the keyboard together and lets them go; codes are Linux' (input-event-codes.h).
	PressKeys(codes []uint) error
	// SyncTime sets the guest's clock to the host's by the guest agent.
	SyncTime() error
	// AgentCommand sends one JSON command to the guest agent and returns its JSON answer; ErrAgentUnavailable, ErrTimeout.
	AgentCommand(ctx context.Context, command string) (string, error)
	// Stats are the figures of the running domain.
	Stats() (Stats, error)
	// ResizeDisk tells QEMU and the guest how many bytes the disk with this source (file or device node) has by now.
	ResizeDisk(source string, size int64) error
	// UpdateDevice changes what can be changed of a device while the guest runs; the XML is the whole device as it shall be.
	UpdateDevice(xml string) error
	// XML is the description of the domain as it runs.
	XML() (string, error)
	// Undefine forgets a domain that does not run.
	Undefine() error
}
