package facts

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// nicDevices are the NIC models of network.md 2.2 under the names that QEMU has for them. All sit on PCI, so that a QEMU
// that has one can give it to every machine type with that bus.
func nicDevices() map[string]string {
	return map[string]string{
		"virtio-net-pci": "virtio", "e1000e": "e1000e", "e1000": "e1000", "igb": "igb", "rtl8139": "rtl8139",
		"vmxnet3": "vmxnet3", "ne2k_pci": "ne2k_pci", "pcnet": "pcnet",
	}
}

// nics asks QEMU for the NIC models that it was built with. libvirt's capabilities do not tell.
func (p Prober) nics(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, p.QEMU, "-machine", "none", "-device", "help")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("-device help: %w", err)
	}
	return nicModels(string(text)), nil
}

// nicModels reads lines like: name "e1000", bus PCI, alias "e1000-82540em".
func nicModels(help string) []string {
	known := nicDevices()
	var models []string
	for line := range strings.Lines(help) {
		rest, ok := strings.CutPrefix(line, `name "`)
		if !ok {
			continue
		}
		name, properties, _ := strings.Cut(rest, `"`)
		if model := known[name]; model != "" && strings.Contains(properties, "bus PCI") {
			models = append(models, model)
		}
	}
	slices.Sort(models)
	return slices.Compact(models)
}
