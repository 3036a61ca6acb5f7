package suite

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/test/cluster/harness"
)

// TestGuestOnTheNetwork looks at one guest as its neighbours do, and as it does itself: by Services of each family, by its name,
// and with its cable pulled.
func TestGuestOnTheNetwork(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	web := newVM("web", "guest-tiny").httpReady(8080).seed("seed")
	web.Labels["app"] = "web"
	web.Spec.Hostname, web.Spec.Subdomain = "mail", "sub"
	ns.Apply(t, familyServices+web.manifest(t))
	pod := ns.WaitPod(t, "web", harness.Medium, harness.Ready)
	t.Run("Services of each family", func(t *testing.T) { checkFamilies(t, ns, pod) })
	t.Run("host name", func(t *testing.T) { checkHostname(t, ns, pod) })
	t.Run("link", func(t *testing.T) { checkLink(t, ns) })
}

const familyServices = `
apiVersion: v1
kind: Secret
metadata: {name: seed}
stringData: {user-data: "#cloud-config\n"}
---
apiVersion: v1
kind: Service
metadata: {name: four}
spec: {selector: {app: web}, ports: [{port: 80}], ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {selector: {app: web}, ports: [{port: 80}], ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]}
---
apiVersion: v1
kind: Service
metadata: {name: preferred}
spec: {selector: {app: web}, ports: [{port: 80}], ipFamilyPolicy: PreferDualStack}
---
apiVersion: v1
kind: Service
metadata: {name: four-six}
spec: {selector: {app: web}, ports: [{port: 80}], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]}
---
apiVersion: v1
kind: Service
metadata: {name: six-four}
spec: {selector: {app: web}, ports: [{port: 80}], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]}
---
apiVersion: v1
kind: Service
metadata: {name: sub}
spec: {selector: {app: web}, clusterIP: None, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}
---
`

// checkFamilies calls each Service by each of its addresses, from another Pod and from the guest itself, whose call the
// node turns around (NW-055, NW-020).
func checkFamilies(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	guest := net.JoinHostPort(pod.Status.PodIP, "80")
	for name, families := range map[string]string{"four": "4", "six": "6", "preferred": "46", "four-six": "46", "six-four": "64"} {
		svc, err := ns.Client.CoreV1().Services(ns.Name).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, ip := range svc.Spec.ClusterIPs {
			fmt.Fprint(&got, map[bool]string{true: "4", false: "6"}[netip.MustParseAddr(ip).Is4()])
			url := "http://" + net.JoinHostPort(ip, "80") + "/"
			if body := mustCurl(t, ns, url); !strings.HasPrefix(body, "podvirt-tiny") {
				t.Errorf("Service %s at %s: %q", name, ip, body)
			}
			if body := sh(t, ns, guest, "wget -T 10 -qO- "+url); !strings.HasPrefix(body, "podvirt-tiny") {
				t.Errorf("the guest behind Service %s calls it at %s: %q", name, ip, body)
			}
		}
		if got.String() != families {
			t.Errorf("Service %s has addresses of families %s; want %s", name, &got, families)
		}
	}
	for _, ip := range pod.Status.PodIPs {
		if body := sh(t, ns, guest, "wget -T 10 -qO- http://"+net.JoinHostPort(ip.IP, "80")+"/"); !strings.HasPrefix(body, "podvirt-tiny") {
			t.Errorf("the guest calls its Pod's address %s: %q", ip.IP, body)
		}
	}
}

// checkHostname wants the Pod's spec.hostname in the guest, and the record of the headless Service (NW-048).
func checkHostname(t *testing.T, ns *harness.Namespace, pod *corev1.Pod) {
	guest := net.JoinHostPort(pod.Status.PodIP, "80")
	if got := strings.TrimSpace(sh(t, ns, guest, "hostname")); got != "mail" {
		t.Errorf("the guest calls itself %q; want mail", got)
	}
	answer := sh(t, ns, guest, "nslookup mail.sub."+ns.Name+".svc.cluster.local; nslookup -type=aaaa mail.sub."+ns.Name+".svc.cluster.local")
	for _, ip := range pod.Status.PodIPs {
		if !strings.Contains(answer, ip.IP) {
			t.Errorf("the name of the Pod lacks %s:\n%s", ip.IP, answer)
		}
	}
}

// checkLink pulls the cable: the guest answers nobody, and so is not ready until it is plugged again (NW-042).
func checkLink(t *testing.T, ns *harness.Namespace) {
	ctl(t, ns, "web", "update", "nic", "link=down")
	ns.WaitPod(t, "web", harness.Short, func(pod *corev1.Pod) error {
		if !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse
		}) {
			return errors.New("it is ready")
		}
		return nil
	})
	if status := ctl(t, ns, "web", "status", "-o", "json"); !strings.Contains(status, `"link": "down"`) && !strings.Contains(status, `"link":"down"`) {
		t.Errorf("the status does not say that the link is down:\n%s", status)
	}
	ctl(t, ns, "web", "update", "nic", "default", "link=up")
	ns.WaitPod(t, "web", harness.Short, harness.Ready)
}
