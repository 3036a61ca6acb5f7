package launcher

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"podvirt.dev/internal/require"
)

// TestStopIsCleanAndUnprivileged boots a guest from an image, looks at every process, and stops it by SIGTERM.
func TestStopIsCleanAndUnprivileged(t *testing.T) {
	p := newPod(t, map[string]string{"shutdown": "agent+acpi,timeout=60s"})
	v := p.start()
	v.booted(1)

	if message, err := os.ReadFile(p.spec.Mounts["/dev/termination-log"]); err != nil || !strings.HasPrefix(string(message), "Killed: ") {
		t.Errorf("while the guest runs the message is %q (%v); want Killed", message, err)
	}
	for _, name := range []string{"reaper", "launcher", "qemu-system-x86"} {
		wantUnprivileged(t, v, name)
	}
	v.ctl("probe", "state", "running")
	v.ctl("pause")
	v.ctl("pause") // of a paused VM: nothing, exit 0
	if got := v.ctl("status"); !strings.Contains(got, "paused (user)") {
		t.Errorf("status: %q; want paused", got)
	}
	v.ctl("resume")
	v.eventually("running", func() bool { return v.state()["state"] == "running" })

	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(0, `^Stopped: shutdown by ACPI took \d+\.\ds$`)
	if !strings.Contains(v.out.String(), "podvirt-tiny: down") {
		t.Error("the guest did not go through its own shutdown")
	}
	if _, err := os.Stat(filepath.Join(p.spec.Mounts["/vm/scratch"], "root.overlay.qcow2")); err != nil {
		t.Errorf("the overlay: %v", err)
	}
}

// wantUnprivileged looks at a process of the container: it is not root, has no capability and gets none.
func wantUnprivileged(t *testing.T, v *vm, name string) {
	t.Helper()
	status := processStatus(t, v, name)
	for field, want := range map[string]string{
		"Uid": "107\t107\t107\t107", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1",
	} {
		if got := status[field]; got != want {
			t.Errorf("%s: %s is %q, want %q", name, field, got, want)
		}
	}
}

// processStatus is /proc/PID/status of the process of that name in the container.
func processStatus(t *testing.T, v *vm, name string) map[string]string {
	t.Helper()
	for _, raw := range processes(t, v) {
		status := map[string]string{}
		for line := range strings.Lines(raw) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.TrimSpace(value)
		}
		if status["Name"] == name {
			return status
		}
	}
	t.Fatalf("no process %s", name)
	return nil
}

// processes are the status files of all processes below the container's first.
func processes(t *testing.T, v *vm) []string {
	t.Helper()
	own, err := os.Readlink("/proc/" + strconv.Itoa(v.cmd.Process.Pid) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, dir := range dirs {
		if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != own {
			continue
		}
		if raw, err := os.ReadFile(dir + "/status"); err == nil {
			list = append(list, string(raw))
		}
	}
	return list
}

// hostPID is the process ID, on the machine, of a process in the container.
func hostPID(t *testing.T, v *vm, name string) int {
	t.Helper()
	pid, err := strconv.Atoi(processStatus(t, v, name)["Pid"])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill(t *testing.T, v *vm, name string, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(hostPID(t, v, name), signal); err != nil {
		t.Fatal(err)
	}
}

func TestGuestPowersOff(t *testing.T) {
	v := newPod(t, nil).start()
	v.booted(1)
	v.login().typeLine("poweroff")
	v.wantEnd(0, `^PoweredOff: the guest shut down after \d`)
}

// TestEnds provokes the ends that need no more than one act on a running guest.
func TestEnds(t *testing.T) {
	for _, test := range []struct {
		name        string
		annotations map[string]string
		act         func(t *testing.T, v *vm)
		code        int
		message     string
	}{
		{"QEMU is killed", nil, func(t *testing.T, v *vm) { kill(t, v, "qemu-system-x86", syscall.SIGKILL) },
			21, `^HypervisorCrash: qemu died of SIGKILL$`},
		{"QEMU crashes", nil, func(t *testing.T, v *vm) { kill(t, v, "qemu-system-x86", syscall.SIGSEGV) },
			21, `^HypervisorCrash: qemu died of SIGSEGV$`},
		{"hard power-off", map[string]string{"shutdown": "acpi,timeout=1h"}, func(t *testing.T, v *vm) { hardOff(t, v) },
			25, `^Destroyed: `},
		{"deaf guest", map[string]string{"shutdown": "acpi,timeout=2s"}, func(t *testing.T, v *vm) {
			v.ctl("pause") // a guest that does not run does not listen: resumed by the stop, it finds no acpid
			v.ctl("resume")
			s := v.login()
			s.typeLine("killall acpid; echo dea''f")
			s.out.wait(t, "deaf", 1)
			if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}, 24, `^ForcedOff: guest ignored ACPI for 2\.0s$`},
		{"reboot ends the Pod", map[string]string{"on-reboot": "exit"}, func(_ *testing.T, v *vm) { v.login().typeLine("reboot -f") },
			30, `^GuestReboot: `},
		{"watchdog", map[string]string{"watchdog": "i6300esb,action=poweroff"}, func(t *testing.T, v *vm) {
			s := v.login()
			s.typeLine("while [ ! -c /dev/watchdog ]; do sleep 1; done; watchdog -T 2 -t 60 /dev/watchdog; echo arm''ed")
			s.out.wait(t, "armed", 1)
		}, 23, `^Watchdog: `},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newPod(t, test.annotations).start()
			v.booted(1)
			test.act(t, v)
			v.wantEnd(test.code, test.message)
		})
	}
}

// hardOff: the verb returns when QEMU is gone; the guest is not asked, and nobody waits for it (VM-113).
func hardOff(t *testing.T, v *vm) {
	t.Helper()
	qemu := hostPID(t, v, "qemu-system-x86")
	v.ctl("poweroff")
	if name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(qemu), "comm")); err == nil && strings.HasPrefix(string(name), "qemu") {
		t.Errorf("QEMU %d runs after the power-off", qemu)
	}
	if strings.Contains(v.out.String(), "podvirt-tiny: down") {
		t.Error("the guest was asked to shut down")
	}
}

// TestGuestPanics: the guest tells by pvpanic, whose driver the tiny guest gets on a disk of its own.
func TestGuestPanics(t *testing.T) {
	p := newPod(t, nil)
	modulesDisk(t, p.world.tiny, filepath.Join(p.volume("/vm/disks/modules"), "disk.img"), "pvpanic", "pvpanic-pci")
	v := p.start()
	v.booted(1)
	s := v.login()
	s.typeLine("while ! grep -q ' /data ' /proc/mounts; do sleep 1; done; insmod /data/pvpanic.ko; insmod /data/pvpanic-pci.ko; echo load''ed")
	s.out.wait(t, `loaded`, 1)
	s.typeLine("echo c > /proc/sysrq-trigger")
	v.wantEnd(20, `^GuestPanic: `)
}

// modulesDisk makes an ext4 file system that holds modules of the tiny guest's kernel.
func modulesDisk(t *testing.T, tiny, image string, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(filepath.Dir(tiny), "guest-tiny-rootfs/usr/lib/modules/*/kernel/drivers/misc/pvpanic", name+".ko*"))
		require.Feature(t, err == nil && len(found) > 0, "module "+name+" of the guest's kernel")
		out, err := exec.Command("sh", "-c", `case "$1" in *.xz) xz -dc "$1";; *) cat "$1";; esac >"$2"`, "sh",
			found[0], filepath.Join(dir, name+".ko")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", dir, image, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chown(image, userID, userID); err != nil {
		t.Fatal(err)
	}
}

// TestCannotStart provokes the ends before a guest runs.
func TestCannotStart(t *testing.T) {
	for _, test := range []struct {
		name        string
		annotations map[string]string
		prepare     func(t *testing.T, p *pod)
		code        int
		message     string
	}{
		{"two mistakes", map[string]string{"firmware": "efi", "memry": "1Gi"}, nil, 10,
			`(?s)^BadConfig: podvirt\.dev/firmware: "efi": not one of bios, uefi, none; nearest: uefi\npodvirt\.dev/memry: .*nearest: podvirt\.dev/memory$`},
		{"no KVM", map[string]string{"accelerator": "kvm"}, nil, 11, `^NodeLacks: .*/dev/kvm`},
		{"no tap", map[string]string{"nic.default": "-"}, nil, 11, `^NodeLacks: `},
		{"no such CPU model", map[string]string{"cpu-model": "Pentium9"}, nil, 10, `^BadConfig: podvirt\.dev/cpu-model: "Pentium9"`},
		{"image with a backing file", nil, func(t *testing.T, p *pod) {
			image := filepath.Join(p.spec.Mounts["/vm/disks/root"], "disk", "tiny.qcow2")
			f, err := os.OpenFile(image, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{0, 0, 0, 0, 0, 0, 1, 0}, 8); err != nil {
				t.Fatal(err)
			}
		}, 12, `^VolumeProblem: /vm/disks/root: the image refers to a backing file`},
		{"two images", nil, func(t *testing.T, p *pod) {
			if err := os.WriteFile(filepath.Join(p.spec.Mounts["/vm/disks/root"], "disk", "b.raw"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, 12, `^VolumeProblem: /vm/disks/root: file: disk/ holds b\.raw and tiny\.qcow2; one must be named$`},
		{"a volume with something else", nil, func(t *testing.T, p *pod) {
			if err := os.WriteFile(filepath.Join(p.volume("/vm/disks/data"), "readme"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, 12, `^VolumeProblem: /vm/disks/data: no disk\.img; the volume holds readme$`},
		{"a file of somebody else", nil, func(t *testing.T, p *pod) {
			if err := os.WriteFile(filepath.Join(p.volume("/vm/disks/data"), "disk.img"), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 12, `^VolumeProblem: /vm/disks/data: user 107 cannot open it .*owner 0:0, mode 0600; set fsGroup`},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPod(t, test.annotations)
			if test.prepare != nil {
				test.prepare(t, p)
			}
			v := p.start()
			v.wantEnd(test.code, test.message)
		})
	}
}

// TestLauncherDies: the guest goes on, a new launcher has it back within two seconds, and stops it later (VM-125).
func TestLauncherDies(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		t.Run(signal.String(), func(t *testing.T) {
			v := newPod(t, map[string]string{"shutdown": "acpi,timeout=60s"}).start()
			v.booted(1)
			qemu, launcher := hostPID(t, v, "qemu-system-x86"), hostPID(t, v, "launcher")
			begin := time.Now()
			kill(t, v, "launcher", signal)
			v.eventually("the console is back", func() bool {
				_, _, code := v.inside(nil, "/usr/bin/launcher", "ctl", "probe", "state", "running")
				return code == 0
			})
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("the guest was back after %v; want at most 2s", took)
			}
			if hostPID(t, v, "qemu-system-x86") != qemu || hostPID(t, v, "launcher") == launcher {
				t.Error("want the same QEMU and another launcher")
			}
			s := v.login()
			s.typeLine("echo still-her''e")
			s.out.wait(t, "still-here", 1)
			if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			v.wantEnd(0, `^Stopped: shutdown by ACPI`)
		})
	}
}

// TestQEMUDiesWithoutLauncher: nobody is there to see it, and still the message is true.
func TestQEMUDiesWithoutLauncher(t *testing.T) {
	v := newPod(t, nil).start()
	v.booted(1)
	qemu := hostPID(t, v, "qemu-system-x86")
	kill(t, v, "launcher", syscall.SIGSTOP)
	if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	kill(t, v, "launcher", syscall.SIGKILL)
	code, message := v.wait()
	// The reaper starts the launcher again only while QEMU lives; who dies first decides.
	seen, unseen := code == 21 && strings.HasPrefix(message, "HypervisorCrash: "), code == 137 && strings.HasPrefix(message, "Killed: ")
	if !seen && !unseen {
		t.Errorf("the container ended with %d and %q", code, message)
	}
}

// TestQEMUDiesOnTheNewLauncher: the new launcher has found QEMU and waits for its first answer when QEMU dies.
func TestQEMUDiesOnTheNewLauncher(t *testing.T) {
	v := newPod(t, nil).start()
	v.booted(1)
	qemu, old := hostPID(t, v, "qemu-system-x86"), hostPID(t, v, "launcher")
	if err := syscall.Kill(qemu, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.eventually("a new launcher answers", func() bool {
		_, _, code := v.inside(nil, "/usr/bin/launcher", "ctl", "status")
		return code == 0
	})
	if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(21, `^HypervisorCrash: qemu died of SIGKILL$`)
}

// TestRebootAndReset keep QEMU; a restart in place has a new one and takes up what was edited.
func TestRebootAndReset(t *testing.T) {
	p := newPod(t, map[string]string{"shutdown": "acpi,timeout=60s"})
	begin := time.Now()
	v := p.start()
	v.booted(1)
	boot := time.Since(begin)
	qemu := hostPID(t, v, "qemu-system-x86")
	v.login().typeLine("reboot")
	v.booted(2)
	v.ctl("reset")
	v.booted(3)
	v.ctl("reboot")
	v.booted(4)
	if got := hostPID(t, v, "qemu-system-x86"); got != qemu {
		t.Errorf("QEMU is %d, was %d", got, qemu)
	}
	if s := v.state(); s["guestReboots"] != 1.0 {
		t.Errorf("%v reboots by the guest; want 1", s["guestReboots"])
	}
	p.writePod(map[string]string{"shutdown": "acpi,timeout=60s", "memory": "192Mi"})
	begin = time.Now()
	v.ctl("restart")
	down := time.Since(begin)
	v.booted(5)
	t.Logf("the first start took %v; the restart in place %v, of which %v until the old guest was off and the new QEMU ran", boot, time.Since(begin), down)
	s := v.state()
	if hostPID(t, v, "qemu-system-x86") == qemu || s["memoryMiB"] != 192.0 || s["boots"] != 2.0 {
		t.Errorf("after the restart: %v; want a new QEMU with 192 MiB", s)
	}
}

// TestHold keeps the Pod of a VM that is off, until it is started or the Pod is to end.
func TestHold(t *testing.T) {
	v := newPod(t, map[string]string{"on-poweroff": "hold"}).start()
	v.booted(1)
	s := v.login()
	s.typeLine("poweroff")
	v.eventually("held", func() bool { return v.state()["state"] == "held" })
	s.quit()
	if _, errs, code := v.inside(nil, "/usr/bin/launcher", "ctl", "pause"); code != 3 {
		t.Errorf("pause of a VM that is off: exit %d, %q; want 3", code, errs)
	}
	v.ctl("start")
	v.ctl("start") // of a running VM: nothing, exit 0
	v.booted(2)
	v.login().typeLine("poweroff")
	v.eventually("held", func() bool { return v.state()["state"] == "held" })
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(0, `^Stopped: `)
}

// TestStartPaused shows nothing until it is resumed.
func TestStartPaused(t *testing.T) {
	v := newPod(t, map[string]string{"start": "paused"}).start()
	v.eventually("paused", func() bool {
		out, _, _ := v.inside(nil, "/usr/bin/launcher", "ctl", "status")
		return strings.Contains(out, "paused (boot)")
	})
	if out := v.out.String(); out != "" {
		t.Errorf("the guest has said %q", out)
	}
	v.ctl("resume")
	v.booted(1)
}

// TestConsole: one writer, many readers, and what was said before is shown.
func TestConsole(t *testing.T) {
	v := newPod(t, nil).start()
	v.booted(1)
	first := v.login()
	if _, errs, code := v.inside(strings.NewReader(""), "/usr/bin/launcher", "ctl", "console"); code != 1 || !strings.Contains(errs, "--take-over") {
		t.Errorf("a second writer: exit %d, %q; want 1 and the way out", code, errs)
	}
	reader := v.console("--read-only")
	reader.out.wait(t, `podvirt-tiny: ready`, 1) // from before it came
	second := v.console("--take-over")
	first.out.wait(t, `taken over`, 1)
	second.typeLine("echo two-write''s")
	second.out.wait(t, `two-writes`, 1)
	reader.out.wait(t, `two-writes`, 1)

	second.typeLine("stty -echo; wc -c")
	const megabyte = 1 << 20
	paste := strings.Repeat(strings.Repeat("x", 63)+"\n", megabyte/64)
	second.typeLine(paste + "\x04")
	second.out.wait(t, strconv.Itoa(megabyte), 1)

	second.quit()
}

// TestClaims: a new claim gets a disk.img, what is written there stays, and a second VM does not get the disk.
func TestClaims(t *testing.T) {
	p := newPod(t, map[string]string{"shutdown": "acpi,timeout=60s"})
	data := p.volume("/vm/disks/data")
	if err := os.WriteFile(filepath.Join(data, "disk.img"), nil, 0o660); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(data, "disk.img"), 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(data, "disk.img"), userID, userID); err != nil {
		t.Fatal(err)
	}
	v := p.start()
	v.booted(1)
	s := v.login()
	s.typeLine("while ! grep -q ' /data ' /proc/mounts; do sleep 1; done; echo kept > /data/word; sync; ls /dev/disk/by-id; echo writ''ten")
	s.out.wait(t, "written", 1)

	other := newPod(t, nil)
	other.spec.Mounts["/vm/disks/data"] = data
	waits := other.start()
	waits.eventually("the second VM waits for the disk", func() bool {
		out, _, code := waits.inside(nil, "/usr/bin/launcher", "ctl", "status")
		return code == 0 && strings.Contains(out, "starting")
	})
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	v.wantEnd(0, `^Stopped: `)
	waits.booted(1)
	s = waits.login()
	s.typeLine("while ! grep -q ' /data ' /proc/mounts; do sleep 1; done; cat /data/word; echo rea''d")
	s.out.wait(t, `kept\s+read`, 1)
}

// TestFirmware boots the same disk by UEFI, with a seed, and shows the layout of PCI.
func TestFirmware(t *testing.T) {
	p := newPod(t, map[string]string{"firmware": "uefi", "memory": "256Mi", "cpu-topology": "sockets=1,cores=2,threads=1"})
	seed := p.volume("/vm/cloud-init")
	if err := os.WriteFile(filepath.Join(seed, "user-data"), []byte("#cloud-config\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.volume("/vm/state")
	v := p.start()
	v.booted(1)
	v.says(`host name db1`, 1)
	s := v.login()
	s.typeLine("ls -d /sys/firmware/efi; nproc; cat /sys/class/dmi/id/product_name; ls /sys/bus/pci/devices; echo TPMs: $(ls /sys/class/tpm).; echo en''d")
	s.out.wait(t, `\bend\b`, 1)
	for _, want := range []string{`/sys/firmware/efi\s+2\s+VM`, `0000:00:05\.0`, `0000:00:1d\.0`, `TPMs: \.`} {
		if !regexp.MustCompile(want).MatchString(s.out.String()) {
			t.Errorf("the guest says %q; want %q", s.out, want)
		}
	}
	for file, want := range map[string]string{
		"machine": `^pc-q35-\d+\.\d+\n$`, "uuid": `^[0-9a-f-]{36}\n$`, "layout": `"disk.root"`, "nvram.fd": `.`,
	} {
		raw, err := os.ReadFile(filepath.Join(p.spec.Mounts["/vm/state"], file))
		if err != nil || !regexp.MustCompile(want).Match(raw) {
			t.Errorf("/vm/state/%s: %v, %.80q", file, err, raw)
		}
	}
}
