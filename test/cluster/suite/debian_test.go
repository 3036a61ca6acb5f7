package suite

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/crypto/ssh"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// sshKey makes a key pair: the private half as OpenSSH reads it, and the line for authorized_keys.
func sshKey(t *testing.T) (private, public string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "test")
	if err != nil {
		t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), string(ssh.MarshalAuthorizedKey(line))
}

// seedSecret holds cloud-init data that makes a user, sets a host name by meta-data and serves a page.
func seedSecret(name, publicKey string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %s}
stringData:
  user-data: |
    #cloud-config
    users:
    - name: ops
      sudo: "ALL=(ALL) NOPASSWD:ALL"
      shell: /bin/bash
      lock_passwd: false
      plain_text_passwd: secret
      ssh_authorized_keys: [%q]
    write_files:
    - {path: /srv/www/index.html, content: "served by the guest\n"}
    runcmd:
    - [systemd-run, --unit=page, python3, -m, http.server, --bind, "::", --directory, /srv/www, "8080"]
`, name, strings.TrimSpace(publicKey))
}

// staticMAC is the address by which staticNetwork knows the NIC.
const staticMAC = "02:00:00:0d:eb:01"

// staticNetwork goes on with a Secret of seedSecret: a network configuration with addresses beside those of DHCP.
const staticNetwork = `
  network-config: |
    version: 2
    ethernets:
      pod:
        match: {macaddress: "` + staticMAC + `"}
        dhcp4: true
        dhcp6: true
        addresses: [10.10.10.14/24, "fd10:0:5::14/120"]
`

// guestSSH runs a command in a guest from the client Pod.
func guestSSH(ctx context.Context, ns *harness.Namespace, host, command string) (string, error) {
	return guestSSHAs(ctx, ns, "ops", host, command)
}

// guestSSHAs returns what a command in the guest prints, and an error unless it came whole: exec may lose the end of
// what a container says, without an error (kubernetes/kubernetes#124571).
func guestSSHAs(ctx context.Context, ns *harness.Namespace, user, host, command string) (string, error) {
	const end = "that-was-all"
	result, err := ns.TryExec(ctx, "client", "main", nil, "ssh", "-i", "/tmp/key", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", user+"@"+host,
		command+"\ncode=$?; echo "+end+"; exit $code")
	if err == nil && result.Code != 0 {
		err = fmt.Errorf("ssh ended with %d: %s", result.Code, result.Stderr)
	}
	out, whole := strings.CutSuffix(result.Stdout, end+"\n")
	if err == nil && !whole {
		err = fmt.Errorf("the answer has lost its end: %q", out)
	}
	return out, err
}

// putKey gives the client Pod the private key.
func putKey(t *testing.T, ns *harness.Namespace, private string) {
	t.Helper()
	result, err := ns.TryExec(t.Context(), "client", "main", strings.NewReader(private), "sh", "-c", "umask 077; cat > /tmp/key")
	if err != nil || result.Code != 0 {
		t.Fatalf("%+v, %v", result, err)
	}
}

func newDebian(name string) *vm {
	return newVM(name, "guest-debian").annotate(map[string]string{"memory": "512Mi"}).seed(name + "-seed")
}

// TestDebianGuest runs a distribution's cloud image as people do: configured by cloud-init, logged in to by ssh through a
// Service from another Pod, ready when the web server inside answers the kubelet.
func TestDebianGuest(t *testing.T) {
	ns := setUp(t, "guest-debian")
	private, public := sshKey(t)
	putKey(t, ns, private)
	ns.Apply(t, strings.TrimSpace(seedSecret("debian-seed", public))+staticNetwork)
	ns.Apply(t, service("debian", 22, 8080))
	ns.Apply(t, newDebian("debian").grace(180).annotate(map[string]string{
		"hostname": "named-by-podvirt", "nic.default": "mac=" + staticMAC,
	}).httpReady(8080).manifest(t))
	pod := ns.WaitPod(t, "debian", harness.Long, harness.Ready)
	svc, err := ns.Client.CoreV1().Services(ns.Name).Get(t.Context(), "debian", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	// The addresses of the user's network-config are there beside those of DHCP, and the way out is the Pod network's (VM-150).
	wants := []string{
		"ops\n", "named-by-podvirt\n", ns.Name + "/debian", " 10.0.2.2/24 ", " fd10:0:2::2/", " 10.10.10.14/24 ", " fd10:0:5::14/120 ", "default via 10.0.2.1 ",
	}
	harness.Eventually(t, harness.Medium, "ssh through the Service", func(ctx context.Context) error {
		out, err := guestSSH(ctx, ns, svc.Spec.ClusterIP,
			"id -un; hostname; cloud-init query instance_id; ip -o addr show scope global; ip route show default")
		for _, want := range wants {
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("the guest lacks %q:\n%s", want, out)
			}
		}
		return err
	})
	t.Run("name of a Service", func(t *testing.T) {
		got, err := guestSSH(t.Context(), ns, svc.Spec.ClusterIP, "getent hosts kubernetes.default.svc.cluster.local || resolvectl status")
		if err != nil || !strings.Contains(got, "kubernetes.default") {
			t.Errorf("the guest resolves %q, %v", got, err)
		}
	})
	t.Run("web page", func(t *testing.T) {
		if body := mustCurl(t, ns, "http://"+svc.Spec.ClusterIP+":8080/"); body != "served by the guest\n" {
			t.Errorf("page: %q", body)
		}
	})
	t.Run("log", func(t *testing.T) {
		ns.WaitLog(t, "debian", api.ContainerName, "named-by-podvirt ttyS0", harness.Medium)
	})
	t.Run("login on the console", func(t *testing.T) {
		term := ns.Shell(t, "debian", api.ContainerName, "launcher", "ctl", "console")
		term.Send(t, "\n")
		term.Expect(t, harness.Medium, "login:")
		term.Send(t, "ops\n")
		term.Expect(t, harness.Medium, "Password:")
		term.Send(t, "secret\n")
		term.Expect(t, harness.Medium, `ops@named-by-podvirt.*\$`)
	})
	t.Run("guest agent", func(t *testing.T) {
		if got := ctl(t, ns, "debian", "agent", "os"); !strings.Contains(got, "Debian") {
			t.Errorf("agent os: %s", got)
		}
		ns.Exec(t, "debian", api.ContainerName, "launcher", "probe", "agent")
	})
	guest := func(command string) string {
		var out string
		harness.Eventually(t, harness.Medium, command, func(ctx context.Context) error {
			out, err = guestSSH(ctx, ns, pod.Status.PodIP, command) // also while no Service has it
			return err
		})
		return out
	}
	t.Run("agent tells what the guest says", func(t *testing.T) { checkAgentData(t, ns, "debian", guest) })
	t.Run("probes", func(t *testing.T) { checkProbes(t, ns, "debian", guest) })
	t.Run("clock after a pause", func(t *testing.T) { checkPause(t, ns, "debian", guest) })
	t.Run("readiness", func(t *testing.T) { checkReadiness(t, ns, "debian", guest) })
	t.Run("shutdown by the agent", func(t *testing.T) { checkSeenOff(t, ns, "debian") })
}

// rootFromImage fills a claim with the disk of an image: what an import does in one step later.
func rootFromImage(t *testing.T, ns *harness.Namespace, claim, guest string) {
	t.Helper()
	ns.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: fill}
spec:
  restartPolicy: Never
  securityContext: {runAsNonRoot: true, runAsUser: 107, runAsGroup: 107, fsGroup: 107, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: localhost/podvirt/launcher:dev
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, "qemu-img convert -O raw /source/disk/*.qcow2 /disk/disk.img"]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: disk, mountPath: /disk}, {name: source, mountPath: /source}]
  volumes:
  - {name: disk, persistentVolumeClaim: {claimName: %s}}
  - {name: source, image: {reference: "localhost/podvirt/%s:dev", pullPolicy: IfNotPresent}}
`, claim, guest))
	ns.WaitPod(t, "fill", harness.Long, harness.Phase(corev1.PodSucceeded))
	deletePod(t, ns, "fill")
}

// TestDeploymentStopStart scales a VM 1, 0, 1: the guest shuts down cleanly inside its grace period, and its next boot
// finds nothing to repair, runs nothing of cloud-init again and has what was edited meanwhile. All that it is told is a
// key (VM-155).
func TestDeploymentStopStart(t *testing.T) {
	ns := setUp(t, "guest-debian")
	private, public := sshKey(t)
	putKey(t, ns, private)
	ns.Apply(t, keysSecret("db-keys", public))
	ns.Apply(t, pvc("db-root", corev1.PersistentVolumeFilesystem, "4Gi"))
	rootFromImage(t, ns, "db-root", "guest-debian")
	guest := newVM("db", "guest-debian").annotate(map[string]string{"memory": "512Mi"}).keys("ops", "db-keys").
		claim("root", corev1.PersistentVolumeFilesystem).agentReady()
	ns.Apply(t, service("db", 22))
	svc, err := ns.Client.CoreV1().Services(ns.Name).Get(t.Context(), "db", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	ns.Apply(t, guest.deployment(t, 1))
	waitDeployment(t, ns, "db", 1)
	inGuest := func(command string) string {
		var out string
		harness.Eventually(t, harness.Long, command, func(ctx context.Context) error {
			var err error
			out, err = guestSSHAs(ctx, ns, "debian", svc.Spec.ClusterIP, command)
			return err
		})
		return out
	}
	harness.Eventually(t, harness.Medium, "login of the user that the Secret is mounted for", func(ctx context.Context) error {
		_, err := guestSSH(ctx, ns, svc.Spec.ClusterIP, "true")
		return err
	})
	const onceOnly = "cat /etc/ssh/ssh_host_*.pub; ls /var/lib/cloud/instances"
	identity := inGuest(onceOnly)
	checkAgentReadiness(t, ns, onlyPod(t, ns, api.LabelVM+"=db"))
	inGuest("sudo sh -c 'mkdir -p /var/log/journal && journalctl --flush; echo kept > /root/note; sync'")
	first := inGuest("cat /proc/sys/kernel/random/boot_id")

	ns.Apply(t, guest.deployment(t, 0))
	waitDeployment(t, ns, "db", 0)
	ns.Apply(t, guest.annotate(map[string]string{"memory": "480Mi"}).deployment(t, 1))
	waitDeployment(t, ns, "db", 1)

	if again := inGuest(onceOnly); again != identity {
		t.Errorf("host keys and instances of cloud-init were\n%s\nand are\n%s", identity, again)
	}
	if status := ctl(t, ns, onlyPod(t, ns, api.LabelVM+"=db").Name, "status", "-o", "json"); !strings.Contains(status, `"memoryMiB": 480`) {
		t.Errorf("the next start lacks what was edited:\n%s", status)
	}
	if second := inGuest("cat /proc/sys/kernel/random/boot_id"); second == first {
		t.Error("the guest was not booted again")
	}
	if note := inGuest("sudo cat /root/note"); note != "kept\n" {
		t.Errorf("note = %q", note)
	}
	before := inGuest("sudo journalctl --boot=-1 --no-pager --quiet")
	for _, want := range []string{"Reached target", "poweroff.target", "Journal stopped"} {
		if !strings.Contains(before, want) {
			t.Errorf("the journal of the boot before lacks %q; its end:\n%.2000s", want, before[max(0, len(before)-2000):])
		}
	}
	now := inGuest("sudo journalctl --boot=0 --no-pager --quiet; sudo dmesg")
	for _, trouble := range []string{"recovering journal", "recovery required", "orphan inode", "uncleanly shut down"} {
		if strings.Contains(now, trouble) {
			t.Errorf("the next boot says %q", trouble)
		}
	}
}

// waitDeployment waits until a Deployment has this many ready VMs and no Pod besides.
func waitDeployment(t *testing.T, ns *harness.Namespace, name string, replicas int) {
	t.Helper()
	harness.Eventually(t, harness.Long, fmt.Sprintf("%d VMs of %s", replicas, name), func(ctx context.Context) error {
		list, err := ns.Client.CoreV1().Pods(ns.Name).List(ctx, metav1.ListOptions{LabelSelector: api.LabelVM + "=" + name})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if harness.Ready(&list.Items[i]) == nil {
				ready++
			}
		}
		if ready != replicas || len(list.Items) != replicas {
			return fmt.Errorf("%d Pods, %d ready; want %d", len(list.Items), ready, replicas)
		}
		return nil
	})
}
