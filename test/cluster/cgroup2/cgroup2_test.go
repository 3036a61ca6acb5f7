package cgroup2

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/require"
	"podvirt.dev/test/cluster/internal/cluster"
	"podvirt.dev/test/cluster/internal/layout"
)

// packages are what the guest needs of what a user of the cluster must have, and a kernel.
const packages = "systemd-sysv,dbus,udev,linux-image-cloud-amd64,initramfs-tools,iproute2,nftables,xfsprogs,e2fsprogs,procps,util-linux," +
	"mount,kmod,libseccomp2,ca-certificates"

const (
	bootTime = 60 * time.Minute // emulated, on a busy machine
	rootSize = "12G"            // sparse
)

// TestClusterOnDebian12 brings the cluster up in the guest: nodes Ready, Pods that reach each other, nothing left after down.
func TestClusterOnDebian12(t *testing.T) {
	require.Root(t)
	l, err := layout.FromEnv(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"pause", "tools"} {
		_, err := os.Stat(filepath.Join(l.Images(), image+".tar"))
		require.Feature(t, err == nil, "image "+image+" (make images)")
	}
	g := guest{
		dir: t.TempDir(), root: buildRoot(t, l),
	}
	g.programs = buildPrograms(t, l, g.dir)
	verdict := g.run(t)
	if verdict != "passed" {
		t.Errorf("in the guest: %q", verdict)
	}
}

// buildRoot makes the guest's disk, once per recipe: its directory holds root.img, vmlinuz and initrd.
func buildRoot(t *testing.T, l layout.Layout) string {
	t.Helper()
	script, err := filepath.Abs("testdata/customize.sh")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256([]byte(packages + rootSize + string(text)))
	dir := filepath.Join(l.Cache, "cgroup2", fmt.Sprintf("%x", key[:6]))
	if _, err := os.Stat(filepath.Join(dir, "root.img")); err == nil {
		return dir
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	run(t, "mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--include="+packages,
		`--aptopt=APT::Install-Recommends "false"`, "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook=sh "+script+` "$1"`, "bookworm", tree, orElse(os.Getenv("PODVIRT_MIRROR"), "http://deb.debian.org/debian"))
	run(t, "sh", "-c", "cp "+tree+"/boot/vmlinuz-* "+dir+"/vmlinuz && cp "+tree+"/boot/initrd.img-* "+dir+"/initrd")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", tree, filepath.Join(dir, "root.tmp"), rootSize)
	if err := os.Rename(filepath.Join(dir, "root.tmp"), filepath.Join(dir, "root.img")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// buildPrograms makes a disk with the cluster's programs and images and what the guest does with them.
func buildPrograms(t *testing.T, l layout.Layout, dir string) string {
	t.Helper()
	paths, err := cluster.New(l, os.Stderr).Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	staging := filepath.Join(dir, "programs")
	run(t, "mkdir", "-p", filepath.Join(staging, "bin"), filepath.Join(staging, "cache/images"))
	for name, path := range paths {
		run(t, "cp", path, filepath.Join(staging, "bin", name))
	}
	run(t, "go", "build", "-o", filepath.Join(staging, "bin/podvirt-local"), "podvirt.dev/test/cluster/local")
	run(t, "cp", "testdata/run.sh", "testdata/pods.yaml", staging)
	run(t, "cp", filepath.Join(l.Images(), "pause.tar"), filepath.Join(l.Images(), "tools.tar"), filepath.Join(staging, "cache/images"))
	disk := filepath.Join(dir, "programs.img")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", staging, disk, "3G")
	run(t, "rm", "-r", staging)
	return disk
}

type guest struct {
	dir, root, programs string
}

// run boots the guest and returns its verdict. Its console is the test's log.
func (g guest) run(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2",
		"-m", "4G", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-net", "none",
		"-kernel", filepath.Join(g.root, "vmlinuz"), "-initrd", filepath.Join(g.root, "initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0",
		"-drive", "if=virtio,format=raw,snapshot=on,file="+filepath.Join(g.root, "root.img"),
		"-drive", "if=virtio,format=raw,readonly=on,file="+g.programs,
		"-device", "virtio-rng-pci")
	cmd.Env = append(os.Environ(), "TMPDIR="+g.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	verdict, readErr := follow(t, out, begin)
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		t.Errorf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return verdict
}

func follow(t *testing.T, console io.Reader, begin time.Time) (verdict string, err error) {
	t.Helper()
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		t.Logf("%6.1fs %s", time.Since(begin).Seconds(), line)
		if _, after, ok := strings.Cut(line, "RESULT: "); ok {
			verdict = after
		}
	}
	return verdict, lines.Err()
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

func orElse(value, other string) string {
	if value == "" {
		return other
	}
	return value
}
