package bind

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/internal/nl"
)

// rateSteps limit a NIC (NW-040): towards the guest where its tap sends, from it where the Pod interface does, so that a
// sender waits and loses nothing that it need not. On the pod network what else the Pod sends counts as the guest's.
func rateSteps(made journal.NIC) []Step {
	if made.RateIn == 0 && made.RateOut == 0 {
		return nil
	}
	return []Step{{"rate", func(h *nl.Handle) error {
		return errors.Join(shape(h, "rate-in", made.Tap, made.RateIn), shape(h, "rate-out", made.RateInterface, made.RateOut))
	}}}
}

func shape(h *nl.Handle, option, name string, bits uint64) error {
	if bits == 0 {
		return nil
	}
	link, err := h.Link(name)
	if err == nil {
		err = h.Shape(link.Index, bits)
	}
	if errors.Is(err, unix.ENOENT) {
		return fault.New(fault.Kernel, "%s: the kernel has no token bucket filter; modprobe sch_tbf", option)
	}
	return fault.Wrap(fault.Kernel, option, err)
}

// unshape takes the limit off a Pod interface; that of a tap goes with it.
func unshape(h *nl.Handle, made journal.NIC) error {
	if made.RateOut == 0 {
		return nil
	}
	link, err := h.Link(made.RateInterface)
	if nl.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = h.Unshape(link.Index)
	}
	return err
}

func rateDifferences(h *nl.Handle, made journal.NIC) ([]string, error) {
	var out []string
	for _, want := range []struct {
		option, name string
		bits         uint64
	}{{"rate-in", made.Tap, made.RateIn}, {"rate-out", made.RateInterface, made.RateOut}} {
		if want.bits == 0 {
			continue
		}
		link, err := h.Link(want.name)
		if nl.IsNotFound(err) {
			continue // said elsewhere
		}
		if err != nil {
			return nil, fault.Wrap(fault.Kernel, "reading "+want.name, err)
		}
		bits, err := h.Shaped(link.Index)
		if err != nil {
			return nil, fault.Wrap(fault.Kernel, "reading "+want.name, err)
		}
		if bits/8 != want.bits/8 { // the kernel counts bytes
			out = append(out, fmt.Sprintf("%s: %s is %d bit/s, want %d", want.name, want.option, bits, want.bits))
		}
	}
	return out, nil
}
