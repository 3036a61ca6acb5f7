package lifecycle

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
)

// MendEvery is how often a VM that stands still for its disks looks whether they work again (VM-079).
const MendEvery = 5 * time.Second

// mending is the wait of a VM that stands still for its disks.
type mending struct {
	timer  *time.Timer
	answer chan bool // of the look at the disks, which may take for ever
}

// broken says whether the VM stands still because a disk failed a request or has no room.
func (m *Machine) broken() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status.State == api.StatePaused && (m.status.Reason == "io-error" || m.status.Reason == "no-space")
}

// mendTimer fires when it is time to look at the disks, mendAnswer when the look is over. Both are nil while the VM does not wait.
func (m *Machine) mendTimer() <-chan time.Time {
	switch {
	case m.opt.Mended == nil:
		return nil
	case !m.broken():
		m.mend = nil
		return nil
	case m.mend == nil:
		m.mend = &mending{timer: time.NewTimer(m.opt.MendEvery), answer: make(chan bool, 1)}
	}
	return m.mend.timer.C
}

func (m *Machine) mendAnswer() <-chan bool {
	if m.mend == nil {
		return nil
	}
	return m.mend.answer
}

// look asks whether the disks work, without waiting for the answer.
func (m *Machine) look() {
	answer := m.mend.answer
	go func() { answer <- m.opt.Mended() }()
}

// looked lets the guest go on where its disks work: QEMU then repeats the request that failed, and stops again where it fails again.
func (m *Machine) looked(ctx context.Context, works bool) {
	m.mend = nil
	if !works || m.domain == nil {
		return
	}
	if err := m.domain.Resume(); err != nil {
		klog.FromContext(ctx).Error(err, "the disks work again, and the guest does not go on")
	}
}
