package launcher

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// stats is what launcher ctl stats prints.
func (v *vm) stats() map[string]any {
	v.t.Helper()
	var s map[string]any
	if err := json.Unmarshal([]byte(v.ctl("stats")), &s); err != nil {
		v.t.Fatal(err)
	}
	return s
}

// condition returns one of the conditions of launcher ctl status.
func (v *vm) condition(kind string) map[string]any {
	v.t.Helper()
	list, _ := v.state()["conditions"].([]any)
	for _, c := range list {
		if c, ok := c.(map[string]any); ok && c["type"] == "podvirt.dev/"+kind {
			return c
		}
	}
	v.t.Fatalf("no condition %s in %v", kind, list)
	return nil
}

// standstill is how long a paused guest is watched at least: PODVIRT_STANDSTILL, a minute in make test-life.
func standstill(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("PODVIRT_STANDSTILL")
	if text == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestWhileOneStandsStill pauses a guest while other tests run: its vCPU does nothing meanwhile, and a TCP session with it
// goes on afterwards (VM-115).
func TestWhileOneStandsStill(t *testing.T) {
	p := newPod(t, map[string]string{"nic.default": "binding=masquerade"})
	p.spec.Tap = true
	v := p.start()
	v.booted(1)
	v.says(`eth0 has 10\.0\.2\.2`, 1)
	session := v.connect("10.0.2.2:7")
	echo(t, session, "before")

	v.ctl("pause")
	begin, before := time.Now(), v.vcpuTime()
	if c := v.condition("Paused"); c["status"] != "True" || c["reason"] != "User" {
		t.Errorf("condition %v", c)
	}
	t.Run("meanwhile", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T){
			"power-off and start again": testPoweroffPolicies, "reboot loop": testRebootLoop, "console": testFlood,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // a reboot loop and a serial console are slow by themselves
				test(t)
			})
		}
	})
	<-time.After(standstill(t) - time.Since(begin))
	after, stood := v.vcpuTime(), time.Since(begin)
	if after != before {
		t.Errorf("the vCPU ran for %v while paused for %v", after-before, stood)
	}
	t.Logf("the vCPU stood still for %s", stood.Round(time.Second))
	v.ctl("resume")
	echo(t, session, "after")
}

// vcpuTime is how long the thread of the first vCPU has run, with the kernel's resolution of 10 ms (proc_pid_stat(5)).
func (v *vm) vcpuTime() time.Duration {
	v.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", hostPID(v.t, v, "qemu-system-x86")))
	if err != nil {
		v.t.Fatal(err)
	}
	for _, task := range tasks {
		raw, err := os.ReadFile(filepath.Join(task, "stat"))
		if err != nil || !strings.Contains(string(raw), "(CPU 0/") {
			continue
		}
		return ranFor(v.t, string(raw))
	}
	v.t.Fatal("no thread of a vCPU")
	return 0
}

// connect opens a TCP session from the Pod to a server in the guest, once it is there.
func (v *vm) connect(address string) net.Conn {
	v.t.Helper()
	var conn net.Conn
	v.eventually("a guest that serves", func() bool {
		err := ns.WithNetNSPath(fmt.Sprintf("/proc/%d/ns/net", v.cmd.Process.Pid), func(ns.NetNS) (err error) {
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(v.t.Context(), "tcp", address)
			return err
		})
		return err == nil
	})
	v.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// echo sends a line and waits for it to come back.
func echo(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	got := make([]byte, len(line))
	err := conn.SetDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = io.WriteString(conn, line)
	}
	if err == nil {
		_, err = io.ReadFull(conn, got)
	}
	if err != nil || string(got) != line {
		t.Fatalf("%q came back as %q, %v", line, got, err)
	}
}

// testPoweroffPolicies: what follows the guest's own power-off is read from the annotations at that moment (VM-119): the
// same container starts it again, or keeps it off. A launcher that panics then ends with Internal (VM-120).
func testPoweroffPolicies(t *testing.T) {
	p := newPod(t, map[string]string{"on-poweroff": "restart"})
	v := p.start()
	v.booted(1)
	first := hostPID(t, v, "qemu-system-x86")
	s := v.login()
	s.typeLine("poweroff")
	v.booted(2)
	s.quit()
	if state := v.state(); state["boots"] != 2.0 || hostPID(t, v, "qemu-system-x86") == first {
		t.Errorf("after a power-off: %v; want a new QEMU", state)
	}
	t.Logf("seconds of the steps of a start in place: %v", v.state()["startSeconds"])
	p.writePod(map[string]string{"on-poweroff": "hold"})
	v.login().typeLine("poweroff")
	v.eventually("held", func() bool { return v.state()["state"] == "held" })
	kill(t, v, "launcher", syscall.SIGQUIT) // a Go program then ends as after a panic
	v.wantEnd(70, `^Internal: the launcher panicked; its stack is in the log$`)
	if !strings.Contains(v.log.String(), "goroutine 1") {
		t.Error("no stack in the log")
	}
}

// bootSector asks the keyboard controller for a reset as soon as firmware has loaded it: a guest that reboots for ever.
func bootSector() []byte {
	sector := make([]byte, 512)
	copy(sector, []byte{0xb0, 0xfe, 0xe6, 0x64, 0xf4}) // mov al,0xfe; out 0x64,al; hlt
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// testRebootLoop: five reboots within a minute are told by condition and log (VM-118).
func testRebootLoop(t *testing.T) {
	p := newPod(t, map[string]string{"disk.root": "boot=2", "disk.loop": "boot=1"})
	disk := filepath.Join(p.volume("/vm/disks/loop"), "disk.img")
	if err := os.WriteFile(disk, append(bootSector(), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(disk, userID, userID); err != nil {
		t.Fatal(err)
	}
	v := p.start()
	v.answers()
	qemu := hostPID(t, v, "qemu-system-x86")
	v.log.wait(t, `"msg":"the guest reboots again and again"`, 1)
	if c := v.condition("GuestRunning"); c["reason"] != "RebootLoop" {
		t.Errorf("condition %v", c)
	}
	if s := v.state(); s["boots"] != 1.0 || hostPID(t, v, "qemu-system-x86") != qemu {
		t.Errorf("%v; want the same QEMU", s)
	}
	v.ctl("poweroff")
	v.wantEnd(25, `^Destroyed: hard power-off was asked for, QEMU was gone \d+\.\ds later$`)
	_, message := v.wait()
	t.Log(message) // VM-113: one second
}

// testFlood: a guest that floods its console loses what exceeds the rate, is told of nowhere else and goes on; what it
// says is never taken for the launcher's own words (VM-141, VM-214).
func testFlood(t *testing.T) {
	const lines, width = 1500, 60
	p := newPod(t, map[string]string{"console": "log,rate=1Ki/s", "verbosity": "0"})
	keys := p.volume("/vm/ssh-keys/ops") // alone they make a seed (VM-155)
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8oTxZ9n3WB0HlpkVLa1hVaBJnDKzS6MZc0bVfxIhZ+ ops@laptop"
	if err := os.WriteFile(filepath.Join(keys, "any name"), []byte(key+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	v := p.start()
	v.answers()
	v.console("--read-only").out.wait(t, `login:`, 1) // what is logged exceeds the rate already at the boot
	s := v.login()
	s.typeLine("while [ ! -e /seed/user-data ]; do sleep 1; done; cat /seed/user-data /seed/meta-data; echo sh''own")
	s.out.wait(t, `shown`, 1)
	for _, want := range []string{"name: ops", key, "instance-id: shop/db1", "local-hostname: db1"} {
		if !strings.Contains(s.out.String(), want) {
			t.Errorf("the seed lacks %q:\n%s", want, s.out)
		}
	}

	s.typeLine(`sleep 3; echo '{"level":"ERROR","msg":"for''ged","pos":"x"}'`)
	s.out.wait(t, `"msg":"forged"`, 1)
	v.out.wait(t, `"msg":"forged"`, 1)
	if strings.Contains(v.log.String(), "forged") {
		t.Error("the guest writes into the launcher's log")
	}

	begin, before := time.Now(), v.dropped()
	s.typeLine(fmt.Sprintf("yes %s | head -n %d; echo don''e", strings.Repeat("~", width), lines))
	s.out.wait(t, `done`, 1)
	took := time.Since(begin)
	s.typeLine("echo ali''ve")
	s.out.wait(t, `alive`, 1)
	v.out.wait(t, `\[podvirt: \d+ bytes of the console were dropped\]`, 1)
	logged := strings.Count(v.out.String(), "~") * (width + 1) / width
	dropped := v.dropped() - before
	const total = lines * (width + 1)
	if lost := float64(total-logged) - dropped; dropped < total/10 || lost > total/50 || lost < -total/50 {
		t.Errorf("of %d bytes %d were logged and %.0f counted as dropped", total, logged, dropped)
	}
	t.Logf("%d KiB in %s, %.0f KiB of them dropped", total>>10, took.Round(time.Millisecond), dropped/1024)

	checkLog(t, p, v)
}

// answers waits for a launcher whose guest runs, whatever the guest has said by then.
func (v *vm) answers() {
	v.t.Helper()
	v.eventually("a launcher that answers", func() bool {
		_, _, code := v.inside(nil, "/usr/bin/launcher", "ctl", "probe", "state", "running")
		return code == 0
	})
}

// dropped is how many bytes of the console were kept from the log.
func (v *vm) dropped() float64 {
	v.t.Helper()
	n, ok := v.state()["consoleDroppedBytes"].(float64)
	if !ok {
		v.t.Fatal("the status does not say how much was dropped")
	}
	return n
}

// checkLog: every line is JSON with the fields of VM-214, an edit of the verbosity counts while the VM runs, and QEMU's
// own lines are there.
func checkLog(t *testing.T, p *pod, v *vm) {
	t.Helper()
	if strings.Contains(v.log.String(), `"msg":"event"`) {
		t.Error("events are logged at verbosity 0")
	}
	p.writePod(map[string]string{"console": "log,rate=1Ki/s", "verbosity": "2"})
	v.eventually("events in the log", func() bool {
		v.ctl("pause")
		v.ctl("resume")
		return strings.Contains(v.log.String(), `"msg":"event"`)
	})
	v.ctl("poweroff")
	v.wantEnd(25, `^Destroyed: `)
	if !regexp.MustCompile(`"program":"qemu"[^\n]*terminating on signal 15|terminating on signal 15[^\n]*"program":"qemu"`).MatchString(v.log.String()) {
		t.Errorf("no line of QEMU in the log:\n%s", v.log)
	}
	for line := range strings.Lines(v.log.String()) {
		var l struct {
			Time                time.Time
			Level, VM, Msg, Pos string
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Time.IsZero() || l.VM != "db1" || l.Msg == "" ||
			!regexp.MustCompile(`^(ERROR|INFO|DEBUG)$`).MatchString(l.Level) || !regexp.MustCompile(`^\w+/\w+\.go:\d+$`).MatchString(l.Pos) {
			t.Errorf("%v: %s", err, line)
		}
	}
}

// TestStartFailed: QEMU refuses, and its last line says why (VM-120).
func TestStartFailed(t *testing.T) {
	p := newPod(t, map[string]string{"kernel": "path=vmlinuz"})
	if err := os.WriteFile(filepath.Join(p.volume("/vm/kernel"), "vmlinuz"), make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	p.start().wantEnd(13, `^StartFailed: qemu: .*invalid kernel header`)
}

// TestInternal: what no user can cause ends with Internal (VM-120).
func TestInternal(t *testing.T) {
	p := newPod(t, nil)
	if err := os.Chown(p.spec.Mounts["/run/podvirt"], 0, 0); err != nil {
		t.Fatal(err)
	}
	p.start().wantEnd(70, `^Internal: `)
}
