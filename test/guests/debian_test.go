package guests_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// debianBootTime is far above what the Debian guest takes under emulation on a machine of its own.
const debianBootTime = 5 * time.Minute

const userData = `#cloud-config
hostname: web1
password: hidden word
chpasswd: {expire: false}
`

// TestDebianBoots sees the Debian guest take its seed, let a user in on the serial console, and go down cleanly: the next
// boot has no journal to replay.
func TestDebianBoots(t *testing.T) {
	t.Parallel()
	seed := seedDisk(t)
	g := boot(t, "guest-debian", "-drive", "if=virtio,format=raw,readonly=on,file="+seed)
	start := time.Now()
	at := g.console.await(t, 0, "web1 login: ", debianBootTime)
	t.Logf("login after %.1f s", time.Since(start).Seconds())
	if boot := g.console.String(); strings.Contains(boot, "FAILED") || strings.Contains(boot, "recovering journal") {
		t.Error("something failed during the boot")
	}
	g.say(t, "debian")
	at = g.console.await(t, at, "Password: ", debianBootTime)
	g.say(t, "hidden word")
	at = g.console.await(t, at, "debian@web1", debianBootTime)
	g.say(t, "cloud-init status --wait; systemctl is-system-running; echo failed: $(systemctl --failed --plain --no-legend); echo en'd'")
	end := g.console.await(t, at, "\nend", debianBootTime)
	if answer := g.console.String()[at:end]; !strings.Contains(answer, "status: done") || !strings.Contains(answer, "running") {
		t.Errorf("state of the guest = %q; want cloud-init done and systemd running", answer)
	}
	g.press(t, "system_powerdown")
	g.ends(t, debianBootTime)
}

// TestDebianBootsByUEFI and without a seed: nobody needs to configure it.
func TestDebianBootsByUEFI(t *testing.T) {
	t.Parallel()
	g := boot(t, "guest-debian", uefi(t)...)
	g.console.await(t, 0, "podvirt-debian login: ", debianBootTime)
}

// seedDisk makes a NoCloud seed on a small FAT file system.
func seedDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "seed.img")
	run(t, "/usr/sbin/mkfs.vfat", "-n", "CIDATA", "-C", image, "1024")
	for name, content := range map[string]string{"user-data": userData, "meta-data": "instance-id: web1\n"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "mcopy", "-i", image, file, "::/"+name)
	}
	return image
}
