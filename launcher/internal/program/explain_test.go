package program

import (
	"testing"

	"podvirt.dev/api"
)

// TestLastWords: what QEMU said last, and hints with what they explain.
func TestLastWords(t *testing.T) {
	const before = "internal error: process exited while connecting to monitor: "
	for _, test := range []struct{ name, text, want string }{
		{"libvirt alone", "unsupported configuration:\nno such bus", "libvirt: unsupported configuration:; no such bus"},
		{"one line", before + "2026-11-20T12:15:16.071900Z qemu-system-x86_64: -drive x: bad", "qemu: -drive x: bad"},
		{"connected", "internal error: QEMU unexpectedly closed the monitor (vm='db1'): 2026-11-20T12:15:16Z qemu-system-x86_64: bad", "qemu: bad"},
		{"the last of two", before + "2026-11-20T12:15:16Z qemu-system-x86_64: warning: odd\n2026-11-20T12:15:17Z qemu-system-x86_64: bad", "qemu: bad"},
		{"a hint", before + "2026-11-20T12:15:16Z qemu-system-x86_64: wrong size 1000\n2026-11-20T12:15:16Z qemu-system-x86_64: info: want 4096",
			"qemu: wrong size 1000; want 4096"},
		{"an unfinished line", before + "2026-11-20T12:15:16Z qemu-system-x86_64: bad\nmore", "qemu: bad; more"},
	} {
		if got := lastWords(test.text); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// TestTPMRefuses: what swtpm cannot read is the volume's fault (VM-053). The line is QEMU 10.0's.
func TestTPMRefuses(t *testing.T) {
	const line = "internal error: qemu closed: 2026-11-20T18:53:44Z qemu-system-x86_64: tpm-emulator: TPM result for CMD_INIT: 0x101 operation failed"
	got := hypervisorRefused(line)
	if got.Reason != api.ReasonVolumeProblem || got.Text != "/vm/state/tpm: swtpm cannot go on from what is kept there: 0x101 operation failed" {
		t.Errorf("%+v", got)
	}
}

// TestMissingDevice: a NIC model that this QEMU was built without is the node's lack (NW-005). The line is QEMU 7.2's.
func TestMissingDevice(t *testing.T) {
	const line = "internal error: qemu closed: 2026-11-20T12:15:16Z qemu-system-x86_64: -device igb: 'igb' is not a valid device model name"
	got := hypervisorRefused(line)
	if got.Reason != api.ReasonNodeLacks || got.Text != "this QEMU has no device igb" {
		t.Errorf("%+v", got)
	}
}
