package devices

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"podvirt.dev/internal/transcript"
)

// launcherUID is uid and gid of every launcher.
const launcherUID = 107

// onRequest skips what takes longer than make test has time for, or needs more than it builds: make test-devices.
func onRequest(t *testing.T) {
	t.Helper()
	if os.Getenv("PODVIRT_NESTED") != "1" {
		t.Skip("only in make test-devices")
	}
}

// image makes the root file system of the launcher's image, with the built launcher, below a directory.
func image(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, "launcher-rootfs", dir+"/lower")
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := dir + "/root"
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	// runc is linked to libraries, which this guest has none of its own.
	shell(t, "ln -sfn "+dir+"/lower/usr /usr; ln -sfn usr/lib64 /lib64; ln -sfn usr/lib /lib")
	mount(t, "launcher-learnt", dir+"/learnt") // what QEMU can do, which the image holds too
	shell(t, "mkdir -p "+root+"/usr/share/podvirt/qemu-capabilities; cp "+dir+"/learnt/* "+root+"/usr/share/podvirt/qemu-capabilities/")
	shell(t, "cp /bin/launcher /bin/reaper "+root+"/usr/bin/; mkdir -p "+root+"/vm "+root+"/run/podvirt")
	return root
}

// mount mounts a share of the machine.
func mount(t *testing.T, tag, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(tag, dir, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=loose"); err != nil {
		t.Fatalf("share %s: %v", tag, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// container is one container as a runtime makes it from the kubelet's answers.
type container struct {
	name   string
	root   string
	args   []string
	uid    uint32            // 0: the launcher's
	binds  map[string]string // path in the container: directory
	allocs []*pluginapi.ContainerAllocateResponse
	cdi    string // directory of specifications
}

// run runs the container with runc, as restricted as a VM's, until it ends or the context does, and returns what it said.
func (c container) run(ctx context.Context, t *testing.T, out *transcript.Transcript) error {
	t.Helper()
	bundle := t.TempDir()
	spec := c.spec()
	var names []string
	for _, alloc := range c.allocs {
		for _, device := range alloc.CdiDevices {
			names = append(names, device.Name)
		}
		for name, value := range alloc.Envs {
			spec.Process.Env = append(spec.Process.Env, name+"="+value)
		}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(c.cdi), cdi.WithAutoRefresh(false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.InjectDevices(spec, names...); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	// The root of this guest is the kernel's first file system, from which nobody can pivot. Locked memory is limited as a
	// container inherits it from its runtime.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "ulimit -l 8192; exec /bin/runc run --no-pivot --bundle "+bundle+" "+c.name)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return exec.Command("/bin/runc", "kill", c.name, "KILL").Run() }
	cmd.WaitDelay = 20 * time.Second
	return cmd.Run()
}

// spec is what containerd makes of container vm of a restricted Pod.
func (c container) spec() *oci.Spec {
	uid := c.uid
	if uid == 0 {
		uid = launcherUID
	}
	spec := &oci.Spec{
		Version: "1.2.0", Hostname: "vm", Root: &oci.Root{Path: c.root, Readonly: true},
		Process: &oci.Process{
			Args: c.args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}, NoNewPrivileges: true,
			User: oci.User{UID: uid, GID: uid}, Capabilities: &oci.LinuxCapabilities{},
			Rlimits: []oci.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 4096, Hard: 4096}},
		},
		Mounts: []oci.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"mode=1777"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmp", Options: []string{"mode=1777"}},
			{Destination: "/vm", Type: "tmpfs", Source: "vm", Options: []string{"mode=755"}},
		},
		Linux: &oci.Linux{
			Resources:   &oci.LinuxResources{Devices: []oci.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			CgroupsPath: "/test/" + c.name,
		},
	}
	for _, kind := range []oci.LinuxNamespaceType{oci.PIDNamespace, oci.MountNamespace, oci.IPCNamespace, oci.UTSNamespace, oci.NetworkNamespace} {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, oci.LinuxNamespace{Type: kind})
	}
	for target, source := range c.binds {
		spec.Mounts = append(spec.Mounts, oci.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"bind", "rw"}})
	}
	return spec
}

// says runs a short container and returns what it printed.
func (c container) says(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out transcript.Transcript
	if err := c.run(ctx, t, &out); err != nil {
		t.Errorf("container %s: %v: %s", c.name, err, out.String())
	}
	return out.String()
}

// vmPod is the Pod of a VM, made of files.
func vmPod(t *testing.T, n *node, root string, annotations map[string]string) container {
	t.Helper()
	dir := t.TempDir()
	for parent := dir; parent != "/tmp"; parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := container{
		name: "vm", root: root, cdi: n.path("cdi"), args: []string{"/usr/bin/reaper", "/usr/bin/launcher", "run"}, binds: map[string]string{},
	}
	for _, target := range []string{"/run/podvirt", "/vm/scratch", "/vm/pod", "/vm/kernel"} {
		c.binds[target] = filepath.Join(dir, strings.ReplaceAll(target[1:], "/", "_"))
		if err := os.Mkdir(c.binds[target], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(c.binds[target], launcherUID, launcherUID); err != nil {
			t.Fatal(err)
		}
	}
	var text bytes.Buffer
	for key, value := range annotations {
		fmt.Fprintf(&text, "podvirt.dev/%s=%q\n", key, value)
	}
	for name, content := range map[string]string{
		"annotations": text.String(), "labels": `podvirt.dev/vm="db1"`, "name": "db1-0", "namespace": "shop",
		"uid": "c0ffee00-0000-4000-8000-000000000000", "limits.cpu": "1000", "limits.memory": "0",
	} {
		if err := os.WriteFile(filepath.Join(c.binds["/vm/pod"], name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return c
}
