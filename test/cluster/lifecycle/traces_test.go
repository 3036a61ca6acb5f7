package lifecycle

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/supervise"
)

// namespaces are the identities ("pid:[4026532281]") of the namespaces that machines live in.
type namespaces map[string]string

// machineNamespaces reads the namespaces of all running machines.
func machineNamespaces(t *testing.T, l layout.Layout) namespaces {
	t.Helper()
	found := namespaces{}
	for _, m := range l.Machines() {
		record, alive, err := supervise.Alive(l, m.Name)
		if err != nil || !alive {
			t.Fatalf("%s does not run: %v", m.Name, err)
		}
		for _, kind := range []string{"pid", "net", "mnt", "uts", "ipc", "cgroup"} {
			id, err := os.Readlink(filepath.Join(supervise.ProcessDir(record), "ns", kind))
			if err != nil {
				t.Fatal(err)
			}
			found[id] = m.Name
		}
	}
	own, err := filepath.Glob("/proc/self/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range own {
		if id, err := os.Readlink(path); err == nil && found[id] != "" {
			t.Errorf("machine %s shares %s with the host", found[id], id)
		}
	}
	return found
}

// traces lists everything on this host that belongs to the cluster, by any way that a leak could be seen.
func traces(t *testing.T, l layout.Layout, known namespaces) []string {
	t.Helper()
	left := processesIn(t, known)
	for _, name := range []string{supervise.Supervisor, "control", "node1", "node2"} {
		if record, alive, err := supervise.Alive(l, name); err != nil || alive {
			left = append(left, "process of "+name+" "+strconv.Itoa(record.PID))
		}
	}
	left = append(left, lines(t, "mount ", output(t, "cat", "/proc/self/mountinfo"), l.State)...)
	left = append(left, lines(t, "link ", output(t, "ip", "-oneline", "link"), l.Network().HostLink+":")...)
	left = append(left, lines(t, "route ", output(t, "ip", "route", "show", "table", "all"), l.Network().HostLink)...)
	left = append(left, lines(t, "rule ", output(t, "nft", "list", "ruleset"), "podvirt-local")...)
	left = append(left, lines(t, "named network namespace ", output(t, "ip", "netns", "list"), l.Name())...)
	left = append(left, lines(t, "loop device ", output(t, "losetup", "--list", "--noheadings"), l.State)...)
	left = append(left, lines(t, "loop device ", output(t, "losetup", "--list", "--noheadings"), witness)...)
	for _, pattern := range []string{"/sys/fs/cgroup/" + l.Name() + "*", "/sys/fs/cgroup/*/" + l.Name() + "*"} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			if base := filepath.Base(g); base == l.Name() || base == l.Name()+".service" {
				left = append(left, "control group "+g)
			}
		}
	}
	return left
}

// processesIn finds every process of the host that lives in one of the namespaces.
func processesIn(t *testing.T, known namespaces) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/[cimnpu]*")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, link := range links {
		if id, err := os.Readlink(link); err == nil && known[id] != "" && !zombie(link) {
			left = append(left, "process "+link+" in a namespace of "+known[id])
		}
	}
	return left
}

// zombie says whether a process has ended and only waits for the host's init to notice.
func zombie(link string) bool {
	stat, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(link)), "stat"))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func lines(t *testing.T, prefix, text, contains string) []string {
	t.Helper()
	var found []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, contains) {
			found = append(found, prefix+strings.TrimSpace(line))
		}
	}
	return found
}

func output(t *testing.T, argv ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, stderr.String())
	}
	return string(out)
}
