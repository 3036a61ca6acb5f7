package harness

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"podvirt.dev/test/cluster/internal/programs"
)

// metricsBinary is where a node has metrics-server while a test wants it.
const metricsBinary = "/opt/metrics-server/metrics-server"

// Metrics runs metrics-server until the test ends and waits until it answers, so that autoscalers know what Pods use.
// Namespaces that are removed meanwhile need it: call this before making those of the test.
func (c *Cluster) Metrics(t testing.TB) {
	t.Helper()
	paths, err := c.local.BuildOthers(t.Context(), programs.Metrics())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(paths["metrics-server"])
	if err != nil {
		t.Fatal(err)
	}
	ns := c.Namespace(t, Privileged)
	c.installFile(t, c.Nodes[0], metricsBinary, binary, 0o755)
	t.Cleanup(func() { c.removeMetricsObjects(context.WithoutCancel(t.Context()), t) })
	ns.Apply(t, strings.NewReplacer("$NAMESPACE", ns.Name, "$NODE", c.Nodes[0], "$BINARY", metricsBinary).Replace(metricsObjects))
	Eventually(t, Medium, "metrics of Pods", func(ctx context.Context) error {
		_, err := c.Client.CoreV1().RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes").DoRaw(ctx)
		return err
	})
}

// removeMetricsObjects removes what stands outside of the namespace; first that which names an API nobody serves any more.
func (c *Cluster) removeMetricsObjects(ctx context.Context, t testing.TB) {
	rbac := schema.GroupVersion{Group: "rbac.authorization.k8s.io", Version: "v1"}
	for _, object := range []struct {
		resource        schema.GroupVersionResource
		namespace, name string
	}{
		{schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}, "", "v1beta1.metrics.k8s.io"},
		{rbac.WithResource("clusterroles"), "", "metrics-server"},
		{rbac.WithResource("clusterrolebindings"), "", "metrics-server"},
		{rbac.WithResource("clusterrolebindings"), "", "metrics-server-delegator"},
		{rbac.WithResource("rolebindings"), metav1.NamespaceSystem, "metrics-server"},
	} {
		err := c.Dynamic.Resource(object.resource).Namespace(object.namespace).Delete(ctx, object.name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(fmt.Errorf("removing %s %s: %w", object.resource.Resource, object.name, err))
		}
	}
}

// metricsObjects are the rights and the registration of metrics-server, as in its manifests/base, on the network of a node.
const metricsObjects = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: metrics-server}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: metrics-server}
rules:
- {apiGroups: [""], resources: [nodes/metrics], verbs: [get]}
- {apiGroups: [""], resources: [pods, nodes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics-server}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: metrics-server}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: $NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics-server-delegator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: $NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: metrics-server, namespace: kube-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, name: metrics-server, namespace: $NAMESPACE}]
---
apiVersion: v1
kind: Pod
metadata: {name: metrics-server, labels: {app: metrics-server}}
spec:
  nodeName: $NODE
  hostNetwork: true
  serviceAccountName: metrics-server
  containers:
  - name: main
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [/metrics-server, --secure-port=4443, --cert-dir=/tmp, --metric-resolution=15s, --kubelet-preferred-address-types=InternalIP,
      --kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt]
    readinessProbe: {httpGet: {path: /readyz, port: 4443, scheme: HTTPS}, periodSeconds: 2}
    volumeMounts: [{name: binary, mountPath: /metrics-server, readOnly: true}]
  volumes: [{name: binary, hostPath: {path: $BINARY, type: File}}]
---
apiVersion: v1
kind: Service
metadata: {name: metrics-server}
spec:
  selector: {app: metrics-server}
  ports: [{port: 443, targetPort: 4443}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: metrics-server, namespace: $NAMESPACE}
`
