package api

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Resolve reads a whole VM Pod: it parses the annotations, checks them against what is visible of the Pod, and fills
// in every default. The errors are those of [Parse] and those that only the Pod shows, together.
func Resolve(pod Pod, config Config) (Machine, Errors) {
	p := parse(pod.Annotations)
	vm := p.vm()
	checkAnnotations(p, &vm)
	r := &resolver{parser: p, pod: pod, config: config, m: Machine{
		VM: vm, Namespace: pod.Namespace, PodName: pod.Name, PodUID: pod.UID,
	}}
	r.identity()
	r.cpu()
	r.platform()
	r.paths()
	if r.m.TPM.On() && r.m.TPM.Required && !r.m.State {
		r.value("tpm", r.values["tpm"].raw, "persistent=required but nothing is mounted at "+PathState)
	}
	r.disks()
	r.nics()
	r.hostDevices()
	r.lifecycle()
	r.guest()
	r.memory()
	r.numa()
	r.m.BootOrder = r.bootOrder()
	return r.m, p.errs.sorted()
}

// resolver turns a VM into a Machine.
type resolver struct {
	*parser

	pod    Pod
	config Config
	m      Machine
}

func (r *resolver) identity() {
	m := &r.m
	label, visible := r.pod.Labels[LabelVM], r.pod.Labels != nil
	switch {
	case m.Name == "" && label != "":
		m.Name = label
	case m.Name == "":
		m.Name = r.pod.Name
	case visible && label != m.Name:
		r.value("vm", m.Name, fmt.Sprintf("differs from the label %s %s", LabelVM, quote(label)))
	}
	if m.Identity == "" {
		m.Identity = IdentityVM
	}
	m.ID = m.Name
	if m.Identity == IdentityPod && r.pod.Name != "" {
		m.ID = r.pod.Name
	}
	if m.UUID == "" {
		m.UUID = DefaultUUID(r.pod.Namespace, m.ID)
	}
	if m.Hostname == "" {
		m.Hostname = givenHostname(r.pod.Hostname, r.pod.Name)
	}
	if m.Hostname == "" {
		m.Hostname = firstLabel(m.ID)
	}
}

// firstLabel makes a DNS label of a Pod's name, which may hold dots and 253 characters.
func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return strings.TrimRight(label[:min(len(label), 63)], "-")
}

func (r *resolver) cpu() {
	cpu := &r.m.CPU
	if cpu.Accelerator == "" {
		cpu.Accelerator = AcceleratorKVM
	}
	if cpu.Accelerator == AcceleratorTCG && !r.config.EmulationAllowed() {
		r.value("accelerator", "tcg", "emulation is not allowed (emulation: forbid)")
	}
	switch {
	case cpu.Arch == "":
		cpu.Arch = r.pod.NodeArch
	case r.pod.NodeArch != "" && cpu.Arch != r.pod.NodeArch && cpu.Accelerator != AcceleratorTCG:
		r.value("arch", cpu.Arch, fmt.Sprintf("arch %s on an %s node needs accelerator tcg", cpu.Arch, r.pod.NodeArch))
	}
	r.cpuModel()
	if cpu.Topology == nil {
		cores := cpu.Emulator.VCPUs(int((r.pod.Limits.CPU + 999) / 1000))
		cpu.Topology = &Topology{Sockets: 1, Dies: 1, Clusters: 1, Cores: cores, Threads: 1}
	}
	r.m.VCPUs = cpu.Topology.VCPUs()
	r.dedicated()
	if cpu.Max == 0 {
		cpu.Max = r.m.VCPUs
	}
}

func (r *resolver) cpuModel() {
	cpu := &r.m.CPU
	switch {
	case cpu.Model != "":
		if r.config.judged() && r.config.Obsolete(cpu.Model) {
			r.value("cpu-model", cpu.Model, cpu.Model+" is on the obsolete list (cpu.obsolete-models)")
		}
	case cpu.Accelerator == AcceleratorTCG:
		cpu.Model = CPUMaximum
	case r.config.CPUDefaultModel != "":
		cpu.Model = r.config.CPUDefaultModel
	default:
		cpu.Model = CPUHostModel
	}
}

func (r *resolver) platform() {
	m := &r.m
	if m.Machine == "" {
		m.Machine = r.config.MachineDefault
	}
	if m.Machine == "" {
		m.Machine = "q35"
		if m.CPU.Arch == "arm64" {
			m.Machine = "virt"
		}
	}
	if m.Firmware.Kind == "" {
		m.Firmware.Kind = defaultFirmware(m.CPU.Arch)
	}
	if m.Console.Mode == "" {
		m.Console.Mode = r.config.ConsoleDefault
	}
	if m.Console.Mode == "" {
		m.Console.Mode = ConsoleNone
	}
	if m.Console.Device == "" {
		m.Console.Device = ConsoleAuto
	}
	if t := r.pod.Terminal; m.Console.Mode == ConsoleAttach && t != nil && (!t.Stdin || !t.TTY) {
		r.value("console", r.values["console"].raw, "attach needs stdin: true and tty: true on container vm")
	}
	m.Video.Model = orWord(m.Video.Model, defaultVideo(m.Kernel))
	m.TPM.Version, m.TPM.Model = orWord(m.TPM.Version, "off"), orWord(m.TPM.Model, defaultTPM(m.TPM.Version, m.Firmware.Kind))
	m.Watchdog.Model, m.Watchdog.Action = orWord(m.Watchdog.Model, WatchdogOff), orWord(m.Watchdog.Action, "reset")
	r.watchdog()
	m.Agent, m.RNG.On, m.Metrics = orTrue(m.Agent), orTrue(m.RNG.On), orTrue(m.Metrics)
	if m.TapOwner == nil {
		m.TapOwner = &Owner{UID: LauncherUID, GID: LauncherUID}
	}
}

// defaultVideo is the graphics card of a VM that asks for none: one that is given its kernel has nothing to show before
// the serial console.
func defaultVideo(k Kernel) string {
	if k.Path != "" {
		return VideoNone
	}
	return VideoAuto
}

// defaultTPM is the interface of a TPM: the firmware for BIOS, and the standard of TPM 1.2, know tis only.
func defaultTPM(version string, firmware FirmwareKind) string {
	if version == "2.0" && firmware == FirmwareUEFI {
		return "crb"
	}
	return "tis"
}

func (r *resolver) watchdog() {
	m := &r.m
	switch {
	case m.Watchdog.Model == "diag288" && m.CPU.Arch != "" && m.CPU.Arch != "s390x":
		r.value("watchdog", r.values["watchdog"].raw, "diag288 is for s390x")
	case m.Watchdog.Model == "itco" && m.Machine != "q35" && !strings.HasPrefix(m.Machine, "pc-q35-"):
		r.value("watchdog", r.values["watchdog"].raw, "itco needs machine q35")
	}
}

func (r *resolver) lifecycle() {
	l := &r.m.Lifecycle
	if len(l.Shutdown) == 0 {
		l.Shutdown = []ShutdownMeans{ShutdownAgent, ShutdownACPI}
	}
	switch grace := r.pod.GracePeriod; {
	case l.ShutdownTimeout != 0:
		if grace != nil && l.ShutdownTimeout >= *grace {
			v := r.values["shutdown"]
			r.value("shutdown", v.raw, fmt.Sprintf("timeout %s does not fit in terminationGracePeriodSeconds %d",
				v.options["timeout"], int64(grace.Seconds())))
		}
	case grace == nil:
		l.ShutdownTimeout = UnknownShutdownTimeout * time.Second
	default:
		l.ShutdownTimeout = max(time.Second, *grace-ShutdownMarginOfGrace*time.Second)
	}
	l.ShutdownThen = orWord(l.ShutdownThen, ThenOff)
	l.OnPoweroff = OnPoweroff(orWord(string(l.OnPoweroff), string(PoweroffExit)))
	l.OnReboot = OnReboot(orWord(string(l.OnReboot), string(RebootReset)))
	l.OnCrash = OnCrash(orWord(string(l.OnCrash), string(CrashExit)))
}

func (r *resolver) guest() {
	g := &r.m.Guest
	g.SSHKeys = SSHKeys(orWord(string(g.SSHKeys), string(SSHKeysBoth)))
	seed := r.m.Seed || (len(r.m.SSHUsers) > 0 && g.SSHKeys != SSHKeysOff)
	switch {
	case g.CloudInit == "" && seed:
		g.CloudInit = CloudInitNoCloud
	case g.CloudInit == "":
		g.CloudInit = CloudInitOff
	case g.CloudInit != CloudInitOff && !seed:
		r.value("cloud-init", r.values["cloud-init"].raw, "nothing is mounted at /vm/cloud-init")
	}
	if g.InstanceID == "" {
		g.InstanceID = r.pod.Namespace + "/" + r.m.ID
	}
}

// footprint counts what the overhead is made of.
func (r *resolver) footprint() Footprint {
	m := &r.m
	f := Footprint{
		VCPUs: m.VCPUs, IOThreads: 1, Devices: len(m.Disks) + r.guestNICs() + r.extraDisks(),
		Video: m.Video.Model != VideoNone, VideoRAM: m.Video.VRAM, TPM: m.TPM.On(), TCG: m.CPU.Accelerator == AcceleratorTCG,
		Extra: m.Memory.Overhead, FactorTenths: r.config.Memory.OverheadTenths,
	}
	for _, nic := range m.NICs {
		f.Devices += max(0, nic.Queues-1) / 16
	}
	for _, path := range r.pod.Paths {
		if strings.HasPrefix(path.Path, PathShares) {
			f.Shares++
		}
	}
	return f
}

// extraDisks counts seed and config disks. Files and keys for cloud-init make one seed together.
func (r *resolver) extraDisks() int {
	n, seeds := 0, 0
	for _, path := range r.pod.Paths {
		switch {
		case path.Path == PathCloudInit || strings.HasPrefix(path.Path, PathSSHKeys):
			seeds = 1
		case path.Path == PathSysprep || strings.HasPrefix(path.Path, PathConfig):
			n++
		}
	}
	return n + seeds
}

// networksKey is Multus' annotation with the Pod's secondary networks.
const networksKey = "k8s.v1.cni.cncf.io/networks"

// guestNICs counts the NICs that the guest will have: the pod network and one per secondary network.
func (r *resolver) guestNICs() int {
	n := 1
	for _, nic := range r.m.NICs {
		if nic.Binding == BindingNone {
			n--
		}
	}
	networks := strings.TrimSpace(r.pod.Annotations[networksKey])
	switch {
	case networks == "":
	case strings.HasPrefix(networks, "["):
		n += len(unanchored(`"name"\s*:`).FindAllString(networks, -1))
	default:
		n += len(strings.Split(networks, ","))
	}
	return n
}

func orTrue(b *bool) *bool {
	if b != nil {
		return b
	}
	yes := true
	return &yes
}

func orWord(word, otherwise string) string {
	if word == "" {
		return otherwise
	}
	return word
}

func inMiB(m MiB) string { return strconv.FormatInt(int64(m), 10) + "Mi" }

// showMiB writes whole GiB as such.
func showMiB(m MiB) string {
	if m > 0 && m%1024 == 0 {
		return strconv.FormatInt(int64(m/1024), 10) + "Gi"
	}
	return inMiB(m)
}

func showBytes(bytes int64) string {
	if bytes%(1<<20) == 0 {
		return showMiB(MiB(bytes >> 20))
	}
	return strconv.FormatInt(bytes, 10)
}
