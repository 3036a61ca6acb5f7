package suite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podvirt.dev/api"
	"podvirt.dev/internal/require"
	"podvirt.dev/test/cluster/harness"
)

const (
	pagesFile = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	pageBytes = 2 << 20
	ofTheVM   = 64 // pages
)

// TestHugepages reserves huge pages of 2 MiB on a running node. A VM waits while others have them, takes them when they
// are free, really runs on them, and gives them back (SC-041, SC-043, SC-044, SC-047, VM-041).
func TestHugepages(t *testing.T) {
	ns := setUp(t, "guest-tiny")
	node := ns.Nodes[1]
	defer reservePages(t, ns.Cluster, node, ofTheVM+32)()
	free := pagesOf(t, "free_hugepages")
	foreign := takePages(t, free-ofTheVM+1)
	awaitFree(t, ns.Cluster, node, ofTheVM-1)

	ns.Apply(t, newVM("huge", "guest-tiny").annotate(map[string]string{"memory": "128Mi", "hugepages": "2Mi", "numa": "single"}).manifest(t))
	pod := ns.WaitPod(t, "huge", harness.Short, harness.Unschedulable)
	const reason = "not enough free 2Mi pages in 1 NUMA cell(s): 64 needed in one"
	if got := harness.SchedulingMessage(pod); !strings.Contains(got, reason) {
		t.Errorf("reason %q; want %q", got, reason)
	}
	foreign()
	pod = ns.WaitPod(t, "huge", harness.Short, harness.Scheduled)
	limits := pod.Spec.Containers[0].Resources.Limits
	if pages := limits["hugepages-2Mi"]; pod.Spec.NodeName != node || pod.Annotations[api.KeyNUMACell] != "0" || pages.Value() != ofTheVM*pageBytes {
		t.Errorf("on %s, cell %q, limit %s", pod.Spec.NodeName, pod.Annotations[api.KeyNUMACell], &pages)
	}
	ns.WaitPod(t, "huge", harness.Medium, harness.Running)
	harness.Eventually(t, harness.Medium, "guest memory is huge pages", func(context.Context) error { return onHugepages(t, ns.Cluster, node) })
	awaitFree(t, ns.Cluster, node, free-ofTheVM)
	ns.WaitLog(t, "huge", "vm", "podvirt-tiny: ready after", harness.Medium)

	deletePod(t, ns, "huge")
	awaitFree(t, ns.Cluster, node, free)
}

// onHugepages looks into smaps of QEMU on a node.
func onHugepages(t *testing.T, c *harness.Cluster, node string) error {
	t.Helper()
	out := c.OnNode(t, node, "sh", "-c", `for p in /proc/[0-9]*; do
case "$(readlink $p/exe)" in */qemu-system-*) awk '/^(Shared|Private)_Hugetlb:/ { n += $2 } END { print n }' $p/smaps;; esac; done; true`)
	for kib := range strings.FieldsSeq(out) {
		if kib == strconv.Itoa(ofTheVM*pageBytes>>10) {
			return nil
		}
	}
	return fmt.Errorf("KiB of huge pages in the QEMUs of %s: %q; want %d", node, out, ofTheVM*pageBytes>>10)
}

// reservePages has the kernel make huge pages and the node's kubelet count them, until giveBack is called. All nodes are
// this machine; the kubelet of one counts.
func reservePages(t *testing.T, c *harness.Cluster, node string, more int) (giveBack func()) {
	t.Helper()
	set := func(n int) error { return os.WriteFile(pagesFile+"nr_hugepages", []byte(strconv.Itoa(n)), 0) }
	before := pagesOf(t, "nr_hugepages")
	giveBack = func() {
		if err := set(before); err != nil {
			t.Error(err)
		}
		killOn(t, c, node, "kubelet-*")
	}
	counted := false
	defer func() {
		if !counted {
			giveBack()
		}
	}()
	err := set(before + more)
	require.Feature(t, err == nil && pagesOf(t, "nr_hugepages") == before+more, fmt.Sprintf("%d free huge pages of 2 MiB", more))
	if killed := killOn(t, c, node, "kubelet-*"); killed != 1 {
		t.Fatalf("%d kubelets killed", killed)
	}
	want := resource.NewQuantity(int64(before+more)*pageBytes, resource.BinarySI)
	harness.Eventually(t, harness.Medium, "the kubelet counts huge pages", func(context.Context) error {
		object := c.Node(t, node)
		for _, condition := range object.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status != corev1.ConditionTrue {
				return errors.New("not Ready")
			}
		}
		if have := object.Status.Allocatable["hugepages-2Mi"]; have.Cmp(*want) != 0 {
			return fmt.Errorf("allocatable hugepages-2Mi is %s; want %s", &have, want)
		}
		return nil
	})
	counted = true
	return giveBack
}

func pagesOf(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(pagesFile + file)
	require.Feature(t, err == nil, "huge pages of 2 MiB")
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// takePages is somebody who uses huge pages and is no Pod.
func takePages(t *testing.T, pages int) (release func()) {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, pages*pageBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	held := true
	release = func() {
		if held {
			held = false
			if err := unix.Munmap(memory); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(release)
	return release
}

// awaitFree waits until the Node says so.
func awaitFree(t *testing.T, c *harness.Cluster, node string, want int) {
	t.Helper()
	harness.Eventually(t, harness.Short, fmt.Sprintf("facts of %s say %d free pages", node, want), func(context.Context) error {
		facts, err := api.DecodeNUMAFacts(c.Node(t, node).Annotations[api.NodeNUMA])
		if err != nil {
			return err
		}
		if free := facts.Cells[0].Hugepages["2Mi"].Free; free != int64(want) {
			return fmt.Errorf("%d are free", free)
		}
		return nil
	})
}
