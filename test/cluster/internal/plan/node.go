package plan

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/machine"
	"podvirt.dev/test/cluster/internal/pki"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	programDir       = "podvirt-local/bin" // below /opt
	cniDir           = "cni/bin"           // below /opt
)

func (p Planner) writeNode(ctx context.Context, m layout.Machine) (machine.Spec, error) {
	spec, conf, err := p.base(m)
	if err != nil {
		return spec, err
	}
	if err := p.nodeKeys(m, conf); err != nil {
		return spec, err
	}
	if err := writeAll(conf, map[string]string{
		"containerd.toml": containerdConfig,
		"kubelet.yaml":    kubeletConfig(p.Layout.Network()),
		"proxy.yaml":      proxyConfig(p.Layout.Network()),
		"cni.conflist":    cniConfig(m),
		"resolv.conf":     resolvConf,
	}); err != nil {
		return spec, err
	}
	if err := p.installPrograms(spec.Opt); err != nil {
		return spec, err
	}
	// The installer of cni-bridge puts its own files beside these: only this one is ours to write.
	if err := writeAll(filepath.Join(spec.Etc, "upper/cni/net.d"), map[string]string{"10-local.conflist": cniConfig(m)}); err != nil {
		return spec, err
	}
	if err := makePool(ctx, p.Layout.Pool(m.Name)); err != nil {
		return spec, err
	}
	spec.Loops = []machine.Loop{{Image: p.Layout.Pool(m.Name), To: PoolPath}}
	spec.NFTables = nodeRules(p.Layout.Network(), m)
	spec.Programs = p.nodePrograms(m)
	return spec, nil
}

func (p Planner) nodeKeys(m layout.Machine, conf string) error {
	keys := pki.Dir(p.Layout.PKI())
	leaf := pki.Leaf{
		Name: m.Name, CommonName: "system:node:" + m.Name, Groups: []string{"system:nodes"},
		Hosts: []string{m.Name, m.Address4, m.Address6},
	}
	if err := keys.Leaf(authority, leaf); err != nil {
		return err
	}
	if err := p.take(conf, authority+".crt", m.Name+".crt", m.Name+".key"); err != nil {
		return err
	}
	for file, user := range map[string]string{"kubelet": m.Name, "proxy": "proxy"} {
		if err := keys.Kubeconfig(filepath.Join(conf, file+".kubeconfig"), p.Layout.APIServer(), authority, user); err != nil {
			return err
		}
	}
	return nil
}

// installPrograms links what containerd looks for by name, and copies the CNI plugins: installers replace files there.
func (p Planner) installPrograms(opt string) error {
	bin, cni := filepath.Join(opt, programDir), filepath.Join(opt, cniDir)
	for _, dir := range []string{bin, cni} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "runc", "kubectl"} {
		link := filepath.Join(bin, name)
		if target, err := os.Readlink(link); err == nil && target == p.Programs[name] {
			continue
		}
		if err := os.RemoveAll(link); err != nil {
			return err
		}
		if err := os.Symlink(p.Programs[name], link); err != nil {
			return err
		}
	}
	for _, name := range []string{"ptp", "loopback", "host-local", "portmap"} {
		data, err := os.ReadFile(p.Programs[name])
		if err != nil {
			return err
		}
		if err := writeIfOther(filepath.Join(cni, name), data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (p Planner) nodePrograms(m layout.Machine) []machine.Program {
	return []machine.Program{
		{
			Name: "containerd", Ready: "unix:" + containerdSocket,
			Argv: []string{p.Programs["containerd"], "--config=" + confDir + "/containerd.toml"},
		},
		{
			Name: "kubelet",
			Argv: []string{
				p.Programs["kubelet"], "--config=" + confDir + "/kubelet.yaml", "--kubeconfig=" + confDir + "/kubelet.kubeconfig",
				"--hostname-override=" + m.Name, "--node-ip=" + m.Address4 + "," + m.Address6,
				"--tls-cert-file=" + machinePKI.Cert(m.Name), "--tls-private-key-file=" + machinePKI.Key(m.Name),
			},
		},
		{
			Name: "kube-proxy",
			Argv: []string{p.Programs["kube-proxy"], "--config=" + confDir + "/proxy.yaml", "--hostname-override=" + m.Name},
		},
	}
}

func nodeRules(n layout.Network, m layout.Machine) string {
	return fmt.Sprintf(`table inet podvirt-local {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr %s ip daddr != { %s, %s } masquerade
		ip6 saddr %s ip6 daddr != { %s, %s } masquerade
	}
}
`, m.PodNet4, n.PodNet4, n.MachineNet4, m.PodNet6, n.PodNet6, n.MachineNet6)
}
