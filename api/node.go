package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// FactsVersion is the version of the node annotations that this package writes.
const FactsVersion = 1

// MaxProblems and MaxProblem bound the list of problems in [CPUFacts]: entries, and bytes of each.
const (
	MaxProblems = 8
	MaxProblem  = 200
)

// ErrFacts is wrapped by every error about a node annotation that cannot be read.
var ErrFacts = errors.New("node facts")

// CPUFacts is the JSON of annotation podvirt.dev/cpu on a Node: what QEMU and libvirt of the launcher image can do
// there (scheduling.md 2.1). Lists are sorted. An absent member means "not offered".
type CPUFacts struct {
	V           int                 `json:"v"`
	Boot        string              `json:"boot"`     // boot_id; facts of another boot are stale
	Observed    time.Time           `json:"observed"` // UTC, whole seconds
	Launcher    string              `json:"launcher"` // digest of the launcher image
	QEMU        string              `json:"qemu"`
	Libvirt     string              `json:"libvirt"`
	Kernel      string              `json:"kernel"`
	Arch        string              `json:"arch"`
	Accelerator Accelerator         `json:"accelerator"`
	Vendor      string              `json:"vendor,omitempty"`
	Model       string              `json:"model,omitempty"` // what host-model becomes here
	Adds        []string            `json:"adds,omitempty"`
	Removes     []string            `json:"removes,omitempty"`
	Models      []string            `json:"models,omitempty"`
	Features    []string            `json:"features,omitempty"`
	PhysBits    int                 `json:"physBits,omitempty"`
	MaxVCPUs    int                 `json:"maxVCPUs,omitempty"`
	TSC         *TSC                `json:"tsc,omitempty"`
	HyperV      []string            `json:"hyperv,omitempty"`
	Security    map[string]Security `json:"security,omitempty"`
	Machines    []string            `json:"machines,omitempty"`
	NICs        []string            `json:"nics,omitempty"` // NIC models of network.md 2.2; none: taken by a program that did not look
	Firmware    []string            `json:"firmware,omitempty"`
	Realtime    bool                `json:"realtime"`
	Problems    []string            `json:"problems"`
}

// TSC is the time stamp counter of a node whose kernel reports it stable.
type TSC struct {
	Hz      int64 `json:"hz"`
	Scaling bool  `json:"scaling"`
}

// Security is one kind of launch security.
type Security struct {
	Guests int `json:"guests"` // how many guests the host allows at once
}

// NUMAFacts is the JSON of annotation podvirt.dev/numa on a Node (scheduling.md 2.1).
type NUMAFacts struct {
	V              int       `json:"v"`
	Boot           string    `json:"boot"`
	Observed       time.Time `json:"observed"`
	Kubelet        *Kubelet  `json:"kubelet,omitempty"` // nil: could not be read, counts as topology "none"
	ThreadsPerCore int       `json:"threadsPerCore"`
	Cells          []Cell    `json:"cells"`
}

// Kubelet holds the kubelet's policies in its own spelling.
type Kubelet struct {
	CPU           string   `json:"cpu"`
	CPUOptions    []string `json:"cpuOptions,omitempty"`
	Memory        string   `json:"memory"`
	Topology      string   `json:"topology"`
	TopologyScope string   `json:"topologyScope"`
}

// Words of a kubelet's configuration that placement depends on (kubernetes pkg/kubelet/cm/cpumanager,
// pkg/kubelet/cm/topologymanager).
const (
	CPUManagerStatic     = "static"
	FullPhysicalCPUsOnly = "full-pcpus-only"
	TopologyNone         = "none"
	TopologySingleNode   = "single-numa-node"
)

// Cell is one NUMA cell of a host.
type Cell struct {
	ID           int                    `json:"id"`
	CPUs         string                 `json:"cpus"`      // kernel list format, all online CPUs
	Reserved     string                 `json:"reserved"`  // those reserved for the system
	Exclusive    string                 `json:"exclusive"` // those the kubelet gave to containers for themselves
	Memory       int64                  `json:"memory"`    // bytes at boot
	MemoryPinned int64                  `json:"memoryPinned"`
	Hugepages    map[string]Pages       `json:"hugepages,omitempty"` // by page size
	Distances    []int                  `json:"distances"`
	Devices      map[string]DeviceUnits `json:"devices,omitempty"` // by extended resource
}

// Pages counts huge pages of one size in one cell.
type Pages struct {
	Total int64 `json:"total"`
	Free  int64 `json:"free"`
}

// DeviceUnits counts units of one extended resource in one cell.
type DeviceUnits struct {
	Total int64 `json:"total"`
	Free  int64 `json:"free"`
}

// DecodeCPUFacts reads annotation podvirt.dev/cpu. Unknown members are refused in version 1 and ignored in a higher
// one; the error wraps [ErrFacts].
func DecodeCPUFacts(text string) (CPUFacts, error) {
	var facts CPUFacts
	if err := decodeFacts(NodeCPU, text, &facts); err != nil {
		return CPUFacts{}, err
	}
	return facts, nil
}

// DecodeNUMAFacts reads annotation podvirt.dev/numa by the rules of [DecodeCPUFacts].
func DecodeNUMAFacts(text string) (NUMAFacts, error) {
	var facts NUMAFacts
	if err := decodeFacts(NodeNUMA, text, &facts); err != nil {
		return NUMAFacts{}, err
	}
	return facts, nil
}

// Encode returns the annotation: one line, members in the order of the type.
func (f CPUFacts) Encode() (string, error) {
	f.Observed = f.Observed.UTC().Truncate(time.Second)
	if f.Problems == nil {
		f.Problems = []string{}
	}
	return encodeFacts(f)
}

// Encode returns the annotation: one line, members in the order of the type.
func (f NUMAFacts) Encode() (string, error) {
	f.Observed = f.Observed.UTC().Truncate(time.Second)
	if f.Cells == nil {
		f.Cells = []Cell{}
	}
	return encodeFacts(f)
}

// decodeFacts fills facts from one annotation; key only names it in errors.
func decodeFacts(key, text string, facts any) error {
	var version struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal([]byte(text), &version); err != nil {
		return fmt.Errorf("%w: annotation %s: %w", ErrFacts, key, err)
	}
	if version.V < 1 {
		return fmt.Errorf("%w: annotation %s: version %d", ErrFacts, key, version.V)
	}
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	if version.V == FactsVersion {
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(facts); err != nil {
		return fmt.Errorf("%w: annotation %s: %w", ErrFacts, key, err)
	}
	return nil
}

func encodeFacts(facts any) (string, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(facts); err != nil {
		return "", fmt.Errorf("%w: %w", ErrFacts, err)
	}
	return string(bytes.TrimRight(out.Bytes(), "\n")), nil
}
