package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"podvirt.dev/test/cluster/internal/programs"
)

// Where the CNI plugins of a node are, and their configuration.
const (
	cniBin  = "/opt/cni/bin"
	cniConf = "/etc/cni/net.d"
)

// Files of Multus on a node, and of the pod stage behind it.
const (
	multusList       = cniConf + "/00-multus.conflist"
	multusKubeconfig = cniConf + "/multus.d/multus.kubeconfig"
	clusterList      = cniConf + "/10-local.conflist"
)

// Multus installs the thin plugin of Multus on every node until the test ends, as its own installer does with
// --cni-version=1.0.0, and waits until cni-bridge stands behind it. Pods that get networks by it must be gone by the end
// of the test: call this before making their namespace.
func (c *Cluster) Multus(t testing.TB) {
	t.Helper()
	paths, err := c.local.BuildOthers(t.Context(), programs.Multus())
	if err != nil {
		t.Fatal(err)
	}
	(&Namespace{Cluster: c, Name: "kube-system"}).Apply(t, multusObjects)
	kubeconfig := c.tokenConfig(t, "multus")
	for _, node := range c.Nodes {
		binary, err := os.ReadFile(paths["multus"])
		if err != nil {
			t.Fatal(err)
		}
		c.installFile(t, node, cniBin+"/multus", binary, 0o755)
		c.installFile(t, node, multusKubeconfig, kubeconfig, 0o600)
		own, err := os.ReadFile(c.NodePath(t, node, clusterList))
		if err != nil {
			t.Fatal(err)
		}
		list, err := json.Marshal(map[string]any{
			"cniVersion": "1.0.0", "name": "multus-cni-network", "plugins": []any{map[string]any{
				"type": "multus", "capabilities": map[string]bool{"portMappings": true}, "kubeconfig": multusKubeconfig,
				"delegates": []json.RawMessage{own},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.stageBehind(t, node, "local") })
		c.installFile(t, node, multusList, list, 0o600)
		c.stageBehind(t, node, "multus-cni-network")
	}
}

// stageBehind waits until the pod stage stands behind a network's chain.
func (c *Cluster) stageBehind(t testing.TB, node, network string) {
	t.Helper()
	path := c.NodePath(t, node, filepath.Join(cniConf, network, "90-podvirt.conf"))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), Short)
	defer cancel()
	if err := wait(ctx, func() error { _, err := os.Stat(path); return err }); err != nil {
		t.Errorf("%s: cni-bridge is not behind %s: %v", node, network, err)
	}
}

// installFile writes a file of a node, which goes with the test. It appears whole.
func (c *Cluster) installFile(t testing.TB, node, path string, content []byte, mode os.FileMode) {
	t.Helper()
	target := c.NodePath(t, node, path)
	t.Cleanup(func() {
		if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("removing %s: %v", path, err)
		}
	})
	err := os.MkdirAll(filepath.Dir(target), 0o755)
	if err == nil {
		err = os.WriteFile(target+".new", content, mode)
	}
	if err == nil {
		err = os.Rename(target+".new", target)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// tokenConfig is a kubeconfig for a ServiceAccount of kube-system.
func (c *Cluster) tokenConfig(t testing.TB, account string) []byte {
	t.Helper()
	token, err := c.Client.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["local"] = &clientcmdapi.Cluster{Server: c.Config.Host, CertificateAuthorityData: c.Config.CAData}
	config.AuthInfos["local"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	config.Contexts["local"] = &clientcmdapi.Context{Cluster: "local", AuthInfo: "local"}
	config.CurrentContext = "local"
	data, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Cable connects two nodes by a link of their own, called name on both, until the test ends.
func (c *Cluster) Cable(t testing.TB, name string, mtu int) {
	t.Helper()
	first, second := c.Nodes[0], c.Nodes[1]
	// In the first node's network alone: the second node's process has no number in the first one.
	cmd := exec.CommandContext(t.Context(), "nsenter", "--net=/proc/"+fmt.Sprint(c.NodePID(t, first))+"/ns/net", "ip", "link", "add", name,
		"mtu", fmt.Sprint(mtu), "type", "veth", "peer", "name", name, "mtu", fmt.Sprint(mtu), "netns", fmt.Sprint(c.NodePID(t, second)))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cable %s: %v: %s", name, err, out)
	}
	t.Cleanup(func() { c.onNodeAnyhow(t, first, "ip", "link", "del", name) })
	for _, node := range []string{first, second} {
		c.OnNode(t, node, "ip", "link", "set", name, "up")
	}
}

// multusObjects are the rights of Multus and the type of its networks, as in its deployments/multus-daemonset.yml.
const multusObjects = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: network-attachment-definitions.k8s.cni.cncf.io}
spec:
  group: k8s.cni.cncf.io
  scope: Namespaced
  names:
    plural: network-attachment-definitions
    singular: network-attachment-definition
    kind: NetworkAttachmentDefinition
    shortNames: [net-attach-def]
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              config: {type: string}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: multus}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: multus}
rules:
- {apiGroups: [k8s.cni.cncf.io], resources: ["*"], verbs: ["*"]}
- {apiGroups: [""], resources: [pods, pods/status], verbs: [get, update]}
- {apiGroups: ["", events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: multus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: multus}
subjects: [{kind: ServiceAccount, name: multus, namespace: kube-system}]
`
