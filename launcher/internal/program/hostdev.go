package program

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"podvirt.dev/launcher/internal/hostdev"
)

// hostDevices finds what the container was given of the host's devices, and whether its memory may be locked for them.
func (s *starter) hostDevices(p *plan) error {
	list, err := hostdev.Find(os.Environ(), s.vm.Devices, os.DirFS("/"))
	if errors.Is(err, hostdev.ErrNotHere) {
		return &lackError{err.Error()}
	}
	if err != nil {
		return err
	}
	p.host.Devices = list
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err
	}
	if err := hostdev.CheckLocked(limit.Cur, hostdev.Needed(s.vm, list)); err != nil {
		return &lackError{err.Error()}
	}
	return nil
}
