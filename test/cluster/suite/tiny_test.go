package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// TestVM boots one guest in a namespace that enforces the restricted Pod Security Standard and looks at it from every side.
func TestVM(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("web", "guest-tiny").httpReady(8080).manifest(t))
	ns.Apply(t, service("web", 8080, 7))
	pod := ns.WaitPod(t, "web", harness.Medium, harness.Ready)
	svc, err := ns.Client.CoreV1().Services(ns.Name).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("the log shows the guest booting", func(t *testing.T) {
		ns.WaitLog(t, "web", api.ContainerName, "podvirt-tiny: ready after", harness.Short)
	})
	t.Run("Services of both families reach the guest", func(t *testing.T) {
		if len(svc.Spec.ClusterIPs) != 2 {
			t.Errorf("the Service has %v; want two families", svc.Spec.ClusterIPs)
		}
		for _, ip := range svc.Spec.ClusterIPs {
			if body := mustCurl(t, ns, "http://"+net.JoinHostPort(ip, "8080")+"/"); !strings.HasPrefix(body, "podvirt-tiny ") {
				t.Errorf("through %s: %q", ip, body)
			}
		}
	})
	t.Run("the guest reaches the API server's Service", func(t *testing.T) {
		kubernetes, err := ns.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		url := "http://" + net.JoinHostPort(pod.Status.PodIP, "8080") + "/fetch?url=https://" + kubernetes.Spec.ClusterIP + "/version"
		if body := mustCurl(t, ns, url); !strings.Contains(body, "gitVersion") && !strings.Contains(body, "Forbidden") && !strings.Contains(body, "Unauthorized") {
			t.Errorf("answer: %q", body)
		}
	})
	t.Run("nothing in the container has a right", func(t *testing.T) { checkUnprivileged(t, ns, pod) })
	t.Run("the launcher's own port stays its own", func(t *testing.T) {
		body := mustCurl(t, ns, fmt.Sprintf("http://%s/metrics", net.JoinHostPort(pod.Status.PodIP, "49155")))
		for _, want := range []string{`accelerator="tcg"} 1`, "podvirt_vm_state", "kubevirt_vmi_memory_domain_bytes"} {
			if !strings.Contains(body, want) {
				t.Errorf("/metrics lacks %s", want)
			}
		}
	})
	t.Run("port-forward reaches the guest by the Pod's loopback", func(t *testing.T) {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ns.Forward(t, "web", 8080)))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err := io.ReadAll(response.Body); err != nil || !strings.HasPrefix(string(body), "podvirt-tiny ") {
			t.Errorf("answer: %q, %v", body, err)
		}
	})
	t.Run("control verbs", func(t *testing.T) { checkVerbs(t, ns, pod) })
}

// checkUnprivileged looks at every process of the Pod's container (VM-010).
func checkUnprivileged(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	processes := vmProcesses(t, ns, pod)
	names := 0
	for name, pid := range processes {
		if name == "pause" {
			continue
		}
		names++
		status := ns.OnNode(t, pod.Spec.NodeName, "cat", fmt.Sprintf("/proc/%d/status", pid))
		for _, want := range []string{`Uid:\t107\t107\t107\t107`, `CapEff:\t0000000000000000`, `NoNewPrivs:\t1`, `Seccomp:\t2`} {
			if !regexp.MustCompile(want).MatchString(status) {
				t.Errorf("%s (%d) lacks %s:\n%s", name, pid, want, status)
			}
		}
	}
	const reaperLauncherQEMU = 3
	if names < reaperLauncherQEMU {
		t.Errorf("processes: %v; want reaper, launcher and QEMU", processes)
	}
}

// checkVerbs drives the VM through its control socket (vm.md 2.7).
func checkVerbs(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	base := "http://" + net.JoinHostPort(pod.Status.PodIP, "8080")
	uptime := func() float64 {
		var seconds float64
		if _, err := fmt.Sscan(mustCurl(t, ns, base+"/uptime"), &seconds); err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	before := uptime()
	ctl(t, ns, pod.Name, "pause")
	if status := ctl(t, ns, pod.Name, "status"); !strings.Contains(status, "paused") {
		t.Errorf("status of a paused VM: %s", status)
	}
	if _, err := curl(t.Context(), ns, "--max-time", "2", base+"/"); err == nil {
		t.Error("a paused guest answers")
	}
	ctl(t, ns, pod.Name, "pause") // again: no error
	ctl(t, ns, pod.Name, "resume")
	if after := uptime(); after < before {
		t.Errorf("uptime went from %v to %v: pause must keep the guest", before, after)
	}
	if stats := ctl(t, ns, pod.Name, "stats"); stats == "" {
		t.Error("no stats")
	}
	if xml := ctl(t, ns, pod.Name, "xml"); !strings.Contains(xml, "<domain type='qemu'") {
		t.Errorf("xml: %.200s", xml)
	}
	qemu := vmProcesses(t, ns, pod)["qemu-system-x86"]
	before = uptime()
	ctl(t, ns, pod.Name, "reset")
	harness.Eventually(t, harness.Medium, "the guest after a reset", func(ctx context.Context) error {
		body, err := curl(ctx, ns, base+"/uptime")
		if err != nil {
			return err
		}
		var now float64
		if _, err := fmt.Sscan(body, &now); err != nil || now >= before {
			return fmt.Errorf("uptime %v, was %v (%w)", now, before, err)
		}
		return nil
	})
	if now := vmProcesses(t, ns, pod)["qemu-system-x86"]; now != qemu || qemu == 0 {
		t.Errorf("QEMU was %d and is %d; a reset keeps it", qemu, now)
	}
	result, err := ns.TryExec(t.Context(), pod.Name, api.ContainerName, nil, "launcher", "ctl", "pause", "now")
	if err != nil || result.Code != 2 {
		t.Errorf("wrong usage: %+v, %v; want exit 2", result, err)
	}
	if _, err := ns.TryExec(t.Context(), pod.Name, api.ContainerName, nil, "sh"); err == nil || !strings.Contains(err.Error(), "podvirt-exec") {
		t.Errorf("a shell beside the VM: %v; want a refusal by policy podvirt-exec", err)
	}
}

// TestAttach logs in to the guest through the Pod's own terminal.
func TestAttach(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("con", "guest-tiny").terminal().manifest(t))
	ns.WaitPod(t, "con", harness.Medium, harness.Running)
	term := ns.Attach(t, "con", api.ContainerName)
	logIn(t, term)
	term.Send(t, "echo $((6*7))-by-attach\n")
	term.Expect(t, harness.Short, "42-by-attach")

	reader := ns.Shell(t, "con", api.ContainerName, "launcher", "ctl", "console", "--read-only")
	term.Send(t, "echo $((6*7))-for-two\n")
	reader.Expect(t, harness.Short, "42-for-two")
}

// logIn gets a shell of the tiny guest on a terminal.
func logIn(t *testing.T, term *harness.Terminal) {
	t.Helper()
	pressed := time.NewTicker(2 * time.Second)
	defer pressed.Stop()
	seen := make(chan struct{})
	go func() {
		for {
			select {
			case <-seen:
				return
			case <-pressed.C:
				term.Send(t, "\n")
			}
		}
	}()
	defer close(seen)
	term.Expect(t, harness.Medium, "login:")
	term.Send(t, "root\n")
	term.Expect(t, harness.Short, "# ")
}

// TestUEFI boots the same disk by UEFI firmware.
func TestUEFI(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("uefi", "guest-tiny").annotate(map[string]string{"firmware": "uefi", "memory": "384Mi"}).manifest(t))
	ns.WaitLog(t, "uefi", api.ContainerName, "podvirt-tiny: ready after", harness.Medium)
}

// TestPoweroff shows that a guest that shuts itself down ends its Pod for good, with the reason.
func TestPoweroff(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("off", "guest-tiny").restart(corev1.RestartPolicyOnFailure).manifest(t))
	ns.WaitLog(t, "off", api.ContainerName, "podvirt-tiny: ready after", harness.Medium)
	term := ns.Shell(t, "off", api.ContainerName, "launcher", "ctl", "console")
	logIn(t, term)
	term.Send(t, "poweroff\n")
	pod := ns.WaitPod(t, "off", harness.Medium, harness.Phase(corev1.PodSucceeded))
	if end := terminated(pod); end == nil || end.ExitCode != 0 || !strings.HasPrefix(end.Message, "PoweredOff: ") {
		t.Errorf("end of the container: %+v; want 0 and PoweredOff", end)
	}
}

// TestQEMUKilled shows that the loss of QEMU is a failed container that says so, and that the kubelet starts it again; with
// time for it also that the network is that of before, without another call of the CNI plugin (NW-009).
func TestQEMUKilled(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("crash", "guest-tiny").httpReady(8080).manifest(t))
	pod := ns.WaitPod(t, "crash", harness.Medium, harness.Ready)
	network := guestNetwork(t, ns, pod)
	ns.OnNode(t, pod.Spec.NodeName, "kill", "-9", fmt.Sprint(vmProcesses(t, ns, pod)["qemu-system-x86"]))
	pod = ns.WaitPod(t, "crash", harness.Medium, ended)
	if end := terminated(pod); end.ExitCode != 21 || !strings.HasPrefix(end.Message, "HypervisorCrash: ") {
		t.Errorf("end of the container: code %d, %q; want 21 and HypervisorCrash", end.ExitCode, end.Message)
	}
	ns.WaitPod(t, "crash", harness.Medium, func(pod *corev1.Pod) error {
		if pod.Status.ContainerStatuses[0].RestartCount == 0 {
			return errors.New("not restarted")
		}
		if thorough() {
			return nil // timeAnswer is in time
		}
		return harness.Ready(pod)
	})
	timeAnswer(t, ns, pod)
	if now := guestNetwork(t, ns, pod); now != network {
		t.Errorf("guest and CNI plugin had\n%s\nand have\n%s", network, now)
	}
	if previous := previousLog(t, ns, "crash"); !strings.Contains(previous, "podvirt-tiny: ready after") ||
		!strings.Contains(previous, `"reason":"HypervisorCrash"`) {
		t.Errorf("the log of the container before lacks the guest's boot or our last line:\n%s", previous)
	}
}

// guestNetwork is the guest's MAC, addresses and routes, and the CNI plugin's journal of the Pod with the time of its last
// change; nothing where there is no time for it.
func guestNetwork(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) string {
	t.Helper()
	if !thorough() {
		return ""
	}
	const own = "cat /sys/class/net/eth0/address; ip -o -4 addr show dev eth0 | sed 's/ valid_lft.*//'; ip route"
	return sh(t, ns, net.JoinHostPort(pod.Status.PodIP, "8080"), own) + ns.OnNode(t, pod.Spec.NodeName, "sh", "-c",
		"cd /run/podvirt/cni/attachments && stat -c '%n %i %y' $(grep -l "+string(pod.UID)+" *.json)")
}

// timeAnswer prints how long after its boot a guest answers on the Pod's address, where there is time for it.
func timeAnswer(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	t.Helper()
	if !thorough() {
		return
	}
	ns.WaitLog(t, pod.Name, api.ContainerName, "podvirt-tiny: ready after", harness.Medium)
	booted := time.Now()
	mustCurl(t, ns, "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")+"/")
	t.Logf("the guest that was up again answered on the Pod's address within %s", time.Since(booted).Round(time.Millisecond))
}

// TestLauncherKilled shows that the launcher is not in the guest's way: killed, it comes back and has the running guest
// again, whose clock, memory and connections never noticed (VM-125).
func TestLauncherKilled(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, newVM("keep", "guest-tiny").httpReady(8080).restart(corev1.RestartPolicyNever).manifest(t))
	pod := ns.WaitPod(t, "keep", harness.Medium, harness.Ready)
	session := ns.Shell(t, "client", "main", "nc", pod.Status.PodIP, "7")
	session.Send(t, "before\n")
	session.Expect(t, harness.Short, "before\r?\nbefore")
	old := vmProcesses(t, ns, pod)

	begin := time.Now()
	ns.OnNode(t, pod.Spec.NodeName, "kill", "-9", fmt.Sprint(old["launcher"]))
	harness.Eventually(t, harness.Short, "a new launcher with the guest", func(ctx context.Context) error {
		result, err := ns.TryExec(ctx, "keep", api.ContainerName, nil, "launcher", "ctl", "status")
		if err != nil || result.Code != 0 || !strings.Contains(result.Stdout, "running") {
			return fmt.Errorf("%+v: %w", result, err)
		}
		return nil
	})
	t.Logf("the launcher was back with the guest after %s", time.Since(begin).Round(time.Millisecond))

	now := vmProcesses(t, ns, pod)
	if now["launcher"] == old["launcher"] || now["launcher"] == 0 || now["qemu-system-x86"] != old["qemu-system-x86"] {
		t.Errorf("processes were %v and are %v; want another launcher and the same QEMU", old, now)
	}
	session.Send(t, "after\n")
	session.Expect(t, harness.Short, "after\r?\nafter")

	ctl(t, ns, "keep", "shutdown")
	pod = ns.WaitPod(t, "keep", harness.Medium, ended)
	if end := terminated(pod); end.ExitCode != 0 || !strings.HasPrefix(end.Message, "Stopped: ") {
		t.Errorf("end of the container: code %d, %q; want 0 and Stopped", end.ExitCode, end.Message)
	}
}
