package domain

import (
	"fmt"

	"podvirt.dev/api"
)

// checkTopology refuses levels that QEMU would not start with, or would not live long with.
func checkTopology(vm api.Machine) error {
	t := vm.CPU.Topology
	switch {
	case t == nil:
		return nil
	case t.Clusters > 1:
		return fmt.Errorf("%w: podvirt.dev/cpu-topology: clusters=%d: machine types of amd64 have none", ErrUnsupported, t.Clusters)
	case t.Dies > 1 && vm.CPU.Accelerator == api.AcceleratorTCG:
		// QEMU 10.0 aborts where a guest asks CPUID leaf 0x1f for a level that is not there, which firmware does
		// (target/i386/cpu.c encode_topo_cpuid1f). KVM answers from a table of its own.
		return fmt.Errorf("%w: podvirt.dev/cpu-topology: dies=%d: not under emulation", ErrUnsupported, t.Dies)
	default:
		return nil
	}
}
