package program

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/disks"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/virt"
)

const (
	// lookAtSizes is the pause between two looks at the volumes: the guest is to know within two seconds (storage.md ST-024).
	lookAtSizes = time.Second
	// resizeRetry is the pause after QEMU has refused a size.
	resizeRetry = 10 * time.Second
)

// growth tells QEMU and the guest when the volume of a disk has grown. No event comes for that into a container: a
// device's is for the machine's udev, a file's for nobody.
type growth struct {
	disks  func() (pid int, list []domain.Disk)
	domain func() (virt.Domain, error)
	size   func(domain.Disk) (int64, error)
	tell   func(reason, message string)

	pid     int
	known   map[string]int64     // by source, what QEMU knows
	refused map[string]time.Time // by source
	adopted bool                 // the first QEMU began under an earlier launcher: what it knows is not known
}

// growth follows the disks of the instance. adopted means that QEMU runs already.
func (i *instance) growth(adopted bool) *growth {
	return &growth{
		adopted: adopted, size: disks.Size, domain: i.machine.Domain, tell: i.outside.news.Add,
		disks: func() (int, []domain.Disk) {
			i.mu.Lock()
			defer i.mu.Unlock()
			return i.mark.PID, i.disks
		},
	}
}

func (g *growth) run(ctx context.Context) {
	tick := time.NewTicker(lookAtSizes)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			g.look(ctx, now)
		}
	}
}

// look compares once.
func (g *growth) look(ctx context.Context, now time.Time) {
	d, err := g.domain()
	if err != nil {
		return // the VM is off
	}
	pid, list := g.disks()
	if pid != g.pid {
		g.adopted = g.adopted && g.pid == 0
		g.pid, g.known, g.refused = pid, map[string]int64{}, map[string]time.Time{}
	}
	for _, disk := range list {
		if disks.CanGrow(disk) && now.Sub(g.refused[disk.Source]) > resizeRetry {
			g.one(ctx, d, disk, now)
		}
	}
}

func (g *growth) one(ctx context.Context, d virt.Domain, disk domain.Disk, now time.Time) {
	logger := klog.FromContext(ctx).WithValues("disk", disk.Options.Name)
	size, err := g.size(disk)
	if err != nil {
		logger.V(2).Info("the size of a disk cannot be read", "err", err)
		return
	}
	was, known := g.known[disk.Source]
	if !known && !g.adopted || known && size <= was {
		g.known[disk.Source] = max(size, was)
		return
	}
	if err := d.ResizeDisk(disk.Source, size); err != nil {
		g.refused[disk.Source] = now
		logger.Info("a disk has grown, and QEMU does not take it", "size", size, "err", err)
		return
	}
	g.known[disk.Source] = size
	if known {
		logger.Info("a disk has grown", "from", was, "to", size)
		g.tell(vmstatus.Resized, fmt.Sprintf("disk %s has grown to %d MiB", disk.Options.Name, size>>20))
	}
}
