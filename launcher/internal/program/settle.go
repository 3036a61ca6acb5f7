package program

import (
	"context"
	"runtime/debug"
	"time"

	"podvirt.dev/launcher/internal/shrink"
	"podvirt.dev/launcher/internal/virt/libvirt"
)

// When the launcher makes itself small: soon after a start, which is by far the most it ever does, and then from time
// to time.
const (
	settleAfter = 2 * time.Second
	settleEvery = 10 * time.Minute
)

// settle gives back what the process does not need, until ctx ends.
func settle(ctx context.Context, started <-chan struct{}) {
	timer := time.NewTimer(settleEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-started:
			timer.Reset(settleAfter)
		case <-timer.C:
			debug.FreeOSMemory()
			libvirt.Trim()
			shrink.Code()
			timer.Reset(settleEvery)
		}
	}
}
