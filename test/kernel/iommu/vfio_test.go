package iommu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podvirt.dev/test/kernel/internal/inguest"
)

// eduID are vendor and device of QEMU's teaching device, which no driver of Linux claims (QEMU, docs/specs/edu.rst).
const eduID = "0x1234 0x11e8"

// TestDeviceGoesToVFIO binds a PCI device to vfio-pci: it has a group of its own, and the group becomes a device node.
func TestDeviceGoesToVFIO(t *testing.T) {
	inguest.Must(t)
	devices := edus(t)
	if len(devices) != 2 {
		t.Fatalf("devices = %v; want two", devices)
	}
	groups := map[string]bool{}
	for _, device := range devices {
		groups[group(t, device)] = true
	}
	if len(groups) != 2 {
		t.Errorf("groups = %v; want one for each device", groups)
	}
	device := devices[0]
	if out, err := exec.CommandContext(t.Context(), "modprobe", "vfio-pci").CombinedOutput(); err != nil {
		t.Fatalf("modprobe vfio-pci: %v: %s", err, out)
	}
	write(t, filepath.Join(device, "driver_override"), "vfio-pci")
	write(t, "/sys/bus/pci/drivers_probe", filepath.Base(device))
	driver, err := os.Readlink(filepath.Join(device, "driver"))
	if err != nil || filepath.Base(driver) != "vfio-pci" {
		t.Fatalf("driver = %q, %v; want vfio-pci", driver, err)
	}
	f, err := os.OpenFile("/dev/vfio/"+group(t, device), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/dev/vfio/" + group(t, devices[1])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the group of a device that was not bound: %v; want none", err)
	}
}

func edus(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, device := range all {
		if read(t, filepath.Join(device, "vendor"))+" "+read(t, filepath.Join(device, "device")) == eduID {
			found = append(found, device)
		}
	}
	return found
}

func group(t *testing.T, device string) string {
	t.Helper()
	link, err := os.Readlink(filepath.Join(device, "iommu_group"))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(link)
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func write(t *testing.T, file, value string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(value), 0o200); err != nil {
		t.Fatal(err)
	}
}
