package disks

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/launcher/internal/domain"
)

// ErrLocked says that another QEMU writes the disk (VM-083).
var ErrLocked = errors.New("locked by another QEMU")

// LockPatience is how long a start waits for a disk that another QEMU holds: the old Pod of the same VM may still be on
// its way out.
const LockPatience = 60 * time.Second

const lockRetry = 500 * time.Millisecond

// Claims are the block devices that this VM alone may write. They are held by open descriptors: whoever dies lets go.
type Claims struct{ fds []int }

// Claim opens every writable block device exclusively. QEMU's own image locks lie on the inode of the device node,
// which each container has for itself; O_EXCL is a claim on the device (open(2), block/bdev.c). It waits up to patience
// for a device that is held; the error then wraps ErrLocked.
func Claim(ctx context.Context, list []domain.Disk, patience time.Duration) (*Claims, error) {
	c := &Claims{}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, d := range list {
		shared := d.Options.Shareable != nil && *d.Options.Shareable
		if !d.Block || shared || readOnly(d.Options) {
			continue
		}
		fd, err := openExclusive(ctx, d.Source)
		if err != nil {
			_ = c.Close()
			return nil, &Error{Path: pathOf(d.Options), Err: err}
		}
		c.fds = append(c.fds, fd)
	}
	return c, nil
}

func openExclusive(ctx context.Context, path string) (int, error) {
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.EBUSY) {
			return fd, err
		}
		select {
		case <-ctx.Done():
			return 0, ErrLocked
		case <-tick.C:
		}
	}
}

// Close lets the devices go. It may be called twice.
func (c *Claims) Close() error {
	var errs []error
	for _, fd := range c.fds {
		errs = append(errs, unix.Close(fd))
	}
	c.fds = nil
	return errors.Join(errs...)
}
