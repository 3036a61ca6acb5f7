// Package plan decides what the machines of the local cluster are: certificates, configuration files and programs.
package plan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"podvirt.dev/internal/atomicfile"
	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/machine"
	"podvirt.dev/test/cluster/internal/pki"
)

// Names of files in the directory of keys.
const (
	authority      = "ca"
	frontAuthority = "front-proxy-ca"
	adminCert      = "admin"
	accountKey     = "service-account"
	dnsUser        = "coredns"
)

// confDir is where a machine finds its configuration.
const confDir = "/etc/kubernetes"

// machinePKI is where a machine finds its keys.
const machinePKI = pki.Dir(confDir + "/pki")

// Planner turns a layout into machines.
type Planner struct {
	Layout   layout.Layout
	Programs map[string]string // paths by name
}

// Write writes everything that the machines need and says whether any of their specs changed.
func (p Planner) Write(ctx context.Context) (changed bool, err error) {
	if err := p.keys(); err != nil {
		return false, fmt.Errorf("keys: %w", err)
	}
	for _, m := range p.Layout.Machines() {
		write := p.writeNode
		if m.Name == layout.Control {
			write = p.writeControl
		}
		spec, err := write(ctx, m)
		if err != nil {
			return false, fmt.Errorf("machine %s: %w", m.Name, err)
		}
		if spec.Digest, err = digest(filepath.Join(p.Layout.Machine(m.Name), "conf")); err != nil {
			return false, err
		}
		differs, err := spec.Save(p.Layout.Spec(m.Name))
		if err != nil {
			return false, err
		}
		changed = changed || differs
	}
	return changed, nil
}

// keys makes what is signed once for the whole cluster.
func (p Planner) keys() error {
	d := pki.Dir(p.Layout.PKI())
	for _, name := range []string{authority, frontAuthority} {
		if err := d.Authority(name); err != nil {
			return err
		}
	}
	if err := d.SigningKey(accountKey); err != nil {
		return err
	}
	control := p.Layout.Machines()[0]
	masters := []string{"system:masters"}
	leaves := []pki.Leaf{
		{Name: "apiserver", CommonName: "kube-apiserver", Hosts: []string{
			control.Address4, control.Address6, p.Layout.Network().APIService4, "127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default",
			"kubernetes.default.svc", "kubernetes.default.svc." + layout.Domain,
		}},
		{Name: "kubelet-client", CommonName: "kube-apiserver-kubelet-client", Groups: masters},
		{Name: adminCert, CommonName: "kubernetes-admin", Groups: masters},
		{Name: "controller-manager", CommonName: "system:kube-controller-manager"},
		{Name: "scheduler", CommonName: "system:kube-scheduler"},
		{Name: dnsUser, CommonName: "system:" + dnsUser},
		{Name: "proxy", CommonName: "system:kube-proxy"},
	}
	for _, leaf := range leaves {
		if err := d.Leaf(authority, leaf); err != nil {
			return err
		}
	}
	if err := d.Leaf(frontAuthority, pki.Leaf{Name: "front-proxy-client", CommonName: "front-proxy-client"}); err != nil {
		return err
	}
	return d.Kubeconfig(p.Layout.Kubeconfig(), p.Layout.APIServer(), authority, adminCert)
}

// base is what all machines have in common. The machine sees conf, a directory of the host, as confDir.
func (p Planner) base(m layout.Machine) (spec machine.Spec, conf string, err error) {
	dir := p.Layout.Machine(m.Name)
	conf = filepath.Join(dir, "conf")
	spec = machine.Spec{
		Name: m.Name,
		Root: filepath.Join(dir, "root"), Var: filepath.Join(dir, "var"), Opt: filepath.Join(dir, "opt"), Etc: filepath.Join(dir, "etc"),
		Binds: []machine.Bind{{From: p.Layout.Bin(), To: p.Layout.Bin()}, {From: conf, To: confDir}},
		Sysctls: map[string]string{
			"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv6.conf.all.accept_dad": "0",
			"net.ipv6.conf.default.accept_dad": "0", "net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.default.rp_filter": "0",
		},
	}
	for _, path := range []string{spec.Root, spec.Var, spec.Opt, spec.Etc, conf, filepath.Join(conf, "pki")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return spec, conf, err
		}
	}
	// Nodes must differ in what identifies a machine, and a bare host may lack files that containerd reads.
	hosts := []string{"127.0.0.1 localhost", "::1 localhost"}
	for _, other := range p.Layout.Machines() {
		hosts = append(hosts, other.Address4+" "+other.Name)
	}
	id := sha256.Sum256([]byte(p.Layout.State + "/" + m.Name))
	return spec, conf, writeAll(filepath.Join(spec.Etc, "upper"), map[string]string{
		"machine-id": hex.EncodeToString(id[:16]) + "\n", "hostname": m.Name + "\n", "hosts": strings.Join(hosts, "\n") + "\n", "resolv.conf": resolvConf,
	})
}

// take copies keys and certificates into a machine's directory: no machine sees those of another.
func (p Planner) take(conf string, names ...string) error {
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(p.Layout.PKI(), name))
		if err != nil {
			return err
		}
		if err := writeIfOther(filepath.Join(conf, "pki", name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func writeAll(dir string, files map[string]string) error {
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeIfOther(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeIfOther leaves a file alone that is as it should be: a running machine may have it open or under an overlay.
func writeIfOther(path string, content []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return atomicfile.Write(path, content, mode)
}

// digest changes when a file below dir does: programs read their configuration only when they start.
func digest(dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n%s", path, len(data), data)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}
