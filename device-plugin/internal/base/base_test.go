package base

import (
	"io/fs"
	"os"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/internal/require"
)

const boot = 1_790_000_000

// host is a node with every device, whose CNI plugin was called a minute after boot.
func host() (h Host, dev, proc, run fstest.MapFS) {
	char := func() *fstest.MapFile { return &fstest.MapFile{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600} }
	dev = fstest.MapFS{"kvm": char(), "net/tun": char(), "vhost-net": char(), "vhost-vsock": char(), "userfaultfd": char()}
	proc = fstest.MapFS{
		"stat":                           {Data: []byte("cpu 1 2\nbtime 1790000000\nprocesses 3\n")},
		"sys/kernel/sched_rt_runtime_us": {Data: []byte("-1\n")},
	}
	run = fstest.MapFS{Stamp: {ModTime: time.Unix(boot+60, 0)}}
	return Host{Dev: dev, Proc: proc, Run: run}, dev, proc, run
}

func TestScan(t *testing.T) {
	usable := KVM{Known: true, Usable: true}
	all := map[string]int{
		api.ResourceKVM: 1000, api.ResourceTun: 1000, api.ResourceVhostNet: 1000, api.ResourceVhostVsock: 1000,
		api.ResourceUserfaultfd: 1000, api.ResourceRealtime: 1000, api.ResourceMemlock: 1000,
	}
	tests := map[string]struct {
		change   func(h *Host, dev, proc, run fstest.MapFS)
		settings Settings
		kvm      KVM
		differ   map[string]int    // units of resources that are not as in all; -1: not offered at all
		notes    map[string]string // why
	}{
		"everything":    {kvm: usable},
		"nothing known": {differ: map[string]int{api.ResourceKVM: -1}},
		"KVM not usable": {
			kvm:    KVM{Known: true, Why: "accelerator tcg"},
			differ: map[string]int{api.ResourceKVM: 0}, notes: map[string]string{api.ResourceKVM: "accelerator tcg"},
		},
		"no kvm file": {
			change: func(_ *Host, dev, _, _ fstest.MapFS) { delete(dev, "kvm") }, kvm: usable,
			differ: map[string]int{api.ResourceKVM: 0}, notes: map[string]string{api.ResourceKVM: "/dev/kvm is missing"},
		},
		"no vhost": {
			change: func(_ *Host, dev, _, _ fstest.MapFS) { delete(dev, "vhost-net"); delete(dev, "vhost-vsock") }, kvm: usable,
			differ: map[string]int{api.ResourceVhostNet: 0, api.ResourceVhostVsock: 0},
			notes:  map[string]string{api.ResourceVhostNet: "/dev/vhost-net is missing", api.ResourceVhostVsock: "/dev/vhost-vsock is missing"},
		},
		"a plain file instead of the device": {
			change: func(_ *Host, dev, _, _ fstest.MapFS) { dev["vhost-net"] = &fstest.MapFile{} }, kvm: usable,
			differ: map[string]int{api.ResourceVhostNet: 0}, notes: map[string]string{api.ResourceVhostNet: "/dev/vhost-net is not a character device"},
		},
		"a node in advance and no module": {
			change: func(h *Host, _, _, _ fstest.MapFS) { h.Open = openFails("vhost-net", syscall.ENODEV) }, kvm: usable,
			differ: map[string]int{api.ResourceVhostNet: 0}, notes: map[string]string{api.ResourceVhostNet: "/dev/vhost-net has no driver"},
		},
		"our container may not open it": {
			change: func(h *Host, _, _, _ fstest.MapFS) { h.Open = openFails("vhost-net", syscall.EPERM) }, kvm: usable,
		},
		"CNI plugin never called": {
			change: func(_ *Host, _, _, run fstest.MapFS) { delete(run, Stamp) }, kvm: usable,
			differ: map[string]int{api.ResourceTun: 0}, notes: map[string]string{api.ResourceTun: "the container runtime has not called the CNI plugin on this node"},
		},
		"CNI plugin called in the last boot": {
			change: func(_ *Host, _, _, run fstest.MapFS) { run[Stamp].ModTime = time.Unix(boot-1, 0) }, kvm: usable,
			differ: map[string]int{api.ResourceTun: 0}, notes: map[string]string{api.ResourceTun: "the container runtime has not called the CNI plugin since boot"},
		},
		"CNI plugin called in the second of boot": {
			change: func(_ *Host, _, _, run fstest.MapFS) { run[Stamp].ModTime = time.Unix(boot, 0) }, kvm: usable,
		},
		"time of boot unknown": {
			change: func(_ *Host, _, proc, _ fstest.MapFS) { proc["stat"].Data = []byte("cpu 1\n") }, kvm: usable,
			differ: map[string]int{api.ResourceTun: 0}, notes: map[string]string{api.ResourceTun: "time of boot unknown: /proc/stat has no line btime"},
		},
		"real-time throttling": {
			change: func(_ *Host, _, proc, _ fstest.MapFS) {
				proc["sys/kernel/sched_rt_runtime_us"].Data = []byte("950000\n")
			}, kvm: usable,
			differ: map[string]int{api.ResourceRealtime: 0}, notes: map[string]string{api.ResourceRealtime: "kernel.sched_rt_runtime_us is 950000, not -1"},
		},
		"configured numbers": {
			settings: Settings{Units: map[string]int{api.ResourceKVM: 110, api.ResourceTun: 0}}, kvm: usable,
			differ: map[string]int{api.ResourceKVM: 110, api.ResourceTun: 0},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h, dev, proc, run := host()
			if tt.change != nil {
				tt.change(&h, dev, proc, run)
			}
			want, notes := map[string]int{}, map[string]string{}
			for resource, n := range all {
				if d, ok := tt.differ[resource]; ok {
					n = d
				}
				if n >= 0 {
					want[resource] = n
				}
			}
			got := map[string]int{}
			for _, r := range Scan(h, tt.settings, tt.kvm) {
				got[r.Name] = len(r.Units)
				if r.Note != "" {
					notes[r.Name] = r.Note
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("units (-want,+got)\n%s", diff)
			}
			if tt.notes == nil {
				tt.notes = map[string]string{}
			}
			if diff := cmp.Diff(tt.notes, notes); diff != "" {
				t.Errorf("notes (-want,+got)\n%s", diff)
			}
		})
	}
}

func openFails(device string, err error) func(string) error {
	return func(name string) error {
		if name == device {
			return &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return nil
	}
}

func TestUnitsAreStableAndCarryTheirCID(t *testing.T) {
	h, _, _, _ := host()
	settings := Settings{VsockCIDBase: 70000}
	first := Scan(h, settings, KVM{Known: true, Usable: true})
	if c := device.Diff(first, Scan(h, settings, KVM{Known: true, Usable: true})); !c.Empty() {
		t.Errorf("a second scan differs: %+v", c)
	}
	board := device.NewBoard()
	board.Publish(first)

	vsock, _, _ := board.Resource(api.ResourceVhostVsock)
	got, ok := vsock.Unit("vhost-vsock-17")
	want := device.Grant{CDI: []string{"podvirt.dev/vhost-vsock=any"}, Env: map[string]string{"PODVIRT_VSOCK_CID": "70017"}}
	if diff := cmp.Diff(want, got.Grant); !ok || diff != "" {
		t.Errorf("grant (-want,+got)\n%s", diff)
	}
	kvm, _, _ := board.Resource(api.ResourceKVM)
	if u, ok := kvm.Unit("kvm-999"); !ok || !u.Healthy() || u.Grant.CDI[0] != "podvirt.dev/kvm=any" {
		t.Errorf("kvm-999 = %+v, %v", u, ok)
	}
}

func TestCDIFilesNameEveryKind(t *testing.T) {
	files, err := CDIFiles("/cdi", "/hook")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range files {
		got[f.Path] = true
	}
	h, _, _, _ := host()
	for _, r := range Scan(h, Settings{}, KVM{Known: true, Usable: true}) {
		kind := r.Name[len(api.Prefix):]
		if !got["/cdi/podvirt.dev-"+kind+".json"] || r.Units[0].Grant.CDI[0] != cdi.Name(kind, cdi.Any) {
			t.Errorf("%s: CDI files %v, grant %v", r.Name, got, r.Units[0].Grant)
		}
	}
}

// The real machine: what it has is offered, what it lacks is named.
func TestScanOfThisMachine(t *testing.T) {
	_, err := os.Stat("/proc/stat")
	require.Feature(t, err == nil, "/proc")
	h := Host{Dev: os.DirFS("/dev"), Proc: os.DirFS("/proc"), Run: os.DirFS(t.TempDir())}
	for _, r := range Scan(h, Settings{}, KVM{Known: true, Usable: true}) {
		t.Logf("%s: %d units %s", r.Name, len(r.Units), r.Note)
		if (len(r.Units) == 0) != (r.Note != "") {
			t.Errorf("%s: %d units, note %q; want units or a note", r.Name, len(r.Units), r.Note)
		}
	}
}
