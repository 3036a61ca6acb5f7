package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/netconf"
)

// Settings are what the cluster's configuration says about the pod stage.
type Settings struct {
	Method  Method
	MACSalt *string  // nil: the UID of Namespace kube-system
	Names   []string // under which the binary is there too
	Stage   Stage
}

// Stage is the plugin's entry in a chain. What is left out has the plugin's default.
type Stage struct {
	CNIVersion       string          `json:"cniVersion,omitempty"`
	Type             string          `json:"type"`
	Mode             string          `json:"mode"`
	Capabilities     map[string]bool `json:"capabilities"`
	MACPrefix        string          `json:"macPrefix,omitempty"`
	MACSalt          string          `json:"macSalt,omitempty"`
	StateDir         string          `json:"stateDir,omitempty"`
	DefaultBinding   api.Binding     `json:"defaultBinding,omitempty"`
	SecondaryBinding api.Binding     `json:"secondaryBinding,omitempty"`
	AllowedBindings  []api.Binding   `json:"allowedBindings,omitempty"`
	V4CIDR           string          `json:"v4CIDR,omitempty"`
	V6CIDR           string          `json:"v6CIDR,omitempty"`
	ReservedPorts    []string        `json:"reservedPorts,omitempty"`
}

// launcherPorts is how many ports the launcher has from its port base on.
const launcherPorts = 4

// ReadSettings reads the keys of podvirt-config, one file each as the kubelet mounts a ConfigMap. An absent directory
// gives the defaults. Mistakes are all reported, and then nothing of the directory is used.
func ReadSettings(dir string) (Settings, error) {
	settings := Settings{Method: MethodAuto, Stage: Stage{
		Type: api.CNIType, Mode: string(netconf.ModePod), Capabilities: map[string]bool{netconf.Annotations: true},
	}}
	data, err := readKeys(dir)
	if err != nil || len(data) == 0 {
		return settings, err
	}
	config, errs := api.ParseConfig(data)
	if err := errs.Err(); err != nil {
		return settings, fmt.Errorf("%s: %w", api.ConfigName, err)
	}
	network := config.Network
	for _, cidr := range []string{network.V4CIDR, network.V6CIDR} {
		if _, err := netip.ParsePrefix(cidr); cidr != "" && err != nil {
			return settings, fmt.Errorf("%s: %w", api.ConfigName, err)
		}
	}
	stage := &settings.Stage
	stage.DefaultBinding, stage.SecondaryBinding = network.DefaultBinding, network.SecondaryBinding
	stage.AllowedBindings = network.AllowedBindings
	stage.V4CIDR, stage.V6CIDR = network.V4CIDR, network.V6CIDR
	stage.MACPrefix = network.MACPrefix
	if config.PortBase != 0 {
		stage.ReservedPorts = []string{fmt.Sprintf("%d-%d/tcp", config.PortBase, config.PortBase+launcherPorts-1)}
	}
	if network.InstallMethod != "" {
		settings.Method = Method(network.InstallMethod)
	}
	settings.Names = network.CompatNames
	if salt, ok := data["network.mac-salt"]; ok {
		if salt == "none" {
			salt = ""
		}
		settings.MACSalt = &salt
	}
	return settings, nil
}

func readKeys(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if dir == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the settings: %w", err)
	}
	data := make(map[string]string, len(entries))
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") { // ..data and its kin, which the kubelet swaps
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("reading the settings: %w", err)
		}
		data[entry.Name()] = string(content)
	}
	return data, nil
}
