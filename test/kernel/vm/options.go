// Package vm runs QEMU machines for tests: a kernel, a first root file system, serial ports that are streamed to writers,
// and the hardware that a test asks for, none of which needs to be in the machine that the test runs on.
//
// Machines are described by options, built by New, which starts nothing, and run by Start and Wait. The environment
// variable PODVIRT_QEMU names another qemu-system-x86_64.
package vm

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Mistakes in the description of a machine.
var (
	ErrNoKernel = errors.New("no kernel was given")
	ErrNUMA     = errors.New("memory and processors cannot be divided evenly among the NUMA nodes")
	ErrIOMMU    = errors.New("no such IOMMU")
	ErrPorts    = errors.New("a PC has at most four serial ports")
)

// Option describes one aspect of a machine. Options compose: identifiers of QEMU objects come from the machine.
type Option func(*Machine) error

// Kernel boots a kernel image with a first root file system, which may be empty.
func Kernel(image, initramfs string) Option {
	return func(m *Machine) error {
		m.kernel, m.initramfs = image, initramfs
		return nil
	}
}

// Append adds words to the kernel command line.
func Append(words ...string) Option {
	return func(m *Machine) error {
		m.cmdline = append(m.cmdline, words...)
		return nil
	}
}

// Memory sets the size of memory in MiB; the default is 512.
func Memory(mib int) Option {
	return func(m *Machine) error {
		m.memory = mib
		return nil
	}
}

// CPUs sets the number of processors; the default is 1.
func CPUs(n int) Option {
	return func(m *Machine) error {
		m.cpus = n
		return nil
	}
}

// CPU sets the model of the processors, in the words of qemu's option -cpu; the default is max.
func CPU(model string) Option {
	return func(m *Machine) error {
		if model != "" {
			m.cpu = model
		}
		return nil
	}
}

// NUMA divides memory and processors evenly among nodes.
func NUMA(nodes int) Option {
	return func(m *Machine) error {
		m.nodes = nodes
		return nil
	}
}

// Hugepages has the kernel reserve pages of 2 MiB at boot. With NUMA they are spread over the nodes.
func Hugepages(n int) Option {
	return Append("hugepagesz=2M", "hugepages="+strconv.Itoa(n))
}

// IOMMU adds an emulated one: "intel", "intel+intremap", which also remaps interrupts, "amd" or "virtio".
// Guests can then hand PCI devices to user space by VFIO.
func IOMMU(kind string) Option {
	return func(m *Machine) error {
		kinds := map[string]struct{ device, cmdline string }{
			"intel": {"intel-iommu,intremap=off,caching-mode=on", "intel_iommu=on"},
			// The kernel checks whether the timer's interrupt comes through, and panics where an emulated one is late.
			"intel+intremap": {"intel-iommu,intremap=on,caching-mode=on", "intel_iommu=on no_timer_check"},
			"amd":            {"amd-iommu", "amd_iommu=on"},
			"virtio":         {"virtio-iommu-pci", ""},
		}
		chosen, ok := kinds[kind]
		if !ok {
			return fmt.Errorf("%w: %q", ErrIOMMU, kind)
		}
		m.early = append(m.early, "-device", chosen.device)
		m.cmdline = append(m.cmdline, strings.Fields(chosen.cmdline)...)
		return nil
	}
}

// Device adds a device, in the words of qemu's option -device. An "id=" is added.
func Device(device string) Option {
	return func(m *Machine) error {
		m.devices = append(m.devices, "-device", device+",id="+m.id("dev"))
		return nil
	}
}

// Backend adds what stands behind a device, in the words of one of qemu's options -netdev and -blockdev.
func Backend(option, value string) Option {
	return func(m *Machine) error {
		m.early = append(m.early, "-"+option, value)
		return nil
	}
}

// Share shows a directory of this machine to the guest, read only, as a 9p file system that is mounted by the tag.
func Share(tag, dir string) Option {
	return func(m *Machine) error {
		id := m.id("share")
		m.devices = append(m.devices,
			"-fsdev", "local,security_model=none,readonly=on,id="+id+",path="+dir,
			"-device", "virtio-9p-pci,fsdev="+id+",mount_tag="+tag)
		return nil
	}
}

// Serial adds the next serial port, /dev/ttyS0 the first, and has what the guest writes there copied to w.
// The copying ends before Wait returns.
func Serial(w io.Writer) Option {
	return func(m *Machine) error {
		if len(m.serial) == maxSerial {
			return ErrPorts
		}
		m.serial = append(m.serial, w)
		return nil
	}
}

const maxSerial = 4

// Accelerator is "kvm" or "tcg", the default.
func Accelerator(name string) Option {
	return func(m *Machine) error {
		m.accel = name
		return nil
	}
}

// QEMU sets the emulator; the default is qemu-system-x86_64 of the search path.
func QEMU(path string) Option {
	return func(m *Machine) error {
		if path != "" {
			m.qemu = path
		}
		return nil
	}
}

// Parse reads options from words: memory=MIB cpus=N cpu=MODEL numa=NODES hugepages=N iommu=KIND device=DEVICE netdev=BACKEND
// blockdev=BACKEND append=WORD.
func Parse(words []string) ([]Option, error) {
	var options []Option
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		option, err := parseWord(key, value)
		if err != nil {
			return nil, fmt.Errorf("machine option %q: %w", word, err)
		}
		options = append(options, option)
	}
	return options, nil
}

func parseWord(key, value string) (Option, error) {
	switch key {
	case "iommu":
		return IOMMU(value), nil
	case "cpu":
		return CPU(value), nil
	case "device":
		return Device(value), nil
	case "netdev", "blockdev":
		return Backend(key, value), nil
	case "append":
		return Append(value), nil
	}
	numbers := map[string]func(int) Option{"memory": Memory, "cpus": CPUs, "numa": NUMA, "hugepages": Hugepages}
	option, ok := numbers[key]
	if !ok {
		return nil, errors.New("unknown")
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		return nil, fmt.Errorf("want a positive number, not %q", value)
	}
	return option(n), nil
}
