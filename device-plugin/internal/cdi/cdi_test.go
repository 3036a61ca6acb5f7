package cdi

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"podvirt.dev/device-plugin/internal/hostfile"
)

const hook = "/opt/podvirt/bin/device-hook"

// The library that containerd uses reads our files and edits a container that runs as uid 107.
func TestTheRuntimeGivesTheNodeToTheContainersUser(t *testing.T) {
	for name, uid := range map[string]uint32{"launcher": 107, "arbitrary uid": 1000730000, "root": 0} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "null", map[string]Edit{Any: {Nodes: []string{"/dev/null"}}})
			before := stat(t, "/dev/null")
			spec := container(uid)

			if unresolved, err := newCache(t, dir).InjectDevices(spec, Name("null", Any)); err != nil {
				t.Fatalf("InjectDevices = %v, unresolved %v", err, unresolved)
			}

			got := spec.Linux.Devices
			if len(got) != 1 || got[0].Path != "/dev/null" || got[0].Major != 1 || got[0].Minor != 3 {
				t.Fatalf("devices = %+v; want /dev/null, 1:3", got)
			}
			if uid != 0 && (got[0].UID == nil || *got[0].UID != uid || got[0].GID == nil || *got[0].GID != uid) {
				t.Errorf("owner = %v:%v; want %d:%d", got[0].UID, got[0].GID, uid, uid)
			}
			rules := spec.Linux.Resources.Devices
			if len(rules) != 1 || !rules[0].Allow || rules[0].Access != "rw" {
				t.Errorf("device cgroup = %+v; want rw and no mknod", rules)
			}
			if after := stat(t, "/dev/null"); after != before {
				t.Errorf("host's node changed from %v to %v", before, after)
			}
		})
	}
}

func TestRightsComeByAHook(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "memlock", map[string]Edit{Any: {Hook: []string{"memlock=unlimited"}}})
	spec := container(107)
	if _, err := newCache(t, dir).InjectDevices(spec, Name("memlock", Any)); err != nil {
		t.Fatal(err)
	}
	want := &oci.Hooks{CreateRuntime: []oci.Hook{{Path: hook, Args: []string{"device-hook", "memlock=unlimited"}}}}
	if diff := cmp.Diff(want, spec.Hooks); diff != "" {
		t.Errorf("hooks (-want,+got)\n%s", diff)
	}
	if len(spec.Linux.Devices) != 0 {
		t.Errorf("devices = %+v; want none", spec.Linux.Devices)
	}
}

func TestFileIsTheSameEveryTime(t *testing.T) {
	edits := map[string]Edit{"b": {Nodes: []string{"/dev/b"}}, "a": {Nodes: []string{"/dev/a"}, Hook: []string{"rtprio=1"}}}
	const want = `{"cdiVersion":"0.6.0","kind":"podvirt.dev/x","devices":[` +
		`{"name":"a","containerEdits":{"deviceNodes":[{"path":"/dev/a","permissions":"rw"}],` +
		`"hooks":[{"hookName":"createRuntime","path":"/opt/podvirt/bin/device-hook","args":["device-hook","rtprio=1"]}]}},` +
		`{"name":"b","containerEdits":{"deviceNodes":[{"path":"/dev/b","permissions":"rw"}]}}],"containerEdits":{}}` + "\n"
	for range 10 {
		file, err := File("/cdi", hook, "x", edits)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(file.Content)); diff != "" || file.Path != "/cdi/podvirt.dev-x.json" {
			t.Fatalf("%s (-want,+got)\n%s", file.Path, diff)
		}
	}
}

func write(t *testing.T, dir, kind string, edits map[string]Edit) {
	t.Helper()
	file, err := File(dir, hook, kind, edits)
	if err != nil {
		t.Fatal(err)
	}
	if err := hostfile.NewKeeper([]hostfile.File{file}).Restore(); err != nil {
		t.Fatal(err)
	}
}

func newCache(t *testing.T, dir string) *cdi.Cache {
	t.Helper()
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dir), cdi.WithAutoRefresh(false))
	if err != nil {
		t.Fatal(err)
	}
	if errs := cache.GetErrors(); len(errs) > 0 {
		t.Fatalf("specifications in %s: %v", filepath.Base(dir), errs)
	}
	return cache
}

func container(uid uint32) *oci.Spec {
	return &oci.Spec{Process: &oci.Process{User: oci.User{UID: uid, GID: uid}}, Linux: &oci.Linux{Resources: &oci.LinuxResources{}}}
}

func stat(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().String()
}
