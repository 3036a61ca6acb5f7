package launcher

import (
	"maps"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestBootOrder has two disks that boot, with a kernel each, and a NIC: which kernel comes up says what firmware tried
// first (VM-056).
func TestBootOrder(t *testing.T) {
	t.Parallel()
	const tiny, hardware = `Linux version \S+-cloud-amd64`, `Linux version \d\S+\d-amd64`
	for _, row := range []struct {
		name        string
		annotations map[string]string
		kernel      string
	}{
		{"root by its name", nil, tiny},
		{"the other first", map[string]string{"disk.other": "boot=1", "disk.root": "boot=2"}, hardware},
		// SeaBIOS tries one hard disk, the first, and no other (src/boot.c add_bev).
		{"nothing, the other, root, by UEFI", map[string]string{
			"disk.blank": "boot=1", "disk.other": "boot=2", "disk.root": "boot=3", "firmware": "uefi",
		}, hardware},
		{"root first, by UEFI", map[string]string{"disk.other": "boot=2", "disk.root": "boot=1", "firmware": "uefi"}, tiny},
		{"only the other, by UEFI", map[string]string{"disk.other": "boot=1", "firmware": "uefi"}, hardware},
		{"the NIC first", map[string]string{"nic.default": "binding=masquerade,boot=1", "disk.root": "boot=2"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			annotations := map[string]string{"memory": "320Mi", "nic.default": "binding=masquerade"}
			maps.Copy(annotations, row.annotations)
			p := newPod(t, annotations)
			p.spec.Tap = true
			other := filepath.Join(p.volume("/vm/disks/other"), "disk")
			if out, err := exec.Command("install", "-D", "-m", "644", hardwareGuest(t), filepath.Join(other, "hardware.qcow2")).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			p.claim("blank", 1<<20)
			v := p.start()
			if row.kernel == "" {
				v.eventually("firmware asks the network", func() bool { return v.received("tap0") > 0 })
				if strings.Contains(v.out.String(), "Linux version") {
					t.Error("the disk was first")
				}
				return
			}
			v.says("Linux version", 1)
			if row.name == "the other first" { // two numbers for hard disks, and one disk without any
				wantWarning(t, v, "podvirt.dev/disk.blank: has no boot number while others have one: it will not be tried")
				wantWarning(t, v, "podvirt.dev/disk.root: bios tries one hard disk, the first, which is disk.other; firmware uefi tries all")
			}
			if frames := v.received("tap0"); frames > 0 {
				t.Errorf("firmware has sent %d frames; the NIC is not to boot from", frames)
			}
			v.says(row.kernel, 1)
		})
	}
}

// received is how many frames the guest has sent to a tap; none before the container has the tap.
func (v *vm) received(tap string) int {
	v.t.Helper()
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(v.cmd.Process.Pid), "-n", "sh", "-c", "ip -s link show dev "+tap).Output()
	if err != nil {
		return 0
	}
	_, figures, _ := strings.Cut(string(out), "RX:")
	lines := strings.Split(figures, "\n")
	if len(lines) < 2 {
		v.t.Fatalf("%s", out)
	}
	frames, err := strconv.Atoi(strings.Fields(lines[1])[1])
	if err != nil {
		v.t.Fatal(err)
	}
	return frames
}
