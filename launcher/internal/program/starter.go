package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"
	"libvirt.org/go/libvirtxml"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/disks"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/lifecycle"
	"podvirt.dev/launcher/internal/virt"
)

// starter makes the domain, for the first start and for every restart in place.
type starter struct {
	*instance
	claims *disks.Claims
	locked *os.File                 // the directory of the VM's state, held as long as this process lives
	steps  map[string]time.Duration // of the last start
	given  bool                     // the user says the UUID
	cpu    vmstatus.CPU             // of the guest that runs
}

var _ lifecycle.Starter = (*starter)(nil)

// plan is what the steps of one start hand on.
type plan struct {
	host domain.Host
	xml  string
	dom  virt.Domain
}

// Start reads the Pod, prepares everything and lets the guest run. After the first start the annotations are read anew,
// so that a restart in place takes up what was edited (VM-116).
func (s *starter) Start(ctx context.Context) (virt.Domain, error) {
	p := &plan{}
	took, err := lifecycle.RunSteps(ctx, []lifecycle.Step{
		{Name: "read", Do: func(ctx context.Context) error { return s.read(klog.FromContext(ctx)) }},
		{Name: "accelerator", Do: func(context.Context) error { return checkAccelerator(s.vm) }},
		{Name: "state", Do: s.holdState},
		{Name: "identity", Do: func(context.Context) error { return s.identity(p) }},
		{Name: "disks", Do: func(ctx context.Context) error { return s.prepareDisks(ctx, p) }},
		{Name: "network", Do: func(ctx context.Context) error { return s.connect(ctx, p) }},
		{Name: "taps", Do: func(ctx context.Context) error { return s.network.free(ctx, s.vm) }},
		{Name: "devices", Do: func(context.Context) error { return s.hostDevices(p) }},
		{Name: "seed", Do: func(ctx context.Context) error { return s.seed(klog.FromContext(ctx), p, s.network.list()) }},
		{Name: "claim", Do: s.claim(p), Undo: func(context.Context) error { s.release(); return nil }},
		{Name: "cells", Do: func(ctx context.Context) error { return s.cells(klog.FromContext(ctx), p) }},
		{Name: "CPUs", Do: func(context.Context) error { return s.dedicated(p) }},
		{Name: "build", Do: func(context.Context) error { return s.build(p) }},
		{Name: "define", Do: func(ctx context.Context) error { return s.define(ctx, p) }, Undo: p.undefine},
		{Name: "start", Do: func(ctx context.Context) error { return s.start(ctx, p) }, Undo: p.destroy},
		{Name: "cables", Do: func(context.Context) error { return s.network.hear(p.dom) }},
		{Name: "cpu", Do: func(context.Context) error { return s.checkCPU(p) }},
		{Name: "console", Do: func(ctx context.Context) error { return s.awaitConsole(ctx) }},
		{Name: "resume", Do: func(context.Context) error { return s.resume(p) }},
	})
	s.mu.Lock()
	s.steps = took
	s.mu.Unlock()
	s.begun()
	return p.dom, err
}

// again does, for a guest that runs already, those steps whose effect died with the earlier launcher.
func (s *starter) again(ctx context.Context) error {
	p := &plan{}
	_, err := lifecycle.RunSteps(ctx, []lifecycle.Step{
		{Name: "state", Do: s.holdState},
		{Name: "disks", Do: func(ctx context.Context) error { return s.prepareDisks(ctx, p) }},
		{Name: "network", Do: func(ctx context.Context) error { return s.connect(ctx, p) }},
		{Name: "claim", Do: s.claim(p)},
	})
	return err
}

func (s *starter) read(logger klog.Logger) error {
	vm, annotations, err := load()
	if err != nil {
		return err
	}
	warnings := vm.Warnings
	vm.Warnings = nil
	s.mu.Lock()
	s.vm, s.given = vm, annotations[api.KeyUUID] != ""
	s.mu.Unlock()
	s.warn(logger, warnings...)
	return nil
}

// warn logs what is legal and unwise, and adds it to the status of this start.
func (s *starter) warn(logger klog.Logger, warnings ...string) {
	s.mu.Lock()
	s.vm.Warnings = append(s.vm.Warnings, warnings...)
	s.mu.Unlock()
	for _, w := range warnings {
		logger.Info("warning", "text", w)
	}
}

// checkAccelerator says what the container lacks before QEMU says it in its own words.
func checkAccelerator(vm api.Machine) error {
	if vm.CPU.Accelerator == api.AcceleratorTCG {
		return nil
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &lackError{"no /dev/kvm in this container: request podvirt.dev/kvm: 1"}
	case err != nil:
		return &lackError{"/dev/kvm: " + err.Error()}
	default:
		return f.Close()
	}
}

// holdState keeps a second Pod of the VM off its state.
func (s *starter) holdState(ctx context.Context) error {
	if !s.vm.State || s.locked != nil {
		return nil
	}
	f, err := disks.LockState(ctx, api.PathState, disks.LockPatience)
	if errors.Is(err, disks.ErrNoLock) {
		s.warn(klog.FromContext(ctx), err.Error())
		return nil
	}
	s.locked = f
	return err
}

func (s *starter) identity(p *plan) error {
	st := stateOf(s.vm)
	firmware := st.firmware(s.vm)
	tpm, err := st.tpm(s.vm)
	if err != nil {
		return err
	}
	if firmware.Vars != "" {
		if err := disks.Variables(firmware.Vars, firmware.Template); err != nil {
			return err
		}
	}
	id, err := st.uuid(s.vm, s.given)
	if err != nil {
		return err
	}
	machine, err := st.machine(s.vm)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.vm.UUID = id.String()
	s.mu.Unlock()
	p.host = domain.Host{
		UUID: id, Machine: machine, RunDir: api.PathRun, Emulator: emulator, Firmware: firmware, TPMDir: tpm,
	}
	return nil
}

func (s *starter) prepareDisks(ctx context.Context, p *plan) error {
	maker := disks.Maker{Scratch: api.PathScratch, QemuImg: qemuImg}
	list, err := maker.Prepare(ctx, s.vm)
	if err != nil {
		return err
	}
	if p.host.Kernel, err = disks.Kernel(api.PathKernel, s.vm.Kernel); err != nil {
		return err
	}
	if p.host.Tables, err = disks.ACPI(api.PathACPI); err != nil {
		return err
	}
	p.host.Disks = list
	s.mu.Lock()
	s.disks = list
	s.mu.Unlock()
	s.warn(klog.FromContext(ctx), maker.OtherBlocks(ctx, list)...)
	return nil
}

func (s *starter) connect(ctx context.Context, p *plan) error {
	list, err := s.network.connect(ctx, s.vm)
	if err != nil {
		return err
	}
	p.host.NICs = list
	s.warn(klog.FromContext(ctx), untold(s.vm, s.network.list())...)
	return nil
}

func (s *starter) claim(p *plan) func(context.Context) error {
	return func(ctx context.Context) error {
		s.release()
		claims, err := disks.Claim(ctx, p.host.Disks, disks.LockPatience)
		s.claims = claims
		return err
	}
}

// release lets the block devices go.
func (s *starter) release() {
	if s.claims != nil {
		_ = s.claims.Close()
		s.claims = nil
	}
}

// build also gives every device its PCI address. A NIC of the Pod needs no annotation.
func (s *starter) build(p *plan) error {
	all := s.vm
	all.NICs = nil
	for _, nic := range p.host.NICs {
		all.NICs = append(all.NICs, nic.Options)
	}
	all.Devices = nil
	for _, d := range p.host.Devices {
		all.Devices = append(all.Devices, d.Device)
	}
	layout, err := stateOf(s.vm).layout(all)
	if err != nil {
		return err
	}
	p.host.Addresses = layout
	d, err := domain.Build(s.vm, p.host)
	if err != nil {
		return err
	}
	p.xml, err = d.Marshal()
	return err
}

// define also keeps the versioned machine type that libvirt chose for a word like q35 (VM-050).
func (s *starter) define(ctx context.Context, p *plan) error {
	if old, err := s.conn.Lookup(ctx, s.vm.ID); err == nil {
		if err := old.Undefine(); err != nil {
			return err
		}
	}
	dom, err := s.conn.Define(p.xml)
	if err != nil {
		return err
	}
	p.dom = dom
	text, err := dom.XML()
	if err != nil {
		return err
	}
	var defined libvirtxml.Domain
	if err := defined.Unmarshal(text); err != nil {
		return err
	}
	return s.keepMachine(klog.FromContext(ctx), defined.OS.Type.Machine)
}

func (p *plan) undefine(context.Context) error { return p.dom.Undefine() }

func (p *plan) destroy(context.Context) error { return p.dom.Destroy() }

// lockRetry is the pause between two tries for a disk that another QEMU holds.
const lockRetry = time.Second

// start starts QEMU. A disk that is held may be that of the old Pod of the same VM, on its way out (VM-083).
func (s *starter) start(ctx context.Context, p *plan) error {
	patience, cancel := context.WithTimeout(ctx, disks.LockPatience)
	defer cancel()
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err := p.dom.Start()
		if err == nil {
			return s.started()
		}
		if !heldImage().MatchString(err.Error()) {
			return err
		}
		select {
		case <-patience.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		case <-tick.C:
		}
	}
}

// started leaves the mark by which another launcher finds the guest.
func (s *starter) started() error {
	raw, err := os.ReadFile(filepath.Join(libvirtRoot, "run", "qemu", s.vm.ID+".pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return fmt.Errorf("process ID of QEMU: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory = readMemoryEvents()
	s.mark = mark{Container: container(), Domain: s.vm.ID, PID: pid, Started: time.Now(), Boots: s.mark.Boots + 1}
	return s.mark.write()
}

// consolePatience bounds the wait for QEMU's pipes, which it opens before it answers at all.
const consolePatience = 5 * time.Second

// awaitConsole waits for the serial ports, so that no line of the firmware is missed.
func (s *starter) awaitConsole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, consolePatience)
	defer cancel()
	for n, p := range s.ports {
		if err := p.Connected(ctx); err != nil {
			return fmt.Errorf("serial port %d: %w", n, err)
		}
	}
	return nil
}

func (s *starter) resume(p *plan) error {
	if s.vm.Lifecycle.StartPaused {
		return nil
	}
	return p.dom.Resume()
}
