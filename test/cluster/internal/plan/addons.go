package plan

import (
	"fmt"

	"podvirt.dev/test/cluster/internal/layout"
)

// Addons are the objects that a cluster has beside its programs. The name server runs on the control machine and stands
// behind the Service by which every cluster has it.
func Addons(l layout.Layout) string {
	return fmt.Sprintf(addons, dnsUser, l.Network().DNSService4, l.Machines()[0].Address4)
}

const addons = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:%[1]s"}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces, nodes], verbs: [list, watch, get]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:%[1]s"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:%[1]s"}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:%[1]s"}]
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: %[2]s
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports:
- {name: dns, port: 53, protocol: UDP}
- {name: dns-tcp, port: 53, protocol: TCP}
endpoints: [{addresses: [%[3]s], conditions: {ready: true}}]
`
