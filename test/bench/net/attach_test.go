package net

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"

	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/require"
)

// rounds is how many attachments of each kind are made, in turn.
const rounds = 100

// kind is a network to attach to, alone or behind the pod network.
type kind struct {
	name     string
	plugins  []map[string]any
	ifname   string
	annotate map[string]string
}

// kinds are our networks beside what upstream has for the same: a port of a bridge, guarded or not. The Pods that are VMs
// have nothing to stand beside, they are measured for their own sake.
func kinds(stateDir string) []kind {
	ours := func(more map[string]any) map[string]any {
		conf := map[string]any{"type": "cni-bridge", "stateDir": stateDir}
		maps.Copy(conf, more)
		return conf
	}
	stage := ours(map[string]any{"mode": "pod", "capabilities": map[string]bool{"io.kubernetes.cri.pod-annotations": true}})
	plain := map[string]any{"type": "bridge", "bridge": "up0"}
	return []kind{
		{name: "upstream bridge", plugins: []map[string]any{plain}, ifname: "net1"},
		{name: "bridge", plugins: []map[string]any{ours(map[string]any{"bridge": "our0"})}, ifname: "net1"},
		{name: "upstream bridge, MAC spoof check", plugins: []map[string]any{{"type": "bridge", "bridge": "up0", "macspoofchk": true}}, ifname: "net1"},
		{name: "bridge, MAC spoof check", plugins: []map[string]any{ours(map[string]any{"bridge": "our0", "macspoofchk": true})}, ifname: "net1"},
		{name: "upstream bridge, then the pod stage of no VM", plugins: []map[string]any{plain, stage}, ifname: "net1"},
		{name: "upstream bridge, then a wire to the VM", plugins: []map[string]any{plain, stage}, ifname: "net1",
			annotate: map[string]string{"podvirt.dev/vm": "web", "podvirt.dev/nic.default": "binding=wire"}},
		{name: "upstream bridge, then masquerade to the VM", plugins: []map[string]any{{
			"type": "bridge", "bridge": "up0", "ipam": map[string]any{"type": "static", "addresses": []any{map[string]any{"address": "192.0.2.2/24"}}},
		}, stage}, ifname: "net1", annotate: map[string]string{"podvirt.dev/vm": "web"}},
	}
}

// BenchmarkAttach calls ADD and DEL of each kind through libcni, as a runtime does, and reports medians and 99th percentiles
// in milliseconds.
func BenchmarkAttach(b *testing.B) {
	require.Root(b)
	bin := b.TempDir()
	build(b, "../../..", filepath.Join(bin, "cni-bridge"), "podvirt.dev/cni-bridge")
	for _, name := range []string{"main/bridge", "ipam/static"} {
		build(b, "../../programs/network", filepath.Join(bin, filepath.Base(name)), "github.com/containernetworking/plugins/plugins/"+name)
	}
	node := newNode(b)
	for b.Loop() {
		all := kinds(stateDir(b))
		took := make([]times, len(all))
		for range rounds {
			for i, k := range all {
				add, del := attach(b, bin, node, k)
				took[i].add, took[i].del = append(took[i].add, add), append(took[i].del, del)
			}
		}
		for i, k := range all {
			b.Logf("%-45s ADD %s, DEL %s", k.name, figures(took[i].add), figures(took[i].del))
		}
		b.ReportMetric(ratio(took[1].add, took[0].add), "ADD/upstream")
		b.ReportMetric(ratio(took[1].del, took[0].del), "DEL/upstream")
		b.ReportMetric(ratio(took[3].add, took[2].add), "guardedADD/upstream")
	}
}

// stateDir is in memory, as /run is.
func stateDir(b *testing.B) string {
	b.Helper()
	b.Setenv("TMPDIR", "/dev/shm")
	return b.TempDir()
}

type times struct{ add, del []time.Duration }

func figures(all []time.Duration) string {
	slices.Sort(all)
	return fmt.Sprintf("p50 %6.1f ms, p99 %6.1f ms", ms(all[len(all)/2]), ms(all[len(all)*99/100]))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ratio is that of the medians.
func ratio(ours, theirs []time.Duration) float64 {
	slices.Sort(ours)
	slices.Sort(theirs)
	return float64(ours[len(ours)/2]) / float64(theirs[len(theirs)/2])
}

func build(b *testing.B, dir, target, pkg string) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", target, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
}

// newNode makes the namespace that is the node, with a bridge for each side.
func newNode(b *testing.B) ns.NetNS {
	b.Helper()
	node, err := testutils.NewNS()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(node.Close(), testutils.UnmountNS(node)); err != nil {
			b.Error(err)
		}
	})
	err = node.Do(func(ns.NetNS) error {
		h, err := nl.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		for _, name := range []string{"our0", "up0"} {
			if err := h.AddBridge(name); err != nil {
				return err
			}
			link, err := h.Link(name)
			if err != nil {
				return err
			}
			if err := h.Set(link.Index, nl.Changes{Up: true}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return node
}

// attach makes one attachment in a namespace of its own, and takes it away.
func attach(b *testing.B, bin string, node ns.NetNS, k kind) (add, del time.Duration) {
	b.Helper()
	pod, err := testutils.NewNS()
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := errors.Join(pod.Close(), testutils.UnmountNS(pod)); err != nil {
			b.Error(err)
		}
	}()
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "bench", "plugins": k.plugins})
	if err != nil {
		b.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		b.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{bin}, b.TempDir(), nil)
	call := &libcni.RuntimeConf{
		ContainerID: filepath.Base(pod.Path()), NetNS: pod.Path(), IfName: k.ifname,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web"}},
	}
	if k.annotate != nil {
		call.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": k.annotate}
	}
	err = node.Do(func(ns.NetNS) error {
		began := time.Now()
		if _, err := cni.AddNetworkList(b.Context(), list, call); err != nil {
			return fmt.Errorf("ADD of %s: %w", k.name, err)
		}
		added := time.Now()
		if err := cni.DelNetworkList(b.Context(), list, call); err != nil {
			return fmt.Errorf("DEL of %s: %w", k.name, err)
		}
		add, del = added.Sub(began), time.Since(added)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return add, del
}
