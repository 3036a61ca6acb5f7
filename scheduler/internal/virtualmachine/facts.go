package virtualmachine

import (
	"errors"
	"strings"
	"sync"
	"weak"

	"k8s.io/apimachinery/pkg/util/sets"

	"podvirt.dev/api"
)

// facts are what the hypervisor of one Node offers, ready to be asked.
type facts struct {
	err      error // why they cannot be read; nothing else is set then
	boot     string
	kind     api.Accelerator
	model    string   // of the host model
	adds     []string // features of the host model on top of that
	models   *words
	features *words
	maxVCPUs int
	nics     *words // NIC models; empty: nothing is known
	newer    bool   // they have a newer version than this program knows
}

// words is a set of words that many Nodes share.
type words struct{ sets.Set[string] }

// reader reads the annotation podvirt.dev/cpu. Nodes of one kind share their lists: a fleet of five thousand equal
// machines holds them once (scheduling.md SC-086).
type reader struct {
	mu     sync.Mutex
	shared map[string]weak.Pointer[words]
}

func newReader() *reader { return &reader{shared: map[string]weak.Pointer[words]{}} }

// maxAnnotation bounds what is read of a Node, in bytes; the largest hosts need 8 KiB (scheduling.md 4.5).
const maxAnnotation = 64 << 10

var errTooLong = errors.New("the annotation is longer than 64 KiB")

func (r *reader) read(raw string) *facts {
	if len(raw) > maxAnnotation {
		return &facts{err: errTooLong}
	}
	cpu, err := api.DecodeCPUFacts(raw)
	if err != nil {
		return &facts{err: err}
	}
	return &facts{
		boot:     cpu.Boot,
		kind:     cpu.Accelerator,
		model:    cpu.Model,
		adds:     cpu.Adds,
		models:   r.share(cpu.Models),
		features: r.share(cpu.Features),
		maxVCPUs: cpu.MaxVCPUs,
		nics:     r.share(cpu.NICs),
		newer:    cpu.V > api.FactsVersion,
	}
}

func (r *reader) share(list []string) *words {
	key := strings.Join(list, " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.shared[key].Value(); known != nil {
		return known
	}
	made := &words{sets.New(list...)}
	r.shared[key] = weak.Make(made)
	return made
}

func newFactsCatalog() *catalog[facts] { return newCatalog(api.NodeCPU, newReader().read) }
