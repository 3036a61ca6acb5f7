package disks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrStateInUse says that another Pod of the same VM holds the state (VM-053).
var ErrStateInUse = errors.New("another Pod of this VM uses it")

// ErrNoLock says that the file system of the state has no locks, so that nobody keeps a second Pod off it.
var ErrNoLock = errors.New("its file system has no locks")

// LockState keeps other Pods off the directory of the VM's state as long as the file that it returns is open. It waits up to
// patience for one that holds it, which may be on its way out.
func LockState(ctx context.Context, dir string, patience time.Duration) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, &Error{Path: dir, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(&Error{Path: dir, Err: fmt.Errorf("%w: %w", ErrNoLock, err)}, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(&Error{Path: dir, Err: ErrStateInUse}, f.Close())
		case <-tick.C:
		}
	}
}

// Variables compares the firmware's variables of a VM with those of a new one: firmware takes no others, and QEMU's words for that
// do not tell what to do. Variables that do not exist yet are made from the template.
func Variables(path, template string) error {
	have, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &Error{Path: path, Err: err}
	}
	want, err := os.Stat(template)
	if err != nil {
		return err
	}
	if have.Size() != want.Size() {
		return &Error{Path: path, Err: fmt.Errorf(
			"%d bytes, and variables of this firmware have %d: restore the file, or remove it to begin with new ones", have.Size(), want.Size())}
	}
	return nil
}
