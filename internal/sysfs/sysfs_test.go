package sysfs

import (
	"errors"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func files(pairs ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1] + "\n")}
	}
	return m
}

func TestList(t *testing.T) {
	rows := []struct {
		name, text string
		want       []int
		format     string
		bad        bool
	}{
		{name: "empty", text: "\n"},
		{name: "one", text: "7", want: []int{7}, format: "7"},
		{name: "ranges", text: "0-3,8,10-11", want: []int{0, 1, 2, 3, 8, 10, 11}, format: "0-3,8,10-11"},
		{name: "unsorted, twice", text: "8,0-2,1", want: []int{0, 1, 2, 8}, format: "0-2,8"},
		{name: "reversed", text: "3-1", bad: true},
		{name: "word", text: "all", bad: true},
		{name: "negative", text: "-1", bad: true},
		{name: "endless", text: "0-999999999", bad: true},
		{name: "endless in pieces", text: strings.Repeat("0-65535,", 40) + "1", bad: true},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, err := ParseList(row.text)
			if row.bad != errors.Is(err, ErrFormat) {
				t.Fatalf("err = %v, want one: %v", err, row.bad)
			}
			if row.bad {
				return
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
			if text := FormatList(got); text != row.format {
				t.Errorf("FormatList = %q, want %q", text, row.format)
			}
		})
	}
}

// unequalCells is a machine of three cells: one ordinary, one without CPUs, one without memory.
func unequalCells() fstest.MapFS {
	return files(
		"sys/devices/system/node/online", "0-2",
		"sys/devices/system/node/node0/cpulist", "0-3",
		"sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:       1048576 kB\nNode 0 MemFree: 1 kB",
		"sys/devices/system/node/node0/distance", "10 21 30",
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "5",
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "3",
		"sys/devices/system/node/node0/hugepages/hugepages-2048kB/surplus_hugepages", "1",
		"sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages", "2",
		"sys/devices/system/node/node0/hugepages/hugepages-1048576kB/free_hugepages", "2",
		"sys/devices/system/node/node1/cpulist", "",
		"sys/devices/system/node/node1/meminfo", "Node 1 MemTotal: 2048 kB",
		"sys/devices/system/node/node1/distance", "21 10 40",
		"sys/devices/system/node/node2/cpulist", "4-5",
		"sys/devices/system/node/node2/meminfo", "Node 2 MemTotal: 0 kB",
		"sys/devices/system/node/node2/distance", "30 40 10",
	)
}

func TestCells(t *testing.T) {
	rows := []struct {
		name string
		fs   fstest.MapFS
		want []Cell
	}{
		{"unequal cells", unequalCells(), []Cell{
			{ID: 0, CPUs: []int{0, 1, 2, 3}, Memory: 1 << 30, Distances: []int{10, 21, 30},
				Hugepages: []Hugepages{{Size: 2 << 20, Total: 4, Free: 3}, {Size: 1 << 30, Total: 2, Free: 2}}},
			{ID: 1, Memory: 2 << 20, Distances: []int{21, 10, 40}},
			{ID: 2, CPUs: []int{4, 5}, Distances: []int{30, 40, 10}},
		}},
		{"kernel without NUMA", files(
			"sys/devices/system/cpu/online", "0-1",
			"proc/meminfo", "MemTotal:       24689336 kB",
			"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0",
			"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0",
			"sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages", "0",
		), []Cell{{CPUs: []int{0, 1}, Memory: 24689336 << 10, Distances: []int{10}, Hugepages: []Hugepages{{Size: 2 << 20}}}}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, err := Cells(row.fs)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
	ballooned := unequalCells()
	ballooned["proc/zoneinfo"] = &fstest.MapFile{Data: []byte("Node 0, zone      DMA\n  pages free     3840\n        spanned  4095\n        present  100\n" +
		"Node 0, zone   Normal\n        present  200\n        managed  7\nNode 1, zone   Normal\n        present  5\n")}
	page := int64(os.Getpagesize())
	if got, err := Cells(ballooned); err != nil || got[0].Memory != 300*page || got[1].Memory != 5*page || got[2].Memory != 0 {
		t.Errorf("memory of cells under a balloon: %+v, %v; want all pages present", got, err)
	}
	ballooned["proc/zoneinfo"].Data = []byte("Node 0, zone DMA\n present many\n")
	if _, err := Cells(ballooned); !errors.Is(err, ErrFormat) {
		t.Errorf("err = %v, want %v", err, ErrFormat)
	}
	broken := unequalCells()
	broken["sys/devices/system/node/node1/meminfo"].Data = []byte("nothing")
	if _, err := Cells(broken); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "NUMA cell 1") {
		t.Errorf("err = %v, want one that names cell 1", err)
	}
}

func TestSizeName(t *testing.T) {
	for size, want := range map[int64]string{2 << 20: "2Mi", 1 << 30: "1Gi", 64 << 10: "64Ki", 32 << 20: "32Mi", 1000: "1000"} {
		if got := (Hugepages{Size: size}).SizeName(); got != want {
			t.Errorf("%d = %q, want %q", size, got, want)
		}
	}
}

func TestProcessor(t *testing.T) {
	fsys := files(
		"proc/cpuinfo", "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nmicrocode\t: 0x1000065\n"+
			"flags\t\t: fpu svm nx\naddress sizes\t: 48 bits physical, 48 bits virtual\n\nprocessor\t: 1\nvendor_id\t: Other",
		"sys/devices/system/cpu/online", "0-1",
		"sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1",
		"sys/devices/system/clocksource/clocksource0/available_clocksource", "kvm-clock tsc acpi_pm",
		"proc/sys/kernel/sched_rt_runtime_us", "-1",
		"proc/sys/kernel/random/boot_id", "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11",
	)
	got, err := FirstProcessor(fsys)
	want := Processor{Vendor: "AuthenticAMD", Model: "AMD EPYC", Microcode: "0x1000065", PhysBits: 48, Flags: []string{"fpu", "svm", "nx"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want,+got)\n%s", err, diff)
	}
	if !got.Has("svm") || got.Has("vmx") {
		t.Error("flags: want svm and no vmx")
	}
	if threads, err := ThreadsPerCore(fsys); err != nil || threads != 2 {
		t.Errorf("threads per core = %d, %v; want 2", threads, err)
	}
	if !StableTSC(fsys) || StableTSC(files()) {
		t.Error("stable TSC: want true with the clock source, false without")
	}
	if !UnlimitedRealtime(fsys) || UnlimitedRealtime(files("proc/sys/kernel/sched_rt_runtime_us", "950000")) {
		t.Error("realtime: want true for -1 only")
	}
	if id, err := BootID(fsys); err != nil || len(id) != 36 {
		t.Errorf("boot id = %q, %v", id, err)
	}
}

// TestThisMachine reads the machine the test runs on.
func TestThisMachine(t *testing.T) {
	host, err := Host("/")
	if err != nil {
		t.Fatal(err)
	}
	cells, err := Cells(host)
	if err != nil || len(cells) == 0 || len(cells[0].CPUs) == 0 || cells[0].Memory < 1<<20 {
		t.Errorf("cells = %+v, %v", cells, err)
	}
	if _, err := FirstProcessor(host); err != nil {
		t.Error(err)
	}
	if release, err := KernelRelease(host); err != nil || release == "" {
		t.Errorf("kernel release = %q, %v", release, err)
	}
}
