// Package config takes from podvirt-config what the device plugin of one node needs (devices.md 2.2, operations.md 2.2).
package config

import (
	"strings"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/base"
	"podvirt.dev/device-plugin/internal/facts"
)

const (
	defaultCIDBase     = 65536
	defaultMinInterval = 5 * time.Second
)

// Config is what is in force on one node.
type Config struct {
	Devices base.Settings
	Facts   facts.Settings

	Classes          []api.DeviceClass // without those that have mistakes
	ClassMistakes    api.Errors
	MdevOff          bool
	UnsafeInterrupts bool
}

// Parse reads the data of the ConfigMap for one node; no data gives the defaults. All mistakes are returned at once, and
// with any of them the Config is not to be applied.
func Parse(data map[string]string, node string) (Config, api.Errors) {
	all, errs := api.ParseConfig(data)
	c := Config{
		Devices: base.Settings{Units: units(all.DeviceCapacity, node), VsockCIDBase: defaultCIDBase},
		Facts:   facts.Settings{Emulation: all.Emulation == "allow", MinInterval: defaultMinInterval},
	}
	c.Facts.Obsolete, c.Facts.Untaint = all.CPUObsoleteModels, all.StartupTaint
	c.Facts.ModelLabels = all.CPULabels == "models"
	c.Classes, c.ClassMistakes = api.ParseDeviceClasses(data)
	c.MdevOff, c.UnsafeInterrupts = all.MdevOff, all.UnsafeIRQs
	if all.VsockCIDBase > 0 {
		c.Devices.VsockCIDBase = all.VsockCIDBase
	}
	if all.MinWrite > 0 {
		c.Facts.MinInterval = all.MinWrite
	}
	return c, errs
}

// units returns the configured units by resource; what is said for the node wins.
func units(capacity map[string]int, node string) map[string]int {
	units := map[string]int{}
	for name, n := range capacity {
		resource, of, perNode := strings.Cut(name, ".node.")
		if perNode && of == node {
			units[api.Prefix+resource] = n
		}
		if _, own := capacity[name+".node."+node]; !perNode && !own {
			units[api.Prefix+resource] = n
		}
	}
	return units
}
