package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// inLoop runs do in the goroutine of Run, where the state of the VM does not change meanwhile.
func (m *Machine) inLoop(ctx context.Context, do func(ctx context.Context) error) error {
	r := request{do: do, done: make(chan error, 1)}
	select {
	case m.requests <- r:
		return <-r.done
	case <-ctx.Done():
		return ctx.Err()
	}
}

// withDomain runs do on the domain, in the goroutine of Run.
func (m *Machine) withDomain(ctx context.Context, do func(ctx context.Context, d virt.Domain) error) error {
	return m.inLoop(ctx, func(ctx context.Context) error {
		if m.domain == nil {
			return ErrNotRunning
		}
		return do(ctx, m.domain)
	})
}

// Pause stops the vCPUs.
func (m *Machine) Pause(ctx context.Context) error {
	return m.withDomain(ctx, func(_ context.Context, d virt.Domain) error { return d.Suspend() })
}

// Resume lets the vCPUs go on and sets the guest's clock where an agent listens.
func (m *Machine) Resume(ctx context.Context) error {
	return m.withDomain(ctx, func(ctx context.Context, d virt.Domain) error {
		if err := d.Resume(); err != nil {
			return err
		}
		if m.Status().AgentConnected {
			if err := d.SyncTime(); err != nil {
				klog.FromContext(ctx).V(2).Info("the guest's clock was not set", "why", err.Error())
			}
		}
		return nil
	})
}

// NMI injects a non-maskable interrupt.
func (m *Machine) NMI(ctx context.Context) error {
	return m.withDomain(ctx, func(_ context.Context, d virt.Domain) error { return d.InjectNMI() })
}

// Reset is the reset button.
func (m *Machine) Reset(ctx context.Context) error {
	return m.withDomain(ctx, func(_ context.Context, d virt.Domain) error {
		m.doing.reset = true
		return d.Reset()
	})
}

// Reboot asks the guest to reboot, by its agent where one is connected, else by ACPI, and waits until it does. A guest
// that boots does not listen yet, so it is asked again; one that does not obey goes on, and the error is
// virt.ErrTimeout.
func (m *Machine) Reboot(ctx context.Context) error {
	done := make(chan struct{})
	patience := m.opt.Policy().ShutdownTimeout
	end := time.NewTimer(patience)
	defer end.Stop()
	again := time.NewTicker(askAgain)
	defer again.Stop()
	var by virt.ShutdownMode
	for {
		err := m.withDomain(ctx, func(_ context.Context, d virt.Domain) (err error) {
			m.doing.reset, m.doing.rebooted = true, done
			by, err = m.askReboot(d)
			return err
		})
		if err != nil {
			return err
		}
		select {
		case <-done:
			if by == virt.ByACPI {
				return m.nudge(ctx)
			}
			return nil
		case <-again.C:
		case <-end.C:
			_ = m.inLoop(ctx, func(context.Context) error { m.doing.reset, m.doing.rebooted = false, nil; return nil })
			return fmt.Errorf("%w: the guest did not reboot within %s; reset does not ask it", virt.ErrTimeout, span(patience))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *Machine) askReboot(d virt.Domain) (virt.ShutdownMode, error) {
	if m.Status().AgentConnected {
		err := d.Reboot(virt.ByAgent)
		if err == nil || !errors.Is(err, virt.ErrAgentUnavailable) {
			return virt.ByAgent, err
		}
	}
	return virt.ByACPI, d.Reboot(virt.ByACPI)
}

// firmwareResets is how long firmware may take for the second reset that SeaBIOS makes of every first one.
const firmwareResets = time.Second

// nudge stops the vCPUs for a moment and lets them go on. A reboot by ACPI is a power-off which libvirt turns into a
// reset; under emulation QEMU 10.0 then often stands still after the firmware's own reset, with libvirt and QEMU both
// saying that it runs, until its clocks are started again.
func (m *Machine) nudge(ctx context.Context) error {
	select {
	case <-time.After(firmwareResets):
	case <-ctx.Done():
		return ctx.Err()
	}
	err := m.withDomain(ctx, func(_ context.Context, d virt.Domain) error { return errors.Join(d.Suspend(), d.Resume()) })
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	return err
}

// Poweroff pulls the power cord; the container ends with Destroyed.
func (m *Machine) Poweroff(ctx context.Context) error {
	return m.withDomain(ctx, func(_ context.Context, _ virt.Domain) error {
		begun := m.opt.Clock()
		if o := m.destroy(Outcome{Reason: api.ReasonDestroyed, Text: "hard power-off was asked for"}); o != nil {
			return errors.New(o.Text)
		}
		// Destroy returns when QEMU is gone; the event that ends the VM comes later.
		m.doing.destroy.Text += ", QEMU was gone " + span(m.opt.Clock().Sub(begun)) + " later"
		return nil
	})
}

// Start starts a VM that is held; one that runs is left alone.
func (m *Machine) Start(ctx context.Context) error {
	return m.inLoop(ctx, func(ctx context.Context) error {
		if m.domain != nil {
			return nil
		}
		err := m.start(ctx)
		if err != nil {
			m.setState(api.StateHeld)
		}
		return err
	})
}

// Shutdown asks the guest to shut down and waits until it is off. A timeout of zero is the policy's. A guest that does
// not obey goes on running, and the error is virt.ErrTimeout.
func (m *Machine) Shutdown(ctx context.Context, timeout time.Duration) error {
	return m.stopAndWait(ctx, stopByVerb, timeout)
}

// Restart shuts the guest down, forces it off where it does not obey, and starts a new QEMU from the annotations as
// they are now. A VM that is held starts.
func (m *Machine) Restart(ctx context.Context) error {
	if _, err := m.Domain(); err != nil {
		return m.Start(ctx)
	}
	return m.stopAndWait(ctx, stopToRestart, 0)
}

func (m *Machine) stopAndWait(ctx context.Context, kind stopKind, timeout time.Duration) error {
	done := make(chan error, 1)
	err := m.withDomain(ctx, func(ctx context.Context, _ virt.Domain) error {
		m.beginStop(ctx, kind)
		if timeout > 0 {
			m.stop.end = m.stop.begun.Add(timeout)
			m.stop.deadline = m.stop.begun.Add(timeout / time.Duration(len(m.stop.policy.Shutdown)))
			m.stop.policy.ShutdownTimeout = timeout
		}
		m.stop.done = append(m.stop.done, done)
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
