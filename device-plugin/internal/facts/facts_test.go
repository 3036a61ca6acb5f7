package facts

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
)

const (
	thisBoot = "0b7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b11"
	lastBoot = "11111111-7d0c-4b3e-9a43-6a5a2f1f9b11"
)

func cpuFacts(change ...func(*api.CPUFacts)) *api.CPUFacts {
	f := &api.CPUFacts{
		V: 1, Boot: thisBoot, Observed: time.Date(2026, 11, 20, 6, 42, 11, 0, time.UTC),
		QEMU: "10.0.2", Libvirt: "11.3.0", Arch: "amd64", Accelerator: api.AcceleratorKVM,
		Vendor: "Intel", Model: "Icelake-Server-noTSX", Models: []string{"Haswell", "Nehalem"}, Features: []string{"aes", "avx"},
	}
	for _, c := range change {
		c(f)
	}
	return f
}

func numaFacts(free int64) *api.NUMAFacts {
	return &api.NUMAFacts{
		V: 1, Boot: thisBoot, Observed: time.Date(2026, 11, 20, 6, 58, 40, 0, time.UTC), ThreadsPerCore: 2,
		Cells: []api.Cell{{CPUs: "0-3", Memory: 1 << 30, Hugepages: map[string]api.Pages{"1Gi": {Total: 4, Free: free}}, Distances: []int{10}}},
	}
}

func encode(t *testing.T, facts interface{ Encode() (string, error) }) string {
	t.Helper()
	text, err := facts.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRead(t *testing.T) {
	good := encode(t, cpuFacts())
	tests := map[string]struct {
		cpu     string // "": no file
		known   bool
		problem error  // wrapped by the problem
		text    string // contained in the problem
	}{
		"no file yet":           {},
		"good":                  {cpu: good, known: true},
		"another boot":          {cpu: strings.Replace(good, thisBoot, lastBoot, 1), problem: ErrStale, text: lastBoot},
		"cut off":               {cpu: good[:40], problem: api.ErrFacts, text: CPUFile},
		"unknown member":        {cpu: strings.Replace(good, `{"v":1,`, `{"v":1,"extra":1,`, 1), problem: api.ErrFacts, text: "extra"},
		"newer version is read": {cpu: strings.Replace(good, `{"v":1,`, `{"v":2,"extra":1,`, 1), known: true},
		"too large":             {cpu: good + strings.Repeat(" ", maxFile), text: "bytes, at most"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.cpu != "" {
				write(t, dir, CPUFile, tt.cpu)
			}
			write(t, dir, NUMAFile, encode(t, numaFacts(1)))
			got := Read(dir, thisBoot)
			if (got.CPU != nil) != tt.known || got.NUMA == nil {
				t.Errorf("CPU %v, NUMA %v; want CPU known = %v, NUMA known", got.CPU, got.NUMA, tt.known)
			}
			if (got.Problem != nil) != (tt.text != "") || tt.problem != nil && !errors.Is(got.Problem, tt.problem) {
				t.Fatalf("problem = %v; want %v", got.Problem, tt.problem)
			}
			if got.Problem != nil && !strings.Contains(got.Problem.Error(), tt.text) {
				t.Errorf("problem = %v; want one with %q", got.Problem, tt.text)
			}
		})
	}
}

func TestDesire(t *testing.T) {
	cpu, numa := encode(t, cpuFacts()), encode(t, numaFacts(4))
	labels := func(schedulable, accelerator string) map[string]string {
		return map[string]string{
			api.NodeLabelSchedulable: schedulable, api.NodeLabelAccelerator: accelerator,
			api.NodeLabelCPUVendor: "Intel", api.NodeLabelCPUModel: "Icelake-Server-noTSX",
		}
	}
	tcg := func(f *api.CPUFacts) { f.Accelerator = api.AcceleratorTCG }
	later := func(f *api.CPUFacts) { f.Observed = f.Observed.Add(time.Hour) }
	shuffled := func(f *api.CPUFacts) { f.Models = []string{"Nehalem", "Haswell"} }
	tests := map[string]struct {
		snapshot  Snapshot
		published map[string]string
		emulation bool
		want      Desired
	}{
		"a fresh node": {
			snapshot: Snapshot{CPU: cpuFacts(), NUMA: numaFacts(4)},
			want:     Desired{map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa}, labels("true", "kvm")},
		},
		"nothing is known of a fresh node": {
			want: Desired{map[string]string{}, map[string]string{api.NodeLabelSchedulable: "false"}},
		},
		"nothing is known after a reboot: the old text stays and is stale": {
			published: map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa, "other/key": "x"},
			want: Desired{map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa},
				map[string]string{api.NodeLabelSchedulable: "false"}},
		},
		"taken again, nothing new": {
			snapshot:  Snapshot{CPU: cpuFacts(later, shuffled), NUMA: numaFacts(4)},
			published: map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa},
			want:      Desired{map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa}, labels("true", "kvm")},
		},
		"fewer free pages": {
			snapshot:  Snapshot{CPU: cpuFacts(later), NUMA: numaFacts(3)},
			published: map[string]string{api.NodeCPU: cpu, api.NodeNUMA: numa},
			want:      Desired{map[string]string{api.NodeCPU: cpu, api.NodeNUMA: encode(t, numaFacts(3))}, labels("true", "kvm")},
		},
		"published text is broken": {
			snapshot:  Snapshot{CPU: cpuFacts()},
			published: map[string]string{api.NodeCPU: "{"},
			want:      Desired{map[string]string{api.NodeCPU: cpu}, labels("true", "kvm")},
		},
		"emulation forbidden": {
			snapshot: Snapshot{CPU: cpuFacts(tcg)},
			want:     Desired{map[string]string{api.NodeCPU: encode(t, cpuFacts(tcg))}, labels("false", "tcg")},
		},
		"emulation allowed": {
			snapshot: Snapshot{CPU: cpuFacts(tcg)}, emulation: true,
			want: Desired{map[string]string{api.NodeCPU: encode(t, cpuFacts(tcg))}, labels("true", "tcg")},
		},
		"no accelerator at all": {
			snapshot:  Snapshot{CPU: &api.CPUFacts{V: 1, Boot: thisBoot, Accelerator: api.AcceleratorNone, Problems: []string{"kvm: no"}}},
			emulation: true,
			want: Desired{
				map[string]string{api.NodeCPU: encode(t, api.CPUFacts{V: 1, Boot: thisBoot, Accelerator: api.AcceleratorNone, Problems: []string{"kvm: no"}})},
				map[string]string{api.NodeLabelSchedulable: "false", api.NodeLabelAccelerator: "none", api.NodeLabelCPUVendor: "", api.NodeLabelCPUModel: ""},
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Desire(tt.snapshot, tt.published, tt.emulation)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestEqualLooksAtOurKeysOnly(t *testing.T) {
	d, err := Desire(Snapshot{CPU: cpuFacts()}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	annotations := map[string]string{api.NodeCPU: d.Annotations[api.NodeCPU], "foreign": "x", api.NodePools: "[]"}
	labels := map[string]string{"kubernetes.io/arch": "amd64"}
	maps.Copy(labels, d.Labels)
	if !d.Equal(annotations, labels) {
		t.Error("foreign keys make a difference")
	}
	annotations[api.NodeNUMA] = "{}"
	if d.Equal(annotations, labels) {
		t.Error("an annotation of ours that should not be there makes no difference")
	}
	delete(annotations, api.NodeNUMA)
	labels[api.NodeLabelCPUVendor] = "AMD"
	if d.Equal(annotations, labels) {
		t.Error("a changed label makes no difference")
	}
}

func TestFollowSeesReplacedFiles(t *testing.T) {
	dir := t.TempDir()
	seen := make(chan Snapshot, 100)
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- Follow(ctx, dir, thisBoot, func(s Snapshot) { seen <- s }) }()
	if s := <-seen; s.CPU != nil || s.Problem != nil {
		t.Errorf("at first = %+v; want nothing known and no problem", s)
	}
	write(t, dir, CPUFile, encode(t, cpuFacts()))
	deadline := time.After(5 * time.Second)
	for {
		select {
		case s := <-seen:
			if s.CPU != nil {
				return
			}
		case <-deadline:
			t.Fatal("the new file was not seen")
		}
	}
}

// write replaces a file as the launcher does, by renaming.
func write(t *testing.T, dir, name, text string) {
	t.Helper()
	tmp := filepath.Join(dir, ".new")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"v":1,"boot":"` + thisBoot + `","accelerator":"kvm"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, CPUFile), text, 0o644); err != nil {
			t.Fatal(err)
		}
		if s := Read(dir, thisBoot); (s.CPU == nil) != (s.Problem != nil) {
			t.Errorf("known %v, problem %v", s.CPU != nil, s.Problem)
		}
	})
}
