package program

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/nl"
	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/agent"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/news"
	"podvirt.dev/launcher/internal/nics"
	"podvirt.dev/launcher/internal/probe"
	"podvirt.dev/launcher/internal/status"
	"podvirt.dev/launcher/internal/virt"
)

// outside is what the VM shows at the launcher's port, and what the guest agent said last.
type outside struct {
	*instance
	guest  *agent.Cache
	prober *probe.Prober
	news   *news.Log
}

var _ status.Source = (*outside)(nil)

func newOutside(i *instance) *outside {
	client := func() (probe.Guest, error) { return i.client() }
	return &outside{
		instance: i, guest: agent.NewCache(i.client, time.Now), prober: probe.New(i.probed, client, time.Now),
		news: news.New(time.Now),
	}
}

// probed is what a probe asks of the VM.
func (i *instance) probed() probe.VM {
	s := i.machine.Status()
	return probe.VM{State: s.State, Reason: s.Reason, Started: s.Started}
}

// run serves until ctx ends. A port that is taken is no reason to end a VM.
func (o *outside) run(ctx context.Context, beside *sync.WaitGroup) {
	beside.Go(func() { o.guest.Run(ctx) })
	if o.vm.Metrics != nil && !*o.vm.Metrics {
		return
	}
	logger := klog.FromContext(ctx)
	server, err := status.New(ctx, net.JoinHostPort("", strconv.Itoa(statusPort())), o)
	if err != nil {
		logger.Error(err, "no metrics, status and probes over HTTP")
		return
	}
	beside.Go(func() {
		if err := server.Run(ctx); err != nil {
			logger.Error(err, "metrics, status and probes over HTTP")
		}
	})
}

// notify keeps what is new, and asks the guest agent as soon as it is there, or gone.
func (o *outside) notify(e virt.Event) {
	o.mu.Lock()
	if e.Device != "" {
		e.Device = domain.DiskOfAlias(e.Device, o.disks)
	}
	onCrash := o.policy.OnCrash
	o.mu.Unlock()
	o.news.Follow(o.machine.Status(), e, onCrash)
	if e.Kind == virt.EventAgentConnected || e.Kind == virt.EventAgentGone {
		o.guest.Wake()
	}
}

// statusPort is the fourth of the launcher's ports, which the CNI plugin keeps from the guest and names in the alias.
func statusPort() int {
	const fourth = api.PortStatus - api.PortBase
	handle, err := nl.Open()
	if err != nil {
		return api.PortStatus
	}
	defer handle.Close()
	found, err := nics.Find(handle, nics.Wanted{UID: os.Getuid(), Annotated: true, None: true})
	if err != nil || len(found) == 0 {
		return api.PortStatus
	}
	return int(found[0].PortBase) + fourth
}

// Probe answers one probe.
func (o *outside) Probe(ctx context.Context, r probe.Request) error { return o.prober.Do(ctx, r) }

// Status is the document of /status.
func (o *outside) Status() any { return o.view() }

// conditions are those that the launcher decides.
func (o *outside) conditions(s vmstatus.Status) []vmstatus.Condition {
	return status.Conditions(status.Facts{
		State: s.State, Reason: s.Reason, Accelerator: o.vm.CPU.Accelerator, RebootLoop: s.RebootLoop,
		AgentConnected: s.AgentConnected, AgentVersion: o.guest.Last().Version,
		IOErrors: s.IOErrors, LastIOError: o.machine.Status().LastIOError,
		StateMounted: o.vm.State, NeedsState: o.vm.Firmware.Kind == api.FirmwareUEFI || o.vm.TPM.On(),
	})
}

// addresses are those of one NIC and who says so: the guest agent, which may lie, or what the guest is told by DHCP.
func (o *outside) addresses(nic nics.NIC) (guestName string, ips []string, source string) {
	for _, itf := range o.guest.Last().Interfaces {
		if !strings.EqualFold(itf.MAC, nic.MAC.String()) {
			continue
		}
		guestName = itf.Name
		for _, prefix := range itf.Addresses {
			if !prefix.Addr().IsLinkLocalUnicast() {
				ips = append(ips, prefix.String())
			}
		}
	}
	if len(ips) > 0 {
		return guestName, ips, "guest-agent"
	}
	for _, prefix := range []netip.Prefix{nic.Guest4, nic.Guest6} {
		if prefix.IsValid() {
			ips = append(ips, prefix.String())
		}
	}
	return guestName, ips, "dhcp"
}

// Figures are those of the running domain and of the container.
func (o *outside) Figures(context.Context) status.Figures {
	v, last := o.view(), o.guest.Last()
	f := status.Figures{
		Name: v.Name, Namespace: v.Namespace, Accelerator: api.Accelerator(v.Accelerator), State: v.State, VCPUs: v.VCPUs,
		MemoryTarget: uint64(v.MemoryMiB) << 20, MemoryMax: uint64(v.MemoryMiB) << 20, Boots: v.Boots,
		GuestReboots: v.GuestReboots, GuestPanics: o.machine.Status().GuestPanics, WatchdogFired: v.WatchdogFired, AgentConnected: v.AgentConnected,
		ConsoleDropped: v.ConsoleDropped, IOErrors: v.IOErrors, Cgroup: cgroupMemory(),
		FileSystems: last.FileSystems, OS: last.OS, NICs: map[string]string{},
	}
	o.mu.Lock()
	f.StartSteps, f.Disks = o.starter.steps, domain.DiskTargets(o.disks)
	o.mu.Unlock()
	for _, nic := range o.network.list() {
		f.NICs[nic.Tap] = nic.Name
	}
	f.Spoofed = spoofed(o.network.list())
	if d, err := o.machine.Domain(); err == nil {
		if stats, err := d.Stats(); err == nil {
			for n := range stats.NICs {
				stats.NICs[n] = guestView(stats.NICs[n].Target)
			}
			f.Stats = &stats
		}
	}
	return f
}

// spoofed counts, for NICs whose guest owns the Pod's address, the frames that the filter of the tap dropped because they said
// to be from somebody else (NW-026). It drops nothing else.
func spoofed(found []nics.NIC) map[string]uint64 {
	handle, err := nl.Open()
	if err != nil {
		return nil
	}
	defer handle.Close()
	frames := map[string]uint64{}
	for _, nic := range found {
		if nic.Binding == string(api.BindingMasquerade) {
			continue
		}
		link, err := handle.Link(nic.Tap)
		if err != nil {
			continue
		}
		if n, err := handle.Dropped(link.Index); err == nil {
			frames[nic.Name] = n
		}
	}
	return frames
}

// guestView reads the counters of a tap and turns them to the guest's point of view: what the host received from the
// tap the guest sent. libvirt turns them for some kinds of interfaces and not for others.
func guestView(tap string) virt.NICStats {
	dir := filepath.Join("/sys/class/net", tap, "statistics")
	count := func(name string) uint64 { return uint64(number(filepath.Join(dir, name))) }
	return virt.NICStats{
		Target: tap, RxBytes: count("tx_bytes"), RxPackets: count("tx_packets"), RxErrors: count("tx_errors"), RxDrops: count("tx_dropped"),
		TxBytes: count("rx_bytes"), TxPackets: count("rx_packets"), TxErrors: count("rx_errors"), TxDrops: count("rx_dropped"),
	}
}

// cgroupMemory is the container's memory as the kubelet counts it: what the kernel could take back at once is not used.
func cgroupMemory() *status.Cgroup {
	const v2, v1 = "/sys/fs/cgroup/", "/sys/fs/cgroup/memory/"
	events := readMemoryEvents()
	c := &status.Cgroup{Limit: events.limit, OOMKills: events.oomKills}
	if c.Usage = number(v2 + "memory.current"); c.Usage > 0 {
		inactive, _ := field(v2+"memory.stat", "inactive_file")
		c.Usage = max(0, c.Usage-inactive)
		c.Stalled = pressure(v2 + "memory.pressure")
		return c
	}
	inactive, _ := field(v1+"memory.stat", "total_inactive_file")
	c.Usage = max(0, number(v1+"memory.usage_in_bytes")-inactive)
	const unlimited = 1 << 60 // what v1 shows where there is no limit is more
	if c.Limit >= unlimited {
		c.Limit = 0
	}
	return c
}

// pressure returns for how long any task waited for memory (kernel, accounting/psi.rst).
func pressure(path string) time.Duration {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	_, total, _ := strings.Cut(string(raw), "total=")
	var microseconds int64
	if _, err := fmt.Sscan(total, &microseconds); err != nil {
		return 0
	}
	return time.Duration(microseconds) * time.Microsecond
}
