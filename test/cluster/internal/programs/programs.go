// Package programs builds the programs of a Kubernetes cluster from the Go module proxy.
//
// Which versions is said by the go.mod files below test/programs, whose tool lines pin them; a program is built once per
// version, Go release and set of options, and kept in the cache.
package programs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program is one binary to build.
type Program struct {
	Name    string
	Module  string // folder below test/programs
	Package string
	Version string // path of the module whose version counts
	Tags    string
	LDFlags string // %s stands for the version
	NoCGO   bool
}

const (
	kubernetes = "k8s.io/kubernetes"
	containerd = "github.com/containerd/containerd/v2"
	plugins    = "github.com/containernetworking/plugins"
	runc       = "github.com/opencontainers/runc"
	etcd       = "go.etcd.io/etcd/server/v3"
	coredns    = "github.com/coredns/coredns"
	multus     = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4"
	metrics    = "sigs.k8s.io/metrics-server"
)

// All returns the programs of the cluster.
func All() []Program {
	var all []Program
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"} {
		all = append(all, Program{
			Name: name, Module: "kubernetes", Package: kubernetes + "/cmd/" + name, Version: kubernetes,
			NoCGO:   true, // as the images are built, whose packages are compiled already then
			LDFlags: "-X k8s.io/component-base/version.gitVersion=%[1]s -X k8s.io/client-go/pkg/version.gitVersion=%[1]s",
		})
	}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		all = append(all, Program{
			Name: name, Module: "containerd", Package: containerd + "/cmd/" + name, Version: containerd,
			LDFlags: "-X github.com/containerd/containerd/v2/version.Version=%[1]s",
		})
	}
	for _, name := range []string{"main/ptp", "main/loopback", "ipam/host-local", "meta/portmap"} {
		all = append(all, Program{
			Name: filepath.Base(name), Module: "network", Package: plugins + "/plugins/" + name, Version: plugins, NoCGO: true,
		})
	}
	return append(all,
		Program{Name: "runc", Module: "containerd", Package: runc, Version: runc, Tags: "seccomp", LDFlags: "-X main.version=%[1]s"},
		Program{Name: "etcd", Module: "etcd", Package: etcd, Version: etcd, NoCGO: true},
		Program{Name: "coredns", Module: "dns", Package: ".", Version: coredns, NoCGO: true, LDFlags: "-X github.com/coredns/coredns/coremain.GitCommit=%[1]s"},
	)
}

// Multus returns the programs of Multus, which a cluster has only while a test wants it: the thin plugin, and the thick one's
// two halves.
func Multus() []Program {
	var all []Program
	for _, name := range []string{"multus", "multus-shim", "multus-daemon"} {
		all = append(all, Program{Name: name, Module: "multus", Package: multus + "/cmd/" + name, Version: multus, NoCGO: true})
	}
	return all
}

// Metrics returns metrics-server, which a cluster has only while a test wants it.
func Metrics() []Program {
	return []Program{{Name: "metrics-server", Module: "metrics", Package: metrics + "/cmd/metrics-server", Version: metrics, NoCGO: true}}
}

// Builder builds into a directory.
type Builder struct {
	Modules string // the folder test/programs
	Bin     string
	Log     io.Writer
}

// Build makes sure that every program is there and returns their paths by name. What is there already is not built again.
func (b Builder) Build(ctx context.Context, all []Program) (map[string]string, error) {
	release, err := output(ctx, b.Modules, "go", "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.Bin, 0o755); err != nil {
		return nil, err
	}
	paths := make(map[string]string, len(all))
	for _, p := range all {
		path, err := b.build(ctx, p, strings.TrimSpace(release))
		if err != nil {
			return nil, fmt.Errorf("building %s: %w", p.Name, err)
		}
		paths[p.Name] = path
	}
	return paths, nil
}

func (b Builder) build(ctx context.Context, p Program, release string) (string, error) {
	dir := filepath.Join(b.Modules, p.Module)
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", err
	}
	version, err := moduleVersion(string(mod), p.Version)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%v\n%s", release, p, mod))
	path := filepath.Join(b.Bin, fmt.Sprintf("%s-%s-%x", p.Name, version, key[:4]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(b.Log, "building %s %s\n", p.Name, version)
	tmp := path + ".tmp"
	args := []string{"build", "-trimpath", "-buildvcs=false", "-o", tmp}
	if p.Tags != "" {
		args = append(args, "-tags", p.Tags)
	}
	if p.LDFlags != "" {
		args = append(args, "-ldflags", fmt.Sprintf(p.LDFlags, version))
	}
	cmd := exec.CommandContext(ctx, "go", append(args, p.Package)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, b.Log, b.Log
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	if p.NoCGO {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	}
	if err := cmd.Run(); err != nil {
		return "", errors.Join(err, ignoreAbsent(os.Remove(tmp)))
	}
	return path, os.Rename(tmp, path)
}

// moduleVersion finds the required version of a module in the text of a go.mod.
func moduleVersion(mod, path string) (string, error) {
	for line := range strings.Lines(mod) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && fields[0] == path && strings.HasPrefix(fields[1], "v") {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("go.mod does not require %s", path)
}

func output(ctx context.Context, dir string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, stderr.String())
	}
	return string(out), nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
