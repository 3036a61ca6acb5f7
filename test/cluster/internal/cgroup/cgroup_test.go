package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"podvirt.dev/internal/require"
)

func TestParse(t *testing.T) {
	tests := map[string]struct {
		mountinfo string
		want      []Hierarchy
		fails     bool
	}{
		"v1": {
			mountinfo: "26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n" +
				"27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
				"28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			want: []Hierarchy{
				{Dir: "/sys/fs/cgroup/cpu,cpuacct", Options: "cpu,cpuacct"},
				{Dir: "/sys/fs/cgroup/systemd", Options: "name=systemd"},
			},
		},
		"v2":                {mountinfo: "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n", want: []Hierarchy{{Dir: mountPoint}}},
		"mounted elsewhere": {mountinfo: "30 23 0:26 / /mnt rw - cgroup2 cgroup2 rw\n", fails: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parse(tt.mountinfo)
			if (err != nil) != tt.fails {
				t.Fatalf("error: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want,+got):\n%s", diff)
			}
		})
	}
}

func TestMakeEnterRemove(t *testing.T) {
	require.Root(t)
	tree, err := AtRoot("podvirt-test-groups")
	if err != nil {
		t.Fatal(err)
	}
	machines := []string{"node1", "node2"}
	t.Cleanup(func() {
		if err := errors.Join(tree.Remove(machines), tree.RemoveBase()); err != nil {
			t.Error(err)
		}
		for _, base := range tree.bases {
			if _, err := os.Stat(base); err == nil {
				t.Errorf("%s is left", base)
			}
		}
	})
	if err := tree.Make(machines); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = tree.Enter("node1", cmd.Process.Pid)
	pids, listErr := tree.Processes("node1")
	if killErr := cmd.Process.Kill(); err != nil || listErr != nil || killErr != nil {
		t.Fatal(err, listErr, killErr)
	}
	_ = cmd.Wait()
	if !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes of node1: %v, want %d among them", pids, cmd.Process.Pid)
	}
	if err := tree.Remove(machines); err != nil {
		t.Errorf("removal: %v", err)
	}
	if err := tree.Remove(machines); err != nil {
		t.Errorf("second removal: %v", err)
	}
}
