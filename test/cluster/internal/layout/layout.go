// Package layout says where everything of the local cluster is: directories, names and addresses.
package layout

import (
	"fmt"
	"path/filepath"
)

// Addresses of the cluster. The machines sit on a bridge inside the control machine's network namespace, so that of all
// this the host sees one interface, HostLink.
const (
	HostLink     = "podvirt0"
	HostAddress4 = "10.197.0.1"
	HostAddress6 = "fd10:197::1"
	MachineNet4  = "10.197.0.0/24"
	MachineNet6  = "fd10:197::/64"
	PodNet4      = "10.198.0.0/16"
	PodNet6      = "fd10:198::/56"
	ServiceNet4  = "10.199.0.0/16"
	ServiceNet6  = "fd10:199::/112"
	APIService4  = "10.199.0.1" // the first address of ServiceNet4: Service default/kubernetes
	Domain       = "cluster.local"
	APIPort      = 6443
)

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
}

// FromEnv reads PODVIRT_STATE and PODVIRT_CACHE.
func FromEnv(getenv func(string) string) (Layout, error) {
	l := Layout{State: getenv("PODVIRT_STATE"), Cache: getenv("PODVIRT_CACHE"), Nodes: 2}
	if l.State == "" {
		l.State = "/var/lib/podvirt-local"
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

// Machines returns the control machine and the nodes, in this order.
func (l Layout) Machines() []Machine {
	machines := []Machine{machine(0)}
	for i := 1; i <= l.Nodes; i++ {
		machines = append(machines, machine(i))
	}
	return machines
}

func machine(index int) Machine {
	name := Control
	if index > 0 {
		name = fmt.Sprintf("node%d", index)
	}
	m := Machine{
		Name: name, Index: index,
		Address4: fmt.Sprintf("10.197.0.%d", 10+index),
		Address6: fmt.Sprintf("fd10:197::%x", 0x10+index),
	}
	if index > 0 {
		m.PodNet4 = fmt.Sprintf("10.198.%d.0/24", index)
		m.PodNet6 = fmt.Sprintf("fd10:198:0:%x::/64", index)
	}
	return m
}

// APIServer is the URL of the API server, reachable from the host and from every machine.
func (l Layout) APIServer() string {
	return fmt.Sprintf("https://%s:%d", machine(0).Address4, APIPort)
}

// Kubeconfig is the administrator's.
func (l Layout) Kubeconfig() string { return filepath.Join(l.State, "kubeconfig") }

// PKI is the directory of keys and certificates.
func (l Layout) PKI() string { return filepath.Join(l.State, "pki") }

// Bin is the directory of the programs, keyed by version.
func (l Layout) Bin() string { return filepath.Join(l.Cache, "bin") }

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
