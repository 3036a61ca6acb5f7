package launcher

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/initramfs"
)

// usableKVM skips a test outside a guest of test/kernel, whose QEMU emulates AMD's virtualization: make test-kvm.
func usableKVM(t *testing.T) {
	t.Helper()
	if !inGuest() {
		t.Skip("only in make test-kvm")
	}
}

// long bounds what a guest in a guest does.
const long = 8 * time.Minute

// modprobe loads modules of the machine.
func modprobe(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if out, err := exec.CommandContext(t.Context(), "/sbin/modprobe", name).CombinedOutput(); err != nil {
			t.Fatalf("modprobe %s: %v: %s", name, err, out)
		}
	}
}

func cpuInfo(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// newKVMPod is newPod with /dev/kvm, as the device plugin gives it. It takes the accelerator that VMs have by default.
func newKVMPod(t *testing.T, annotations map[string]string) *pod {
	t.Helper()
	annotations["accelerator"] = "-"
	annotations["memory"] = "256Mi"
	p := newPod(t, annotations)
	p.spec.Devices = map[string]string{"/dev/kvm": "/dev/kvm"}
	return p
}

// cpuFacts has the launcher take facts, and then runs more in the same container; it returns what that printed.
func cpuFacts(t *testing.T, p *pod, flags, more string) (api.CPUFacts, []string) {
	t.Helper()
	// The probe guest has ten seconds, which may be few where everything is emulated twice on a busy machine.
	script := "facts() { launcher node-facts --only cpu --timeout 4m " + flags + "; }\n" +
		"for try in 1 2 3; do said=$(facts); case $said in *'no sign of life'*) ;; *) break;; esac; done; printf '%s\\n' \"$said\"\n" + more
	p.spec.Argv = []string{"/usr/bin/reaper", "/bin/sh", "-c", script}
	v := p.start()
	select {
	case <-v.ended:
	case <-time.After(long):
		t.Fatal("no facts")
	}
	first, rest, _ := strings.Cut(v.out.String(), "\n")
	facts, err := api.DecodeCPUFacts(first)
	if err != nil {
		t.Fatalf("%v: %s %s", err, v.out, v.log)
	}
	return facts, strings.Split(rest, "\n")
}

// script is what a guest says of itself, and what a guest of its own says. Each character of a console costs exits: the kernel
// is quiet therefore.
const script = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc p /proc
mount -t sysfs s /sys
mount -t devtmpfs d /dev
for m in $(cat /modules); do insmod /$m.ko; done
echo "model: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | sort -u)"
echo "flags: $(sed -n 's/^flags.*: //p' /proc/cpuinfo | head -n 1) "
for t in /sys/devices/system/cpu/cpu[0-9]*/topology; do echo "cpu: $(cat $t/physical_package_id) $(cat $t/die_id) $(cat $t/core_id)"; done
echo "kvm: $(ls /dev/kvm || echo none)"
[ -e /dev/kvm ] && ` + innermostEnv + `=1 /innermost -test.run='^TestInnermost$'
echo the end
sleep 100000
`

// bootScript has the VM boot Debian's kernel with a first root file system that runs the script, with KVM's modules.
func (p *pod) bootScript() {
	p.t.Helper()
	delete(p.spec.Mounts, "/vm/disks/root")
	dir := p.volume("/vm/kernel")
	kernels, err := filepath.Glob(guestImages + "/kernel-rootfs/boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		p.t.Fatalf("kernels %v, %v; want one", kernels, err)
	}
	copyFile(p.t, kernels[0], filepath.Join(dir, "vmlinuz"))
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if err := writeScript(filepath.Join(dir, "initrd"), guestImages+"/kernel-rootfs/usr/lib/modules/"+release); err != nil {
		p.t.Fatal(err)
	}
	p.annotate("kernel", "path=vmlinuz,initrd=initrd")
	p.annotate("kernel-args", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check nokaslr tsc=reliable")
}

// writeScript writes the first root file system.
func writeScript(name, modules string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffer := bufio.NewWriter(f)
	w := initramfs.NewWriter(buffer)
	all, err := initramfs.OpenModules(os.DirFS(modules))
	if err != nil {
		return err
	}
	found, err := all.Resolve("kvm_amd")
	if err != nil {
		return err
	}
	var list []string
	for _, module := range found {
		if err := w.File(module.Name+".ko", 0o644, module.Data); err != nil {
			return err
		}
		list = append(list, module.Name)
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	return errors.Join(
		w.Dir("proc", 0o755), w.Dir("sys", 0o755), w.Dir("dev", 0o755), w.CharDevice("dev/console", 0o600, 5, 1),
		w.File("modules", 0o644, []byte(strings.Join(list, "\n"))), w.File("bin/busybox", 0o755, busybox),
		w.File("innermost", 0o755, program), w.File("init", 0o755, []byte(script)), w.Close(), buffer.Flush(),
	)
}

// annotate adds to the annotations of a Pod.
func (p *pod) annotate(key, value string) {
	p.t.Helper()
	name := filepath.Join(p.spec.Mounts["/vm/pod"], "annotations")
	text, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, fmt.Appendf(text, "podvirt.dev/%s=%q\n", key, value), 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// end waits until the script of the guest is at its end and returns what it said.
func (v *vm) end() string {
	v.t.Helper()
	start := time.Now()
	select {
	case <-v.out.seen("the end", 1):
	case <-v.ended:
		v.t.Fatal("the container ended before the guest's script did")
	case <-time.After(long):
		v.t.Fatal("the guest's script does not end")
	}
	v.t.Logf("the guest's script ended after %v", time.Since(start))
	return v.out.String()
}
