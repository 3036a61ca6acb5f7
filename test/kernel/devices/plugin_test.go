package devices

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/kubelettest"
	"podvirt.dev/internal/transcript"
)

// node is a node with the built device plugin and the kubelet's side of its protocols.
type node struct {
	t       *testing.T
	api     *api
	kubelet *kubelettest.Kubelet
	root    string
	args    []string
	cmd     *exec.Cmd
	log     transcript.Transcript
}

// newNode makes the directories of a host and starts everything but the plugin.
func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, root: kubelettest.ShortDir(t)}
	for _, dir := range []string{"run", "facts", "registry", "seccomp", "cdi", "bin"} {
		if err := os.MkdirAll(n.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var kubeconfig string
	n.api, kubeconfig = startAPI(t)
	n.kubelet, _ = kubelettest.Start(t, n.path("registry"), "")
	n.kubelet.ServeHolders(t, n.path("pods.sock"))
	n.args = []string{
		"--node-name=" + nodeName, "--instance=uid-1", "--kubeconfig=" + kubeconfig, "--metrics=127.0.0.1:9443", "-v=2",
		"--dev=/dev", "--sysfs=/sys", "--run=" + n.path("run"), "--facts-dir=" + n.path("facts"), "--plugin-dir=" + n.path("registry"),
		"--seccomp-dir=" + n.path("seccomp"), "--cdi-dir=" + n.path("cdi"), "--hook-dir=" + n.path("bin"), "--hook=/bin/device-hook",
		"--journal=" + n.path("devices.json"), "--pod-resources=" + n.path("pods.sock"),
	}
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			t.Logf("log of the plugin:\n%s\nevents:\n%s", n.log.String(), n.api.said())
		}
	})
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.root, name) }

// start starts the plugin.
func (n *node) start() {
	n.t.Helper()
	n.cmd = exec.Command("/bin/device-plugin", n.args...)
	n.cmd.Stderr = &n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
}

// kill ends the plugin as nothing can be prepared for.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// eventually polls until ok. Everything is slower here than on a machine.
func (n *node) eventually(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	kubelettest.Eventually(t, limit, what, ok)
	return time.Since(start)
}

// shell runs commands of busybox.
func shell(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// functions returns the addresses of the PCI functions of an id, vendor:device, sorted.
func functions(t *testing.T, id string) []string {
	t.Helper()
	vendor, device, _ := strings.Cut(id, ":")
	all, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, dir := range all {
		if read(dir+"/vendor") == "0x"+vendor && read(dir+"/device") == "0x"+device {
			found = append(found, filepath.Base(dir))
		}
	}
	return found
}

func one(t *testing.T, id string) string {
	t.Helper()
	found := functions(t, id)
	if len(found) != 1 {
		t.Fatalf("%d functions %s; want one", len(found), id)
	}
	return found[0]
}

func read(file string) string {
	data, _ := os.ReadFile(file) // what is not there is ""
	return strings.TrimSpace(string(data))
}

// link returns the last part of what a link of a function names, "" where there is none.
func link(address, name string) string {
	target, err := os.Readlink("/sys/bus/pci/devices/" + address + "/" + name)
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}
