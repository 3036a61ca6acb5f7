package launcher

import (
	"path/filepath"
	"testing"
)

// TestImageStays: what one Pod writes to a disk that came as an image outlives the guest's reboot and is seen by no other
// Pod, nor by the image (VM-071).
func TestImageStays(t *testing.T) {
	t.Parallel()
	const free = "125000" // a sector behind the last partition
	read := "dd if=/dev/vda bs=512 count=1 skip=" + free + " 2>/dev/null | tr -d '\\000'"
	first := newPod(t, nil)
	image := filepath.Join(first.spec.Mounts["/vm/disks/root"], "disk", "tiny.qcow2")
	before := sum(t, image)
	v := first.start()
	v.booted(1)
	s := v.shell()
	s.ask("echo written-here | dd of=/dev/vda bs=512 count=1 conv=sync seek=" + free + "; sync")
	s.end()
	v.ctl("reset")
	v.booted(2)
	s = v.shell()
	s.wants(map[string]string{read: "written-here"})

	second := newPod(t, nil)
	second.spec.Mounts["/vm/disks/root"] = first.spec.Mounts["/vm/disks/root"]
	v = second.start()
	v.booted(1)
	if got := v.shell().ask(read + "; echo; echo rea''d"); got != "read" {
		t.Errorf("another Pod reads %q", got)
	}
	if sum(t, image) != before {
		t.Error("the image has changed")
	}
}
