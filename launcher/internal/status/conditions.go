package status

import (
	"fmt"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
)

// Facts are what conditions are made of.
type Facts struct {
	State          api.State
	Reason         string // why it is paused
	Accelerator    api.Accelerator
	RebootLoop     bool
	AgentConnected bool
	AgentVersion   string
	IOErrors       map[string]int // by disk
	LastIOError    string
	StateMounted   bool // /vm/state is mounted
	NeedsState     bool // firmware variables or a TPM that a restart would lose
}

// Conditions returns the conditions that the launcher decides, in the order of their types.
func Conditions(f Facts) []vmstatus.Condition {
	list := []vmstatus.Condition{
		{Type: api.ConditionAgentConnected, Status: word(f.AgentConnected), Message: f.AgentVersion},
		diskError(f),
		guestRunning(f),
		{Type: api.ConditionPaused, Status: word(f.State == api.StatePaused), Reason: pascal(f.Reason)},
		{Type: api.ConditionStateEphemeral, Status: word(f.NeedsState && !f.StateMounted)},
	}
	if f.NeedsState && !f.StateMounted {
		list[4].Message = "nothing is mounted at " + api.PathState + ": firmware variables and TPM end with the Pod"
	}
	return list
}

// guestRunning also carries what is wrong with a guest that runs: there is no condition of its own for that.
func guestRunning(f Facts) vmstatus.Condition {
	c := vmstatus.Condition{Type: api.ConditionGuestRunning, Status: word(f.State == api.StateRunning), Reason: pascal(string(f.State))}
	var notes []string
	if f.RebootLoop {
		c.Reason = "RebootLoop"
		notes = append(notes, "the guest reboots again and again")
	}
	if f.Accelerator == api.AcceleratorTCG {
		notes = append(notes, "emulated without KVM (accelerator tcg): many times slower")
	}
	c.Message = strings.Join(notes, "; ")
	return c
}

func diskError(f Facts) vmstatus.Condition {
	if len(f.IOErrors) == 0 {
		return vmstatus.Condition{Type: api.ConditionDiskError, Status: word(false)}
	}
	disks := make([]string, 0, len(f.IOErrors))
	for disk, n := range f.IOErrors {
		disks = append(disks, fmt.Sprintf("%s: %d errors", disk, n))
	}
	slices.Sort(disks)
	message := strings.Join(disks, ", ")
	if f.LastIOError != "" {
		message += "; last: " + f.LastIOError
	}
	return vmstatus.Condition{Type: api.ConditionDiskError, Status: word(true), Reason: "IOError", Message: message}
}

func word(yes bool) string {
	if yes {
		return "True"
	}
	return "False"
}

// pascal turns a word of ours into a reason as Kubernetes wants it: io-error becomes IoError.
func pascal(text string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(text, "-") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}
