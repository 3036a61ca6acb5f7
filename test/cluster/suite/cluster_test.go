package suite

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"podvirt.dev/test/cluster/harness"
)

const plainPods = `
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node1
  containers:
  - name: main
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo serving; mkdir -p /srv/w && echo "hello from $HOSTNAME" > /srv/w/index.html; exec httpd -f -p 8080 -h /srv/w']
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node2
  containers:
  - name: main
    image: localhost/podvirt/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sh]
    stdin: true
    tty: true
    volumeMounts: [{name: image, mountPath: /image}]
  volumes:
  - {name: image, image: {reference: "localhost/podvirt/guest-tiny:dev", pullPolicy: IfNotPresent}}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
`

// TestPlainPods shows that the ground is firm before any VM stands on it: Pods of two nodes reach each other and Services
// over IPv4 and IPv6, and exec, log, attach and image volumes work.
func TestPlainPods(t *testing.T) {
	c := harness.Get(t)
	c.RequireImage(t, "tools")
	c.RequireImage(t, "guest-tiny")
	ns := c.Namespace(t, harness.Privileged)
	ns.Apply(t, plainPods)
	server := ns.WaitPod(t, "server", harness.Medium, harness.Ready)
	ns.WaitPod(t, "client", harness.Medium, harness.Ready)

	service, err := c.Client.CoreV1().Services(ns.Name).Get(t.Context(), "server", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{}
	for i, ip := range server.Status.PodIPs {
		urls[fmt.Sprintf("Pod address %d", i)] = "http://" + net.JoinHostPort(ip.IP, "8080")
	}
	for i, ip := range service.Spec.ClusterIPs {
		urls[fmt.Sprintf("Service address %d", i)] = "http://" + net.JoinHostPort(ip, "80")
	}
	urls["Service name"] = "http://server." + ns.Name
	if len(urls) != 5 {
		t.Errorf("Pod and Service are not dual stack: %v", urls)
	}
	for name, url := range urls {
		t.Run(name, func(t *testing.T) {
			harness.Eventually(t, harness.Short, url, func(ctx context.Context) error {
				result, err := ns.TryExec(ctx, "client", "main", nil, "curl", "--silent", "--show-error", "--max-time", "3", url)
				if err != nil || !strings.Contains(result.Stdout, "hello from server") {
					return fmt.Errorf("%+v: %w", result, err)
				}
				return nil
			})
		})
	}
	t.Run("API server", func(t *testing.T) {
		out := ns.Exec(t, "client", "main", "curl", "--silent", "--insecure", "--max-time", "3", "https://kubernetes.default/version")
		if !strings.Contains(out, "gitVersion") && !strings.Contains(out, "Unauthorized") && !strings.Contains(out, "Forbidden") {
			t.Errorf("answer: %s", out)
		}
	})
	t.Run("log", func(t *testing.T) { ns.WaitLog(t, "server", "main", "serving", harness.Short) })
	t.Run("exit code", func(t *testing.T) {
		result, err := ns.TryExec(t.Context(), "server", "main", strings.NewReader("in"), "sh", "-c", "cat; echo err >&2; exit 7")
		if want := (harness.Result{Stdout: "in", Stderr: "err\n", Code: 7}); err != nil || result != want {
			t.Errorf("got %+v, %v; want %+v", result, err, want)
		}
	})
	t.Run("attach", func(t *testing.T) {
		term := ns.Attach(t, "client", "main")
		term.Send(t, "echo $((40+2))-seen\n")
		term.Expect(t, harness.Short, `42-seen`)
	})
	t.Run("image volume", func(t *testing.T) {
		if out := ns.Exec(t, "client", "main", "ls", "/image/disk"); !strings.Contains(out, ".qcow2") {
			t.Errorf("ls /image/disk: %q", out)
		}
	})
}

// TestPodSecurity shows that the admission which VM namespaces rely on is in force.
func TestPodSecurity(t *testing.T) {
	ns := harness.Get(t).Namespace(t, harness.Restricted)
	err := ns.TryApply(t.Context(), `
apiVersion: v1
kind: Pod
metadata: {name: root}
spec:
  containers: [{name: main, image: "localhost/podvirt/tools:dev", securityContext: {privileged: true}}]
`)
	if err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
		t.Errorf("a privileged Pod in a restricted namespace: %v", err)
	}
}

// TestNodeRestart shows that a node that dies as a whole comes back and its Pods with it.
func TestNodeRestart(t *testing.T) {
	c := harness.Get(t)
	c.RequireImage(t, "tools")
	ns := c.Namespace(t, harness.Privileged)
	ns.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: survivor}
spec:
  nodeName: node2
  containers: [{name: main, image: "localhost/podvirt/tools:dev", imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`)
	before := ns.WaitPod(t, "survivor", harness.Medium, harness.Running)
	c.RestartNode(t, "node2")
	ns.WaitPod(t, "survivor", harness.Medium, func(pod *corev1.Pod) error {
		if pod.Status.ContainerStatuses[0].ContainerID == before.Status.ContainerStatuses[0].ContainerID {
			return fmt.Errorf("still the old container")
		}
		return harness.Running(pod)
	})
}
