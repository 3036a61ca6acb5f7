package status

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/agent"
	"podvirt.dev/launcher/internal/virt"
)

// Figures are what the metrics are made of. What is not known is left zero and not told.
type Figures struct {
	Name, Namespace, Node string // labels of every series; an empty node has no label
	Accelerator           api.Accelerator
	State                 api.State
	Stats                 *virt.Stats       // nil: the VM is off
	Disks                 map[string]string // target ("vda") -> disk name
	NICs                  map[string]string // target ("tap0") -> NIC name
	Spoofed               map[string]uint64 // NIC name -> frames of the guest that were dropped for their sender

	VCPUs          int
	MemoryTarget   uint64 // bytes that the guest should have
	MemoryMax      uint64 // bytes that it could have
	StartSteps     map[string]time.Duration
	Boots          int
	GuestReboots   int
	WatchdogFired  int
	GuestPanics    int
	AgentConnected bool
	ConsoleDropped int64
	IOErrors       map[string]int // by disk
	Cgroup         *Cgroup        // nil: not readable
	FileSystems    []agent.FileSystem
	OS             agent.OS
}

// Cgroup is the memory of the container.
type Cgroup struct {
	Limit, Usage int64 // bytes; a limit of 0: none
	OOMKills     int64
	Stalled      time.Duration // of memory.pressure, total of "some"
}

// writer writes series in Prometheus' text format; the first error ends it.
type writer struct {
	out    *bufio.Writer
	common string // labels of every series
	last   string // metric whose type was written
}

// write writes all metrics (spec vm.md 2.13).
func (f Figures) write(out io.Writer) error {
	w := &writer{out: bufio.NewWriter(out), common: labels("name", f.Name, "namespace", f.Namespace)}
	if f.Node != "" {
		w.common += "," + labels("node", f.Node)
	}
	f.own(w)
	if f.Stats != nil {
		f.cpu(w)
		f.memory(w)
		f.disks(w)
		f.network(w)
	}
	f.guest(w)
	return w.out.Flush()
}

func (f Figures) own(w *writer) {
	for _, state := range []api.State{
		api.StateStarting, api.StateRunning, api.StatePaused, api.StateStopping, api.StateHeld, api.StateIncoming, api.StateMigrated,
		api.StateHibernated,
	} {
		w.gauge("podvirt_vm_state", oneIf(f.State == state), "state", string(state))
	}
	for _, step := range slices.Sorted(maps.Keys(f.StartSteps)) {
		w.gauge("podvirt_vm_start_seconds", f.StartSteps[step].Seconds(), "step", step)
	}
	w.counter("podvirt_vm_boots_total", float64(f.Boots))
	w.counter("podvirt_vm_guest_reboots_total", float64(f.GuestReboots))
	w.counter("podvirt_vm_watchdog_fired_total", float64(f.WatchdogFired))
	w.gauge("podvirt_vm_agent_connected", oneIf(f.AgentConnected))
	w.gauge("podvirt_vm_memory_target_bytes", float64(f.MemoryTarget))
	w.gauge("podvirt_vm_memory_max_bytes", float64(f.MemoryMax))
	w.gauge("podvirt_vm_vcpus", float64(f.VCPUs), "kind", "current")
	w.counter("podvirt_vm_console_dropped_bytes_total", float64(f.ConsoleDropped))
	for _, disk := range slices.Sorted(maps.Keys(f.IOErrors)) {
		w.counter("podvirt_vm_io_errors_total", float64(f.IOErrors[disk]), "drive", disk)
	}
	w.gauge("podvirt_vm_accelerator_info", 1, "accelerator", string(f.Accelerator))
	if f.Cgroup == nil {
		return
	}
	if f.Cgroup.Limit > 0 {
		w.gauge("podvirt_vm_cgroup_headroom_bytes", float64(f.Cgroup.Limit-f.Cgroup.Usage))
	}
	w.counter("podvirt_vm_cgroup_oom_kills_total", float64(f.Cgroup.OOMKills))
	w.counter("podvirt_vm_cgroup_pressure_seconds_total", f.Cgroup.Stalled.Seconds())
}

func (f Figures) cpu(w *writer) {
	w.counter("kubevirt_vmi_cpu_usage_seconds_total", f.Stats.CPU.Total.Seconds())
	w.counter("kubevirt_vmi_cpu_user_usage_seconds_total", f.Stats.CPU.User.Seconds())
	w.counter("kubevirt_vmi_cpu_system_usage_seconds_total", f.Stats.CPU.System.Seconds())
	for _, series := range []struct {
		name  string
		value func(virt.VCPUStats) time.Duration
	}{
		{"kubevirt_vmi_vcpu_seconds_total", func(v virt.VCPUStats) time.Duration { return v.Time }},
		{"kubevirt_vmi_vcpu_wait_seconds_total", func(v virt.VCPUStats) time.Duration { return v.Wait }},
		{"kubevirt_vmi_vcpu_delay_seconds_total", func(v virt.VCPUStats) time.Duration { return v.Delay }},
	} {
		for id, vcpu := range f.Stats.VCPUs {
			w.counter(series.name, series.value(vcpu).Seconds(), "id", strconv.Itoa(id))
		}
	}
}

func (f Figures) memory(w *writer) {
	m := f.Stats.Memory
	gauges := []struct {
		name  string
		value uint64
	}{
		{"kubevirt_vmi_memory_available_bytes", m.Available}, {"kubevirt_vmi_memory_unused_bytes", m.Unused},
		{"kubevirt_vmi_memory_usable_bytes", m.Usable}, {"kubevirt_vmi_memory_cached_bytes", m.Cached},
		{"kubevirt_vmi_memory_domain_bytes", m.Maximum}, {"kubevirt_vmi_memory_resident_bytes", m.Resident},
		{"kubevirt_vmi_memory_actual_balloon_bytes", m.Actual}, {"podvirt_vm_memory_current_bytes", m.Actual},
	}
	for _, g := range gauges {
		if g.value > 0 { // the guest's balloon driver does not say
			w.gauge(g.name, float64(g.value))
		}
	}
	if m.LastUpdate.IsZero() {
		return
	}
	w.counter("kubevirt_vmi_memory_pgmajfault_total", float64(m.MajorFaults))
	w.counter("kubevirt_vmi_memory_pgminfault_total", float64(m.MinorFaults))
	w.gauge("kubevirt_vmi_memory_swap_in_traffic_bytes", float64(m.SwapInBytes))
	w.gauge("kubevirt_vmi_memory_swap_out_traffic_bytes", float64(m.SwapOutBytes))
}

func (f Figures) disks(w *writer) {
	for _, series := range []struct {
		name  string
		value func(virt.DiskStats) float64
	}{
		{"iops_read_total", func(d virt.DiskStats) float64 { return float64(d.ReadRequests) }},
		{"iops_write_total", func(d virt.DiskStats) float64 { return float64(d.WriteRequests) }},
		{"read_traffic_bytes_total", func(d virt.DiskStats) float64 { return float64(d.ReadBytes) }},
		{"write_traffic_bytes_total", func(d virt.DiskStats) float64 { return float64(d.WriteBytes) }},
		{"read_times_seconds_total", func(d virt.DiskStats) float64 { return d.ReadTime.Seconds() }},
		{"write_times_seconds_total", func(d virt.DiskStats) float64 { return d.WriteTime.Seconds() }},
		{"flush_requests_total", func(d virt.DiskStats) float64 { return float64(d.FlushRequests) }},
		{"flush_times_seconds_total", func(d virt.DiskStats) float64 { return d.FlushTime.Seconds() }},
	} {
		for _, disk := range f.Stats.Disks {
			w.counter("kubevirt_vmi_storage_"+series.name, series.value(disk), "drive", orKey(f.Disks, disk.Target))
		}
	}
}

// network tells the counters of the taps, which libvirt turns to the guest's point of view.
func (f Figures) network(w *writer) {
	for _, series := range []struct {
		name  string
		value func(virt.NICStats) uint64
	}{
		{"receive_bytes_total", func(n virt.NICStats) uint64 { return n.RxBytes }},
		{"transmit_bytes_total", func(n virt.NICStats) uint64 { return n.TxBytes }},
		{"receive_packets_total", func(n virt.NICStats) uint64 { return n.RxPackets }},
		{"transmit_packets_total", func(n virt.NICStats) uint64 { return n.TxPackets }},
		{"receive_errors_total", func(n virt.NICStats) uint64 { return n.RxErrors }},
		{"transmit_errors_total", func(n virt.NICStats) uint64 { return n.TxErrors }},
		{"receive_packets_dropped_total", func(n virt.NICStats) uint64 { return n.RxDrops }},
		{"transmit_packets_dropped_total", func(n virt.NICStats) uint64 { return n.TxDrops }},
	} {
		for _, nic := range f.Stats.NICs {
			w.counter("kubevirt_vmi_network_"+series.name, float64(series.value(nic)), "interface", orKey(f.NICs, nic.Target))
		}
	}
	for _, nic := range slices.Sorted(maps.Keys(f.Spoofed)) {
		w.counter("podvirt_nic_spoofed_frames_total", float64(f.Spoofed[nic]), "interface", nic)
	}
}

func (f Figures) guest(w *writer) {
	for _, series := range []struct {
		name  string
		value func(agent.FileSystem) uint64
	}{
		{"kubevirt_vmi_filesystem_capacity_bytes", func(s agent.FileSystem) uint64 { return s.Total }},
		{"kubevirt_vmi_filesystem_used_bytes", func(s agent.FileSystem) uint64 { return s.Used }},
	} {
		for _, system := range f.FileSystems {
			if system.Total > 0 {
				w.gauge(series.name, float64(series.value(system)), "disk_name", system.Name, "file_system_type", system.Type,
					"mount_point", system.Mountpoint)
			}
		}
	}
	w.gauge("kubevirt_vmi_info", 1, "phase", string(f.State), "guest_os_name", f.OS.Name, "guest_os_kernel_release", f.OS.KernelRelease,
		"guest_os_machine", f.OS.Machine, "guest_os_version_id", f.OS.VersionID)
	w.counter("kubevirt_vmi_guest_os_panic_total", float64(f.GuestPanics))
}

func (w *writer) gauge(name string, value float64, pairs ...string) {
	w.series("gauge", name, value, pairs)
}
func (w *writer) counter(name string, value float64, pairs ...string) {
	w.series("counter", name, value, pairs)
}

func (w *writer) series(kind, name string, value float64, pairs []string) {
	if w.last != name {
		fmt.Fprintf(w.out, "# TYPE %s %s\n", name, kind)
		w.last = name
	}
	all := w.common
	if len(pairs) > 0 {
		all += "," + labels(pairs...)
	}
	fmt.Fprintf(w.out, "%s{%s} %s\n", name, all, strconv.FormatFloat(value, 'g', -1, 64))
}

// labels writes alternating names and values; values are quoted as the format wants it.
func labels(pairs ...string) string {
	escape := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i] + `="` + escape.Replace(pairs[i+1]) + `"`)
	}
	return b.String()
}

func orKey(names map[string]string, key string) string {
	if name, found := names[key]; found {
		return name
	}
	return key
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
