package suite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// completed is the Pod as the admission policies write it, for the time when they are not in force.
func completed(t *testing.T, ns *harness.Namespace, v *vm) *corev1.Pod {
	t.Helper()
	pod, err := ns.Client.CoreV1().Pods(ns.Name).Create(t.Context(), &v.Pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	pod.ObjectMeta = metav1.ObjectMeta{Name: pod.Name, Labels: pod.Labels, Annotations: pod.Annotations}
	pod.Status.Reset()
	pod.APIVersion, pod.Kind = "v1", "Pod"
	return pod
}

// TestNetworkRefusals shows what the node says of a VM Pod that no policy looked at, and a VM without any NIC.
func TestNetworkRefusals(t *testing.T) {
	long(t, "test-network")
	ns := setUp(t, "guest-tiny")
	none := newVM("none", "guest-tiny").annotate(map[string]string{"nic.default": "binding=none"})
	none.container().ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"launcher", "probe", "state", "running"}}},
		PeriodSeconds: 1, FailureThreshold: 60, TimeoutSeconds: 5,
	}
	ns.Apply(t, none.manifest(t))
	wrong := completed(t, ns, newVM("wrong", "guest-tiny"))
	wrong.Spec.NodeName = ns.Nodes[0] // past every scheduler
	ns.WithoutPolicies(t)
	wrong.Annotations[api.Prefix+"nic.default"] = "binding=masq,model=e100,queues=300"
	wrong.Annotations[api.Prefix+"nic.net1"] = "link=upp,mtu=9"
	harness.Eventually(t, harness.Short, "the policies are out of force", func(ctx context.Context) error {
		return ns.TryApply(ctx, manifest(t, wrong))
	})

	t.Run("five mistakes in one event", func(t *testing.T) {
		wants := []string{
			"nic.default: binding=masq: not one of masquerade, wire,", "nic.default: model=e100: not one of virtio,", "nic.default: queues=300: 1 to 256",
			"nic.net1: link=upp: not one of up, down", "nic.net1: mtu=9: 68 to 65521",
		}
		harness.Eventually(t, harness.Short, "event of the sandbox", func(ctx context.Context) error {
			list, err := ns.Client.CoreV1().Events(ns.Name).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=wrong"})
			if err != nil {
				return err
			}
			for _, e := range list.Items {
				if e.Reason == "FailedCreatePodSandBox" {
					return allIn(e.Message, wants)
				}
			}
			return errors.New("none yet")
		})
	})
	t.Run("a VM without NIC", func(t *testing.T) {
		pod := ns.WaitPod(t, "none", harness.Medium, harness.Ready)
		ns.WaitLog(t, "none", api.ContainerName, "podvirt-tiny: interfaces lo", harness.Medium)
		mustCurl(t, ns, "http://"+net.JoinHostPort(pod.Status.PodIP, fmt.Sprint(api.PortStatus))+"/metrics") // the Pod keeps its network
	})
}

func allIn(text string, wants []string) error {
	for _, want := range wants {
		if !strings.Contains(text, want) {
			return fmt.Errorf("%w: lacks %q: %s", harness.ErrNever, want, text)
		}
	}
	return nil
}

// TestUninstalledNetwork takes the CNI plugin off the nodes and puts it back. Nodes are then as they were before podvirt,
// VMs wait for it, and one that was made without it says so.
func TestUninstalledNetwork(t *testing.T) {
	long(t, "test-network")
	ns := setUp(t, "guest-tiny")
	node := ns.Nodes[0]
	old, late := completed(t, ns, newVM("old", "guest-tiny")), completed(t, ns, newVM("late", "guest-tiny"))
	anew := old.DeepCopy()
	old.Spec.NodeName = node // past every scheduler, and without a device that no node has
	old.Spec.RestartPolicy = corev1.RestartPolicyNever
	delete(old.Spec.Containers[0].Resources.Limits, api.ResourceTun)
	delete(old.Spec.Containers[0].Resources.Requests, api.ResourceTun)
	ns.Apply(t, newVM("early", "guest-tiny").manifest(t))
	early := ns.WaitPod(t, "early", harness.Medium, harness.Running)

	setInstaller(t, ns, false)
	t.Cleanup(func() { patchInstaller(t, ns, true) })
	t.Run("refused while a VM runs", func(t *testing.T) {
		out := ns.OnNode(t, early.Spec.NodeName, "sh", "-c", "/opt/cni/bin/cni-bridge uninstall 2>&1; true")
		if want := "VM Pods run on this node: "; !strings.Contains(out, want) { // it names the first of them
			t.Errorf("uninstall says %q; want %q", out, want)
		}
	})
	deletePod(t, ns, "early")
	ns.WithoutPolicies(t)
	clean := t.Run("the node is as it was", func(t *testing.T) {
		for _, name := range ns.Nodes {
			uninstall(t, ns, name)
			out := ns.OnNode(t, name, "sh", "-c", "cd /etc/cni/net.d && find . -type f; cd /opt/cni/bin && ls; ls -d /run/podvirt/cni 2>/dev/null; true")
			if want := "./10-local.conflist\nhost-local\nloopback\nportmap\nptp\n"; out != want {
				t.Errorf("%s has %q; want %q", name, out, want)
			}
		}
	})
	if !clean {
		return
	}
	t.Run("a plain Pod starts and stops", func(t *testing.T) {
		ns.Apply(t, strings.ReplaceAll(clientPod, "client", "plain"))
		ns.WaitPod(t, "plain", harness.Medium, harness.Ready)
		deletePod(t, ns, "plain")
	})
	t.Run("a VM made without the plugin", func(t *testing.T) {
		ns.Apply(t, manifest(t, old))
		end := terminated(ns.WaitPod(t, "old", harness.Medium, ended))
		if want := "NodeLacks: the network stage of this node did not see this Pod"; end.ExitCode != 11 || !strings.HasPrefix(end.Message, want) {
			t.Errorf("code %d, %q; want %q", end.ExitCode, end.Message, want)
		}
	})
	t.Run("a VM waits for it", func(t *testing.T) { checkWaits(t, ns, late) })
	t.Run("the same Pod anew", func(t *testing.T) {
		deletePod(t, ns, "old")
		ns.Apply(t, manifest(t, anew))
		ns.WaitPod(t, "old", harness.Medium, harness.Running)
		ns.WaitLog(t, "old", api.ContainerName, "podvirt-tiny: eth0 has 10.0.2.2/24", harness.Medium)
	})
}

// uninstall takes the plugin off a node, once the kubelet has ended what tests before left there.
func uninstall(t *testing.T, ns *harness.Namespace, node string) {
	t.Helper()
	harness.Eventually(t, harness.Medium, "uninstalled on "+node, func(context.Context) error {
		out := ns.OnNode(t, node, "sh", "-c", "/opt/cni/bin/cni-bridge uninstall 2>&1 || echo refused")
		if strings.Contains(out, "refused") {
			return errors.New(out)
		}
		return nil
	})
}

// checkWaits makes a VM while no node has the plugin, and sees it run when they have it again (NW-102).
func checkWaits(t *testing.T, ns *harness.Namespace, late *corev1.Pod) {
	for _, name := range ns.Nodes {
		harness.Eventually(t, harness.Medium, "no tun device on "+name, func(context.Context) error {
			if tun := ns.Node(t, name).Status.Allocatable[api.ResourceTun]; !tun.IsZero() {
				return fmt.Errorf("%s", &tun)
			}
			return nil
		})
	}
	ns.Apply(t, manifest(t, late))
	ns.WaitPod(t, "late", harness.Short, harness.Unschedulable)
	setInstaller(t, ns, true)
	ns.WaitPod(t, "late", 2*harness.Medium, harness.Running)
	ns.WaitLog(t, "late", api.ContainerName, "podvirt-tiny: eth0 has 10.0.2.2/24", harness.Medium)
}

// The DaemonSet of the CNI plugin.
const (
	systemNamespace = "podvirt-system"
	installerName   = "podvirt-cni-bridge"
)

// patchInstaller takes the DaemonSet of the CNI plugin off all nodes, or brings it back.
func patchInstaller(t *testing.T, ns *harness.Namespace, on bool) {
	t.Helper()
	selector := `"podvirt.dev/nowhere":"true"`
	if on {
		selector = `"podvirt.dev/nowhere":null`
	}
	patch := `{"spec":{"template":{"spec":{"nodeSelector":{` + selector + `}}}}}`
	daemons := ns.Client.AppsV1().DaemonSets(systemNamespace)
	if _, err := daemons.Patch(context.WithoutCancel(t.Context()), installerName, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// setInstaller is patchInstaller, and waits for it.
func setInstaller(t *testing.T, ns *harness.Namespace, on bool) {
	t.Helper()
	patchInstaller(t, ns, on)
	want := int32(0)
	if on {
		want = int32(len(ns.Nodes))
	}
	harness.Eventually(t, harness.Medium, installerName, func(ctx context.Context) error {
		d, err := ns.Client.AppsV1().DaemonSets(systemNamespace).Get(ctx, installerName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration != d.Generation || s.DesiredNumberScheduled != want || s.NumberReady != want || s.CurrentNumberScheduled != want {
			return fmt.Errorf("%d of %d Pods ready", s.NumberReady, want)
		}
		return nil
	})
}
