package program_test

import (
	"bytes"
	"strings"
	"testing"

	"podvirt.dev/images/internal/program"
	"podvirt.dev/internal/cli"
)

func TestCommandLine(t *testing.T) {
	tests := map[string]struct {
		args     []string
		code     int
		out, err string // parts of the streams
	}{
		"list":            {[]string{"list"}, 0, "launcher\nscheduler\ncontroller\n", ""},
		"help":            {[]string{"--help"}, 0, "", "usage: images"},
		"nothing":         {nil, 2, "", "which command?"},
		"unknown command": {[]string{"bild", "launcher"}, 2, "", `no command "bild"`},
		"no image":        {[]string{"build"}, 2, "", "which image?"},
		"unknown image":   {[]string{"build", "launchr"}, 2, "", `no image "launchr"`},
		"not built":       {[]string{"digest", "launcher"}, 1, "", "image launcher is not built"},
		"no guest":        {[]string{"disk", "launcher"}, 1, "", "launcher: no such guest"},
		"no root":         {[]string{"rootfs", "pause"}, 2, "", "image pause has no root file system"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out, stderr bytes.Buffer
			args := append([]string{"--cache", t.TempDir()}, tt.args...)
			code := program.Run(t.Context(), args, cli.Streams{Out: &out, Err: &stderr})
			if code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(stderr.String(), tt.err) {
				t.Errorf("Run(%q) = %d, %q, %q; want %d, %q, %q", args, code, out.String(), stderr.String(), tt.code, tt.out, tt.err)
			}
		})
	}
}
