package api

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestOverhead repeats the figures that the specification gives.
func TestOverhead(t *testing.T) {
	for _, test := range []struct {
		name string
		f    Footprint
		want MiB
	}{
		{"example of vm.md 1", Footprint{Guest: 4096, VCPUs: 2, IOThreads: 1, Devices: 3, Video: true, TPM: true}, 155},
		{"N2 headless", Footprint{Guest: 1024, VCPUs: 1, IOThreads: 1, Devices: 2}, 116},
		{"N2 with video", Footprint{Guest: 1024, VCPUs: 1, IOThreads: 1, Devices: 2, Video: true}, 132},
		{"emulated", Footprint{Guest: 1024, VCPUs: 1, IOThreads: 1, Devices: 2, TCG: true}, 244},
		{"factor", Footprint{Guest: 1024, VCPUs: 1, IOThreads: 1, Devices: 2, FactorTenths: 15}, 174},
		{"pages rounded up", Footprint{Guest: 513, VCPUs: 1}, 106 + 3 + 2},
		{"everything", Footprint{
			Guest: 512, VCPUs: 1, IOThreads: 1, Devices: 1, Video: true, VideoRAM: 64, TPM: true, Shares: 2, VFIO: 2, LaunchSecurity: true, Extra: 7,
		}, 106 + 1 + 3 + 1 + 2 + 64 + 12 + 24 + 80 + 256 + 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.f.Overhead(); got != test.want {
				t.Errorf("overhead %d, want %d", got, test.want)
			}
			limit := test.f.Guest + test.want
			if got := test.f.Fit(limit); got < test.f.Guest {
				t.Errorf("a limit of %d fits %d, not %d", limit, got, test.f.Guest)
			}
		})
	}
}

func TestResolveDefaults(t *testing.T) {
	grace := 180 * time.Second
	got, errs := Resolve(Pod{
		Namespace: "shop", Name: "web-0", Labels: map[string]string{LabelVM: "web"},
		Annotations: map[string]string{KeyVM: "web", KeyIdentity: "pod", KeyDisk + "tmp": "empty=512Mi"},
		Limits:      Resources{CPU: 1500, Memory: 1160 << 20},
		GracePeriod: &grace,
		Paths: []Path{
			{Path: "/vm/disks/data", Source: SourceBlock, Claim: "data"}, {Path: "/vm/disks/root", Source: SourceImage, ReadOnly: true},
			{Path: "/vm/cdroms/drivers", Source: SourceImage}, {Path: "/vm/cloud-init", Source: SourceFiles},
			{Path: "/vm/pod", Source: SourceFiles}, {Path: "/vm/scratch", Source: SourceEmptyDir, Size: 1 << 30},
			{Path: "/run/podvirt", Source: SourceEmptyDir}, {Path: "/vm/ssh-keys/ops", Source: SourceFiles}, {Path: "/etc/other"},
		},
	}, Config{})
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	if got.UUID != DefaultUUID("shop", "web-0") || got.UUID == DefaultUUID("shop", "web-1") {
		t.Errorf("UUID %q", got.UUID)
	}
	var boot []string
	for _, d := range got.BootOrder {
		boot = append(boot, d.String())
	}
	root, cdrom := got.Disks[0], got.Disks[3]
	want := []any{
		"web-0", "web-0", 2, CPUHostModel, "q35", FirmwareBIOS,
		// 106 fixed, 6 vCPUs, 1 IO thread, 4 disks + seed + NIC = 12, 16 video, 2 page tables
		MiB(143), MiB(1017),
		[]string{"disk.root", "disk.data", "disk.tmp", "disk.drivers"},
		OverlayOn, "virtio", "root", 2, DiskTypeCDROM, "sata", true,
		170 * time.Second, CloudInitNoCloud, "shop/web-0", []string{"ops"},
	}
	have := []any{
		got.ID, got.Hostname, got.VCPUs, got.CPU.Model, got.Machine, got.Firmware.Kind,
		got.Overhead, got.Memory.Guest,
		boot,
		root.Overlay, root.Bus, root.Serial, root.Queues, cdrom.Type, cdrom.Bus, *cdrom.ReadOnly,
		got.Lifecycle.ShutdownTimeout, got.Guest.CloudInit, got.Guest.InstanceID, got.SSHUsers,
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("resolved (-want,+got):\n%s", diff)
	}
}

func TestResolveErrors(t *testing.T) {
	grace := 180 * time.Second
	for _, test := range []struct {
		name   string
		pod    Pod
		config Config
		want   []string
	}{
		{"label", Pod{Labels: map[string]string{LabelVM: "db2"}, Annotations: map[string]string{KeyVM: "db1", KeyMemory: "1Gi"}}, Config{}, []string{
			`podvirt.dev/vm: "db1": differs from the label podvirt.dev/vm "db2"`,
		}},
		{"memory above the limit", Pod{
			Annotations: map[string]string{KeyMemory: "8Gi", KeyCPUTopology: "cores=4", KeyVideo: "none"},
			Limits:      Resources{Memory: 8 << 30},
			Paths:       []Path{{Path: "/vm/disks/root"}, {Path: "/vm/disks/a"}, {Path: "/vm/disks/b"}, {Path: "/vm/disks/c"}},
		}, Config{}, []string{
			`podvirt.dev/memory: "8Gi": 8Gi + 145Mi overhead = 8337Mi exceeds limits.memory 8Gi: raise the limit to 8337Mi or lower memory to 8047Mi`,
		}},
		{"no memory at all", Pod{}, Config{}, []string{`podvirt.dev/memory: not set, and container vm has no memory limit to take it from`}},
		{"limit too small", Pod{Limits: Resources{Memory: 64 << 20}}, Config{}, []string{
			`podvirt.dev/memory: limits.memory 64Mi less 128Mi overhead leaves less than 16Mi for the guest`,
		}},
		{"no such disk", Pod{
			Annotations: map[string]string{KeyMemory: "1Gi", KeyDisk + "dta": "boot=1"},
			Paths:       []Path{{Path: "/vm/disks/data"}, {Path: "/vm/disks/root"}},
		}, Config{}, []string{`podvirt.dev/disk.dta: no such disk: root, data; nearest: data`}},
		{"path", Pod{Annotations: map[string]string{KeyMemory: "1Gi"}, Paths: []Path{{Path: "/vm/disk/root"}, {Path: "/vm/disks/Root"}}}, Config{}, []string{
			`/vm/disk/root: unknown path; nearest: /vm/disks/root`,
			`/vm/disks/Root: name is not made of a-z, 0-9, - and ., with a letter or digit at both ends`,
		}},
		{"claim twice", Pod{
			Annotations: map[string]string{KeyMemory: "1Gi"}, Paths: []Path{{Path: "/vm/disks/a", Claim: "c"}, {Path: "/vm/disks/b", Claim: "c"}},
		}, Config{}, []string{`/vm/disks/b: claim c is also at /vm/disks/a`}},
		{"scratch too small", Pod{
			Annotations: map[string]string{KeyMemory: "1Gi", KeyDisk + "t": "empty=10Gi"},
			Paths:       []Path{{Path: "/vm/scratch", Size: 1 << 30}},
		}, Config{}, []string{`podvirt.dev/disk.t: empty=10Gi: /vm/scratch has 1Gi`}},
		{"queues", Pod{
			Annotations: map[string]string{KeyMemory: "1Gi", KeyDisk + "t": "queues=20"}, Limits: Resources{CPU: 4000},
			Paths: []Path{{Path: "/vm/disks/t"}},
		}, Config{}, []string{`podvirt.dev/disk.t: queues=20: 4 vCPUs`}},
		{"virtio CD-ROM by path", Pod{
			Annotations: map[string]string{KeyMemory: "1Gi", KeyDisk + "c": "bus=virtio"}, Paths: []Path{{Path: "/vm/cdroms/c"}},
		}, Config{}, []string{`podvirt.dev/disk.c: bus=virtio: there is no virtio CD-ROM; sata, scsi, usb`}},
		{"shutdown", Pod{
			Annotations: map[string]string{KeyMemory: "1Gi", KeyShutdown: "agent+acpi,timeout=200s"}, GracePeriod: &grace,
		}, Config{}, []string{`podvirt.dev/shutdown: "agent+acpi,timeout=200s": timeout 200s does not fit in terminationGracePeriodSeconds 180`}},
		{"console", Pod{Annotations: map[string]string{KeyMemory: "1Gi", KeyConsole: "attach"}, Terminal: &Terminal{TTY: true}}, Config{}, []string{
			`podvirt.dev/console: "attach": attach needs stdin: true and tty: true on container vm`,
		}},
		{"seed", Pod{Annotations: map[string]string{KeyMemory: "1Gi", KeyCloudInit: "nocloud"}}, Config{}, []string{
			`podvirt.dev/cloud-init: "nocloud": nothing is mounted at /vm/cloud-init`,
		}},
		{"emulation", Pod{Annotations: map[string]string{KeyMemory: "1Gi", KeyAccelerator: "tcg"}}, Config{Visible: true}, []string{
			`podvirt.dev/accelerator: "tcg": emulation is not allowed (emulation: forbid)`,
		}},
		{"obsolete model", Pod{Annotations: map[string]string{KeyMemory: "1Gi", KeyCPUModel: "Conroe"}}, Config{Visible: true}, []string{
			`podvirt.dev/cpu-model: "Conroe": Conroe is on the obsolete list (cpu.obsolete-models)`,
		}},
		{"other architecture", Pod{Annotations: map[string]string{KeyMemory: "1Gi", KeyArch: "s390x"}, NodeArch: "amd64"}, Config{}, []string{
			`podvirt.dev/arch: "s390x": arch s390x on an amd64 node needs accelerator tcg`,
		}},
		{"misspelt model", Pod{Annotations: map[string]string{KeyMemory: "1Gi", KeyCPUModel: "haswell", KeyCPUFeatures: "avx5"}}, Config{}, []string{
			`podvirt.dev/cpu-features: avx5: no such feature; nearest: avx`,
			`podvirt.dev/cpu-model: "haswell": no such model; nearest: Haswell`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, errs := Resolve(test.pod, test.config)
			var got []string
			for _, err := range errs {
				got = append(got, err.Text)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("errors (-want,+got):\n%s", diff)
			}
		})
	}
}

func TestBootNumbers(t *testing.T) {
	got, errs := Resolve(Pod{
		Annotations: map[string]string{KeyMemory: "1Gi", KeyNIC + "default": "boot=1", KeyDisk + "b": "boot=2"},
		Paths:       []Path{{Path: "/vm/disks/a"}, {Path: "/vm/disks/b"}},
	}, Config{})
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]BootDevice{{"nic", "default"}, {"disk", "b"}}, got.BootOrder); diff != "" {
		t.Errorf("boot order (-want,+got):\n%s", diff)
	}
	if len(got.Warnings) != 1 || !strings.HasPrefix(got.Warnings[0], "podvirt.dev/disk.a: has no boot number") {
		t.Errorf("warnings: %q", got.Warnings)
	}
}

// TestOneHardDisk: BIOS leaves out every numbered hard disk but the first; UEFI none, and nobody a CD-ROM.
func TestOneHardDisk(t *testing.T) {
	for firmware, want := range map[string][]string{
		"uefi": nil,
		"bios": {"podvirt.dev/disk.a: bios tries one hard disk, the first, which is disk.b; firmware uefi tries all"},
	} {
		got, errs := Resolve(Pod{
			Annotations: map[string]string{
				KeyMemory: "1Gi", KeyFirmware: firmware, KeyDisk + "a": "boot=4", KeyDisk + "b": "boot=2", KeyDisk + "c": "boot=1", KeyNIC + "default": "boot=3",
			},
			Paths: []Path{{Path: "/vm/disks/a"}, {Path: "/vm/disks/b"}, {Path: "/vm/cdroms/c"}},
		}, Config{})
		if err := errs.Err(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.Warnings); diff != "" {
			t.Errorf("%s: warnings (-want,+got):\n%s", firmware, diff)
		}
	}
}

func TestTerminationMessage(t *testing.T) {
	var errs Errors
	for i := range 100 {
		errs = append(errs, Error{Key: KeyVM, Text: strings.Repeat("x", 80+i%3)})
	}
	got := errs.TerminationMessage("db1", MaxTerminationMessage)
	if len(got) > MaxTerminationMessage || !strings.HasPrefix(got, "BadConfig: xxx") || !strings.HasSuffix(got, " more: kubectl logs db1 -c vm") {
		t.Errorf("%d bytes: %.40q … %.60q", len(got), got, got[len(got)-60:])
	}
	if got := errs[:2].TerminationMessage("db1", MaxTerminationMessage); strings.Contains(got, "more") || strings.Count(got, "\n") != 1 {
		t.Errorf("two lines that fit: %q", got)
	}
}
