package program

import (
	"encoding/json"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/internal/kubelettest"
)

// The whole plugin against a real API server, under the account, role and policy of the manifests, and a kubelet. Each
// step goes on from the one before.
func TestServe(t *testing.T) {
	b := newBench(t)
	b.stop = b.start("uid-1")
	for _, step := range []struct {
		name string
		run  func(*bench, *testing.T)
	}{
		{"what is known at once is offered at once", (*bench).atOnce},
		{"files of the host", (*bench).hostFiles},
		{"KVM after the facts", (*bench).kvmAfterFacts},
		{"which launcher took them", (*bench).launcherImage},
		{"ready", (*bench).ready},
		{"nothing is written when nothing is new", (*bench).nothingNew},
		{"the CNI plugin appears and goes", (*bench).cniPlugin},
		{"a driver is loaded", (*bench).driver},
		{"allocation", (*bench).allocation},
		{"a restart takes nothing away", (*bench).restart},
		{"KVM stops working", (*bench).kvmStops},
		{"configuration", (*bench).configuration},
		{"device classes", (*bench).deviceClasses},
		{"what the kubelet does with CPUs", (*bench).kubeletPolicies},
		{"the start-up taint", (*bench).startupTaint},
		{"labels of models", (*bench).modelLabels},
		{"skip-node", (*bench).skipNode},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(b, t) }) {
			return
		}
	}
}

func (b *bench) atOnce(t *testing.T) {
	kubelettest.Eventually(t, 5*second, "memlock", func() bool {
		return b.healthy("memlock") == 1000 && b.healthy("vhost-net") == 0 && b.healthy("tun") == 0
	})
	if b.healthy("kvm") != -1 || b.healthy("tun") != 0 || b.healthy("vhost-net") != 0 {
		t.Errorf("kvm %d, tun %d, vhost-net %d; want -1 (nobody knows), 0, 0", b.healthy("kvm"), b.healthy("tun"), b.healthy("vhost-net"))
	}
}

func (b *bench) hostFiles(t *testing.T) {
	for _, name := range []string{"cdi/podvirt.dev-kvm.json", "seccomp/podvirt/launcher.json", "bin/device-hook"} {
		if err := os.Remove(b.path(name)); err != nil {
			t.Error(err)
		}
		kubelettest.Eventually(t, second, name+" is back", func() bool { _, err := os.Stat(b.path(name)); return err == nil })
	}
}

func (b *bench) kvmAfterFacts(t *testing.T) {
	b.observe(api.AcceleratorKVM, "Haswell", "Nehalem")
	kubelettest.Eventually(t, 5*second, "kvm", func() bool { return b.healthy("kvm") == 1000 })
	kubelettest.Eventually(t, 5*second, "labels", func() bool { return b.node().Labels[api.NodeLabelSchedulable] == "true" })
	want := map[string]string{
		"kubernetes.io/hostname": nodeName, api.NodeLabelSchedulable: "true", api.NodeLabelAccelerator: "kvm",
		api.NodeLabelCPUVendor: "Intel", api.NodeLabelCPUModel: "Haswell",
	}
	if got := b.node().Labels; !maps.Equal(got, want) {
		t.Errorf("labels = %v; want exactly four of ours", got)
	}
	published, err := api.DecodeCPUFacts(b.node().Annotations[api.NodeCPU])
	if err != nil || !slices.Equal(published.Models, []string{"Haswell", "Nehalem"}) {
		t.Errorf("published %+v, %v", published, err)
	}
}

func (b *bench) launcherImage(t *testing.T) {
	b.runFacts("registry.example/podvirt/launcher@sha256:6c1d")
	kubelettest.Eventually(t, 15*second, "the image of the facts", func() bool {
		return strings.Contains(b.node().Annotations[api.NodeCPU], `"launcher":"sha256:6c1d"`)
	})
}

func (b *bench) ready(t *testing.T) {
	kubelettest.Eventually(t, 5*second, "ready", func() bool { code, _ := b.get("/readyz"); return code == http.StatusOK })
	_, metrics := b.get("/metrics")
	for _, line := range []string{
		`podvirt_device_units{resource="podvirt.dev/kvm",state="healthy"} 1000`, "podvirt_node_kvm 1", "podvirt_node_schedulable 1",
		`podvirt_device_registrations_total{reason="registered",resource="podvirt.dev/kvm"} 1`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
}

func (b *bench) nothingNew(t *testing.T) {
	before := b.node().ResourceVersion
	for range 20 {
		b.observe(api.AcceleratorKVM, "Haswell", "Nehalem")
	}
	_, metrics := b.get("/metrics")
	if after := b.node().ResourceVersion; after != before || !strings.Contains(metrics, `podvirt_node_facts_writes_total{annotation="podvirt.dev/cpu"} 2`) {
		t.Errorf("resourceVersion %s, then %s", before, after)
	}
}

func (b *bench) cniPlugin(t *testing.T) {
	if err := os.MkdirAll(b.path("run/cni"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.path("run/cni/called"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kubelettest.Eventually(t, 5*second, "tun", func() bool { return b.healthy("tun") == 1000 })
	if err := os.RemoveAll(b.path("run/cni")); err != nil {
		t.Fatal(err)
	}
	kubelettest.Eventually(t, 5*second, "no tun", func() bool { return b.healthy("tun") == 0 })
}

func (b *bench) driver(t *testing.T) {
	b.mknod("vhost-net", unix.Mkdev(10, 238))
	if f, err := os.OpenFile(b.path("dev/vhost-net"), os.O_RDWR, 0); err == nil {
		_ = f.Close()
		kubelettest.Eventually(t, 5*second, "vhost-net", func() bool { return b.healthy("vhost-net") == 1000 })
	} else { // a node in advance, and no driver behind it: this kernel has none
		_, metrics := b.get("/metrics")
		if b.healthy("vhost-net") != 0 || !strings.Contains(metrics, `podvirt_device_units{resource="podvirt.dev/vhost-net",state="healthy"} 0`) {
			t.Errorf("vhost-net = %d; want 0", b.healthy("vhost-net"))
		}
	}
}

func (b *bench) allocation(t *testing.T) {
	answer, err := b.kubelet.Allocate(t.Context(), api.ResourceKVM, "kvm-17")
	if err != nil || len(answer.CdiDevices) != 1 || answer.CdiDevices[0].Name != "podvirt.dev/kvm=any" || len(answer.Devices) != 0 {
		t.Errorf("Allocate = %v, %v", answer, err)
	}
}

func (b *bench) restart(t *testing.T) {
	if err := os.Remove(b.path("facts/" + facts.CPUFile)); err != nil { // the new Pod's launcher has not looked yet
		t.Fatal(err)
	}
	before := b.node().ResourceVersion
	b.stop()
	b.stop = b.start("uid-2")
	kubelettest.Eventually(t, 5*second, "kvm again", func() bool { return b.healthy("kvm") == 1000 })
	kubelettest.Eventually(t, 5*second, "ready", func() bool { code, _ := b.get("/readyz"); return code == http.StatusOK })
	if after := b.node().ResourceVersion; after != before {
		t.Error("the Node was written although nothing is new")
	}
}

func (b *bench) kvmStops(t *testing.T) {
	b.observe(api.AcceleratorTCG, "Haswell")
	kubelettest.Eventually(t, 5*second, "kvm 0", func() bool { return b.healthy("kvm") == 0 })
	kubelettest.Eventually(t, 15*second, "labels", func() bool {
		l := b.node().Labels
		return l[api.NodeLabelSchedulable] == "false" && l[api.NodeLabelAccelerator] == "tcg"
	})
	kubelettest.Eventually(t, 5*second, "event", func() bool {
		return strings.Contains(b.events(), "Normal "+nodeName+" FactsChanged: accelerator is tcg, was kvm")
	})
}

func (b *bench) configuration(t *testing.T) {
	b.configure(map[string]string{"emulation": "allow", "devices.capacity.kvm": "7"})
	kubelettest.Eventually(t, 15*second, "schedulable by emulation", func() bool { return b.node().Labels[api.NodeLabelSchedulable] == "true" })
	b.configure(map[string]string{"emulation": "perhaps"})
	kubelettest.Eventually(t, 5*second, "mistake counted", func() bool {
		_, metrics := b.get("/metrics")
		return strings.Contains(metrics, `podvirt_device_config_errors{key="emulation"} 1`)
	})
	if b.node().Labels[api.NodeLabelSchedulable] != "true" {
		t.Error("an invalid configuration was applied")
	}
}

func (b *bench) skipNode(t *testing.T) {
	b.annotate(api.NodeSkip, "true")
	b.annotate(api.NodeCPU, `{"v":1,"boot":"x","accelerator":"kvm"}`)
	b.observe(api.AcceleratorTCG, "EPYC")
	kubelettest.Eventually(t, 5*second, "the plugin has looked", func() bool { return b.healthy("kvm") == 0 })
	if text := b.node().Annotations[api.NodeCPU]; !strings.Contains(text, `"boot":"x"`) {
		t.Errorf("hand-made facts were overwritten: %s", text)
	}
	b.stop()
	b.stop = b.start("uid-3")
	kubelettest.Eventually(t, 5*second, "the plugin is back", func() bool { return b.healthy("tun") == 0 && b.healthy("kvm") == 0 })
	if text := b.node().Annotations[api.NodeCPU]; !strings.Contains(text, `"boot":"x"`) {
		t.Errorf("a restart overwrote hand-made facts: %s", text)
	}
	b.annotate(api.NodeSkip, "yes")
	kubelettest.Eventually(t, 5*second, "normal again", func() bool { return strings.Contains(b.node().Annotations[api.NodeCPU], "EPYC") })
	kubelettest.Eventually(t, 5*second, "event", func() bool { return strings.Contains(b.events(), `"yes": not one of true, false; nearest: true`) })
}

// Killed at any time, the plugin leaves no half-written file and the next one works: kill -9 of the real binary, again
// and again, at random points of its start.
func TestKilledAtAnyTime(t *testing.T) {
	b := newBench(t)
	b.observe(api.AcceleratorKVM, "Haswell")
	binary := filepath.Join(t.TempDir(), "device-plugin")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, filepath.Join(repository, "device-plugin")).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for round := range 40 {
		cmd := exec.CommandContext(t.Context(), binary, b.args("uid-killed")...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(round*round%200) * time.Millisecond) // spread over the start, which takes about 100 ms
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		b.wholeFiles()
	}
	b.start("uid-next")
	kubelettest.Eventually(t, 10*second, "kvm", func() bool { return b.healthy("kvm") == 1000 })
	kubelettest.Eventually(t, 10*second, "facts", func() bool { return b.node().Labels[api.NodeLabelSchedulable] == "true" })
	sockets, err := filepath.Glob(b.path("registry/*uid-killed*"))
	if err != nil || len(sockets) > 0 {
		t.Errorf("sockets of the dead: %v, %v", sockets, err)
	}
}

// wholeFiles checks that every file the plugin writes is there whole or not at all.
func (b *bench) wholeFiles() {
	b.t.Helper()
	for _, dir := range []string{"cdi", "seccomp/podvirt"} {
		entries, err := os.ReadDir(b.path(dir))
		if err != nil {
			continue // not made yet
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				continue // a temporary file, which nobody reads
			}
			text, err := os.ReadFile(b.path(dir + "/" + e.Name()))
			if err != nil || !json.Valid(text) {
				b.t.Errorf("%s/%s: %v, %d bytes", dir, e.Name(), err, len(text))
			}
			if info, err := e.Info(); err != nil || info.Mode() != fs.FileMode(0o644) {
				b.t.Errorf("%s/%s: mode %v, %v", dir, e.Name(), info.Mode(), err)
			}
		}
	}
}
