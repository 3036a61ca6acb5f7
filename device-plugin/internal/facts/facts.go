// Package facts takes what the launcher image found out about the node and publishes it on the Node, when it changed and
// only then (scheduling.md 2.1, 2.2).
package facts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"podvirt.dev/api"
)

// Files below the directory that the container facts writes (`launcher node-facts --watch --out DIR`).
const (
	CPUFile  = "cpu.json"
	NUMAFile = "numa.json"
)

// maxFile bounds a file of facts: an annotation together with all others of a Node may have 256 KiB.
const maxFile = 200 << 10

// ErrStale says that facts are of another boot than this one.
var ErrStale = errors.New("facts are older than the node's last boot")

// Snapshot is what is known about the node now. A nil member is not known.
type Snapshot struct {
	CPU  *api.CPUFacts
	NUMA *api.NUMAFacts
	// Problem says why a member is nil although there is something to read; nil: nothing to complain about.
	Problem error
}

// Read reads both files. A file that is not there is not a problem: the launcher may still be at it.
func Read(dir, boot string) Snapshot {
	var s Snapshot
	var cpuErr, numaErr error
	s.CPU, cpuErr = readFile(dir, CPUFile, boot, api.DecodeCPUFacts, func(f *api.CPUFacts) string { return f.Boot })
	s.NUMA, numaErr = readFile(dir, NUMAFile, boot, api.DecodeNUMAFacts, func(f *api.NUMAFacts) string { return f.Boot })
	s.Problem = errors.Join(cpuErr, numaErr)
	return s
}

func readFile[T any](dir, name, boot string, decode func(string) (T, error), bootOf func(*T) string) (*T, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s: %d bytes, at most %d", path, info.Size(), maxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeFresh(path, string(text), boot, decode, bootOf)
}

// FromAnnotations returns what the Node's annotations say, as far as it is of this boot. A plugin that has just started
// goes on from there until the launcher has looked again.
func FromAnnotations(annotations map[string]string, boot string) Snapshot {
	var s Snapshot
	var cpuErr, numaErr error
	if text, ok := annotations[api.NodeCPU]; ok {
		s.CPU, cpuErr = decodeFresh(api.NodeCPU, text, boot, api.DecodeCPUFacts, func(f *api.CPUFacts) string { return f.Boot })
	}
	if text, ok := annotations[api.NodeNUMA]; ok {
		s.NUMA, numaErr = decodeFresh(api.NodeNUMA, text, boot, api.DecodeNUMAFacts, func(f *api.NUMAFacts) string { return f.Boot })
	}
	s.Problem = errors.Join(cpuErr, numaErr)
	return s
}

func decodeFresh[T any](name, text, boot string, decode func(string) (T, error), bootOf func(*T) string) (*T, error) {
	facts, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if of := bootOf(&facts); of != boot {
		return nil, fmt.Errorf("%s: %w: boot %s, now %s", name, ErrStale, of, boot)
	}
	return &facts, nil
}

// Or returns s with the members it lacks taken from other.
func (s Snapshot) Or(other Snapshot) Snapshot {
	if s.CPU == nil {
		s.CPU = other.CPU
	}
	if s.NUMA == nil {
		s.NUMA = other.NUMA
	}
	return s
}

// Desired is what shall stand on the Node.
type Desired struct {
	Annotations map[string]string
	Labels      map[string]string
}

// Keys returns the keys that are ours on a Node, annotations and labels, besides the labels of models.
func Keys() (annotations, labels []string) {
	return []string{api.NodeCPU, api.NodeNUMA},
		[]string{api.NodeLabelSchedulable, api.NodeLabelCPUVendor, api.NodeLabelCPUModel, api.NodeLabelAccelerator}
}

// Desire says what shall stand on a Node that carries the given annotations now. Facts that differ from the published
// ones only in the time they were taken leave the published text as it is. What is not known keeps its last
// annotation, whose boot tells the scheduler that it is stale, and makes the node not schedulable.
func Desire(s Snapshot, published map[string]string, emulation bool) (Desired, error) {
	d := Desired{Annotations: map[string]string{}, Labels: map[string]string{api.NodeLabelSchedulable: "false"}}
	for _, key := range []string{api.NodeCPU, api.NodeNUMA} {
		if text, ok := published[key]; ok {
			d.Annotations[key] = text
		}
	}
	if s.NUMA != nil && !sameNUMA(*s.NUMA, published[api.NodeNUMA]) {
		text, err := s.NUMA.Encode()
		if err != nil {
			return Desired{}, err
		}
		d.Annotations[api.NodeNUMA] = text
	}
	if s.CPU == nil {
		return d, nil
	}
	facts := sorted(*s.CPU)
	if !sameCPU(facts, published[api.NodeCPU]) {
		text, err := facts.Encode()
		if err != nil {
			return Desired{}, err
		}
		d.Annotations[api.NodeCPU] = text
	}
	usable := facts.Accelerator == api.AcceleratorKVM || facts.Accelerator == api.AcceleratorTCG && emulation
	if usable {
		d.Labels[api.NodeLabelSchedulable] = "true"
	}
	d.Labels[api.NodeLabelCPUVendor] = facts.Vendor
	d.Labels[api.NodeLabelCPUModel] = facts.Model
	d.Labels[api.NodeLabelAccelerator] = string(facts.Accelerator)
	return d, nil
}

// addModels adds a label for each model that VMs may name here, for people, selectors and autoscalers. It returns the models
// whose names are no legal label keys.
func (d Desired) addModels(cpu *api.CPUFacts, obsolete []string) (skipped []string) {
	for _, model := range cpu.Models {
		if (api.Config{CPUObsoleteModels: obsolete}).Obsolete(model) {
			continue
		}
		key := api.NodeLabelModelPrefix + model
		if len(validation.IsQualifiedName(key)) > 0 {
			skipped = append(skipped, model)
			continue
		}
		d.Labels[key] = "true"
	}
	return skipped
}

// Equal says whether the Node carries exactly what is desired under our keys.
func (d Desired) Equal(annotations, labels map[string]string) bool {
	annotationKeys, labelKeys := Keys()
	for _, list := range []map[string]string{d.Labels, labels} {
		for key := range list {
			if strings.HasPrefix(key, api.NodeLabelModelPrefix) {
				labelKeys = append(labelKeys, key)
			}
		}
	}
	return sameUnder(annotationKeys, d.Annotations, annotations) && sameUnder(labelKeys, d.Labels, labels)
}

func sameUnder(keys []string, want, have map[string]string) bool {
	return !slices.ContainsFunc(keys, func(key string) bool {
		w, wanted := want[key]
		h, there := have[key]
		return wanted != there || w != h
	})
}

func sameCPU(facts api.CPUFacts, published string) bool {
	old, err := api.DecodeCPUFacts(published)
	if err != nil {
		return false
	}
	old.Observed, facts.Observed = time.Time{}, time.Time{}
	return sameText(old.Encode, facts.Encode)
}

func sameNUMA(facts api.NUMAFacts, published string) bool {
	old, err := api.DecodeNUMAFacts(published)
	if err != nil {
		return false
	}
	old.Observed, facts.Observed = time.Time{}, time.Time{}
	return sameText(old.Encode, facts.Encode)
}

func sameText(a, b func() (string, error)) bool {
	textA, errA := a()
	textB, errB := b()
	return errA == nil && errB == nil && textA == textB
}

// sorted returns the facts with their lists in order, as the contract has them.
func sorted(f api.CPUFacts) api.CPUFacts {
	for _, list := range []*[]string{&f.Adds, &f.Removes, &f.Models, &f.Features, &f.HyperV, &f.Machines, &f.NICs, &f.Firmware} {
		*list = slices.Sorted(slices.Values(*list))
	}
	return f
}

// Change says whether people should be told about new facts: models or accelerator differ from the published ones.
func Change(published string, now *api.CPUFacts) (string, bool) {
	old, err := api.DecodeCPUFacts(published)
	if err != nil || now == nil {
		return "", false
	}
	switch {
	case old.Accelerator != now.Accelerator:
		return fmt.Sprintf("accelerator is %s, was %s", now.Accelerator, old.Accelerator), true
	case !slices.Equal(slices.Sorted(slices.Values(old.Models)), slices.Sorted(slices.Values(now.Models))):
		return fmt.Sprintf("%d CPU models are usable, %d were", len(now.Models), len(old.Models)), true
	}
	return "", false
}
