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

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// TestComponentsKilled kills every program of podvirt with SIGKILL while a VM with a disk runs: the VM does not notice,
// no volume is lost or left over, and what they serve is served again.
func TestComponentsKilled(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	ns.Apply(t, pvc("steady-data", corev1.PersistentVolumeFilesystem, "64Mi"))
	ns.Apply(t, newVM("steady", "guest-tiny").claim("data", corev1.PersistentVolumeFilesystem).httpReady(8080).manifest(t))
	pod := ns.WaitPod(t, "steady", harness.Medium, harness.Ready)
	base := "http://" + net.JoinHostPort(pod.Status.PodIP, "8080")
	mustCurl(t, ns, "--request", "PUT", "--data", "kept", base+"/data/note")
	before := ns.Node(t, pod.Spec.NodeName)

	for _, program := range []string{"csi-hostpath", "device-plugin", "cni-bridge", "scheduler"} {
		if killed := killEverywhere(t, ns, program); killed == 0 {
			t.Errorf("%s does not run", program)
		}
	}
	if got := mustCurl(t, ns, base+"/data/note"); strings.TrimSpace(got) != "kept" {
		t.Errorf("the running guest's disk says %q", got)
	}

	// Everything serves again: a new VM is placed, gets a volume, a tap and an address.
	ns.Apply(t, pvc("next-data", corev1.PersistentVolumeBlock, "64Mi"))
	ns.Apply(t, newVM("next", "guest-tiny").claim("data", corev1.PersistentVolumeBlock).httpReady(8080).manifest(t))
	ns.WaitPod(t, "next", 2*harness.Medium, harness.Ready)

	now := ns.WaitPod(t, "steady", harness.Short, harness.Ready)
	if now.UID != pod.UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the VM was restarted: %+v", now.Status.ContainerStatuses[0])
	}
	harness.Eventually(t, harness.Medium, "the node offers what it offered", func(context.Context) error {
		after := ns.Node(t, pod.Spec.NodeName)
		for _, name := range []corev1.ResourceName{api.ResourceTun, api.ResourceKVM} {
			was, is := before.Status.Allocatable[name], after.Status.Allocatable[name]
			if was.Cmp(is) != 0 {
				return fmt.Errorf("%s was %s and is %s", name, &was, &is)
			}
		}
		return nil
	})
	noVolumeIsLeft(t, ns, "steady", "next")
}

// killEverywhere kills a program on every node and returns how many processes that were.
func killEverywhere(t *testing.T, ns *harness.Namespace, program string) int {
	t.Helper()
	killed := 0
	for _, node := range ns.Nodes {
		out := ns.OnNode(t, node, "sh", "-c",
			`for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */`+program+`) kill -9 ${p#/proc/} && echo killed;; esac; done; true`)
		killed += strings.Count(out, "killed")
	}
	return killed
}

// noVolumeIsLeft deletes the VMs and their claims and waits until neither Kubernetes nor a pool has anything of them.
func noVolumeIsLeft(t *testing.T, ns *harness.Namespace, vms ...string) {
	t.Helper()
	var volumes []string
	claims := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name)
	for _, name := range vms {
		claim, err := claims.Get(t.Context(), name+"-data", metav1.GetOptions{})
		if err != nil || claim.Spec.VolumeName == "" {
			t.Fatalf("claim of %s: %+v, %v", name, claim, err)
		}
		volumes = append(volumes, claim.Spec.VolumeName)
		deletePod(t, ns, name)
		if err := claims.Delete(t.Context(), name+"-data", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, harness.Medium, "volumes gone", func(ctx context.Context) error {
		list, err := ns.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, volume := range list.Items {
			for _, name := range volumes {
				if volume.Name == name {
					return errors.New(name + " is still there")
				}
			}
		}
		return nil
	})
	for _, node := range ns.Nodes {
		for _, name := range volumes {
			if out := ns.OnNode(t, node, "find", "/var/lib/podvirt/pools", "-name", "*"+name+"*"); out != "" {
				t.Errorf("left on %s: %s", node, out)
			}
		}
	}
}
