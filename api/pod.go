package api

import "time"

// Pod is what a reader of a VM Pod can see of it. The scheduler and the CLI see a whole corev1.Pod (package podspec
// converts it), the launcher its downward API volume, its own file system and its cgroup. A rule that needs what the
// reader cannot see is left to those who can; nil says "not visible".
type Pod struct {
	Hostname             string // of its containers; "": not known. It is the Pod's name where spec.hostname is not set
	Namespace, Name, UID string
	Labels               map[string]string // nil: not visible
	Annotations          map[string]string

	// Limits of container vm; 0 and absent mean that there is none.
	Limits Resources
	// Requests of container vm; nil: not visible (inside the container).
	Requests *Resources

	// Paths are all mount points and device paths of container vm below /vm and /run/podvirt.
	Paths []Path

	// GracePeriod is terminationGracePeriodSeconds; nil: not visible.
	GracePeriod *time.Duration
	// Terminal says what stdin and tty are; nil: not visible.
	Terminal *Terminal
	// Seccomp is the profile container vm runs under: RuntimeDefault, or the file of a Localhost profile;
	// "": not visible.
	Seccomp string
	// NodeArch is the architecture of the node; "": not known yet.
	NodeArch string
}

// Resources are amounts of container vm.
type Resources struct {
	CPU       int64            // thousandths of a CPU
	Memory    int64            // bytes
	Hugepages map[string]int64 // bytes by page size as Kubernetes writes it (2Mi)
	Extended  map[string]int64 // units by resource name; nil: not visible
}

// Terminal is stdin and tty of container vm.
type Terminal struct {
	Stdin, TTY bool
}

// SourceKind says what is behind a path.
type SourceKind string

// What can be behind a path of container vm.
const (
	SourceUnknown    SourceKind = ""
	SourceBlock      SourceKind = "block"      // volumeDevices
	SourceFilesystem SourceKind = "filesystem" // a claim mounted as files
	SourceImage      SourceKind = "image"      // an image volume
	SourceFiles      SourceKind = "files"      // Secret, ConfigMap, downward API, projected
	SourceEmptyDir   SourceKind = "emptyDir"
	SourceCSI        SourceKind = "csi" // an inline CSI volume
)

// Path is one mount point or device path.
type Path struct {
	Path     string
	Source   SourceKind
	ReadOnly bool
	// Claim is the name of the PersistentVolumeClaim behind it, where there is one and it is visible.
	Claim string
	// Size is the sizeLimit of an emptyDir in bytes; 0: none, or not visible.
	Size int64
}

// Machine is a VM as it will run: what the user wrote, with every default that annotations and Pod decide.
// What only the node can decide (the expanded CPU model, O_DIRECT, the versioned machine type) stays as asked for.
type Machine struct {
	VM

	Namespace, PodName, PodUID string

	// ID is the name that UUID, MACs, instance-id and guest host name are made from: the VM's, or the Pod's.
	ID string

	// VCPUs at start; the product of CPU.Topology, which is always set here.
	VCPUs int
	// CPUs of its own that the container has, with CPU.Dedicated; 0 without.
	CPUs int

	// Overhead is what the cgroup must hold beyond guest memory (vm.md 2.5), the user's addition included.
	Overhead MiB
	// HugepagesBacked says that guest memory is not part of limits.memory.
	HugepagesBacked bool

	// BootOrder are the devices that firmware tries, first to last (VM-056).
	BootOrder []BootDevice

	// Seed says that /vm/cloud-init is mounted.
	Seed bool
	// State says that /vm/state is mounted.
	State bool
	// SSHUsers are the names below /vm/ssh-keys, sorted.
	SSHUsers []string
	// Passwords are the names below /vm/passwords, sorted.
	Passwords []string

	// Warnings are what is legal and unwise, one line each.
	Warnings []string
}

// BootDevice names one device by kind and name: disk.root, nic.default.
type BootDevice struct {
	Kind string // disk, nic, device
	Name string
}

// String returns kind and name as they stand in annotation keys.
func (d BootDevice) String() string { return d.Kind + "." + d.Name }
