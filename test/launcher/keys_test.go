package launcher

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBootMenu: the firmware speaks on the serial console, its menu is chosen from by keys, and the disk that was chosen
// boots, not the first one (VM-110).
func TestBootMenu(t *testing.T) {
	t.Parallel()
	p := newPod(t, map[string]string{"memory": "320Mi", "firmware": "bios,serial,menu=60s", "disk.root": "boot=1", "disk.other": "boot=2"})
	other := filepath.Join(p.volume("/vm/disks/other"), "disk")
	if out, err := exec.Command("install", "-D", "-m", "644", hardwareGuest(t), filepath.Join(other, "hardware.qcow2")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v := p.start()
	v.says("SeaBIOS", 1)
	v.says("Press ESC for boot menu", 1)
	if _, complaint, code := v.inside(nil, "/usr/bin/launcher", "ctl", "keys", "escape"); code != 2 || !strings.Contains(complaint, "nearest: esc") {
		t.Errorf("keys escape: exit %d, %q; want 2 and the right name", code, complaint)
	}
	v.ctl("keys", "esc")
	v.says(`(?s)Select boot device:.*1\. .*2\. `, 1)
	v.ctl("keys", "2")
	v.says("Linux version", 1)
	v.says(`Linux version \d\S+\d-amd64`, 1) // of the second disk; the first has a cloud kernel
}
