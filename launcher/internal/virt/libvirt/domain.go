package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"podvirt.dev/launcher/internal/virt"
)

// Domain is one VM of the driver.
type Domain struct {
	d    *libvirt.Domain
	conn *libvirt.Connect
}

// Start starts QEMU with the vCPUs stopped.
func (d *Domain) Start() error { return wrap(d.d.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)) }

// State of the domain.
func (d *Domain) State() (virt.State, error) {
	state, _, err := d.d.GetState()
	if err != nil {
		return "", wrap(err)
	}
	return stateOf(state), nil
}

func stateOf(s libvirt.DomainState) virt.State {
	switch s {
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_BLOCKED:
		return virt.StateRunning
	case libvirt.DOMAIN_PAUSED, libvirt.DOMAIN_PMSUSPENDED:
		return virt.StatePaused
	case libvirt.DOMAIN_SHUTDOWN:
		return virt.StateStopping
	case libvirt.DOMAIN_CRASHED:
		return virt.StateCrashed
	default:
		return virt.StateOff
	}
}

// Suspend stops the vCPUs.
func (d *Domain) Suspend() error {
	if s, err := d.State(); err == nil && s == virt.StatePaused {
		return nil
	}
	return wrap(d.d.Suspend())
}

// Resume lets the vCPUs go on.
func (d *Domain) Resume() error {
	if s, err := d.State(); err == nil && s == virt.StateRunning {
		return nil
	}
	return wrap(d.d.Resume())
}

// Shutdown asks the guest to power off.
func (d *Domain) Shutdown(mode virt.ShutdownMode) error {
	flag := libvirt.DOMAIN_SHUTDOWN_ACPI_POWER_BTN
	if mode == virt.ByAgent {
		flag = libvirt.DOMAIN_SHUTDOWN_GUEST_AGENT
	}
	return wrap(d.d.ShutdownFlags(flag))
}

// Reboot asks the guest to reboot.
func (d *Domain) Reboot(mode virt.ShutdownMode) error {
	flag := libvirt.DOMAIN_REBOOT_ACPI_POWER_BTN
	if mode == virt.ByAgent {
		flag = libvirt.DOMAIN_REBOOT_GUEST_AGENT
	}
	return wrap(d.d.Reboot(flag))
}

// Reset is the reset button.
func (d *Domain) Reset() error { return wrap(d.d.Reset(0)) }

// Destroy is the power cord.
func (d *Domain) Destroy() error {
	err := wrap(d.d.Destroy())
	if err != nil {
		if s, stateErr := d.State(); stateErr == nil && s == virt.StateOff {
			return nil
		}
	}
	return err
}

// InjectNMI presses the NMI button.
func (d *Domain) InjectNMI() error { return wrap(d.d.InjectNMI(0)) }

// keyHold is how long keys are held down, in milliseconds.
const keyHold = 100

// PressKeys presses keys together.
func (d *Domain) PressKeys(codes []uint) error {
	return wrap(d.d.SendKey(uint(libvirt.KEYCODE_SET_LINUX), keyHold, codes, 0))
}

// SyncTime lets the guest agent read the hardware clock, or sets it where there is none.
func (d *Domain) SyncTime() error {
	now := time.Now()
	return wrap(d.d.SetTime(now.Unix(), uint(now.Nanosecond()), 0))
}

// AgentCommand talks to the guest agent. libvirt counts in whole seconds, so a deadline is rounded up.
func (d *Domain) AgentCommand(ctx context.Context, command string) (string, error) {
	timeout := libvirt.DOMAIN_QEMU_AGENT_COMMAND_DEFAULT
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			return "", fmt.Errorf("guest agent: %w", virt.ErrTimeout)
		}
		timeout = libvirt.DomainQemuAgentCommandTimeout((left + time.Second - 1) / time.Second)
	}
	answer, err := d.d.QemuAgentCommand(command, timeout, 0)
	return answer, wrap(err)
}

// ResizeDisk is QEMU's block_resize. A file or device that has the size already is only looked at anew.
func (d *Domain) ResizeDisk(source string, size int64) error {
	return wrap(d.d.BlockResize(source, uint64(size), libvirt.DOMAIN_BLOCK_RESIZE_BYTES))
}

// UpdateDevice changes the running domain only: its description is made anew at each start.
func (d *Domain) UpdateDevice(xml string) error {
	return wrap(d.d.UpdateDeviceFlags(xml, libvirt.DOMAIN_DEVICE_MODIFY_LIVE))
}

// XML of the running domain.
func (d *Domain) XML() (string, error) {
	xml, err := d.d.GetXMLDesc(0)
	return xml, wrap(err)
}

// Undefine forgets the domain and keeps the files of its firmware and TPM.
func (d *Domain) Undefine() error {
	flags := libvirt.DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.DOMAIN_UNDEFINE_KEEP_TPM
	return wrap(d.d.UndefineFlags(flags))
}

// wrap turns libvirt's error numbers into the errors of package virt; the text stays.
func wrap(err error) error {
	var lv libvirt.Error
	if err == nil || !errors.As(err, &lv) {
		return err
	}
	var sentinel error
	switch lv.Code {
	case libvirt.ERR_NO_DOMAIN:
		sentinel = virt.ErrDomainNotFound
	case libvirt.ERR_OPERATION_INVALID:
		sentinel = virt.ErrWrongState
	case libvirt.ERR_AGENT_UNRESPONSIVE, libvirt.ERR_AGENT_UNSYNCED:
		sentinel = virt.ErrAgentUnavailable
	case libvirt.ERR_OPERATION_TIMEOUT, libvirt.ERR_AGENT_COMMAND_TIMEOUT:
		sentinel = virt.ErrTimeout
	default:
		return errors.New(lv.Message)
	}
	return fmt.Errorf("%w: %s", sentinel, lv.Message)
}
