package lifecycle

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// sameReboot is the time from the first reset within which further ones belong to the same reboot: firmware and kernels
// pull more than one lever.
const sameReboot = 5 * time.Second

// A guest that reboots so often in such a time does nothing else (VM-118).
const (
	loopReboots = 5
	loopSpan    = time.Minute
)

// loops says whether the reboots are a loop now. It ends by itself when the guest stays up.
func loops(reboots []time.Time, now time.Time) bool {
	return len(reboots) == loopReboots && now.Sub(reboots[0]) < loopSpan
}

// reset acts on a reset of the machine, which is the guest's wish to reboot unless we asked for it.
func (m *Machine) reset(ctx context.Context, e virt.Event) *Outcome {
	m.mu.Lock()
	ours, again := m.doing.reset, e.Time.Sub(m.doing.lastReset) < sameReboot
	m.doing.reset = false
	if !again {
		m.doing.lastReset = e.Time
	}
	m.doing.tellRebooted()
	m.status.AgentConnected = false
	began := false
	if !ours && !again {
		began = m.countReboot(e.Time)
	}
	m.mu.Unlock()
	if began {
		klog.FromContext(ctx).Error(nil, "the guest reboots again and again", "times", loopReboots, "within", loopSpan.String())
	}
	if ours || again || m.stop != nil {
		return nil
	}
	switch m.opt.Policy().OnReboot {
	case api.RebootExit:
		return m.destroy(Outcome{Reason: api.ReasonGuestReboot, Text: "the guest asked for a reboot"})
	case api.RebootRestart:
		m.doing.restart = true
		return m.destroy(Outcome{})
	default:
		return nil
	}
}

// countReboot counts a reboot by the guest and says whether a loop has begun with it. The caller holds mu.
func (m *Machine) countReboot(at time.Time) (began bool) {
	before := loops(m.reboots, at)
	m.status.GuestReboots++
	m.reboots = append(m.reboots, at)
	if over := len(m.reboots) - loopReboots; over > 0 {
		m.reboots = m.reboots[over:]
	}
	return !before && loops(m.reboots, at)
}
