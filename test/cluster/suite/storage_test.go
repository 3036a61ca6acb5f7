package suite

import (
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

// TestDiskPersists writes 100 MB of noise to a disk of a claim, deletes the Pod and reads them in the next one, with the
// checksum that they were sent with (VM-070). Further disks have in the guest exactly the size of their claim (ST-016).
func TestDiskPersists(t *testing.T) {
	const sent, minutes = 100_000_000, "600"
	for _, mode := range []corev1.PersistentVolumeMode{corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock} {
		t.Run(string(mode), func(t *testing.T) {
			ns := setUp(t, "guest-tiny")
			block := mode == corev1.PersistentVolumeBlock
			ns.Apply(t, pvc("disk-data", mode, "200Mi"))
			guest := newVM("disk", "guest-tiny").claim("data", mode).httpReady(8080)
			sizes := map[string]int64{"small": 1 << 30, "odd": 1000001536, "large": 20 << 30}
			for name, size := range map[string]string{"small": "1Gi", "odd": "1000000001", "large": "20Gi"} { // in blocks of 4 KiB
				ns.Apply(t, claim{name: name, size: size, block: block, annotations: contentDisk()}.manifest(t))
				guest.use(name, name, block)
			}
			noise := func(pod *corev1.Pod) string {
				return "http://" + net.JoinHostPort(pod.Status.PodIP, "8080") + "/data/noise"
			}

			ns.Apply(t, guest.manifest(t))
			pod := ns.WaitPod(t, "disk", 2*harness.Medium, harness.Ready)
			ns.WaitLog(t, "disk", api.ContainerName, "podvirt-tiny: data on", harness.Medium)
			ns.Exec(t, "client", "main", "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom >/tmp/noise", sent))
			sum := ns.Exec(t, "client", "main", "sh", "-c", "sha256sum </tmp/noise")
			ns.Exec(t, "client", "main", "curl", "--silent", "--show-error", "--fail", "--max-time", minutes, "--upload-file", "/tmp/noise", noise(pod))
			checkSizes(t, ns, "disk", sizes)
			deletePod(t, ns, "disk")

			ns.Apply(t, guest.manifest(t))
			pod = ns.WaitPod(t, "disk", 2*harness.Medium, harness.Ready)
			got := ns.Exec(t, "client", "main", "sh", "-c", "curl --silent --show-error --fail --max-time "+minutes+" "+noise(pod)+" | sha256sum")
			if got != sum {
				t.Errorf("the checksum was %s and is %s", sum, got)
			}
			if log := ns.Log(t, "disk", api.ContainerName); strings.Contains(log, "formatted") {
				t.Error("the second guest found a blank disk")
			}
		})
	}
}
