package vm_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podvirt.dev/internal/require"
	"podvirt.dev/test/kernel/internal/pack"
	"podvirt.dev/test/kernel/vm"
)

// TestStartRunsAMachine boots a kernel that finds no root file system: it says so on a serial port and resets, which ends
// the machine. The second port shows that ports do not mix.
func TestStartRunsAMachine(t *testing.T) {
	cache := os.Getenv("PODVIRT_CACHE")
	if cache == "" {
		cache = "/var/cache/podvirt"
	}
	kernel, _, err := pack.Kernel(filepath.Join(cache, "images", "parts", "kernel-rootfs"))
	require.Feature(t, err == nil, "a kernel: go run ./images rootfs kernel")
	var second bytes.Buffer
	m := vm.StartT(t, vm.Kernel(kernel, ""), vm.Append("console=ttyS1", "panic=-1", "quiet"), vm.Serial(&second))
	if err := m.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := second.String(); !strings.Contains(got, "Unable to mount root fs") {
		t.Errorf("the second serial port says %q", got)
	}
}
