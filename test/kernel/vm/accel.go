package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podvirt.dev/internal/atomicfile"
)

// probeTime is what a kernel that runs under KVM needs many times less of.
const probeTime = 15 * time.Second

// FindAccelerator returns "kvm" where a guest with this kernel really runs under it, else "tcg". That /dev/kvm can be opened
// proves nothing. The answer is kept in the directory until the machine is booted again.
func FindAccelerator(ctx context.Context, kernel, cache string) (string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil //nolint:nilerr // a machine without KVM is an answer, not an error
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	answer := filepath.Join(cache, "accelerator-"+strings.TrimSpace(string(boot)))
	if known, err := os.ReadFile(answer); err == nil {
		return strings.TrimSpace(string(known)), nil
	}
	accel := "tcg"
	if boots(ctx, kernel) {
		accel = "kvm"
	}
	return accel, atomicfile.Write(answer, []byte(accel+"\n"), 0o644)
}

// boots tells whether the kernel, without any root file system, panics and resets in time. QEMU ends at the reset.
func boots(ctx context.Context, kernel string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var console strings.Builder
	m, err := New(Kernel(kernel, ""), Accelerator("kvm"), Append("console=ttyS0", "panic=-1"), Serial(&console))
	if err != nil || m.Start(ctx) != nil || m.Wait() != nil {
		return false
	}
	return strings.Contains(console.String(), "Kernel panic")
}
