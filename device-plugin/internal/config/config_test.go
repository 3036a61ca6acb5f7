package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/base"
	"podvirt.dev/device-plugin/internal/facts"
)

func TestParse(t *testing.T) {
	defaults := Config{
		Devices: base.Settings{Units: map[string]int{}, VsockCIDBase: 65536},
		Facts:   facts.Settings{MinInterval: 5 * time.Second},
	}
	tests := map[string]struct {
		data map[string]string
		want Config
	}{
		"no ConfigMap":           {nil, defaults},
		"keys of other programs": {map[string]string{"cpu.default-model": "EPYC"}, defaults},
		"everything": {
			map[string]string{
				"devices.capacity.kvm": "110", "devices.capacity.kvm.node.n1": "5", "devices.capacity.kvm.node.n2": "6",
				"devices.capacity.tun": "7", "devices.capacity.vhost-net.node.n1": "0",
				"devices.vsock-cid-base": "1000", "nodes.min-write-interval": "1m", "emulation": "allow",
			},
			Config{
				Devices: base.Settings{
					Units:        map[string]int{api.ResourceKVM: 5, api.ResourceTun: 7, api.ResourceVhostNet: 0},
					VsockCIDBase: 1000,
				},
				Facts: facts.Settings{Emulation: true, MinInterval: time.Minute},
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, errs := Parse(tt.data, "n1")
			if err := errs.Err(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestParseNamesAllMistakes(t *testing.T) {
	_, errs := Parse(map[string]string{
		"devices.capacity.kvm": "many", "devices.vsock-cid-base": "2", "nodes.min-write-interval": "5", "emulation": "yes",
	}, "n1")
	for _, key := range []string{"devices.capacity.kvm", "devices.vsock-cid-base", "nodes.min-write-interval", "emulation"} {
		if !strings.Contains(errs.Error(), "data."+key+": ") {
			t.Errorf("%s is not named in:\n%v", key, errs)
		}
	}
}
