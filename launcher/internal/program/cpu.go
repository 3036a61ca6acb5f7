package program

import (
	"fmt"
	"slices"

	"libvirt.org/go/libvirtxml"

	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/virt"
)

// checkCPU is the step of a start that finds a forced feature left out, and writes down which CPU the guest has.
func (s *starter) checkCPU(p *plan) error {
	live, err := s.takeCPU(p.dom)
	if err != nil {
		return err
	}
	return checkForced(s.vm.CPU.Features, live)
}

// takeCPU asks which CPU the domain has and keeps it for the status.
func (s *starter) takeCPU(dom virt.Domain) (*libvirtxml.DomainCPU, error) {
	text, err := dom.XML()
	if err != nil {
		return nil, err
	}
	var live libvirtxml.Domain
	if err := live.Unmarshal(text); err != nil {
		return nil, fmt.Errorf("description of the domain: %w", err)
	}
	view := cpuOf(live.CPU)
	if view.Model == "" && live.OS != nil && live.OS.Type != nil {
		if view, err = s.nodeCPU(live.OS.Type.Arch, live.OS.Type.Machine, live.Type); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cpu = view
	return live.CPU, nil
}

// nodeCPU is what max and host-passthrough stand for, of which libvirt writes nothing into the domain: the whole CPU that
// the hypervisor offers here, which libvirt describes as its host model.
func (s *starter) nodeCPU(arch, machine, accelerator string) (vmstatus.CPU, error) {
	text, err := s.conn.DomainCapabilities(arch, machine, accelerator)
	if err != nil {
		return vmstatus.CPU{}, err
	}
	var offered libvirtxml.DomainCaps
	if err := offered.Unmarshal(text); err != nil {
		return vmstatus.CPU{}, fmt.Errorf("domain capabilities: %w", err)
	}
	return hostModel(offered), nil
}

// hostModel is the CPU that libvirt calls the host's model.
func hostModel(offered libvirtxml.DomainCaps) vmstatus.CPU {
	if offered.CPU == nil {
		return vmstatus.CPU{}
	}
	for _, mode := range offered.CPU.Modes {
		if mode.Name != "host-model" || len(mode.Models) == 0 {
			continue
		}
		view := vmstatus.CPU{Model: mode.Models[0].Name}
		for _, f := range mode.Features {
			add(&view, f.Name, f.Policy)
		}
		return sorted(view)
	}
	return vmstatus.CPU{}
}

// cpuOf is the CPU as it stands in a running domain; without a model where the domain only refers to the node's.
func cpuOf(cpu *libvirtxml.DomainCPU) vmstatus.CPU {
	if cpu == nil || cpu.Model == nil {
		return vmstatus.CPU{}
	}
	view := vmstatus.CPU{Model: cpu.Model.Value}
	for _, f := range cpu.Features {
		add(&view, f.Name, f.Policy)
	}
	return sorted(view)
}

// add takes up a feature with libvirt's policy.
func add(cpu *vmstatus.CPU, feature, policy string) {
	if policy == "disable" || policy == "forbid" {
		cpu.Disable = append(cpu.Disable, feature)
	} else {
		cpu.Require = append(cpu.Require, feature)
	}
}

func sorted(cpu vmstatus.CPU) vmstatus.CPU {
	slices.Sort(cpu.Require)
	slices.Sort(cpu.Disable)
	return cpu
}
