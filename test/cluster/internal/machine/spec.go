// Package machine runs one machine of the local cluster: a set of namespaces (mount, network, PID, UTS, IPC, cgroup) with
// a root file system of its own, whose PID 1 is this program.
//
// Everything hangs on PID 1: when it dies, the kernel kills every process of the machine and drops its mounts and network
// devices. That is how the cluster leaves nothing behind, also when it is killed.
package machine

import (
	"encoding/json"
	"os"

	"podvirt.dev/internal/atomicfile"
)

// Spec says what a machine is.
type Spec struct {
	Name     string
	Root     string // empty directory of the host over which the root file system is put together
	Var      string // directory of the host that becomes /var
	Opt      string // directory of the host that becomes /opt
	Etc      string // directory of the host that takes what is written to /etc
	Binds    []Bind
	Loops    []Loop
	Sysctls  map[string]string
	NFTables string // rules loaded into the machine's network namespace
	Programs []Program
	Digest   string // of the machine's configuration files
}

// Bind makes a directory of the host visible, read-only, at a path of the machine.
type Bind struct{ From, To string }

// Loop mounts an XFS image file of the host at a path of the machine.
type Loop struct{ Image, To string }

// Program is started in order and restarted for ever. Paths are those of the machine.
type Program struct {
	Name  string
	Argv  []string
	Ready string // "unix:PATH" or "tcp:ADDRESS": the next program starts when this accepts connections
}

// Load reads a spec.
func Load(path string) (Spec, error) {
	var s Spec
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// Save writes a spec and says whether it differs from what was there.
func (s Spec) Save(path string) (changed bool, err error) {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return false, err
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return false, nil
	}
	return true, atomicfile.Write(path, data, 0o644)
}
