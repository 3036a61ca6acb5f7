package plan

import (
	"context"
	"path/filepath"
	"strconv"

	"podvirt.dev/test/cluster/internal/layout"
	"podvirt.dev/test/cluster/internal/machine"
	"podvirt.dev/test/cluster/internal/pki"
)

const etcdAddress = "127.0.0.1:2379"

func (p Planner) writeControl(_ context.Context, m layout.Machine) (machine.Spec, error) {
	spec, conf, err := p.base(m)
	if err != nil {
		return spec, err
	}
	err = p.take(conf, authority+".crt", authority+".key", frontAuthority+".crt", accountKey+".key", accountKey+".pub",
		"apiserver.crt", "apiserver.key", "kubelet-client.crt", "kubelet-client.key", "front-proxy-client.crt", "front-proxy-client.key")
	if err != nil {
		return spec, err
	}
	keys := pki.Dir(p.Layout.PKI())
	for _, name := range []string{"controller-manager", "scheduler", dnsUser} {
		if err := keys.Kubeconfig(filepath.Join(conf, name+".kubeconfig"), p.Layout.APIServer(), authority, name); err != nil {
			return spec, err
		}
	}
	if err := writeAll(conf, map[string]string{"Corefile": corefile}); err != nil {
		return spec, err
	}
	spec.Programs = []machine.Program{p.etcd(), p.apiServer(m), p.controllerManager(), p.scheduler(), p.dns()}
	return spec, nil
}

// etcd does without fsync: what it holds dies with the cluster, and the disk is shared with the tests.
func (p Planner) etcd() machine.Program {
	return machine.Program{
		Name: "etcd", Ready: "tcp:" + etcdAddress,
		Argv: []string{
			p.Programs["etcd"], "--name=local", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=http://" + etcdAddress, "--advertise-client-urls=http://" + etcdAddress,
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=local=http://127.0.0.1:2380", "--quota-backend-bytes=2147483648",
			"--auto-compaction-mode=periodic", "--auto-compaction-retention=10m",
		},
	}
}

func (p Planner) apiServer(m layout.Machine) machine.Program {
	network := p.Layout.Network()
	port := strconv.Itoa(layout.APIPort)
	return machine.Program{
		Name: "kube-apiserver", Ready: "tcp:" + m.Address4 + ":" + port,
		Argv: []string{
			p.Programs["kube-apiserver"],
			"--advertise-address=" + m.Address4, "--bind-address=::", "--secure-port=" + port,
			"--etcd-servers=http://" + etcdAddress,
			"--client-ca-file=" + machinePKI.Cert(authority),
			"--tls-cert-file=" + machinePKI.Cert("apiserver"), "--tls-private-key-file=" + machinePKI.Key("apiserver"),
			"--kubelet-certificate-authority=" + machinePKI.Cert(authority),
			"--kubelet-client-certificate=" + machinePKI.Cert("kubelet-client"),
			"--kubelet-client-key=" + machinePKI.Key("kubelet-client"),
			"--kubelet-preferred-address-types=InternalIP",
			"--requestheader-client-ca-file=" + machinePKI.Cert(frontAuthority),
			"--requestheader-allowed-names=front-proxy-client", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
			"--proxy-client-cert-file=" + machinePKI.Cert("front-proxy-client"),
			"--proxy-client-key-file=" + machinePKI.Key("front-proxy-client"),
			"--service-account-issuer=https://kubernetes.default.svc." + layout.Domain,
			"--service-account-key-file=" + string(machinePKI) + "/" + accountKey + ".pub",
			"--service-account-signing-key-file=" + machinePKI.Key(accountKey),
			"--service-cluster-ip-range=" + network.ServiceNet4 + "," + network.ServiceNet6,
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--enable-aggregator-routing", // no kube-proxy runs beside the API server
		},
	}
}

func (p Planner) controllerManager() machine.Program {
	network := p.Layout.Network()
	config := confDir + "/controller-manager.kubeconfig"
	return machine.Program{
		Name: "kube-controller-manager",
		Argv: []string{
			p.Programs["kube-controller-manager"],
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials",
			"--cluster-cidr=" + network.PodNet4 + "," + network.PodNet6, "--allocate-node-cidrs=false",
			"--service-cluster-ip-range=" + network.ServiceNet4 + "," + network.ServiceNet6,
			"--root-ca-file=" + machinePKI.Cert(authority),
			"--cluster-signing-cert-file=" + machinePKI.Cert(authority), "--cluster-signing-key-file=" + machinePKI.Key(authority),
			"--service-account-private-key-file=" + machinePKI.Key(accountKey),
		},
	}
}

func (p Planner) scheduler() machine.Program {
	config := confDir + "/scheduler.kubeconfig"
	return machine.Program{
		Name: "kube-scheduler",
		Argv: []string{
			p.Programs["kube-scheduler"],
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--leader-elect=false",
		},
	}
}

func (p Planner) dns() machine.Program {
	return machine.Program{Name: "coredns", Argv: []string{p.Programs["coredns"], "-conf=" + confDir + "/Corefile"}}
}
