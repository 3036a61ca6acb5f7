package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"podvirt.dev/internal/sysfs"
)

// writeTimeout bounds one write: taking a function from a driver waits until nobody uses it, which may be for ever.
const writeTimeout = 10 * time.Second

// ErrBusy says that the kernel did not answer in time, usually because somebody uses the device.
var ErrBusy = errors.New("still in use")

// Host changes the tree of files of one node.
type Host struct {
	root    string
	fsys    sysfs.FS
	journal *Journal
}

// New returns the host whose sys is below root.
func New(root string, journal *Journal) (*Host, error) {
	fsys, err := sysfs.Host(root)
	if err != nil {
		return nil, err
	}
	return &Host{root: root, fsys: fsys, journal: journal}, nil
}

// FS is what the host's kernel shows.
func (h *Host) FS() sysfs.FS { return h.fsys }

// Journal is what we changed.
func (h *Host) Journal() *Journal { return h.journal }

// write writes a value to a file of sysfs. A write that blocks goes on in the kernel after the time is over.
func (h *Host) write(ctx context.Context, name, value string) error {
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(filepath.Join(h.root, name), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(value)
			err = errors.Join(err, f.Close())
		}
		done <- err
	}()
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("%s: %w", name, ErrBusy)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func function(address, file string) string { return path.Join("sys/bus/pci/devices", address, file) }

func (h *Host) driver(address string) (string, error) {
	target, err := h.fsys.ReadLink(function(address, "driver"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return path.Base(target), err
}

// Bind gives a function to a driver, by driver_override (Documentation/ABI/testing/sysfs-bus-pci). One that has it
// already is left alone and is not ours to give back.
func (h *Host) Bind(ctx context.Context, address, driver string) error {
	before, err := h.driver(address)
	if err != nil || before == driver {
		return err
	}
	if !sysfs.HasDriver(h.fsys, driver) {
		return fmt.Errorf("driver %s is not loaded", driver)
	}
	err = h.journal.change(func(s *state) {
		if _, known := s.Bound[address]; !known {
			s.Bound[address] = before
		}
	})
	if err != nil {
		return err
	}
	if err := h.rebind(ctx, address, before, driver); err != nil {
		return err
	}
	now, err := h.driver(address)
	if err == nil && now != driver {
		err = fmt.Errorf("driver %s did not take it", driver)
	}
	return err
}

// rebind takes a function from one driver and lets the kernel look for the next; "" as next: the usual one.
func (h *Host) rebind(ctx context.Context, address, before, next string) error {
	if err := h.write(ctx, function(address, "driver_override"), next+"\n"); err != nil {
		return err
	}
	if before != "" {
		if err := h.write(ctx, function(address, "driver/unbind"), address); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return h.write(ctx, "sys/bus/pci/drivers_probe", address)
}

// Release gives a function back to the driver it had. One that is gone is forgotten.
func (h *Host) Release(ctx context.Context, address string) error {
	before, ours := h.journal.Bound()[address]
	if !ours {
		return nil
	}
	if _, err := fs.Stat(h.fsys, function(address, "vendor")); err == nil {
		if err := h.giveBack(ctx, address, before); err != nil {
			return err
		}
	}
	return h.journal.change(func(s *state) { delete(s.Bound, address) })
}

func (h *Host) giveBack(ctx context.Context, address, before string) error {
	now, err := h.driver(address)
	if err != nil {
		return err
	}
	if before != "" && before != now {
		return h.rebind(ctx, address, now, "")
	}
	if err := h.write(ctx, function(address, "driver_override"), "\n"); err != nil || now == before {
		return err
	}
	return h.write(ctx, function(address, "driver/unbind"), address)
}

// SetVFs makes a physical function have that many virtual ones. The kernel takes no step from one number to another but
// by none at all.
func (h *Host) SetVFs(ctx context.Context, pf sysfs.PCIDevice, count int) error {
	err := h.journal.change(func(s *state) {
		if _, known := s.VFs[pf.Address]; !known {
			s.VFs[pf.Address] = len(pf.VFs)
		}
	})
	if err != nil {
		return err
	}
	return h.setVFs(ctx, pf, count)
}

func (h *Host) setVFs(ctx context.Context, pf sysfs.PCIDevice, count int) error {
	file := function(pf.Address, "sriov_numvfs")
	if len(pf.VFs) > 0 && count > 0 {
		if err := h.write(ctx, file, "0"); err != nil {
			return err
		}
	}
	return h.write(ctx, file, strconv.Itoa(count))
}

// ResetVFs gives a physical function the number of virtual ones back that it had.
func (h *Host) ResetVFs(ctx context.Context, pf sysfs.PCIDevice) error {
	before, ours := h.journal.VFs()[pf.Address]
	if !ours {
		return nil
	}
	if before != len(pf.VFs) {
		if err := h.setVFs(ctx, pf, before); err != nil {
			return err
		}
	}
	return h.journal.change(func(s *state) { delete(s.VFs, pf.Address) })
}

// CreateMdev makes a mediated device; one that is there is no error.
func (h *Host) CreateMdev(ctx context.Context, parent sysfs.MdevParent, kind, uuid string) error {
	if err := h.journal.change(func(s *state) { s.Mdevs[uuid] = parent.Name }); err != nil {
		return err
	}
	err := h.write(ctx, path.Join(parent.Path, "mdev_supported_types", kind, "create"), uuid)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return errors.Join(err, h.journal.change(func(s *state) { delete(s.Mdevs, uuid) }))
}

// RemoveMdev removes a mediated device of ours; one that is gone is no error.
func (h *Host) RemoveMdev(ctx context.Context, uuid string) error {
	err := h.write(ctx, path.Join("sys/bus/mdev/devices", uuid, "remove"), "1")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return h.journal.change(func(s *state) { delete(s.Mdevs, uuid) })
}

// Forget drops what the journal says of mediated devices that are gone: after a reboot they all are.
func (h *Host) Forget(present func(uuid string) bool) error {
	var gone []string
	for uuid := range h.journal.Mdevs() {
		if !present(uuid) {
			gone = append(gone, uuid)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return h.journal.change(func(s *state) {
		for _, uuid := range gone {
			delete(s.Mdevs, uuid)
		}
	})
}
