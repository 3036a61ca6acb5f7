package facts

import (
	"bytes"
	"context"
	_ "embed" // the probe guest
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

//go:embed guest/probe.bin
var probeGuest []byte

const (
	firmwareSize = 64 << 10
	resetVector  = firmwareSize - 16 // where every x86 CPU begins, 16 bytes below 4 GiB
	// allStages is what the probe guest says when it got to its end.
	allStages = "RPLSCIT"
	// probeExit is QEMU's exit status when the guest wrote 0x10 to isa-debug-exit.
	probeExit = 0x10<<1 | 1
	// Patience is how long the probe guest may take under KVM (scheduling.md SC-004); it needs 100 ms where all is well.
	Patience = 10 * time.Second
	// patienceTCG is longer: a node without KVM that is busy must not be taken for one that runs nothing.
	patienceTCG = 30 * time.Second
)

// Prober finds out whether an accelerator really runs a guest.
type Prober struct {
	QEMU     string        // path of the emulator
	Dir      string        // where a file of 64 KiB may be written
	Patience time.Duration // for one guest; 0: [Patience], and more under emulation
	Root     sysfs.FS      // the root directory with sys and proc
	KVM      string        // the device; "": /dev/kvm
}

// Errors of a probe, each with its own sentence for people (scheduling.md SC-004).
var (
	errSilent  = errors.New("no sign of life")
	errAborted = errors.New("QEMU aborted")
)

// Accelerator returns the best accelerator that runs the probe guest, of those asked for in their order, and what
// keeps the others from it. [api.AcceleratorNone]: not one does.
func (p Prober) Accelerator(ctx context.Context, wanted []api.Accelerator) (api.Accelerator, []string) {
	var problems []string
	for _, accelerator := range wanted {
		var err error
		if accelerator == api.AcceleratorKVM {
			err = p.kvm(ctx)
		} else {
			err = p.run(ctx, "tcg", "qemu64")
		}
		if err == nil {
			return accelerator, problems
		}
		problems = append(problems, fmt.Sprintf("%s: %v", accelerator, err))
	}
	return api.AcceleratorNone, problems
}

// kvm runs the guest under KVM, first with a CPU that every host can give, then with the host's own, which is what
// named models and host-passthrough are made of.
func (p Prober) kvm(ctx context.Context) error {
	if err := p.openKVM(); err != nil {
		return err
	}
	if err := p.run(ctx, "kvm", "qemu64"); err != nil {
		return err
	}
	if err := p.run(ctx, "kvm", "host"); err != nil {
		return fmt.Errorf("-cpu host: %w", err)
	}
	return nil
}

// openKVM says why the device cannot be opened, if so.
func (p Prober) openKVM() error {
	device := p.KVM
	if device == "" {
		device = "/dev/kvm"
	}
	file, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case err == nil:
		return file.Close()
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s cannot be opened by uid %d: permission denied", device, os.Geteuid())
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("%s cannot be opened: %w", device, err)
	}
	processor, infoErr := sysfs.FirstProcessor(p.Root)
	if infoErr == nil && !processor.Has("vmx") && !processor.Has("svm") {
		return fmt.Errorf("%s is missing: the CPU has no vmx or svm; it is switched off in the firmware, or this is a VM without nesting",
			device)
	}
	if _, err := fs.Stat(p.Root, "sys/module/kvm"); err == nil {
		return fmt.Errorf("%s is missing: module kvm is loaded, kvm_intel or kvm_amd is not", device)
	}
	return fmt.Errorf("%s is missing: load the module kvm_intel or kvm_amd", device)
}

// run starts the probe guest and waits for its last word.
func (p Prober) run(ctx context.Context, accelerator, cpu string) error {
	firmware, err := p.writeFirmware()
	if err != nil {
		return err
	}
	defer os.Remove(firmware)
	patience := p.patience(accelerator)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.QEMU, "-accel", accelerator, "-cpu", cpu, "-machine", "pc", "-m", "1", "-nodefaults",
		"-no-user-config", "-display", "none", "-bios", firmware, "-debugcon", "stdio",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=1")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	cmd.WaitDelay = time.Second
	var said, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limited{&said, 64}, &limited{&complaint, 64 << 10}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == probeExit && said.String() == allStages:
		return nil
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w after %g s", errSilent, patience.Seconds())
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &exit):
		return fmt.Errorf("%w: %s", errAborted, lastLine(complaint.String(), exit.String()))
	case err != nil:
		return err
	default:
		return fmt.Errorf("%w: it ended before the guest", errAborted)
	}
}

func (p Prober) patience(accelerator string) time.Duration {
	switch {
	case p.Patience != 0:
		return p.Patience
	case accelerator == string(api.AcceleratorTCG):
		return patienceTCG
	}
	return Patience
}

// writeFirmware writes the probe guest as a firmware image with a reset vector that jumps to its beginning.
func (p Prober) writeFirmware() (string, error) {
	image := bytes.Repeat([]byte{0xf4}, firmwareSize) // HLT
	copy(image, probeGuest)
	copy(image[resetVector:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0}) // JMP F000:0000
	file, err := os.CreateTemp(p.Dir, "probe-*.bin")
	if err != nil {
		return "", fmt.Errorf("probe guest: %w", err)
	}
	_, err = file.Write(image)
	if err := errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("probe guest: %w", err), os.Remove(file.Name()))
	}
	return filepath.Clean(file.Name()), nil
}

// lastLine returns the last line a program complained with that is no warning.
func lastLine(text, otherwise string) string {
	last := otherwise
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.Contains(line, "warning:") {
			last = line
		}
	}
	return last
}

// limited keeps the first bytes that are written and takes the rest.
type limited struct {
	w    io.Writer
	left int
}

// Write never fails and never writes more than is left.
func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	_, err := l.w.Write(p[:n])
	return len(p), err
}
