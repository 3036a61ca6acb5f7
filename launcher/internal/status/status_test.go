package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"podvirt.dev/api"
	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/agent"
	"podvirt.dev/launcher/internal/probe"
	"podvirt.dev/launcher/internal/virt"
)

func figures() Figures {
	return Figures{
		Name: "db1", Namespace: "shop", Accelerator: api.AcceleratorTCG, State: api.StateRunning, VCPUs: 2,
		MemoryTarget: 4 << 30, MemoryMax: 4 << 30, Boots: 1, AgentConnected: true, ConsoleDropped: 7,
		StartSteps: map[string]time.Duration{"define": 20 * time.Millisecond}, IOErrors: map[string]int{"root": 3}, Spoofed: map[string]uint64{"default": 4},
		Disks: map[string]string{"vda": "root"}, NICs: map[string]string{"tap0": "default"},
		Cgroup: &Cgroup{Limit: 1000, Usage: 400, OOMKills: 1, Stalled: time.Second},
		Stats: &virt.Stats{
			CPU: virt.CPUStats{Total: 3 * time.Second, User: 2 * time.Second, System: time.Second}, VCPUs: []virt.VCPUStats{{Time: time.Second}, {}},
			Memory: virt.MemoryStats{Actual: 4 << 30, Maximum: 4 << 30, Unused: 1 << 30, LastUpdate: time.Unix(1, 0), MajorFaults: 5},
			Disks:  []virt.DiskStats{{Target: "vda", ReadRequests: 10, ReadBytes: 4096, FlushTime: 1500 * time.Millisecond}},
			NICs:   []virt.NICStats{{Target: "tap0", RxBytes: 100, TxBytes: 200}, {Target: "tap9"}},
		},
		FileSystems: []agent.FileSystem{{Name: "vda1", Mountpoint: "/", Type: "ext4", Used: 1, Total: 2}, {Name: "proc"}},
		OS:          agent.OS{Name: `Debian "13"` + "\n\\", VersionID: "13"},
	}
}

// scrape parses the text as Prometheus does.
func scrape(t *testing.T, f Figures) map[string]*dto.MetricFamily {
	t.Helper()
	var text bytes.Buffer
	if err := f.write(&text); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(&text)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// value finds the one series whose labels contain the given pairs.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, pairs ...string) float64 {
	t.Helper()
	for _, metric := range families[name].GetMetric() {
		labels := map[string]string{}
		for _, pair := range metric.GetLabel() {
			labels[pair.GetName()] = pair.GetValue()
		}
		if labels["name"] != "db1" || labels["namespace"] != "shop" {
			t.Errorf("%s has labels %v", name, labels)
		}
		fits := true
		for i := 0; i < len(pairs); i += 2 {
			fits = fits && labels[pairs[i]] == pairs[i+1]
		}
		if fits {
			return metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	t.Errorf("no series %s %v", name, pairs)
	return 0
}

func TestMetrics(t *testing.T) {
	families := scrape(t, figures())
	rows := []struct {
		name  string
		pairs []string
		want  float64
	}{
		{"podvirt_vm_state", []string{"state", "running"}, 1},
		{"podvirt_vm_state", []string{"state", "paused"}, 0},
		{"podvirt_vm_start_seconds", []string{"step", "define"}, 0.02},
		{"podvirt_vm_boots_total", nil, 1},
		{"podvirt_vm_agent_connected", nil, 1},
		{"podvirt_vm_io_errors_total", []string{"drive", "root"}, 3},
		{"podvirt_vm_cgroup_headroom_bytes", nil, 600},
		{"podvirt_vm_cgroup_oom_kills_total", nil, 1},
		{"podvirt_vm_cgroup_pressure_seconds_total", nil, 1},
		{"podvirt_vm_console_dropped_bytes_total", nil, 7},
		{"podvirt_vm_accelerator_info", []string{"accelerator", "tcg"}, 1},
		{"podvirt_vm_memory_current_bytes", nil, 4 << 30},
		{"kubevirt_vmi_cpu_usage_seconds_total", nil, 3},
		{"kubevirt_vmi_vcpu_seconds_total", []string{"id", "0"}, 1},
		{"kubevirt_vmi_memory_unused_bytes", nil, 1 << 30},
		{"kubevirt_vmi_memory_pgmajfault_total", nil, 5},
		{"kubevirt_vmi_storage_iops_read_total", []string{"drive", "root"}, 10},
		{"kubevirt_vmi_storage_flush_times_seconds_total", []string{"drive", "root"}, 1.5},
		{"kubevirt_vmi_network_receive_bytes_total", []string{"interface", "default"}, 100},
		{"kubevirt_vmi_network_transmit_bytes_total", []string{"interface", "default"}, 200},
		{"kubevirt_vmi_network_receive_bytes_total", []string{"interface", "tap9"}, 0},
		{"podvirt_nic_spoofed_frames_total", []string{"interface", "default"}, 4},
		{"kubevirt_vmi_filesystem_used_bytes", []string{"mount_point", "/"}, 1},
		{"kubevirt_vmi_info", []string{"guest_os_name", "Debian \"13\"\n\\"}, 1},
	}
	for _, row := range rows {
		t.Run(row.name+fmt.Sprint(row.pairs), func(t *testing.T) {
			if got := value(t, families, row.name, row.pairs...); got != row.want {
				t.Errorf("%v, want %v", got, row.want)
			}
		})
	}
	if got := len(families["kubevirt_vmi_filesystem_used_bytes"].GetMetric()); got != 1 {
		t.Errorf("%d file systems, want only the one with a size", got)
	}
	if families["kubevirt_vmi_memory_cached_bytes"] != nil {
		t.Error("a figure that the guest does not tell is told as 0")
	}
	for name, family := range families {
		if want := strings.HasSuffix(name, "_total"); want != (family.GetType() == dto.MetricType_COUNTER) {
			t.Errorf("%s is a %v", name, family.GetType())
		}
	}
}

func TestMetricsOfAVMThatIsOff(t *testing.T) {
	families := scrape(t, Figures{Name: "db1", Namespace: "shop", Node: "n1", State: api.StateHeld})
	if value(t, families, "podvirt_vm_state", "state", "held", "node", "n1") != 1 || families["kubevirt_vmi_cpu_usage_seconds_total"] != nil {
		t.Error("want the state with the node, and no figures of QEMU")
	}
}

// source is a VM whose agent does not answer.
type source struct{}

func (source) Status() any                     { return map[string]string{"state": "running"} }
func (source) Figures(context.Context) Figures { return figures() }
func (source) Probe(_ context.Context, r probe.Request) error {
	if r.Kind == probe.State {
		return nil
	}
	return fmt.Errorf("%w: the guest agent\nis not connected", probe.ErrFailed)
}

func TestServer(t *testing.T) {
	server, err := New(t.Context(), "127.0.0.1:0", source{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	base := "http://" + server.Addr().String()
	rows := []struct {
		path   string
		status int
		body   string
	}{
		{"/metrics", 200, "podvirt_vm_boots_total{name=\"db1\",namespace=\"shop\"} 1\n"},
		{"/status", 200, "{\"state\":\"running\"}\n"},
		{"/probe/state?is=running", 200, "ok\n"},
		{"/probe/agent", 503, "probe failed: the guest agent is not connected\n"},
		{"/probe/exec?command=reboot", 400, "usage: exec is not offered over HTTP; use an exec probe with launcher probe exec\n"},
		{"/probe/state?is=asleep", 400, "not one of starting"},
		{"/probe/state?is=%zz", 400, "invalid URL escape"},
		{"/", 404, ""},
		{"/v1/poweroff", 404, ""},
	}
	for _, row := range rows {
		t.Run(row.path, func(t *testing.T) {
			response, err := http.Get(base + row.path)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != row.status || !strings.Contains(string(body), row.body) {
				t.Errorf("%d, %v:\n%s\nwant %d, %q", response.StatusCode, err, body, row.status, row.body)
			}
		})
	}
	response, err := http.Post(base+"/status", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", response.StatusCode)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	var refused *net.OpError
	if _, err := http.Get(base + "/status"); !errors.As(err, &refused) {
		t.Errorf("after the end: %v, want a refused connection", err)
	}
}

func TestConditions(t *testing.T) {
	rows := []struct {
		name  string
		facts Facts
		want  string
	}{
		{"running", Facts{State: api.StateRunning, AgentConnected: true, AgentVersion: "10.0.2", StateMounted: true, NeedsState: true},
			"AgentConnected=True//10.0.2 DiskError=False// GuestRunning=True/Running/ Paused=False// StateEphemeral=False//"},
		{"paused by a full disk", Facts{State: api.StatePaused, Reason: "no-space", IOErrors: map[string]int{"b": 2, "a": 1},
			LastIOError: "enospc", NeedsState: true},
			"AgentConnected=False// DiskError=True/IOError/a: 1 errors, b: 2 errors; last: enospc GuestRunning=False/Paused/ " +
				"Paused=True/NoSpace/ StateEphemeral=True//nothing is mounted at /vm/state: firmware variables and TPM end with the Pod"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var got []string
			for _, c := range Conditions(row.facts) {
				got = append(got, fmt.Sprintf("%s=%s/%s/%s", strings.TrimPrefix(c.Type, api.Prefix), c.Status, c.Reason, c.Message))
			}
			if diff := cmp.Diff(row.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
	if text, err := json.Marshal(vmstatus.Condition{Type: "t", Status: "True"}); err != nil || string(text) != `{"type":"t","status":"True"}` {
		t.Errorf("%s, %v", text, err)
	}
}
