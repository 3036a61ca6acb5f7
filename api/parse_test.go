package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestErrorTexts holds the messages of the specification, word by word where it gives whole lines.
func TestErrorTexts(t *testing.T) {
	long := strings.Repeat("x", 59)
	for _, test := range []struct {
		name string
		in   map[string]string
		want []string
	}{
		{"three of vm.md 2.1", map[string]string{KeyFirmware: "efi", Prefix + "cpu-toplogy": "cores=2"}, []string{
			`podvirt.dev/cpu-toplogy: unknown annotation; nearest: podvirt.dev/cpu-topology`,
			`podvirt.dev/firmware: "efi": not one of bios, uefi, none; nearest: uefi`,
		}},
		{"unknown option", map[string]string{KeyFirmware: "uefi,secureboot"}, []string{
			`podvirt.dev/firmware: secureboot: unknown option; nearest: secure-boot`,
		}},
		{"label of another prefix", map[string]string{"example.org/cpu": "x"}, nil},
		{"policy of a feature", map[string]string{KeyCPUFeatures: "aes=need"}, []string{
			`podvirt.dev/cpu-features: aes=need: policy is not one of force, require, optional, disable, forbid; nearest: require`,
		}},
		{"feature twice", map[string]string{KeyCPUFeatures: "vmx,aes,vmx=optional"}, []string{
			`podvirt.dev/cpu-features: vmx: listed twice`,
		}},
		{"topology of zero", map[string]string{KeyCPUTopology: "cores=0"}, []string{
			`podvirt.dev/cpu-topology: "cores=0": cores is 0; must be at least 1`,
		}},
		{"video", map[string]string{KeyVideo: "std"}, []string{
			`podvirt.dev/video: "std": not one of auto, none, vga, virtio, bochs, cirrus, ramfb, qxl; nearest: vga`,
		}},
		{"launch security", map[string]string{KeyLaunchSecurity: "snp"}, []string{
			`podvirt.dev/launch-security: "snp": not one of sev, sev-es, sev-snp, tdx; nearest: sev-snp`,
		}},
		{"kernel", map[string]string{KeyKernel: "initrd=boot/initrd", KeyKernelArgs: "quiet"}, []string{
			`podvirt.dev/kernel: "initrd=boot/initrd": path is missing; example: path=boot/vmlinuz`,
		}},
		{"arguments of no kernel", map[string]string{KeyKernelArgs: "quiet"}, []string{
			`podvirt.dev/kernel-args: "quiet": set without kernel`,
		}},
		{"bool", map[string]string{KeyCPUDedicated: "yes"}, []string{
			`podvirt.dev/cpu-dedicated: "yes": not one of true, false; nearest: true`,
		}},
		{"eviction", map[string]string{KeyEviction: "LiveMigrate"}, []string{
			`podvirt.dev/eviction: "LiveMigrate": not one of migrate, migrate-if-possible, none, external; nearest: migrate`,
		}},
		{"migration, all at once", map[string]string{KeyMigration: "max-downtime=soon,bandwdth=1Mi"}, []string{
			`podvirt.dev/migration: bandwdth: unknown option; nearest: bandwidth`,
			`podvirt.dev/migration: max-downtime=soon: not a duration; example: 500ms`,
		}},
		{"tsc-hz", map[string]string{KeyClock: "tsc-hz=2.4"}, []string{
			`podvirt.dev/clock: tsc-hz=2.4: not a whole number of Hz`,
		}},
		{"memory too small", map[string]string{KeyMemory: "8Mi"}, []string{`podvirt.dev/memory: "8Mi": below 16Mi`}},
		{"verbosity", map[string]string{KeyVerbosity: "11"}, []string{`podvirt.dev/verbosity: "11": 0 to 9`}},
		{"serial ports", map[string]string{KeySerial: "5"}, []string{`podvirt.dev/serial: "5": at most 3`}},
		{"uuid", map[string]string{KeyUUID: "1234"}, []string{`podvirt.dev/uuid: "1234": not a UUID`}},
		{"disk cache", map[string]string{KeyDisk + "data": "cache=nome"}, []string{
			`podvirt.dev/disk.data: cache=nome: not one of none, writethrough, writeback, directsync, unsafe; nearest: none`,
		}},
		{"boot twice", map[string]string{KeyDisk + "root": "boot=1", KeyNIC + "default": "boot=1"}, []string{
			`podvirt.dev/nic.default: boot=1: also used by disk.root`,
		}},
		{"boot zero", map[string]string{KeyDisk + "root": "boot=0"}, []string{
			`podvirt.dev/disk.root: boot=0: must be at least 1`,
		}},
		{"virtio CD-ROM", map[string]string{KeyDisk + "cd": "type=cdrom,bus=virtio"}, []string{
			`podvirt.dev/disk.cd: bus=virtio: there is no virtio CD-ROM; sata, scsi, usb`,
		}},
		{"serial too long", map[string]string{KeyDisk + "r": "bus=virtio,serial=abcdefghijklmnopqrstuvwx"}, []string{
			`podvirt.dev/disk.r: serial=abcdefghijklmnopqrstuvwx: 24 characters, virtio allows 20`,
		}},
		{"shareable", map[string]string{KeyDisk + "q": "shareable,cache=writeback"}, []string{
			`podvirt.dev/disk.q: shareable: needs cache none or directsync and a raw disk`,
		}},
		{"block size", map[string]string{KeyDisk + "q": "blocksize=4096/512"}, []string{
			`podvirt.dev/disk.q: blocksize=4096/512: logical above physical`,
		}},
		{"binding", map[string]string{KeyNIC + "default": "binding=masq"}, []string{
			`podvirt.dev/nic.default: binding=masq: not one of masquerade, wire, bridge, passt, macvtap, sriov, vhostuser, vdpa, none; nearest: masquerade`,
		}},
		{"port of the launcher", map[string]string{KeyNIC + "default": "ports=22+49153"}, []string{
			`podvirt.dev/nic.default: ports=49153: kept for the launcher (49152 to 49155)`,
		}},
		{"ports", map[string]string{KeyNIC + "default": "ports=0+5100-5000+80/tpc"}, []string{
			`podvirt.dev/nic.default: ports=80/tpc: not a port (1 to 65535)`,
		}},
		{"port ranges", map[string]string{KeyNIC + "default": "ports=0+5100-5000"}, []string{
			`podvirt.dev/nic.default: ports=0: not a port (1 to 65535)`,
			`podvirt.dev/nic.default: ports=5100-5000: start above end`,
		}},
		{"MAC of five", map[string]string{KeyNIC + "default": "mac=02:00:00:00:01"}, []string{
			`podvirt.dev/nic.default: mac=02:00:00:00:01: 5 octets; a MAC has 6`,
		}},
		{"multicast MAC", map[string]string{KeyNIC + "default": "mac=03:00:00:00:00:01"}, []string{
			`podvirt.dev/nic.default: mac=03:00:00:00:00:01: 03:00:00:00:00:01 is a multicast address`,
		}},
		{"queues of a NIC", map[string]string{KeyNIC + "default": "queues=300"}, []string{
			`podvirt.dev/nic.default: queues=300: 1 to 256`,
		}},
		{"one queue", map[string]string{KeyNIC + "default": "model=e1000e,queues=4"}, []string{
			`podvirt.dev/nic.default: queues=4: model e1000e has one queue`,
		}},
		{"ring", map[string]string{KeyNIC + "default": "rx-ring=300"}, []string{
			`podvirt.dev/nic.default: rx-ring=300: not one of 256, 512, 1024`,
		}},
		{"private DHCP option", map[string]string{KeyNIC + "default": "dhcp-200=x"}, []string{
			`podvirt.dev/nic.default: dhcp-200: only 224 to 254`,
		}},
		{"prefix", map[string]string{KeyNIC + "default": "v4-cidr=10.0.2.0/31"}, []string{
			`podvirt.dev/nic.default: v4-cidr=10.0.2.0/31: /31 has no room for gateway and guest`,
		}},
		{"DNS server", map[string]string{KeyNIC + "default": "dhcp-dns=foo"}, []string{
			`podvirt.dev/nic.default: dhcp-dns=foo: not an address`,
		}},
		{"search domain", map[string]string{KeyNIC + "default": "dhcp-search=a..b"}, []string{
			`podvirt.dev/nic.default: dhcp-search=a..b: not a domain`,
		}},
		{"name too long", map[string]string{KeyDisk + long: ""}, []string{
			`podvirt.dev/disk.` + long + `: name longer than 58 characters, since Kubernetes ends the name of an annotation at 63`,
		}},
		{"interface name too long", map[string]string{KeyNIC + "net-very-long-name": ""}, []string{
			`podvirt.dev/nic.net-very-long-name: name longer than 15 characters, the most that a network interface can have`,
		}},
		{"capitals in a name", map[string]string{KeyDisk + "Root": ""}, []string{
			`podvirt.dev/disk.Root: name is not made of a-z, 0-9, - and ., with a letter or digit at both ends`,
		}},
		{"secondary NICs", map[string]string{KeyNIC + "net1": "queues=2", KeyNIC + "net2": "binding=none", KeyNIC + "net3": "binding=wire"}, nil},
		{"wire on the pod network", map[string]string{KeyNIC + "default": "binding=wire"}, nil},
		{"a binding of later", map[string]string{KeyNIC + "default": "binding=passt"}, []string{
			`podvirt.dev/nic.default: binding=passt: not supported by this version`,
		}},
		{"limits", map[string]string{KeyDisk + "s": "iops-max=10,bps=1Mi,bps-read=1Mi"}, []string{
			`podvirt.dev/disk.s: bps: excludes bps-read`, `podvirt.dev/disk.s: iops-max: needs iops`,
		}},
		{"near kind of device", map[string]string{Prefix + "dsk.root": ""}, []string{
			`podvirt.dev/dsk.root: unknown annotation; nearest: podvirt.dev/disk.root`,
		}},
		{"terminal escape", map[string]string{KeyHostname: "a\x1b[31mb"}, []string{
			`podvirt.dev/hostname: "a\u{1b}[31mb": control characters are not allowed`,
		}},
		{"not UTF-8 and quotes", map[string]string{KeyHostname: "a\xff\"b"}, []string{
			`podvirt.dev/hostname: "a\xff\"b": not a DNS label; example: db1`,
		}},
		{"legal, but not yet", map[string]string{KeySound: "hda", KeyHyperV: "off"}, []string{
			`podvirt.dev/sound: "hda": not supported by this version`,
		}},
		{"option twice", map[string]string{KeyCPUTopology: "cores=1,cores=2"}, []string{
			`podvirt.dev/cpu-topology: cores: listed twice`,
		}},
		{"empty item", map[string]string{KeyCPUTopology: "cores=1,,threads=2"}, []string{
			`podvirt.dev/cpu-topology: "cores=1,,threads=2": empty item, or a double quote that is not closed`,
		}},
		{"blank without quotes", map[string]string{KeyDisk + "root": "serial=a b"}, []string{
			`podvirt.dev/disk.root: serial=a b: a value with a blank stands in double quotes`,
		}},
		{"tap owner", map[string]string{KeyTapOwner: "0"}, []string{
			`podvirt.dev/tap-owner: "0": not UID or UID:GID; example: 107:107`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, errs := Parse(test.in)
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

func TestParse(t *testing.T) {
	no := false
	got, errs := Parse(map[string]string{
		KeyVM: "db1", KeyIdentity: "pod", KeyUUID: "0B7F5F3E-7D0C-4B3E-9A43-6A5A2F1F9B11", KeyAccelerator: "tcg",
		KeyCPUModel: "Haswell", KeyCPUFeatures: "pcid=optional, aes", KeyCPUTopology: "sockets=1,cores=2,threads=2",
		KeyMemory: "1.5Gi", KeyMemoryOverhead: "10M", KeyMachine: "pc-q35-10.0", KeyFirmware: "uefi",
		KeyConsole: "attach,device=isa", KeyAgent: "off", KeyWatchdog: "i6300esb,action=poweroff",
		KeyShutdown: "acpi+agent,timeout=90s,then=wait", KeyStart: "paused", KeyCloudInit: `nocloud,instance-id="a b"`,
		KeyDisk + "root":   `bus=virtio,boot=1,cache=none,io=native,discard=unmap,serial="A,B"`,
		KeyDisk + "tmp":    "empty=10Gi",
		KeyNIC + "default": "binding=masquerade,model=virtio,ports=22+80/udp+5000-5100,mac=02-AA-00-00-00-01,queues=auto,dhcp-254=x",
		KeyVerbosity:       "0", KeyTapOwner: "1000",
		"example.org/other": "left alone",
	})
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	zero := 0
	want := VM{
		Name: "db1", Identity: IdentityPod, UUID: "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11",
		CPU: CPU{
			Accelerator: AcceleratorTCG, Model: "Haswell",
			Features: []CPUFeature{{"aes", FeatureRequire}, {"pcid", FeatureOptional}},
			Topology: &Topology{Sockets: 1, Dies: 1, Clusters: 1, Cores: 2, Threads: 2},
		},
		Memory: Memory{Guest: 1536, Overhead: 10}, Machine: "pc-q35-10.0", Firmware: Firmware{Kind: FirmwareUEFI},
		Console: Console{Mode: ConsoleAttach, Device: ConsoleISA}, Agent: &no, Watchdog: Watchdog{Model: "i6300esb", Action: "poweroff"},
		Lifecycle: Lifecycle{
			StartPaused: true, Shutdown: []ShutdownMeans{ShutdownACPI, ShutdownAgent}, ShutdownTimeout: 90e9, ShutdownThen: ThenWait,
		},
		Guest: Guest{CloudInit: CloudInitNoCloud, InstanceID: "a b"},
		Disks: []Disk{
			{Name: "root", Bus: "virtio", Boot: 1, Cache: "none", IO: "native", Discard: "unmap", Serial: "A,B"},
			{Name: "tmp", Empty: 10 << 30},
		},
		NICs: []NIC{{
			Name: "default", Binding: BindingMasquerade, Model: "virtio", MAC: "02:aa:00:00:00:01",
			Ports: []PortRange{{22, 22, "tcp"}, {80, 80, "udp"}, {5000, 5100, "tcp"}}, DHCPPrivate: map[int]string{254: "x"},
		}},
		Verbosity: &zero, TapOwner: &Owner{UID: 1000, GID: 1000},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("VM (-want,+got):\n%s", diff)
	}
}

// TestTable holds what parser and policies rely on.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range Annotations() {
		if seen[a.Key] {
			t.Errorf("%s: two rows", a.Key)
		}
		seen[a.Key] = true
		if a.Meaning == "" || a.Group == "" || a.Change == "" || a.Scope == "" || a.Writer == "" {
			t.Errorf("%s: meaning, group, change, scope or writer is missing", a.Key)
		}
		names := map[string]bool{}
		for _, o := range a.Options {
			if names[o.Name] {
				t.Errorf("%s: option %s twice", a.Key, o.Name)
			}
			names[o.Name] = true
			for _, now := range append(o.Value.Now, o.Value.NotNow...) {
				if !compiled(o.Value.Syntax()).MatchString(now) {
					t.Errorf("%s: option %s: %q is no legal value", a.Key, o.Name, now)
				}
			}
		}
	}
}

// FuzzParse looks for panics, and for unknown keys within edit distance 2 that are not told their nearest.
func FuzzParse(f *testing.F) {
	for _, a := range Annotations() {
		f.Add(a.Key, "true", uint8(0), uint8('x'))
	}
	f.Add("disk.root", `bus=virtio,serial="a,b",boot=1`, uint8(3), uint8('-'))
	f.Add("nic.default", `ports=22+80,mac=02:00:00:00:00:01`, uint8(1), uint8(0))
	f.Fuzz(func(t *testing.T, key, value string, at, with uint8) {
		for _, k := range []string{key, mutate(key, at, with), mutate(mutate(key, at, with), with, at)} {
			vm, errs := Parse(map[string]string{Prefix + k: value, KeyVM: "a"})
			if len(errs) == 0 && k != "vm" && vm.Name != "a" {
				t.Errorf("%q: lost the VM's name", k)
			}
			for _, err := range errs {
				if strings.ContainsFunc(err.Text, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
					t.Errorf("control character in %q", err.Text)
				}
			}
			nearestIsTold(t, k, errs)
		}
	})
}

func nearestIsTold(t *testing.T, key string, errs Errors) {
	t.Helper()
	if _, _, known := contract().lookup(key); known || len(errs) == 0 {
		return
	}
	near, lower := false, strings.ToLower(key)
	for _, name := range contract().names {
		d := editDistance(lower, name, farthest)
		near = near || d <= farthest && d < max(len(lower), len(name))
	}
	if near && len(key) <= 128 && !strings.Contains(errs.Error(), "unknown annotation; nearest: ") {
		t.Errorf("%q is near a key, but: %v", key, errs)
	}
}

// mutate changes, removes or adds one byte of the text.
func mutate(text string, at, with uint8) string {
	if text == "" {
		return string(rune(with))
	}
	i := int(at) % len(text)
	switch with % 3 {
	case 0:
		return text[:i] + text[i+1:]
	case 1:
		return text[:i] + string(rune('a'+with%26)) + text[i+1:]
	default:
		return text[:i] + string(rune('a'+with%26)) + text[i:]
	}
}

// TestEveryKeyNearest: one and two edits of every key are told that key or one as near.
func TestEveryKeyNearest(t *testing.T) {
	for _, name := range contract().names {
		for at := range len(name) {
			for _, with := range []uint8{0, 1, 2} {
				wrong := mutate(name, uint8(at), with)
				_, errs := Parse(map[string]string{Prefix + wrong: "x"})
				nearestIsTold(t, wrong, errs)
			}
		}
	}
}

func BenchmarkParse(b *testing.B) {
	annotations := map[string]string{
		KeyVM: "db1", KeyMemory: "4Gi", KeyCPUTopology: "sockets=1,cores=2,threads=1", KeyFirmware: "uefi",
		KeyMachine: "pc-q35-10.0", KeyConsole: "log", KeyWatchdog: "i6300esb,action=reset", KeyShutdown: "agent+acpi,timeout=170s",
		KeyDisk + "root": "bus=virtio,boot=1,cache=none,io=native,discard=unmap", KeyNIC + "default": "binding=masquerade,model=virtio",
	}
	for b.Loop() {
		if _, errs := Parse(annotations); errs != nil {
			b.Fatal(errs)
		}
	}
}

func TestDeviceNames(t *testing.T) {
	for _, test := range []struct {
		kind, name string
		ok         bool
	}{
		{"disk", "a", true}, {"disk", strings.Repeat("a", 58), true}, {"disk", strings.Repeat("a", 59), false},
		{"share", strings.Repeat("a", 57), true}, {"share", strings.Repeat("a", 58), false},
		{"config", strings.Repeat("a", 56), true}, {"config", strings.Repeat("a", 57), false},
		{"device", strings.Repeat("a", 56), true}, {"device", strings.Repeat("a", 57), false},
		{"nic", strings.Repeat("a", 15), true}, {"nic", strings.Repeat("a", 16), false},
		{"disk", "", false}, {"disk", "-a", false}, {"disk", "a-", false}, {"disk", "a.b-c.9", true}, {"disk", ".a", false},
		{"disk", "A", false}, {"disk", "a_b", false}, {"disk", "ä", false},
	} {
		t.Run(fmt.Sprintf("%s of %d", test.kind, len(test.name)), func(t *testing.T) {
			if got := deviceNameWrong(test.kind, test.name); (got == "") != test.ok {
				t.Errorf("%s.%s: %q", test.kind, test.name, got)
			}
		})
	}
	for _, test := range []struct {
		name string
		ok   bool
	}{{strings.Repeat("a", 63), true}, {strings.Repeat("a", 64), false}, {"A", false}, {"a.b", false}, {"0", true}, {"-a", false}} {
		_, errs := Parse(map[string]string{KeyVM: test.name})
		if (len(errs) == 0) != test.ok {
			t.Errorf("VM %q: %v", test.name, errs)
		}
	}
}
