package suite

import (
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// TestDiskPersists writes a file to a disk of a claim, deletes the Pod and finds the file in the next one.
func TestDiskPersists(t *testing.T) {
	for _, mode := range []corev1.PersistentVolumeMode{corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock} {
		t.Run(string(mode), func(t *testing.T) {
			ns := setUp(t, "guest-tiny")
			ns.Apply(t, pvc("disk-data", mode, "64Mi"))
			guest := newVM("disk", "guest-tiny").claim("data", mode).httpReady(8080)

			ns.Apply(t, guest.manifest(t))
			pod := ns.WaitPod(t, "disk", harness.Medium, harness.Ready)
			ns.WaitLog(t, "disk", api.ContainerName, "podvirt-tiny: data on", harness.Short)
			url := "http://" + net.JoinHostPort(pod.Status.PodIP, "8080") + "/data/note"
			mustCurl(t, ns, "--request", "PUT", "--data", "kept", url)
			deletePod(t, ns, "disk")

			ns.Apply(t, guest.manifest(t))
			pod = ns.WaitPod(t, "disk", harness.Medium, harness.Ready)
			url = "http://" + net.JoinHostPort(pod.Status.PodIP, "8080") + "/data/note"
			if got := mustCurl(t, ns, url); strings.TrimSpace(got) != "kept" {
				t.Errorf("the disk holds %q; want what the guest before wrote", got)
			}
			if log := ns.Log(t, "disk", api.ContainerName); strings.Contains(log, "formatted") {
				t.Error("the second guest found a blank disk")
			}
		})
	}
}
