package nicplan

import (
	"encoding/json"
	"fmt"
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
	if networks == "" {
		return nil
	}
	var list []struct {
		Interface string `json:"interface"`
	}
	if err := json.Unmarshal([]byte(networks), &list); err != nil {
		list = nil
		for item := range strings.SplitSeq(networks, ",") {
			_, name, _ := strings.Cut(item, "@")
			list = append(list, struct {
				Interface string `json:"interface"`
			}{strings.TrimSpace(name)})
		}
	}
	names := make([]string, 0, len(list))
	for i, item := range list {
		name := item.Interface
		if name == "" {
			name = fmt.Sprintf("net%d", i+1)
		}
		names = append(names, name)
	}
	return names
}
