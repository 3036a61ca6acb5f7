package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// again is another Pod of the same VM, with the volume that keeps its state.
func (p *pod) again(annotations map[string]string) *pod {
	p.t.Helper()
	next := newHardwarePod(p.t, annotations)
	next.spec.Mounts["/vm/state"] = p.spec.Mounts["/vm/state"]
	return next
}

// kept is a file of the state volume.
func (p *pod) kept(name string) string {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.spec.Mounts["/vm/state"], name))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// identity is what a guest can know its machine by.
const identity = "ls /sys/bus/pci/devices; md5sum /sys/firmware/dmi/tables/DMI; cd /sys/class/dmi/id; " +
	"cat product_uuid product_serial sys_vendor board_serial chassis_asset_tag; strings /sys/firmware/dmi/entries/11-0/raw"

// described are the tables of the VM: its own words over the defaults.
const described = `manufacturer="ACME, Inc.",board-serial=B1,chassis-asset=C1,oem=first+"two+three"`

// places are the PCI addresses of the devices in a domain's XML by their aliases.
func places(xml string) map[string]string {
	found := map[string]string{}
	for _, m := range regexp.MustCompile(`<alias name='([^']+)'/>\s*<address type='pci' ([^>]*)/>`).FindAllStringSubmatch(xml, -1) {
		found[m[1]] = m[2]
	}
	return found
}

// TestSameMachine: a VM with state finds the same machine type, addresses and identity in every Pod, whatever disks came
// and went between, and also where QEMU's newest machine type has changed (VM-050, VM-064, VM-069).
func TestSameMachine(t *testing.T) {
	t.Parallel()
	first := newHardwarePod(t, map[string]string{"disk.data": "bus=virtio", "smbios": described})
	first.volume("/vm/state")
	// The VM was made by an image whose newest machine type was an older one.
	const older = "pc-q35-9.2"
	if err := os.WriteFile(filepath.Join(first.spec.Mounts["/vm/state"], "machine"), []byte(older+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(first.spec.Mounts["/vm/state"], "machine"), userID, userID); err != nil {
		t.Fatal(err)
	}
	first.claim("data", 1<<20)
	v := first.start()
	v.booted(1)
	if len(places(v.ctl("xml"))) < 8 {
		t.Fatalf("few devices have a PCI address:\n%s", v.ctl("xml"))
	}
	before, uuid := v.shell().ask(identity), first.kept("uuid")
	want := strings.Join([]string{uuid, uuid, "ACME, Inc.", "B1", "C1", "first", "two+three"}, "\n")
	if v.state()["uuid"] != uuid || !strings.HasSuffix(before, want) {
		t.Errorf("the guest says %q; want %q at its end, and ctl status the same UUID", before, want)
	}
	was := places(v.ctl("xml"))
	v.cleanup()

	for i := range 10 {
		p := first.again(map[string]string{"start": "paused", "smbios": described})
		p.claim("data", 1<<20)
		for n := range i % 4 {
			p.claim(fmt.Sprintf("extra%d", i+n), 1<<20)
		}
		v := p.start()
		v.paused()
		xml := v.ctl("xml")
		if !strings.Contains(xml, "machine='"+older+"'") {
			t.Errorf("restart %d: not %s", i, older)
		}
		now := places(xml)
		for device, place := range was {
			if now[device] != place {
				t.Errorf("restart %d: %s moved from %s to %s", i, device, place, now[device])
			}
		}
		v.cleanup()
	}

	last := first.again(map[string]string{"disk.data": "bus=virtio", "smbios": described})
	last.claim("data", 1<<20)
	v = last.start()
	v.booted(1)
	if diff := cmp.Diff(before, v.shell().ask(identity)); diff != "" {
		t.Errorf("the guest sees another machine (-first,+last):\n%s", diff)
	}
}

// TestMachineIsNotKept: a VM without state is told that its machine type may change (VM-050).
func TestMachineIsNotKept(t *testing.T) {
	t.Parallel()
	for machine, warned := range map[string]bool{"q35": true, "pc-q35-9.2": false} {
		v := newPod(t, map[string]string{"start": "paused", "machine": machine}).start()
		v.paused()
		warning := fmt.Sprint(v.state()["warnings"])
		if strings.Contains(warning, "podvirt.dev/machine: this image chose pc-q35-") != warned {
			t.Errorf("machine %s: warnings %s; want one: %v", machine, warning, warned)
		}
	}
}
