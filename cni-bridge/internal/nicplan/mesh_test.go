package nicplan

import (
	"errors"
	"testing"

	"podvirt.dev/api"
	"podvirt.dev/cni-bridge/internal/fault"
)

// TestMeshPorts: a Pod with a proxy of Istio keeps the proxy's ports, and ports= may not ask for them.
func TestMeshPorts(t *testing.T) {
	for name, row := range map[string]struct {
		annotation, value string
		want              int // ranges
	}{
		"written by the user":      {"istio.io/reroute-virtual-interfaces", "tap0", 7},
		"by its former name":       {"traffic.sidecar.istio.io/kubevirtInterfaces", "tap0", 7},
		"left by Istio's injector": {"sidecar.istio.io/status", `{"containers":["istio-proxy"]}`, 7},
		"another annotation":       {"sidecar.istio.io/inject", "false", 0},
		"an empty one":             {"istio.io/reroute-virtual-interfaces", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			c.Annotations = map[string]string{row.annotation: row.value}
			nics, err := Make(c, api.VM{Name: "web"}, Pod{}, eth0("192.0.2.2/24"))
			if err != nil || len(nics) != 1 || len(nics[0].Mesh) != row.want {
				t.Fatalf("%+v, %v; want %d ranges", nics, err, row.want)
			}
			asking := api.VM{Name: "web", NICs: []api.NIC{{Name: "default", Ports: []api.PortRange{
				{First: 80, Last: 80, Protocol: "tcp"}, {First: 15000, Last: 15021, Protocol: "tcp"}, {First: 15001, Last: 15001, Protocol: "udp"},
			}}}}
			_, err = Make(c, asking, Pod{}, eth0("192.0.2.2/24"))
			f, refused := errors.AsType[*fault.Error](err)
			const want = "annotation refused: podvirt.dev/nic.default: ports=15000-15021: kept for Istio's proxy " +
				"(15000-15001, 15004, 15006, 15008-15009, 15020-15021, 15053, 15090)"
			if refused != (row.want > 0) || refused && f.Message != want {
				t.Errorf("ports of the proxy: %v; want %q", err, want)
			}
		})
	}
}
