package program

import (
	"context"
	"errors"
	"fmt"
	"os"

	"podvirt.dev/api"
	"podvirt.dev/internal/nl"
	"podvirt.dev/launcher/internal/nics"
)

// tunDevice is what opens a tap; the device plugin puts it into the container.
const tunDevice = "/dev/net/tun"

// checkTun says what the container lacks before the server of a NIC or QEMU does.
func checkTun(found []nics.NIC, device string) error {
	if len(found) == 0 {
		return nil
	}
	_, err := os.Stat(device)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &lackError{"no " + device + " in this container: request " + string(api.ResourceTun) + ": 1"}
	case err != nil:
		return &lackError{err.Error()}
	}
	return nil
}

// checkMTU refuses frames that the Pod's interface does not carry (NW-039).
func checkMTU(vm api.Machine, found []nics.NIC) error {
	var errs api.Errors
	for _, nic := range found {
		if mtu := options(vm, nic.Name).MTU; mtu > nic.MTU {
			key := api.Prefix + "nic." + nic.Name
			errs = append(errs, api.Error{Key: key, Text: fmt.Sprintf("%s: mtu=%d: above the %d of %s", key, mtu, nic.MTU, nic.Interface)})
		}
	}
	return errs.Err()
}

// untold warns of addresses that the guest owns and nobody tells it: the Pod itself does not answer for them any more (NW-051).
func untold(vm api.Machine, found []nics.NIC) []string {
	var warnings []string
	for _, nic := range found {
		owned := nic.Binding == string(api.BindingWire) || nic.Binding == string(api.BindingBridge)
		if owned && nic.Guest4.IsValid() && options(vm, nic.Name).DHCP == "off" {
			warnings = append(warnings, fmt.Sprintf("%snic.%s: dhcp=off: the guest is not told that it has %s, the address of %s",
				api.Prefix, nic.Name, nic.Guest4, nic.Interface))
		}
	}
	return warnings
}

// free is the last look at the NICs before QEMU takes them.
func (n *network) free(ctx context.Context, vm api.Machine) error {
	found := n.list()
	if err := checkMTU(vm, found); err != nil {
		return err
	}
	handle, err := nl.Open()
	if err != nil {
		return fmt.Errorf("network of the Pod: %w", err)
	}
	defer handle.Close()
	ctx, cancel := context.WithTimeout(ctx, nics.HeldPatience)
	defer cancel()
	return nics.AwaitFree(ctx, handle, found, os.DirFS("/proc"))
}
