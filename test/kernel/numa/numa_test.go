package numa

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"podvirt.dev/internal/sysfs"
	"podvirt.dev/test/kernel/internal/inguest"
)

const (
	nodes     = 2
	perNode   = 16 // of the 32 huge pages of the machine
	pageBytes = 2 << 20
)

func TestNodesHaveProcessorsAndHugePages(t *testing.T) {
	inguest.Must(t)
	for node := range nodes {
		dir := fmt.Sprintf("/sys/devices/system/node/node%d", node)
		if got, want := read(t, dir+"/cpulist"), fmt.Sprint(node); got != want {
			t.Errorf("CPUs of node %d = %s; want %s", node, got, want)
		}
		if got, want := read(t, dir+"/hugepages/hugepages-2048kB/nr_hugepages"), fmt.Sprint(perNode); got != want {
			t.Errorf("huge pages of node %d = %s; want %s", node, got, want)
		}
	}
}

// TestHugePageComesFromTheBoundNode binds a mapping to each node in turn and sees which node's free pages shrink.
func TestHugePageComesFromTheBoundNode(t *testing.T) {
	inguest.Must(t)
	for node := range nodes {
		memory, err := unix.Mmap(-1, 0, pageBytes, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
		if err != nil {
			t.Fatal(err)
		}
		bind(t, memory, node)
		memory[0] = 1
		free := fmt.Sprintf("/sys/devices/system/node/node%d/hugepages/hugepages-2048kB/free_hugepages", node)
		if got, want := read(t, free), fmt.Sprint(perNode-1); got != want {
			t.Errorf("free huge pages of node %d = %s; want %s", node, got, want)
		}
		if err := unix.Munmap(memory); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFactsFollowThePages: what the node facts are made of, on a kernel with several NUMA nodes (scheduling.md SC-010).
func TestFactsFollowThePages(t *testing.T) {
	inguest.Must(t)
	const node, pages = 1, 3
	before := cells(t)
	memory, err := unix.Mmap(-1, 0, pages*pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	if err != nil {
		t.Fatal(err)
	}
	bind(t, memory, node)
	for page := range pages {
		memory[page*pageBytes] = 1
	}
	want := before
	want[node].Hugepages = slices.Clone(want[node].Hugepages)
	want[node].Hugepages[0].Free -= pages
	if diff := cmp.Diff(want, cells(t)); diff != "" {
		t.Errorf("cells after %d pages of node %d were taken (-want,+got):\n%s", pages, node, diff)
	}
	if err := unix.Munmap(memory); err != nil {
		t.Fatal(err)
	}
}

// cells reads them and checks what does not change.
func cells(t *testing.T) []sysfs.Cell {
	t.Helper()
	root, err := sysfs.Host("/")
	if err != nil {
		t.Fatal(err)
	}
	all, err := sysfs.Cells(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != nodes {
		t.Fatalf("%d cells; want %d", len(all), nodes)
	}
	for i, c := range all {
		if c.ID != i || !slices.Equal(c.CPUs, []int{i}) || c.Memory < 256<<20 || len(c.Distances) != nodes || c.Hugepages[0].Total != perNode {
			t.Errorf("cell %d: %+v", i, c)
		}
	}
	return all
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}
