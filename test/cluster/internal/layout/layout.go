// Package layout says where everything of the local cluster is: directories, names and addresses.
package layout

import (
	"fmt"
	"path/filepath"
	"strconv"
)

// Domain is the cluster's DNS domain; APIPort the API server's port.
const (
	Domain  = "cluster.local"
	APIPort = 6443
)

// Network holds the addresses of a cluster. The machines sit on a bridge inside the control machine's network namespace, so
// that of all this the host sees one interface, HostLink.
type Network struct {
	HostLink                   string
	HostAddress4, HostAddress6 string
	MachineNet4, MachineNet6   string
	PodNet4, PodNet6           string
	ServiceNet4, ServiceNet6   string
	APIService4, DNSService4   string // Services default/kubernetes and kube-system/kube-dns
}

// Control is the name of the machine that runs etcd, the API server, its controllers and the name server.
const Control = "control"

// Machine is one of the cluster's machines and its addresses.
type Machine struct {
	Name             string
	Index            int // 0 is the control machine, nodes count from 1
	Address4         string
	Address6         string
	PodNet4, PodNet6 string // empty on the control machine
}

// Layout is the cluster's place on this host.
type Layout struct {
	State string // what this cluster is: configuration, disks, records
	Cache string // what any cluster would build again the same way
	Nodes int

	// Prebuilt is a directory with every program by its plain name, this one as podvirt-local: nothing is built then.
	Prebuilt string

	// Instance tells clusters that run at the same time apart: 0 to 9. It decides names and addresses.
	Instance int
}

// FromEnv reads PODVIRT_STATE, PODVIRT_CACHE, PODVIRT_PREBUILT and PODVIRT_INSTANCE.
func FromEnv(getenv func(string) string) (Layout, error) {
	l := Layout{State: getenv("PODVIRT_STATE"), Cache: getenv("PODVIRT_CACHE"), Prebuilt: getenv("PODVIRT_PREBUILT"), Nodes: 2}
	if n := getenv("PODVIRT_INSTANCE"); n != "" {
		if len(n) != 1 || n < "0" || n > "9" {
			return Layout{}, fmt.Errorf("PODVIRT_INSTANCE: %q: want a digit", n)
		}
		l.Instance = int(n[0] - '0')
	}
	if l.State == "" {
		l.State = "/var/lib/" + l.Name()
	}
	if l.Cache == "" {
		l.Cache = "/var/cache/podvirt"
	}
	for name, dir := range map[string]string{"PODVIRT_STATE": l.State, "PODVIRT_CACHE": l.Cache} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return Layout{}, fmt.Errorf("%s: %q: want an absolute path below /", name, dir)
		}
	}
	return l, nil
}

// Env is the environment from which FromEnv makes the same layout.
func (l Layout) Env() []string {
	return []string{
		"PODVIRT_STATE=" + l.State, "PODVIRT_CACHE=" + l.Cache, "PODVIRT_PREBUILT=" + l.Prebuilt, "PODVIRT_INSTANCE=" + strconv.Itoa(l.Instance),
	}
}

// Name is the cluster's name on this host: of its control groups and its systemd unit.
func (l Layout) Name() string {
	if l.Instance == 0 {
		return "podvirt-local"
	}
	return "podvirt-local-" + strconv.Itoa(l.Instance)
}

// Network returns the cluster's addresses: three 10.x.0.0/16 per instance, beginning with 10.197.
func (l Layout) Network() Network {
	machines, pods, services := l.octet(), l.octet()+1, l.octet()+2
	return Network{
		HostLink:     fmt.Sprintf("podvirt%d", l.Instance),
		HostAddress4: fmt.Sprintf("10.%d.0.1", machines), HostAddress6: fmt.Sprintf("fd10:%d::1", machines),
		MachineNet4: fmt.Sprintf("10.%d.0.0/24", machines), MachineNet6: fmt.Sprintf("fd10:%d::/64", machines),
		PodNet4: fmt.Sprintf("10.%d.0.0/16", pods), PodNet6: fmt.Sprintf("fd10:%d::/56", pods),
		ServiceNet4: fmt.Sprintf("10.%d.0.0/16", services), ServiceNet6: fmt.Sprintf("fd10:%d::/112", services),
		APIService4: fmt.Sprintf("10.%d.0.1", services), DNSService4: fmt.Sprintf("10.%d.0.10", services),
	}
}

func (l Layout) octet() int { return 197 + 3*l.Instance }

// Machines returns the control machine and the nodes, in this order.
func (l Layout) Machines() []Machine {
	machines := []Machine{l.machine(0)}
	for i := 1; i <= l.Nodes; i++ {
		machines = append(machines, l.machine(i))
	}
	return machines
}

func (l Layout) machine(index int) Machine {
	name := Control
	if index > 0 {
		name = fmt.Sprintf("node%d", index)
	}
	m := Machine{
		Name: name, Index: index,
		Address4: fmt.Sprintf("10.%d.0.%d", l.octet(), 10+index),
		Address6: fmt.Sprintf("fd10:%d::%x", l.octet(), 0x10+index),
	}
	if index > 0 {
		m.PodNet4 = fmt.Sprintf("10.%d.%d.0/24", l.octet()+1, index)
		m.PodNet6 = fmt.Sprintf("fd10:%d:0:%x::/64", l.octet()+1, index)
	}
	return m
}

// APIServer is the URL of the API server, reachable from the host and from every machine.
func (l Layout) APIServer() string {
	return fmt.Sprintf("https://%s:%d", l.machine(0).Address4, APIPort)
}

// Kubeconfig is the administrator's.
func (l Layout) Kubeconfig() string { return filepath.Join(l.State, "kubeconfig") }

// PKI is the directory of keys and certificates.
func (l Layout) PKI() string { return filepath.Join(l.State, "pki") }

// Bin is the directory of the programs, keyed by version unless they are prebuilt.
func (l Layout) Bin() string {
	if l.Prebuilt != "" {
		return l.Prebuilt
	}
	return filepath.Join(l.Cache, "bin")
}

// Images is the directory of OCI archives, one NAME.tar each.
func (l Layout) Images() string { return filepath.Join(l.Cache, "images") }

// Machine is the directory of one machine; its subdirectory var is the machine's /var.
func (l Layout) Machine(name string) string { return filepath.Join(l.State, "machines", name) }

// Spec is the file that tells a machine what to be.
func (l Layout) Spec(name string) string { return filepath.Join(l.Machine(name), "spec.json") }

// Logs is the directory of a machine's program logs.
func (l Layout) Logs(name string) string { return filepath.Join(l.Machine(name), "log") }

// Pool is the image file of the XFS file system on which a node's storage pool lies.
func (l Layout) Pool(name string) string { return filepath.Join(l.Machine(name), "pool.img") }

// Record is the file in which the supervisor says which process is a machine's first.
func (l Layout) Record(name string) string { return filepath.Join(l.State, "run", name+".json") }
