package plan

import (
	"fmt"

	"podvirt.dev/test/cluster/internal/layout"
)

// PauseImage is what a Pod's sandbox is made of.
const PauseImage = "localhost/podvirt/pause:dev"

// restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE may not lower the value, and every sandbox would fail.
const containerdConfig = `version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = "` + containerdSocket + `"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + PauseImage + `"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
`

// kubeletConfig: images are imported, not pulled: the kubelet must never collect them. Score adjustments as above.
func kubeletConfig(n layout.Network) string {
	return `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /
containerRuntimeEndpoint: unix://` + containerdSocket + `
oomScoreAdj: 0
makeIPTablesUtilChains: false
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: ` + confDir + "/pki/" + authority + `.crt}
authorization: {mode: Webhook}
clusterDomain: ` + layout.Domain + `
clusterDNS: [` + n.DNSService4 + `]
resolvConf: ` + confDir + `/resolv.conf
volumePluginDir: /var/lib/kubelet/volume-plugins
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard:
  memory.available: 100Mi
  nodefs.available: 1%
  imagefs.available: 1%
nodeStatusUpdateFrequency: 5s
runtimeRequestTimeout: 5m
logging: {verbosity: 2}
`
}

// proxyConfig: the connection tracking limits are the host's and cannot be set from the namespace.
func proxyConfig(n layout.Network) string {
	return `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: ` + confDir + `/proxy.kubeconfig}
clusterCIDR: ` + n.PodNet4 + "," + n.PodNet6 + `
oomScoreAdj: 0
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`
}

// corefile answers for the cluster's domain and refuses the rest: the machines have no way to the outside.
const corefile = `.:53 {
	errors
	cache 5
	kubernetes ` + layout.Domain + ` in-addr.arpa ip6.arpa {
		kubeconfig ` + confDir + "/" + dnsUser + `.kubeconfig
		pods insecure
		ttl 5
	}
}
`

// resolvConf is what Pods on the host network have: no name server, since the machines have no way to the outside.
const resolvConf = "search " + layout.Domain + "\n"

// cniConfig is the Pod network of a node: routed, without a bridge and without translation inside the cluster.
func cniConfig(m layout.Machine) string {
	return fmt.Sprintf(`{
  "cniVersion": "1.1.0",
  "name": "local",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "mtu": 1450,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni/local",
        "ranges": [[{"subnet": "%s"}], [{"subnet": "%s"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "backend": "nftables", "snat": true, "capabilities": {"portMappings": true}}
  ]
}
`, m.PodNet4, m.PodNet6)
}
