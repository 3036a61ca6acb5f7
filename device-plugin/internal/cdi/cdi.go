// Package cdi writes the Container Device Interface specifications by which the runtime gives devices and rights to a
// container (CDI 0.6, SPEC.md). No owner and no mode is written: the runtime makes the node for the container's own
// user, and the host's /dev stays as it is (devices.md 2.5).
package cdi

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"tags.cncf.io/container-device-interface/specs-go"

	"podvirt.dev/device-plugin/internal/hostfile"
)

// Vendor is the first part of the names of all our CDI devices.
const Vendor = "podvirt.dev"

// Any is the name of the CDI device of a kind whose units do not differ: kvm-17 and kvm-18 are the same file.
const Any = "any"

// version is the oldest CDI version that knows all we use.
const version = "0.6.0"

// Edit is what one CDI device does to a container.
type Edit struct {
	Nodes []string // device files of the host, given under the same paths, read and write
	Hook  []string // arguments of the device hook; empty: no hook
}

// Name returns the full name of a CDI device.
func Name(kind, id string) string { return Vendor + "/" + kind + "=" + id }

// File returns the specification of one kind with one device per entry of edits, as a file below dir.
// hook is the host's path of the device hook.
func File(dir, hook, kind string, edits map[string]Edit) (hostfile.File, error) {
	spec := specs.Spec{Version: version, Kind: Vendor + "/" + kind}
	for _, id := range slices.Sorted(maps.Keys(edits)) {
		edit := edits[id]
		spec.Devices = append(spec.Devices, specs.Device{Name: id, ContainerEdits: edit.container(hook)})
	}
	content, err := json.Marshal(spec)
	if err != nil {
		return hostfile.File{}, fmt.Errorf("CDI specification of %s: %w", kind, err)
	}
	return hostfile.File{Path: Path(dir, kind), Content: append(content, '\n'), Mode: 0o644}, nil
}

// Path returns where the specification of a kind is.
func Path(dir, kind string) string { return filepath.Join(dir, Vendor+"-"+kind+".json") }

func (e Edit) container(hook string) specs.ContainerEdits {
	var edits specs.ContainerEdits
	for _, node := range e.Nodes {
		edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{Path: node, Permissions: "rw"})
	}
	if len(e.Hook) > 0 {
		args := append([]string{filepath.Base(hook)}, e.Hook...)
		edits.Hooks = []*specs.Hook{{HookName: "createRuntime", Path: hook, Args: args}}
	}
	return edits
}
