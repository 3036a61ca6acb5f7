// Package vmstatus is the document at GET /status of a launcher's status port (spec vm.md 2.8). The launcher writes it;
// launcher ctl status prints it; the controller mirrors the parts that people look for to the Pod.
package vmstatus

import (
	"time"

	"podvirt.dev/api"
)

// Status is what a launcher knows of its VM.
type Status struct {
	Name           string         `json:"name"`
	Namespace      string         `json:"namespace"`
	UUID           string         `json:"uuid,omitempty"`
	State          api.State      `json:"state"`
	Reason         string         `json:"reason,omitempty"`
	Accelerator    string         `json:"accelerator"`
	CPU            *CPU           `json:"cpu,omitempty"` // of the guest that runs or ran last
	VCPUs          int            `json:"vcpus"`
	MemoryMiB      int64          `json:"memoryMiB"`
	OverheadMiB    int64          `json:"overheadMiB"` // what limits.memory must hold beyond it (vm.md 2.5)
	Started        *time.Time     `json:"started,omitempty"`
	Boots          int            `json:"boots"`
	GuestReboots   int            `json:"guestReboots"`
	RebootLoop     bool           `json:"rebootLoop,omitempty"`
	WatchdogFired  int            `json:"watchdogFired"`
	AgentConnected bool           `json:"agentConnected"`
	QEMU           int            `json:"qemuPID,omitempty"`
	IOErrors       map[string]int `json:"ioErrors,omitempty"`
	NICs           []NIC          `json:"nics,omitempty"`
	// StartSeconds are the durations of the steps of the last start.
	StartSeconds   map[string]float64 `json:"startSeconds,omitempty"`
	ConsoleDropped int64              `json:"consoleDroppedBytes"`
	Warnings       []string           `json:"warnings,omitempty"`

	Launcher     string      `json:"launcher"` // version of the program
	AgentVersion string      `json:"agentVersion,omitempty"`
	GuestOS      string      `json:"guestOS,omitempty"` // as the guest agent says it
	Conditions   []Condition `json:"conditions"`

	Run  string `json:"run"` // names the process; Seq of News begins again in another one
	News []News `json:"news,omitempty"`
}

// CPU is the one that the guest really has: what host-model, max and host-passthrough stand for on this node (VM-021). A
// node that cannot give this model and these features cannot take the guest over.
type CPU struct {
	Model   string   `json:"model"`
	Require []string `json:"require,omitempty"` // features beyond the model, in order
	Disable []string `json:"disable,omitempty"` // features of the model that the guest has not, in order
}

// NIC is one NIC of the guest.
type NIC struct {
	Name    string   `json:"name"`
	Pod     string   `json:"pod"`             // interface of the Pod
	Guest   string   `json:"guest,omitempty"` // name in the guest, where the agent says it
	MAC     string   `json:"mac"`
	IPs     []string `json:"ips,omitempty"` // with prefix
	Binding string   `json:"binding"`
	Link    string   `json:"link,omitempty"`   // up or down
	Queues  int      `json:"queues,omitempty"` // pairs
	Source  string   `json:"source,omitempty"` // of IPs: guest-agent or dhcp
}

// Condition is one condition of the VM Pod as the controller copies it.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"` // True, False or Unknown
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// News is something that happened to the VM. Something that happens again and again without anything else in between is
// one piece of news whose Count grows; only the last one can still grow.
type News struct {
	Seq     int64     `json:"seq"` // from 1, in the order in which things happened
	Count   int       `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Reason  string    `json:"reason"` // one of the reasons below
	Message string    `json:"message"`
}

// Reasons of news, which are those of the Events on the Pod (vm.md VM-214, VM-118). A panic or a watchdog that ends the
// VM is no news: the container's termination message tells it.
const (
	Started        = "Started"
	Paused         = "Paused"
	Resumed        = "Resumed"
	GuestReboot    = "GuestReboot"
	RebootLoop     = "RebootLoop"
	GuestPanic     = "GuestPanic"
	WatchdogFired  = "WatchdogFired"
	AgentConnected = "AgentConnected"
	IOError        = "IOError"
	Resized        = "Resized"
)

// MaxNews is how many pieces of news a launcher keeps.
const MaxNews = 32
