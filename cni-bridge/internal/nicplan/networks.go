package nicplan

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
)

// NetworksAnnotation asks Multus for further networks.
const NetworksAnnotation = "k8s.v1.cni.cncf.io/networks"

// Order sorts the Pod's interfaces: that of the pod network first, then as the networks annotation asks for them, then
// the rest as they are.
func Order(interfaces []Interface, podNetwork, networks string) []Interface {
	asked := requested(networks)
	rank := func(itf Interface) int {
		if itf.Name == podNetwork {
			return -1
		}
		if i := slices.Index(asked, itf.Name); i >= 0 {
			return i
		}
		return len(asked)
	}
	sorted := slices.Clone(interfaces)
	slices.SortStableFunc(sorted, func(a, b Interface) int { return rank(a) - rank(b) })
	return sorted
}

// requested returns the interface names of a networks annotation in its order: [NS/]NAD[@IF],… or a JSON list; the
// n-th network without a name gets net<n>. A text that is neither is Multus' to refuse.
func requested(networks string) []string {
	list := elements(networks)
	names := make([]string, 0, len(list))
	for _, item := range list {
		names = append(names, item.Interface)
	}
	return names
}

// askedMACs are those of the networks annotation, by interface. What is no unicast MAC is Multus' to refuse.
func askedMACs(networks string) map[string]net.HardwareAddr {
	macs := map[string]net.HardwareAddr{}
	for _, item := range elements(networks) {
		if mac, err := net.ParseMAC(item.MAC); err == nil && len(mac) == 6 && mac[0]&1 == 0 {
			macs[item.Interface] = mac
		}
	}
	return macs
}

// element is one network that is asked for.
type element struct {
	Interface string `json:"interface"`
	MAC       string `json:"mac"`
}

func elements(networks string) []element {
	if networks == "" {
		return nil
	}
	var list []element
	if err := json.Unmarshal([]byte(networks), &list); err != nil {
		list = nil
		for item := range strings.SplitSeq(networks, ",") {
			_, name, _ := strings.Cut(item, "@")
			list = append(list, element{Interface: strings.TrimSpace(name)})
		}
	}
	for i := range list {
		if list[i].Interface == "" {
			list[i].Interface = fmt.Sprintf("net%d", i+1)
		}
	}
	return list
}
