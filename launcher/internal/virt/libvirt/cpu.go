package libvirt

import "libvirt.org/go/libvirt"

// ExpandCPU returns a CPU description with every feature written out that a guest with it would have under an
// accelerator ("kvm", "qemu").
func (c *Conn) ExpandCPU(arch, machine, accelerator, cpu string) (string, error) {
	xml, err := c.c.BaselineHypervisorCPU("", arch, machine, accelerator, []string{cpu}, libvirt.CONNECT_BASELINE_CPU_EXPAND_FEATURES)
	return xml, wrap(err)
}
