package podenv

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
)

// container returns the files of a small container; more overwrites or adds files, a nil entry removes one.
func container(more fstest.MapFS) fstest.MapFS {
	m := fstest.MapFS{
		"vm/pod/name":        file("db1-7c9f"),
		"vm/pod/namespace":   file("shop"),
		"vm/pod/uid":         file("6a5a2f1f-0000-4000-8000-000000000001"),
		"vm/pod/labels":      file(`podvirt.dev/vm="db1"`),
		"vm/pod/annotations": file("note=\"two\\nlines \\u00e4 \\\"quoted\\\"\"\npodvirt.dev/memory=\"4Gi\""),
		"vm/pod/limits.cpu":  file("2000"), "vm/pod/limits.memory": file("4457496576"),
		"sys/fs/cgroup/cpu.max": file("200000 100000"), "sys/fs/cgroup/memory.max": file("4457496576"),
		"proc/self/mountinfo": file(`100 99 0:50 / / rw - overlay overlay rw`),
	}
	for name, f := range more {
		if f == nil {
			delete(m, name)
		} else {
			m[name] = f
		}
	}
	return m
}

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func TestRead(t *testing.T) {
	got, err := Read(container(fstest.MapFS{
		"vm/pod/limits.ephemeral-storage": file("1073741824"),
		"vm/pod/limits.hugepages-2Mi":     file("4194304"),
		"vm/pod/limits.hugepages-1Gi":     file("0"),
		"etc/hostname":                    file("mail\n"),
		"vm/disks/root":                   {Mode: fs.ModeDevice},
		"vm/disks/tty":                    {Mode: fs.ModeDevice | fs.ModeCharDevice},
		"vm/cloud-init/..data/user-data":  file("#cloud-config"),
		"proc/self/mountinfo": file(strings.Join([]string{
			`100 99 0:50 / / rw - overlay overlay rw`,
			`101 100 8:1 /pods/u/volumes/kubernetes.io~configmap/seed /vm/cloud-init ro,relatime - ext4 /dev/vda rw`,
			`102 100 8:1 /pods/u/volumes/kubernetes.io~empty-dir/scratch /vm/scratch rw - ext4 /dev/vda rw`,
			`103 100 0:70 / /run/podvirt rw - tmpfs tmpfs rw`,
			`104 100 0:71 / /vm/pod ro shared:1 - tmpfs tmpfs rw`,
			`105 100 0:72 / /vm/disks/os ro - overlay overlay rw`,
			`106 100 8:2 / /vm/disks/with\040blank rw - xfs /dev/vdb rw`,
			`107 100 0:73 / /vmware rw - tmpfs tmpfs rw`,
			`108 100 0:74 / /vm/disks/alone ro - tmpfs podvirt-disk rw`,
			`109 108 7:1 /disk.img /vm/disks/alone/disk.img rw - ext4 /dev/loop1 rw`,
		}, "\n")),
		"vm/pod/..data": {Mode: fs.ModeDir},
	}))
	if err != nil {
		t.Fatal(err)
	}
	got.Pod.NodeArch = ""
	want := Env{
		EphemeralStorage: 1 << 30,
		Pod: api.Pod{
			Name: "db1-7c9f", Namespace: "shop", UID: "6a5a2f1f-0000-4000-8000-000000000001", Hostname: "mail",
			Labels:      map[string]string{"podvirt.dev/vm": "db1"},
			Annotations: map[string]string{"note": "two\nlines ä \"quoted\"", "podvirt.dev/memory": "4Gi"},
			Limits:      api.Resources{CPU: 2000, Memory: 4457496576, Hugepages: map[string]int64{"2Mi": 4 << 20}},
			Paths: []api.Path{
				{Path: "/run/podvirt", Source: api.SourceEmptyDir},
				{Path: "/vm/cloud-init", Source: api.SourceFiles, ReadOnly: true},
				{Path: "/vm/disks/alone", Source: api.SourceFilesystem},
				{Path: "/vm/disks/os", Source: api.SourceImage, ReadOnly: true},
				{Path: "/vm/disks/root", Source: api.SourceBlock},
				{Path: "/vm/disks/with blank", Source: api.SourceFilesystem},
				{Path: "/vm/pod", Source: api.SourceFiles, ReadOnly: true},
				{Path: "/vm/scratch", Source: api.SourceEmptyDir},
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want,+got)\n%s", diff)
	}
	if p, found := got.Get("/vm/disks/os"); !found || p.Source != api.SourceImage {
		t.Errorf("Get = %+v, %v", p, found)
	}
}

func TestLimits(t *testing.T) {
	const (
		v1CPU    = "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
		v1Period = "sys/fs/cgroup/cpu/cpu.cfs_period_us"
		v1Memory = "sys/fs/cgroup/memory/memory.limit_in_bytes"
	)
	rows := []struct {
		name        string
		files       fstest.MapFS
		cpu, memory int64
	}{
		{"both, v2", nil, 2000, 4457496576},
		{"no limit, v2: the files show the node", fstest.MapFS{
			"sys/fs/cgroup/cpu.max": file("max 100000"), "sys/fs/cgroup/memory.max": file("max")}, 0, 0},
		{"no limit, v1", fstest.MapFS{
			"sys/fs/cgroup/cpu.max": nil, "sys/fs/cgroup/memory.max": nil,
			v1CPU: file("-1"), v1Period: file("100000"), v1Memory: file("9223372036854771712")}, 0, 0},
		{"limit, v1", fstest.MapFS{
			"sys/fs/cgroup/cpu.max": nil, "sys/fs/cgroup/memory.max": nil,
			v1CPU: file("200000"), v1Period: file("100000"), v1Memory: file("4457496576")}, 2000, 4457496576},
		{"not projected: the cgroup's", fstest.MapFS{
			"vm/pod/limits.cpu": nil, "vm/pod/limits.memory": nil, "sys/fs/cgroup/cpu.max": file("150000 100000")}, 1500, 4457496576},
		{"resize under way: what is wanted", fstest.MapFS{"vm/pod/limits.cpu": file("4000")}, 4000, 4457496576},
		{"exclusive CPUs without quota", fstest.MapFS{
			"sys/fs/cgroup/cpu.max": file("max 100000"), "sys/fs/cgroup/cpuset.cpus.effective": file("4-5"),
			"sys/devices/system/cpu/online": file("0-7")}, 2000, 4457496576},
		{"no limit on a whole node of two", fstest.MapFS{
			"sys/fs/cgroup/cpu.max": file("max 100000"), "sys/fs/cgroup/cpuset.cpus.effective": file("0-1"),
			"sys/devices/system/cpu/online": file("0-1")}, 0, 4457496576},
		{"no cgroup to be seen", fstest.MapFS{"sys/fs/cgroup/cpu.max": nil, "sys/fs/cgroup/memory.max": nil}, 2000, 4457496576},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			env, err := Read(container(row.files))
			if err != nil {
				t.Fatal(err)
			}
			if got := env.Pod.Limits; got.CPU != row.cpu || got.Memory != row.memory {
				t.Errorf("limits = %d milli, %d bytes; want %d, %d", got.CPU, got.Memory, row.cpu, row.memory)
			}
		})
	}
}

func TestReadErrors(t *testing.T) {
	t.Run("no volume", func(t *testing.T) {
		_, err := Read(fstest.MapFS{"proc/self/mountinfo": file("")})
		if !errors.Is(err, ErrNoPodVolume) || err.Error() != "no downward API volume at /vm/pod" {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("all at once", func(t *testing.T) {
		_, err := Read(container(fstest.MapFS{
			"vm/pod/uid": nil, "vm/pod/annotations": file("no pair"), "vm/pod/limits.cpu": file("two"),
		}))
		want := `/vm/pod/annotations: line "no pair" is not of the form key="value"
/vm/pod/limits.cpu: "two" is not a whole number
/vm/pod/uid: no such file; add {path: uid, fieldRef: {fieldPath: metadata.uid}} to the volume's items`
		if err == nil || err.Error() != want {
			t.Errorf("err =\n%v\nwant\n%s", err, want)
		}
	})
	t.Run("not even a mount table", func(t *testing.T) {
		if _, err := Read(container(fstest.MapFS{"proc/self/mountinfo": nil})); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("err = %v", err)
		}
	})
}

// TestRealContainer reads a directory tree with real links, mounts and a block device, as the kubelet makes them.
func TestRealContainer(t *testing.T) {
	require.Root(t)
	root := t.TempDir()
	data := filepath.Join(root, "vm/pod/..2026_11_20")
	for _, dir := range []string{data, filepath.Join(root, "vm/disks"), filepath.Join(root, "proc/self")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"name": "p", "namespace": "n", "uid": "u", "labels": "", "annotations": `a="b"`} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("..data/"+name, filepath.Join(root, "vm/pod", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..2026_11_20", filepath.Join(root, "vm/pod/..data")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(root, "vm/disks/root")
	if err := unix.Mknod(disk, unix.S_IFBLK|0o660, int(unix.Mkdev(7, 250))); err != nil {
		require.Feature(t, false, "mknod of block devices: "+err.Error())
	}
	env, err := Read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "b"}, env.Pod.Annotations); diff != "" {
		t.Errorf("annotations (-want,+got)\n%s", diff)
	}
	want := []api.Path{{Path: "/vm/disks/root", Source: api.SourceBlock}}
	if diff := cmp.Diff(want, env.Pod.Paths); diff != "" {
		t.Errorf("paths (-want,+got)\n%s", diff)
	}
}

func FuzzParsePairs(f *testing.F) {
	f.Add("a=\"b\"\n")
	f.Add("a=\"\\x00\"")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = ParsePairs(text) })
}
