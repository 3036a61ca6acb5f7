package program

import "testing"

// TestLastWords: what QEMU said last, and hints with what they explain.
func TestLastWords(t *testing.T) {
	const before = "internal error: process exited while connecting to monitor: "
	for _, test := range []struct{ name, text, want string }{
		{"libvirt alone", "unsupported configuration:\nno such bus", "libvirt: unsupported configuration:; no such bus"},
		{"one line", before + "2026-11-20T12:15:16.071900Z qemu-system-x86_64: -drive x: bad", "qemu: -drive x: bad"},
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
