package guests_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/require"
)

// bootTime is far above the 5 s that the tiny guest takes under emulation: test machines are shared.
const bootTime = 2 * time.Minute

// TestTinyBoots sees the tiny guest come up by either firmware, answer, and go down at the power button.
func TestTinyBoots(t *testing.T) {
	t.Parallel()
	tests := map[string]func(t *testing.T) []string{
		"BIOS": func(*testing.T) []string { return nil },
		"UEFI": uefi,
	}
	for name, firmware := range tests {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			g := boot(t, "guest-tiny", firmware(t)...)
			at := g.console.await(t, 0, "podvirt-tiny: ready after", bootTime)
			t.Logf("ready after %.1f s", time.Since(start).Seconds())
			if got := g.get(t, "/", bootTime); got != "podvirt-tiny podvirt-tiny\n" {
				t.Errorf("GET / = %q", got)
			}
			if got := g.get(t, "/cpuinfo", bootTime); !strings.Contains(got, "flags\t\t: fpu") {
				t.Errorf("GET /cpuinfo = %q; want CPU flags", got)
			}
			g.console.await(t, 0, "ACPI: button: Power Button", bootTime)
			g.press(t, "system_powerdown")
			g.console.await(t, at, "podvirt-tiny: down", bootTime)
			g.ends(t, bootTime)
		})
	}
}

// uefi gives a guest the firmware of the launcher image, and variables of its own.
func uefi(t *testing.T) []string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(disk(t, "guest-tiny")), "launcher-rootfs", "usr", "share", "OVMF")
	template, err := os.ReadFile(filepath.Join(dir, "OVMF_VARS_4M.fd"))
	require.Feature(t, err == nil, "UEFI firmware: go run ./images rootfs launcher has it")
	variables := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(variables, template, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"-drive", "if=pflash,format=raw,readonly=on,file=" + filepath.Join(dir, "OVMF_CODE_4M.fd"),
		"-drive", "if=pflash,format=raw,file=" + variables,
	}
}

// TestTinyKeepsData writes a file to a blank disk by HTTP, powers off from the shell, and finds the file at the next boot.
func TestTinyKeepsData(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data.img")
	run(t, "qemu-img", "create", "-q", "-f", "raw", data, "16M")
	args := []string{"-drive", "if=virtio,format=raw,file=" + data}

	g := boot(t, "guest-tiny", args...)
	g.console.await(t, 0, "podvirt-tiny: formatted /dev/vdb", bootTime)
	at := g.console.await(t, 0, "podvirt-tiny login: ", bootTime)
	g.get(t, "/", bootTime)
	if _, err := fetch(t.Context(), http.MethodPut, "http://"+g.http+"/data/note", "kept"); err != nil {
		t.Fatal(err)
	}
	g.say(t, "root")
	g.console.await(t, at, "# ", bootTime)
	g.say(t, "poweroff")
	g.ends(t, bootTime)

	g = boot(t, "guest-tiny", args...)
	g.console.await(t, 0, "podvirt-tiny: data on /dev/vdb", bootTime)
	if got := g.get(t, "/data/note", bootTime); got != "kept" {
		t.Errorf("the file = %q; want kept", got)
	}
}
