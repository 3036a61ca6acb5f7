package lifecycle

import (
	"sync/atomic"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// TestMends: a VM that stands still for its disks goes on when they work again, and one that stands still for another reason does
// not (VM-079).
func TestMends(t *testing.T) {
	var works atomic.Bool
	var looks atomic.Int32
	w := runWith(t, policyWith(func(*Policy) {}), func(o *Options) {
		o.MendEvery = time.Millisecond
		o.Mended = func() bool { looks.Add(1); return works.Load() }
	})
	w.domain.Emit(virt.StatePaused, virt.Event{Kind: virt.EventSuspended, Detail: "user"})
	w.until(api.StatePaused)
	w.domain.Emit(virt.StateRunning, virt.Event{Kind: virt.EventResumed})
	w.until(api.StateRunning)
	if n := looks.Load(); n != 0 {
		t.Errorf("%d looks at the disks of a VM that a user has paused", n)
	}

	w.domain.Emit(virt.StateRunning, virt.Event{Kind: virt.EventIOError, Device: "ua-disk_data", Detail: "enospc"})
	w.domain.Emit(virt.StatePaused, virt.Event{Kind: virt.EventSuspended, Detail: "io-error"})
	w.until(api.StatePaused)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for looks.Load() < 3 {
		<-tick.C
	}
	if s := w.Status(); s.State != api.StatePaused || s.Reason != "no-space" {
		t.Errorf("%s (%s) while the disks do not work", s.State, s.Reason)
	}
	works.Store(true)
	w.until(api.StateRunning)
}
