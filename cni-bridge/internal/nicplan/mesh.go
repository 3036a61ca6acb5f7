package nicplan

import (
	"strings"

	"podvirt.dev/api"
)

// meshMarks are annotations of Pods in which a mesh has a proxy: what the user or the admission policies write, what Istio's
// injector leaves, and the former name of the first one.
func meshMarks() []string {
	return []string{"istio.io/reroute-virtual-interfaces", "sidecar.istio.io/status", "traffic.sidecar.istio.io/kubevirtInterfaces"}
}

// meshPorts are the TCP ports at which Istio's proxy is called from outside and from the Pod's other containers (network.md
// NW-058); none where the Pod has no such proxy. Everything else that the mesh does not redirect is the guest's.
func (p *planner) meshPorts() []api.PortRange {
	for _, mark := range meshMarks() {
		if p.config.Annotations[mark] == "" {
			continue
		}
		var ports []api.PortRange
		for _, r := range [][2]int{{15000, 15001}, {15004, 15004}, {15006, 15006}, {15008, 15009}, {15020, 15021}, {15053, 15053}, {15090, 15090}} {
			ports = append(ports, api.PortRange{First: r[0], Last: r[1], Protocol: "tcp"})
		}
		return ports
	}
	return nil
}

func portsText(ranges []api.PortRange) string {
	words := make([]string, 0, len(ranges))
	for _, r := range ranges {
		words = append(words, portText(r))
	}
	return strings.Join(words, ", ")
}
