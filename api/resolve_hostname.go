package api

import "strings"

// maxHostname is what the kubelet shortens a Pod's name to for its host name.
const maxHostname = 63

// givenHostname returns spec.hostname of a Pod whose containers have this host name; "": it has none, and so the name of the
// Pod (network.md NW-048). With setHostnameAsFQDN the domain follows.
func givenHostname(own, pod string) string {
	if len(pod) > maxHostname {
		pod = strings.TrimRight(pod[:maxHostname], "-.")
	}
	if own == pod || strings.HasPrefix(own, pod+".") {
		return ""
	}
	return firstLabel(own)
}
