package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
)

func TestDefaults(t *testing.T) {
	c, err := Parse([]byte(`{"cniVersion":"1.1.0","name":"pods","type":"cni-bridge","prevResult":{"a": 1},"cni.dev/attachments":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != ModePod || string(c.Previous) != `{"a": 1}` || c.StateDir != "/run/podvirt/cni" || c.LockTimeout != 20*time.Second ||
		c.MACPrefix.String() != "02" || c.Annotations != nil {
		t.Errorf("config %+v", c)
	}
	p := c.Pod
	got := fmt.Sprintln(p.Owner, p.DefaultBinding, p.SecondaryBinding, p.V4CIDR, p.V6CIDR, p.GatewayMAC, p.PortBase(), p.MaxNICs)
	if want := "{107 107} masquerade wire 10.0.2.0/24 fd10:0:2::/120 02:00:00:00:00:00 49152 32\n"; got != want {
		t.Errorf("mode pod\n%s\nwant\n%s", got, want)
	}
	for _, b := range p.AllowedBindings {
		if b == api.BindingPasst {
			t.Error("passt is allowed by default")
		}
	}
}

func TestEveryKeyOfModePod(t *testing.T) {
	c, err := Parse([]byte(`{"name":"pods","type":"cni-bridge","mode":"pod","macPrefix":"52:54:00","macSalt":"s","stateDir":"/x","logFile":"/l",
		"logLevel":"debug","lockTimeout":"5s","owner":{"uid":1000},"defaultBinding":"wire","secondaryBinding":"bridge",
		"allowedBindings":["wire","passt"],"v4CIDR":"172.16.0.9/30","v6CIDR":"fd00::/126","gatewayMAC":"0A-00-00-00-00-01",
		"reservedPorts":["50000-50003/tcp"],"maxNICs":4,"networks":{},"capabilities":{},"args":{},"dns":{},"ipam":{},
		"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"k":"v"}},
		"cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	p := c.Pod
	got := fmt.Sprintln(c.MACPrefix, c.MACSalt, c.StateDir, c.LogFile, c.LogLevel, c.LockTimeout, p.Owner, p.DefaultBinding, p.SecondaryBinding,
		p.AllowedBindings, p.V4CIDR, p.V6CIDR, p.GatewayMAC, p.Reserved, p.MaxNICs, c.Annotations, c.Valid)
	want := fmt.Sprintln(net.HardwareAddr{0x52, 0x54, 0}, "s", "/x", "/l", "debug", 5*time.Second, api.Owner{UID: 1000, GID: 1000}, "wire", "bridge",
		[]api.Binding{"wire", "passt"}, "172.16.0.8/30", "fd00::/126", "0a:00:00:00:00:01", []api.PortRange{{First: 50000, Last: 50003, Protocol: "tcp"}}, 4,
		map[string]string{"k": "v"}, []Attachment{{"c", "eth0"}})
	if got != want {
		t.Errorf("config\n%s\nwant\n%s", got, want)
	}
}

func TestRefusals(t *testing.T) {
	for conf, row := range map[string]struct {
		code fault.Code
		want string
	}{
		`[]`:                                 {fault.Decode, "not JSON"},
		`{"prevResult":{},"maxNIC":1}`:       {fault.Unsupported, "maxNIC=1: unknown key in mode pod; nearest: maxNICs"},
		`{"bridge":"b","v4CIDR":"x"}`:        {fault.Unsupported, `v4CIDR="x": unknown key in mode bridge`},
		`{"bridge":"b","ipMasq":true}`:       {fault.Unsupported, "ipMasq=true: not supported; use type bridge for routed networks"},
		`{"mode":"brigde"}`:                  {fault.Config, `mode "brigde": not one of pod, bridge, macvlan, macvtap, sriov, tuning; nearest: bridge`},
		`{}`:                                 {fault.Config, "mode: nothing says what to do; set bridge, uplink, master or mode"},
		`{"mode":7}`:                         {fault.Config, "mode 7: not the right type"},
		`{"prevResult":{},"macPrefix":"01"}`: {fault.Config, `macPrefix "01": multicast`},
		`{"prevResult":{},"macPrefix":"02:00:00:00"}`: {fault.Config, `macPrefix "02:00:00:00": not 1 to 3 octets`},
		`{"prevResult":{},"lockTimeout":"x"}`:         {fault.Config, `lockTimeout "x": not a duration`},
		`{"prevResult":{},"logLevel":"inof"}`: {fault.Config,
			`logLevel "inof": not one of error, warning, info, debug; nearest: info`},
		`{"prevResult":{},"owner":{"uid":0}}`:                                        {fault.Config, "owner.uid 0"},
		`{"prevResult":{},"defaultBinding":"masquerad"}`:                             {fault.Config, `defaultBinding "masquerad": not one of masquerade,`},
		`{"prevResult":{},"allowedBindings":["wires"]}`:                              {fault.Config, `allowedBindings "wires": not one of masquerade,`},
		`{"prevResult":{},"v4CIDR":"10.0.2.0/31"}`:                                   {fault.Config, `v4CIDR "10.0.2.0/31": too small; at most /30`},
		`{"prevResult":{},"v4CIDR":"fd00::/64"}`:                                     {fault.Config, `v4CIDR "fd00::/64": not a prefix; example: 10.0.2.0/24`},
		`{"prevResult":{},"v6CIDR":"fd00::/127"}`:                                    {fault.Config, `v6CIDR "fd00::/127": too small; at most /126`},
		`{"prevResult":{},"gatewayMAC":"03:00:00:00:00:00"}`:                         {fault.Config, `gatewayMAC "03:00:00:00:00:00": multicast`},
		`{"prevResult":{},"gatewayMAC":"02:00"}`:                                     {fault.Config, `gatewayMAC "02:00": not a MAC`},
		`{"prevResult":{},"reservedPorts":["49155-49152/tcp"]}`:                      {fault.Config, "not a range of ports"},
		`{"prevResult":{},"reservedPorts":[]}`:                                       {fault.Config, "reservedPorts: empty"},
		`{"prevResult":{},"maxNICs":65}`:                                             {fault.Config, "maxNICs 65: 1 to 64"},
		`{"prevResult":{},"networks":{"a":{}}}`:                                      {fault.Config, "networks: not supported by this version"},
		`{"prevResult":{},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":[]}}`: {fault.Decode, "pod-annotations"},
	} {
		t.Run(conf, func(t *testing.T) {
			_, err := Parse([]byte(conf))
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || f.Code != row.code || !strings.Contains(f.Message, row.want) {
				t.Errorf("error %v; want code %d, %q", err, row.code, row.want)
			}
		})
	}
}

func TestModeByItsKeys(t *testing.T) {
	for conf, want := range map[string]Mode{
		`{"bridge":"br1"}`: ModeBridge, `{"uplink":"bond0"}`: ModeBridge, `{"master":"eth1"}`: ModeMacvlan, `{"deviceID":"0000:3b:02.1"}`: ModeSRIOV,
		`{"prevResult":{}}`: ModePod, `{"mode":"tuning","prevResult":{}}`: ModeTuning,
	} {
		if c, err := Parse([]byte(conf)); err != nil || c.Mode != want {
			t.Errorf("%s: mode %q, %v; want %q", conf, c.Mode, err, want)
		}
	}
}

// FuzzParse: no input panics, hangs or gives a configuration that would hurt.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"pods","mode":"pod","v4CIDR":"10.0.2.0/24","owner":{"uid":5},"reservedPorts":["1-2/tcp"],"macPrefix":"02"}`))
	f.Add([]byte(`{"bridge":"br1","uplink":"eth1","vlan":100,"vlanTrunk":[{"id":1},{"minID":2,"maxID":3}],"vlanProto":"802.1ad","ipam":{"type":"x"}}`))
	f.Add([]byte(`{"master":"eth1","submode":"vepa","runtimeConfig":{"mac":"02:00:00:00:00:01","ips":["10.0.0.1/8"]}}`))
	f.Add([]byte(`{"prevResult":null,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":"b"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		p := c.Pod
		if !json.Valid(data) || len(p.Reserved) == 0 || p.Owner.UID <= 0 || p.V4CIDR.Bits() > 30 || p.V6CIDR.Bits() > 126 || len(c.MACPrefix) == 0 {
			t.Errorf("%q gives %+v", data, c)
		}
	})
}
