// Package config takes from podvirt-config what the device plugin of one node needs (devices.md 2.2, operations.md 2.2).
package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/base"
	"podvirt.dev/device-plugin/internal/facts"
)

const (
	defaultCIDBase     = 65536
	minCIDBase         = 3
	maxCIDBase         = 1 << 31
	defaultMinInterval = 5 * time.Second
	keyCIDBase         = "devices.vsock-cid-base"
	keyMinInterval     = "nodes.min-write-interval"
)

// Config is what is in force on one node.
type Config struct {
	Devices base.Settings
	Facts   facts.Settings
}

// Parse reads the data of the ConfigMap for one node; no data gives the defaults. All mistakes are returned at once, and
// with any of them the Config is not to be applied.
func Parse(data map[string]string, node string) (Config, api.Errors) {
	all, errs := api.ParseConfig(data)
	c := Config{
		Devices: base.Settings{Units: units(all.DeviceCapacity, node), VsockCIDBase: defaultCIDBase},
		Facts:   facts.Settings{Emulation: all.Emulation == "allow", MinInterval: defaultMinInterval},
	}
	if text, ok := data[keyCIDBase]; ok {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n < minCIDBase || n > maxCIDBase {
			errs = errs.Join(mistake(keyCIDBase, text, fmt.Sprintf("not a whole number from %d to %d", minCIDBase, maxCIDBase)))
		}
		c.Devices.VsockCIDBase = uint32(n)
	}
	if text, ok := data[keyMinInterval]; ok {
		d, err := time.ParseDuration(text)
		if err != nil || d < time.Second {
			errs = errs.Join(mistake(keyMinInterval, text, "not a duration of at least 1s"))
		}
		c.Facts.MinInterval = d
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

func mistake(key, value, allowed string) api.Errors {
	return api.Errors{{Key: key, Text: fmt.Sprintf("data.%s: %q: %s", key, value, allowed)}}
}
