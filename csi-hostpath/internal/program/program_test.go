package program

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podvirt.dev/csi-hostpath/internal/mounts"
	"podvirt.dev/csi-hostpath/internal/pooltest"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/require"
)

// TestUsage: what is wrong with the command line or the file of pools is said, and the process does not start.
func TestUsage(t *testing.T) {
	pools := filepath.Join(t.TempDir(), "pools.yaml")
	if err := os.WriteFile(pools, []byte("[{name: a, path: /etc}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	scratch := "--scratch=" + filepath.Join(t.TempDir(), "scratch")
	socket := "--socket=" + filepath.Join(t.TempDir(), "csi.sock")
	for name, test := range map[string]struct {
		args []string
		code int
		text string
	}{
		"help":             {[]string{"--help"}, 0, "--pools-root"},
		"unknown flag":     {[]string{"--pool=x"}, 2, "unknown flag: --pool"},
		"unknown argument": {[]string{"prob"}, 2, `unknown argument "prob"`},
		"no node":          {[]string{scratch}, 1, "--node-name is required"},
		"bad pools":        {[]string{"--node-name=n1", scratch, socket, "--pools-file=" + pools}, 1, `[0].path: \"/etc\" is not below /var/lib/podvirt`},
		"no driver":        {[]string{socket, "probe"}, 1, "csi.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code := Run(t.Context(), test.args, cli.Streams{Out: &out, Err: &out})
			if code != test.code || !strings.Contains(out.String(), test.text) {
				t.Errorf("exit code %d, output %q; want %d and %q", code, out.String(), test.code, test.text)
			}
		})
	}
}

// TestClearScratch: what a killed process had mounted goes, and the directory stays what it is, also when it is a mount.
func TestClearScratch(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	left := filepath.Join(dir, "image.1")
	if err := mounts.Tmpfs("scratch", dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pooltest.Unmount(t, dir) })
	if err := errors.Join(os.Mkdir(left, 0o700), mounts.Tmpfs("left", left), clearScratch(dir)); err != nil {
		t.Fatal(err)
	}
	table, err := mounts.Read()
	if err != nil {
		t.Fatal(err)
	}
	if mount, mounted := table.At(dir); !mounted || mount.Source != "scratch" {
		t.Errorf("at the directory: %+v; want its own mount", mount)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}
