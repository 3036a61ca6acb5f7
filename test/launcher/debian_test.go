package launcher

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"podvirt.dev/internal/require"
)

// debianSeed makes cloud-init run the tools of a distribution and show on the console what they say.
const debianSeed = `#cloud-config
runcmd:
- [sh, -c, "{ echo; echo tools-begin; ls -1 /dev/disk/by-id; lsblk -nd -o SERIAL,SIZE,PHY-SEC,LOG-SEC,ROTA,DISC-MAX -b; lscpu; for w in \
system-uuid system-serial-number system-manufacturer chassis-serial-number; do echo $w $(dmidecode -s $w); done; lspci -n; echo tools-end; } >/dev/ttyS0 2>&1"]
`

// TestDebian: what udev, lsblk, lscpu and dmidecode make of the virtual hardware (VM-020, VM-064, VM-077). Debian takes
// most of a minute to come up under emulation.
func TestDebian(t *testing.T) {
	if os.Getenv("PODVIRT_DEBIAN") == "" {
		t.Skip("takes a minute: make test-hardware")
	}
	p := newPod(t, map[string]string{
		"memory": "768Mi", "cpu-model": "Nehalem", "cpu-topology": "sockets=1,cores=1,threads=2",
		"disk.scsi": "bus=scsi,rotational=false,blocksize=512/4096", "disk.sata": "bus=sata,rotational=true", "disk.data": "bus=virtio",
	})
	image := filepath.Join(p.spec.Mounts["/vm/disks/root"], "disk")
	guest := filepath.Join(cache(), "images", "parts", "guest-debian.qcow2")
	_, err := os.Stat(guest)
	require.Feature(t, err == nil, errNotBuilt.Error())
	out, err := exec.Command("cp", "-L", "--reflink=auto", guest, image).CombinedOutput()
	seed := filepath.Join(p.volume("/vm/cloud-init"), "user-data")
	if err := errors.Join(err, os.Remove(filepath.Join(image, "tiny.qcow2")), os.WriteFile(seed, []byte(debianSeed), 0o644)); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"scsi", "sata", "data"} {
		p.claim(name, 64*mib)
	}
	p.volume("/vm/state")
	v := p.start()
	v.says(`tools-end`, 1)
	_, said, _ := strings.Cut(v.out.String(), "tools-begin")
	uuid := p.kept("uuid")
	for _, want := range []string{
		`(?m)^virtio-root\r?$`, `(?m)^virtio-data\r?$`, `(?m)^scsi-0QEMU_QEMU_HARDDISK_scsi\r?$`, `(?m)^ata-QEMU_HARDDISK_sata\r?$`,
		`(?m)^scsi +67108864 +4096 +512 +0 +[1-9]\d+\r?$`, `(?m)^sata +67108864 +512 +512 +1 +[1-9]\d+\r?$`,
		`(?m)^data +67108864 +512 +512 +1 +[1-9]\d+\r?$`,
		`Thread\(s\) per core: +2\r?\n`, `Core\(s\) per socket: +1\r?\n`, `Socket\(s\): +1\r?\n`, `Model name: +Intel Core i7 9xx \(Nehalem`,
		`system-uuid ` + uuid, `system-serial-number ` + uuid, `chassis-serial-number ` + uuid, `system-manufacturer podvirt`,
		`(?m)^00:03\.0 0100: 1af4:1048`, // virtio 1.0 SCSI
	} {
		if !regexp.MustCompile(want).MatchString(said) {
			t.Errorf("the guest's tools do not say %s", want)
		}
	}
	if t.Failed() {
		t.Log(said)
	}
}
