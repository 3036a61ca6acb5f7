package launcher

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"podvirt.dev/internal/require"
	"podvirt.dev/internal/sysfs"
)

const hugepages = "/sys/kernel/mm/hugepages/hugepages-2048kB"

// reserve has the kernel make huge pages of 2 MiB until the test ends.
func reserve(t *testing.T, pages int) {
	t.Helper()
	require.Root(t)
	before := pool(t, "nr_hugepages")
	set := func(n int) error { return os.WriteFile(hugepages+"/nr_hugepages", []byte(strconv.Itoa(n)), 0) }
	t.Cleanup(func() {
		if err := set(before); err != nil {
			t.Error(err)
		}
	})
	err := set(before + pages)
	require.Feature(t, err == nil && pool(t, "nr_hugepages") == before+pages, fmt.Sprintf("%d free huge pages of 2 MiB", pages))
}

func pool(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(hugepages, file))
	require.Feature(t, err == nil, "huge pages of 2 MiB")
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestHugepagesOfACell runs a guest of 128 MiB whose memory is huge pages of NUMA cell 0, twice, so that the guest has
// two cells of its own (VM-041, SC-041, SC-049, SC-055).
func TestHugepagesOfACell(t *testing.T) {
	const pages = 64
	reserve(t, pages)
	free := pool(t, "free_hugepages")
	v := newPod(t, map[string]string{"hugepages": "2Mi", "numa": "2", "numa-cell": "0,0", "cpu-topology": "cores=2", "console": "attach"}).start()
	v.booted(1)
	if taken := free - pool(t, "free_hugepages"); taken != pages {
		t.Errorf("%d pages are taken; want %d", taken, pages)
	}
	qemu := hostPID(t, v, "qemu-system-x86")
	if kib := hugetlb(t, qemu); kib != pages<<11 {
		t.Errorf("smaps of QEMU has %d KiB of huge pages; want %d", kib, pages<<11)
	}
	wantBound(t, qemu, pages)
	wantOnCell(t, qemu)
	s := v.shell()
	s.await("cat /sys/devices/system/node/online", "^0-1$")
	s.await("cat /sys/devices/system/node/node*/cpulist | tr '\\n' ' '", "^0 1$")
	v.ctl("poweroff")
	v.wait()
	deadline := time.Now().Add(patience)
	for pool(t, "free_hugepages") != free && time.Now().Before(deadline) {
		<-time.After(50 * time.Millisecond) // the kernel frees the address space after the last process has ended
	}
	if now := pool(t, "free_hugepages"); now != free {
		t.Errorf("%d pages are free after the end; want %d", now, free)
	}
}

// TestNoSuchCell: what the scheduler chose and the container cannot use is refused, and so are pages that memory does not
// fill (SC-042, SC-049).
func TestNoSuchCell(t *testing.T) {
	annotations := map[string]string{"numa": "single", "numa-cell": "7"}
	newPod(t, annotations).start().wantEnd(11, `^NodeLacks: podvirt.dev/numa-cell: 7: this node has no such NUMA cell$`)
	odd := map[string]string{"hugepages": "1Gi", "memory": "500Mi"}
	newPod(t, odd).start().wantEnd(10, `^BadConfig: podvirt.dev/hugepages: 500Mi is not a multiple of 1Gi$`)
}

// TestTooFewPages: QEMU must not die of a bus error in the middle of the guest's life (VM-041).
func TestTooFewPages(t *testing.T) {
	reserve(t, 4)
	newPod(t, map[string]string{"hugepages": "2Mi"}).start().wantEnd(13, `^StartFailed: .*(?i:memory|allocate)`)
}

// hugetlb adds up the huge pages of a process's mappings, in KiB.
func hugetlb(t *testing.T, pid int) int64 {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var kib int64
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && (fields[0] == "Shared_Hugetlb:" || fields[0] == "Private_Hugetlb:") {
			kib += number(t, fields[1])
		}
	}
	return kib
}

// wantBound looks for mappings of huge pages that are bound to cell 0, and nothing else of their kind.
func wantBound(t *testing.T, pid, pages int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/numa_maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	on0 := 0
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, " huge ") {
			continue
		}
		if !strings.Contains(line, " bind:0 ") && !strings.Contains(line, " bind=static:0 ") {
			t.Errorf("not bound to cell 0: %s", line)
		}
		if m := regexp.MustCompile(` N0=(\d+)`).FindStringSubmatch(line); m != nil {
			on0 += int(number(t, m[1]))
		}
	}
	if on0 != pages {
		t.Errorf("%d huge pages on cell 0; want %d:\n%s", on0, pages, maps)
	}
}

// wantOnCell wants every thread of QEMU on CPUs of cell 0.
func wantOnCell(t *testing.T, pid int) {
	t.Helper()
	root, err := sysfs.Host("/")
	if err != nil {
		t.Fatal(err)
	}
	cells, err := sysfs.Cells(root)
	if err != nil {
		t.Fatal(err)
	}
	want := sysfs.FormatList(cells[0].CPUs)
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) < 3 {
		t.Fatalf("threads of QEMU: %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if m := regexp.MustCompile(`Cpus_allowed_list:\t(.*)`).FindSubmatch(text); m == nil || string(m[1]) != want {
			t.Errorf("%s: CPUs %s; want %s", file, m, want)
		}
	}
}
