package suite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"podvirt.dev/test/cluster/harness"
)

// sh runs a script in a tiny guest, reached under a host and port, and returns what it printed.
func sh(t *testing.T, ns *harness.Namespace, hostPort, script string) string {
	t.Helper()
	return mustCurl(t, ns, "--request", "POST", "--data", script, "http://"+hostPort+"/sh")
}

// TestNetwork looks at guests through everything that Kubernetes puts in front of a Pod: two that share Services, one
// with name servers of its own, and one that has IPv6 alone.
func TestNetwork(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	dns, err := ns.Client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	one := newVM("one", "guest-tiny").httpReady(8080)
	one.Labels["app"] = "pair"
	one.container().Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	one.container().ReadinessProbe.HTTPGet.Port = intstr.FromString("http")
	one.Spec.DNSPolicy = corev1.DNSNone
	one.Spec.DNSConfig = &corev1.PodDNSConfig{
		Nameservers: []string{dns.Spec.ClusterIP, "192.0.2.53"}, Searches: []string{ns.Name + ".svc.cluster.local", "example.test"},
	}
	two := newVM("two", "guest-tiny")
	two.Labels["app"] = "pair"
	two.container().ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9000}},
		PeriodSeconds: 1, FailureThreshold: 2, TimeoutSeconds: 3,
	}
	six := newVM("six", "guest-tiny").annotate(map[string]string{"nic.default": "ip-family=6"})
	own := newVM("own", "guest-tiny").httpReady(8080).annotate(map[string]string{"nic.default": "binding=wire"})
	for _, v := range []*vm{one, two, six, own} {
		ns.Apply(t, v.manifest(t))
	}
	ns.Apply(t, pairServices)
	pods := map[string]*corev1.Pod{}
	for _, name := range []string{"one", "two", "own"} {
		pods[name] = ns.WaitPod(t, name, harness.Medium, harness.Ready)
	}
	pods["six"] = ns.WaitPod(t, "six", harness.Medium, harness.Running)
	ns.WaitLog(t, "six", "vm", "podvirt-tiny: eth0 has fd10:0000:0002:0000:0000:0000:0000:0002/128", harness.Medium)

	t.Run("name servers of the Pod", func(t *testing.T) { checkNames(t, ns, pods["one"], dns.Spec.ClusterIP) })
	t.Run("Services", func(t *testing.T) { checkServices(t, ns, pods) })
	t.Run("a label on a running VM", func(t *testing.T) { checkRelabel(t, ns) })
	t.Run("a guest with IPv6 alone", func(t *testing.T) { checkSix(t, ns, pods["six"]) })
	t.Run("a guest with the Pod's address", func(t *testing.T) { checkOwn(t, ns, pods["own"]) })
	t.Run("port-forward", func(t *testing.T) { checkForward(t, ns) })
	t.Run("metrics of the nodes' plugins", func(t *testing.T) { checkPluginMetrics(t, ns) })
	for _, name := range []string{"one", "two"} { // last: they stop answering for a moment
		t.Run("probe follows the server of "+name, func(t *testing.T) { checkProbe(t, ns, pods[name]) })
	}
}

const pairServices = `
apiVersion: v1
kind: Service
metadata: {name: pair}
spec: {selector: {app: pair}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: pair}, ports: [{port: 80}], sessionAffinity: ClientIP}
---
apiVersion: v1
kind: Service
metadata: {name: pods}
spec: {selector: {app: pair}, clusterIP: None, ipFamilyPolicy: PreferDualStack}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {selector: {app: pair}, type: NodePort, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {selector: {podvirt.dev/vm: one}, type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec: {selector: {app: pair}, type: LoadBalancer, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: gold}
spec: {selector: {tier: gold}, ports: [{port: 80}]}
`

// checkNames resolves names in a guest whose Pod has dnsPolicy None (NW-047).
func checkNames(t *testing.T, ns *harness.Namespace, pod *corev1.Pod, server string) {
	guest := net.JoinHostPort(pod.Status.PodIP, "80")
	if _, err := ns.Client.CoreV1().Services(ns.Name).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "alias"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "pair." + ns.Name + ".svc.cluster.local"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	resolv := sh(t, ns, guest, "cat /etc/resolv.conf")
	for _, want := range []string{"nameserver " + server + "\nnameserver 192.0.2.53\n", "search " + ns.Name + ".svc.cluster.local example.test"} {
		if !strings.Contains(resolv, want) {
			t.Errorf("resolv.conf lacks %q:\n%s", want, resolv)
		}
	}
	for _, name := range []string{"pair", "pair." + ns.Name + ".svc.cluster.local", "alias"} { // by the search list, in full, ExternalName
		if got := sh(t, ns, guest, "wget -qO- http://"+name+"/"); !strings.HasPrefix(got, "podvirt-tiny") {
			t.Errorf("wget http://%s/ in the guest: %q", name, got)
		}
	}
	if got := sh(t, ns, guest, "nslookup kubernetes.default.svc.cluster.local"); !strings.Contains(got, "Address: 10.") {
		t.Errorf("nslookup: %s", got)
	}
	headless := sh(t, ns, guest, "nslookup pods."+ns.Name+".svc.cluster.local")
	for _, ip := range pod.Status.PodIPs {
		if !strings.Contains(headless, ip.IP) {
			t.Errorf("the headless Service lacks %s:\n%s", ip.IP, headless)
		}
	}
}

// hits returns how many different guests answered so many requests.
func hits(t *testing.T, ns *harness.Namespace, hostPort string, requests int) int {
	t.Helper()
	guests := map[string]bool{}
	for range requests {
		guests[sh(t, ns, hostPort, "cat /proc/sys/kernel/random/boot_id")] = true
	}
	return len(guests)
}

// checkServices is each type of Service in front of VMs (NW-053).
func checkServices(t *testing.T, ns *harness.Namespace, pods map[string]*corev1.Pod) {
	get := func(name string) *corev1.Service {
		svc, err := ns.Client.CoreV1().Services(ns.Name).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return svc
	}
	if n := hits(t, ns, net.JoinHostPort(get("pair").Spec.ClusterIP, "80"), 16); n != 2 {
		t.Errorf("16 requests to the ClusterIP reached %d guests; want 2", n)
	}
	if n := hits(t, ns, net.JoinHostPort(get("sticky").Spec.ClusterIP, "80"), 8); n != 1 {
		t.Errorf("8 requests with session affinity reached %d guests; want 1", n)
	}
	for _, name := range ns.Nodes {
		address := nodeAddress(ns.Node(t, name))
		port := strconv.Itoa(int(get("outside").Spec.Ports[0].NodePort))
		if body := fromHost(t, "http://"+net.JoinHostPort(address, port)+"/"); !strings.HasPrefix(body, "podvirt-tiny") {
			t.Errorf("NodePort on %s: %q", name, body)
		}
	}
	local := net.JoinHostPort(nodeAddress(ns.Node(t, pods["one"].Spec.NodeName)), strconv.Itoa(int(get("local").Spec.Ports[0].NodePort)))
	own := sourceTowards(t, local)
	if client := strings.TrimSpace(fromHost(t, "http://"+local+"/client")); client != own {
		t.Errorf("with externalTrafficPolicy Local the guest sees %s; want %s", client, own)
	}
	const external = "192.0.2.200" // as a controller of load balancers would write it
	patch := `{"status":{"loadBalancer":{"ingress":[{"ip":"` + external + `"}]}}}`
	if _, err := ns.Client.CoreV1().Services(ns.Name).Patch(t.Context(), "balanced", types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	if body := mustCurl(t, ns, "http://"+external+"/"); !strings.HasPrefix(body, "podvirt-tiny") {
		t.Errorf("LoadBalancer: %q", body)
	}
}

func nodeAddress(node *corev1.Node) string {
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}

// fromHost fetches from outside the cluster.
func fromHost(t *testing.T, url string) string {
	t.Helper()
	var body []byte
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	harness.Eventually(t, harness.Short, url, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		return err
	})
	return string(body)
}

func sourceTowards(t *testing.T, hostPort string) string {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "udp", hostPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// checkRelabel gives a running VM a label that a Service selects: its endpoint appears within a second.
func checkRelabel(t *testing.T, ns *harness.Namespace) {
	slices := ns.Client.DiscoveryV1().EndpointSlices(ns.Name)
	began := time.Now()
	if _, err := ns.Client.CoreV1().Pods(ns.Name).Patch(t.Context(), "two", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"tier":"gold"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Short, "endpoint of the label", func(ctx context.Context) error {
		list, err := slices.List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=gold"})
		if err != nil {
			return err
		}
		for _, slice := range list.Items {
			if len(slice.Endpoints) == 1 {
				return nil
			}
		}
		return errors.New("none")
	})
	if took := time.Since(began); took > time.Second+pollSlack {
		t.Errorf("the endpoint appeared after %s; want at most 1 s", took)
	}
	gold, err := ns.Client.CoreV1().Services(ns.Name).Get(t.Context(), "gold", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mustCurl(t, ns, "http://"+net.JoinHostPort(gold.Spec.ClusterIP, "80")+"/")
}

// pollSlack is what looking at the API server in steps adds.
const pollSlack = 400 * time.Millisecond

// checkSix reaches a guest that has no IPv4: by its Pod's IPv6 address, and by the Pod's loopback of either family.
func checkSix(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	var address string
	for _, ip := range pod.Status.PodIPs {
		if strings.Contains(ip.IP, ":") {
			address = ip.IP
		}
	}
	if got := sh(t, ns, net.JoinHostPort(address, "80"), "ip addr show dev eth0"); strings.Contains(got, "inet ") {
		t.Errorf("the guest has IPv4:\n%s", got)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/", ns.Forward(t, "six", 80))
	if body := fromHost(t, url); !strings.HasPrefix(body, "podvirt-tiny") {
		t.Errorf("port-forward: %q", body)
	}
}

// checkOwn looks at a guest that has the Pod's address, and at the launcher beside it (NW-023, NW-024).
func checkOwn(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	guest := net.JoinHostPort(pod.Status.PodIP, "80")
	if got := sh(t, ns, guest, "ip -4 addr show dev eth0"); !strings.Contains(got, "inet "+pod.Status.PodIP+"/") {
		t.Errorf("the guest has\n%s\nwant %s", got, pod.Status.PodIP)
	}
	if got := sh(t, ns, guest, "wget -qO- http://pair/client"); strings.TrimSpace(got) != pod.Status.PodIP {
		t.Errorf("a server in the cluster sees %q; want the Pod's address", got)
	}
	if got := mustCurl(t, ns, "http://"+net.JoinHostPort(pod.Status.PodIP, "49155")+"/metrics"); !strings.Contains(got, "podvirt_vm_state") {
		t.Errorf("the launcher's metrics: %.200q", got)
	}
}

// checkForward carries 1 GiB by kubectl port-forward, less in make test, and asks for a port that is closed in the guest (NW-019).
func checkForward(t *testing.T, ns *harness.Namespace) {
	size := int64(64 << 20)
	if thorough() {
		size = 1 << 30
	}
	began := time.Now()
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/zero?n=%d", ns.Forward(t, "one", 80), size))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil || n != size {
		t.Errorf("%d bytes, %v; want %d", n, err, size)
	}
	t.Logf("%d MiB took %s", size>>20, time.Since(began))
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", ns.Forward(t, "one", 4711)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began = time.Now()
	if err := conn.SetReadDeadline(began.Add(harness.Short)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || time.Since(began) > time.Second+pollSlack {
		t.Errorf("a closed port ended with %v after %s; want an error within 1 s", err, time.Since(began))
	}
}

// checkProbe stops and starts the guest's servers and sees readiness follow (NW-018).
func checkProbe(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	switchTo := func(on bool) {
		mustCurl(t, ns, "--request", "POST", fmt.Sprintf("http://%s/serve?on=%t", net.JoinHostPort(pod.Status.PodIP, "80"), on))
	}
	v, err := ns.Client.CoreV1().Pods(ns.Name).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the VM was restarted")
	}
	switchTo(false)
	defer switchTo(true)
	ns.WaitPod(t, pod.Name, harness.Short, func(pod *corev1.Pod) error {
		if harness.Ready(pod) == nil {
			return errors.New("still ready")
		}
		return nil
	})
	switchTo(true)
	ns.WaitPod(t, pod.Name, harness.Short, harness.Ready)
}

// checkPluginMetrics reads the counters of the node's plugins, where the VMs have been counted (NW-109).
func checkPluginMetrics(t *testing.T, ns *harness.Namespace) {
	for _, name := range ns.Nodes {
		url := "https://" + net.JoinHostPort(nodeAddress(ns.Node(t, name)), "9445") + "/metrics"
		text := mustCurl(t, ns, "--insecure", url)
		for _, want := range []string{`podvirt_cni_installed{method="drop-in"} 1`, `podvirt_cni_operations_total{verb="ADD",mode="pod",code="0"}`} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %s:\n%s", name, want, text)
			}
		}
	}
}
