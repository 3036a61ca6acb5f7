package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/internal/sysfs"
	"podvirt.dev/internal/sysfs/sysfstest"
)

const (
	nic  = "0000:00:04.0"
	uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
)

// newHost is a host on disk whose kernel does nothing: what is written can be read.
func newHost(t *testing.T, driver string) (*Host, string) {
	t.Helper()
	dir := t.TempDir()
	tree := sysfstest.Tree{}.PCI(sysfstest.PCI{Address: nic, ID: "8086:10c9", Driver: driver, TotalVFs: 7}).
		Dir("sys/bus/pci/drivers/vfio-pci").File("sys/bus/pci/drivers_probe", "").
		MdevParent("mtty", sysfstest.MdevType{ID: "mtty-1", Name: "x", Available: 2})
	device := "sys/devices/pci0000:00/" + nic
	tree.File(device+"/driver_override", "(null)")
	tree.File("sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-1/create", "")
	if driver != "" {
		tree.File("sys/bus/pci/drivers/"+driver+"/unbind", "")
	}
	if _, err := tree.OnDisk(dir); err != nil {
		t.Fatal(err)
	}
	j, err := OpenJournal(filepath.Join(dir, "devices.json"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(dir, j)
	if err != nil {
		t.Fatal(err)
	}
	return h, dir
}

// TestWhatTheAdministratorBoundIsNotOurs: it is taken as it is, and never given back.
func TestWhatTheAdministratorBoundIsNotOurs(t *testing.T) {
	h, dir := newHost(t, "vfio-pci")
	if err := h.Bind(t.Context(), nic, "vfio-pci"); err != nil {
		t.Fatal(err)
	}
	if bound := h.Journal().Bound(); len(bound) > 0 {
		t.Errorf("journal: %v", bound)
	}
	if err := h.Release(t.Context(), nic); err != nil {
		t.Error(err)
	}
	if probe, err := os.ReadFile(filepath.Join(dir, "sys/bus/pci/drivers_probe")); err != nil || string(probe) != "\n" {
		t.Errorf("probed: %q, %v", probe, err)
	}
}

// TestJournalComesFirst: what is about to be done is in the file also when it fails.
func TestJournalComesFirst(t *testing.T) {
	h, dir := newHost(t, "igb")
	if err := h.Bind(t.Context(), nic, "vfio-pci"); err == nil {
		t.Error("bound by a kernel that does nothing")
	}
	again, err := OpenJournal(filepath.Join(dir, "devices.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{nic: "igb"}, again.Bound()); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	if err := h.Bind(t.Context(), nic, "nowhere"); err == nil || err.Error() != "driver nowhere is not loaded" {
		t.Errorf("an unknown driver: %v", err)
	}
}

func TestJournalRemembersVFsAndMdevs(t *testing.T) {
	h, dir := newHost(t, "igb")
	pf := sysfs.PCIDevice{Address: nic, VFs: []string{"a"}}
	parents, err := sysfs.MdevParents(h.FS())
	if err != nil || len(parents) != 1 {
		t.Fatal(parents, err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "sys/devices/pci0000:00", nic, "sriov_numvfs"), []byte("1"), 0o644),
		h.SetVFs(t.Context(), pf, 4), h.CreateMdev(t.Context(), parents[0], "mtty-1", uuid)); err != nil {
		t.Fatal(err)
	}
	if h.Journal().VFs()[nic] != 1 || !h.Journal().Made(uuid) {
		t.Errorf("VFs %v, mdevs %v", h.Journal().VFs(), h.Journal().Mdevs())
	}
	if err := h.Forget(func(string) bool { return false }); err != nil || h.Journal().Made(uuid) {
		t.Errorf("an instance that is gone is remembered: %v", err)
	}
	if err := h.RemoveMdev(t.Context(), uuid); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

// TestBrokenJournal: it is kept aside, and begun anew.
func TestBrokenJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "devices.json")
	if err := os.WriteFile(path, []byte(`{"bound":`), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := OpenJournal(path)
	if !errors.Is(err, ErrJournal) || j == nil || len(j.Bound()) > 0 {
		t.Fatalf("OpenJournal = %v, %v", j, err)
	}
	if kept, err := os.ReadFile(path + ".broken"); err != nil || string(kept) != `{"bound":` {
		t.Errorf("kept aside: %q, %v", kept, err)
	}
	release, err := j.Exclusive()
	if err != nil {
		t.Fatal(err)
	}
	release()
}
