package facts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
	"podvirt.dev/internal/sysfs"
)

func TestWatcher(t *testing.T) {
	require.Feature(t, runtime.GOARCH == "amd64", "an x86 machine")
	root := t.TempDir()
	put(t, root, machine())
	fsys, err := sysfs.Host(root)
	if err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(t.TempDir(), "runs")
	script := lists + "echo >>" + runs + "\n" + lives
	dir := t.TempDir()
	c := collector(t, machine(), script, hypervisor{})
	c.Root, c.Prober.Root, c.Wanted = fsys, fsys, []api.Accelerator{api.AcceleratorTCG}
	state := watchState{Watcher: Watcher{Collector: c, Take: c.CPU, Dir: dir, Timeout: time.Minute, CPU: true, NUMA: true}}
	look := func(what string, wantRuns int, wantFree int64) {
		t.Helper()
		if err := state.look(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		checkRuns(t, what, runs, wantRuns)
		text, err := os.ReadFile(filepath.Join(dir, NUMAFile))
		if err != nil {
			t.Fatal(err)
		}
		facts, err := api.DecodeNUMAFacts(string(text))
		if err != nil || facts.Cells[0].Hugepages["2Mi"].Free != wantFree || facts.Cells[0].Memory != 1<<20 {
			t.Errorf("%s: %v, %s", what, err, text)
		}
	}
	if err := state.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	look("after the start", 1, 5)
	before := modified(t, dir)
	look("nothing changed", 1, 5)
	if now := modified(t, dir); now != before {
		t.Errorf("files were written although nothing changed:\n%s\n%s", before, now)
	}
	put(t, root, machine("sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "3"))
	look("pages were taken", 1, 3)
	put(t, root, machine())
	look("pages are free again", 1, 5)
	put(t, root, machine("proc/cpuinfo", "microcode\t: 0x2\nflags\t: svm"))
	look("new microcode", 2, 5)
	if err := os.WriteFile(filepath.Join(dir, RefreshFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	look("asked for", 3, 5)
	if _, err := os.Stat(filepath.Join(dir, RefreshFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the request is still there: %v", err)
	}

	again := watchState{Watcher: state.Watcher}
	if err := again.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkRuns(t, "a restart in the same boot", runs, 3)
	if err := os.WriteFile(filepath.Join(dir, CPUFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again = watchState{Watcher: state.Watcher}
	if err := again.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkRuns(t, "a restart with a broken file", runs, 4)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := state.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A node without an accelerator is not asked again and again, but when it is told to.
func TestWatcherWithoutAccelerator(t *testing.T) {
	runs, dir := filepath.Join(t.TempDir(), "runs"), t.TempDir()
	c := collector(t, machine(), "echo >>"+runs+"; exit 1\n", hypervisor{})
	c.Wanted = []api.Accelerator{api.AcceleratorTCG}
	state := watchState{Watcher: Watcher{Collector: c, Take: c.CPU, Dir: dir, Timeout: time.Minute, CPU: true}}
	for range 3 {
		if err := state.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	checkRuns(t, "three looks", runs, 1)
	var facts struct{ Accelerator, Boot string }
	text, err := os.ReadFile(filepath.Join(dir, CPUFile))
	if err := errors.Join(err, json.Unmarshal(text, &facts)); err != nil || facts.Accelerator != "none" || facts.Boot != boot {
		t.Errorf("%v: %s", err, text)
	}
	if err := os.WriteFile(filepath.Join(dir, RefreshFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := state.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkRuns(t, "asked for", runs, 2)
}

func put(t *testing.T, root string, files fstest.MapFS) {
	t.Helper()
	for name, f := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func checkRuns(t *testing.T, what, file string, want int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil || strings.Count(string(text), "\n") != want {
		t.Errorf("%s: QEMU ran %d times, %v; want %d", what, strings.Count(string(text), "\n"), err, want)
	}
}

func modified(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, entry.Name(), info.ModTime())
	}
	return b.String()
}

func TestPrivateDev(t *testing.T) {
	rows := []struct {
		name, mounts string
		want         bool
	}{
		{"container", "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /dev rw shared:1 - tmpfs tmpfs rw", true},
		{"node", "2 1 0:2 / /dev rw - devtmpfs udev rw", false},
		{"node's mounted over", "2 1 0:2 / /dev rw - tmpfs tmpfs rw\n3 1 0:6 / /dev rw - devtmpfs udev rw", false},
		{"directory", "1 0 0:1 / / rw - overlay overlay rw", false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if got := privateDev(machine("proc/self/mountinfo", row.mounts)); got != row.want {
				t.Errorf("%v, want %v", got, row.want)
			}
		})
	}
	// Nothing happens to a process that is not root, or whose /dev is the node's.
	if err := Unprivileged(machine("proc/self/mountinfo", ""), 107, 107, "/nonexistent"); err != nil {
		t.Error(err)
	}
}

func TestChild(t *testing.T) {
	text, err := api.CPUFacts{V: 1, Boot: boot, Accelerator: api.AcceleratorNone}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	script := func(text string) []string { return []string{emulator(t, text), "node-facts"} }
	rows := []struct {
		name    string
		self    []string
		problem string // "": facts
	}{
		{"facts with exit 1", script("echo '" + text + "'; exit 1\n"), ""},
		{"arguments", script("test \"$*\" = 'node-facts --only cpu --timeout 1s --launcher-digest sha256:1 --virt-type tcg' && echo '" +
			text + "'\n"), ""},
		{"a crash", script("echo why >&2; exit 2\n"), "exit status 2: why"},
		{"nothing said", script("exit 0\n"), "taking CPU facts: node facts"},
		{"no program", []string{"/nonexistent"}, "no such file"},
		{"it hangs", script("exec sleep 60\n"), "taking CPU facts: signal: terminated"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			patience := time.Minute
			if row.name == "it hangs" {
				patience = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			facts, err := Program{Self: row.self}.child(options{virtType: "tcg", timeout: time.Second, digest: "sha256:1"})(ctx)
			if row.problem != "" {
				if err == nil || !strings.Contains(err.Error(), row.problem) {
					t.Errorf("err = %v, want %q", err, row.problem)
				}
				return
			}
			if err != nil || facts.Boot != boot {
				t.Errorf("%+v, %v", facts, err)
			}
		})
	}
}
