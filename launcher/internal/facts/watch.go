package facts

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/atomicfile"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/sysfs"
)

// Files of the directory that a Watcher keeps.
const (
	CPUFile  = "cpu.json"
	NUMAFile = "numa.json"
	// RefreshFile asks for new facts: whoever wants some makes it, and it is removed when they are there.
	RefreshFile = "refresh"
	// keyFile says under which conditions cpu.json was taken; while they hold, no QEMU is started again.
	keyFile = "cpu.key"
)

// watchPeriod is how often hugepages, hot-plugged memory and requests are looked for: cells must be published within
// five seconds (scheduling.md SC-010), and the device plugin needs its share of them.
const watchPeriod = 2 * time.Second

// Watcher keeps files of facts up to date.
type Watcher struct {
	Collector
	// Take takes the facts of the CPU. A process of its own does it best: libvirt never quite leaves one that opened it.
	Take    func(ctx context.Context) (api.CPUFacts, error)
	Dir     string
	Timeout time.Duration // for the probe guests
	CPU     bool          // keep cpu.json
	NUMA    bool          // keep numa.json
}

// Run writes both files and then whenever they change, until ctx ends. Facts of the CPU are taken again when asked for,
// when the microcode changes, and when the former attempt found no accelerator.
func (w Watcher) Run(ctx context.Context) error {
	state := watchState{Watcher: w}
	if err := state.start(ctx); err != nil {
		return err
	}
	ticker := time.NewTicker(watchPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := state.look(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "node facts") // the files keep what was last known, the next look may do better
		}
	}
}

// watchState is what a Watcher remembers between two looks.
type watchState struct {
	Watcher
	key  string    // of the facts of the CPU that are in the file
	numa string    // content of the file, without its time
	hold time.Time // no new attempt before
}

func (s *watchState) start(ctx context.Context) error {
	if s.CPU {
		wanted, err := s.cacheKey()
		if err != nil {
			return err
		}
		old, err := os.ReadFile(s.path(keyFile))
		if err == nil && string(old) == wanted && s.usable() {
			s.key = wanted
			klog.FromContext(ctx).Info("CPU facts are those of before: nothing changed since they were taken")
		}
	}
	return s.look(ctx)
}

// usable reports whether cpu.json holds facts with an accelerator.
func (s *watchState) usable() bool {
	text, err := os.ReadFile(s.path(CPUFile))
	if err != nil {
		return false
	}
	facts, err := api.DecodeCPUFacts(string(text))
	return err == nil && facts.Accelerator != api.AcceleratorNone
}

func (s *watchState) path(name string) string { return filepath.Join(s.Dir, name) }

// look does what is due.
func (s *watchState) look(ctx context.Context) error {
	var errs []error
	if s.NUMA {
		errs = append(errs, s.lookNUMA())
	}
	if s.CPU {
		errs = append(errs, s.lookCPU(ctx))
	}
	return errors.Join(errs...)
}

func (s *watchState) lookNUMA() error {
	facts, err := s.Collector.NUMA()
	if err != nil {
		return err
	}
	text, err := facts.Encode()
	if err != nil {
		return err
	}
	facts.Observed = time.Time{}
	timeless, err := facts.Encode()
	if err != nil || timeless == s.numa {
		return err
	}
	if err := atomicfile.Write(s.path(NUMAFile), []byte(text), 0o644); err != nil {
		return err
	}
	s.numa = timeless
	return nil
}

// retryPause is how long a node without accelerator waits before it is tried again: somebody may load a module.
const retryPause = time.Minute

// slack is what libvirt may take beyond the probe guests: on a busy node it asks QEMU for most of a minute.
const slack = 2 * time.Minute

func (s *watchState) lookCPU(ctx context.Context) error {
	wanted, err := s.cacheKey()
	if err != nil {
		return err
	}
	asked := exists(s.path(RefreshFile))
	if !asked && wanted == s.key || !asked && time.Now().Before(s.hold) {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, s.Timeout+slack)
	defer cancel()
	facts, err := s.Take(limited)
	if err != nil || ctx.Err() != nil { // a shutdown must not look like a node without accelerator
		return err
	}
	text, err := facts.Encode()
	if err != nil {
		return err
	}
	if err := errors.Join(remove(s.path(keyFile)), atomicfile.Write(s.path(CPUFile), []byte(text), 0o644)); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("took CPU facts", "accelerator", facts.Accelerator, "model", facts.Model, "models", len(facts.Models),
		"features", len(facts.Features), "problems", facts.Problems)
	if facts.Accelerator == api.AcceleratorNone {
		s.key, s.hold = "", time.Now().Add(retryPause)
		return remove(s.path(RefreshFile))
	}
	s.key = wanted
	return errors.Join(atomicfile.Write(s.path(keyFile), []byte(wanted), 0o644), remove(s.path(RefreshFile)))
}

// cacheKey digests everything that the facts of the CPU depend on: boot, microcode, our own version, QEMU, parameters
// of the KVM modules, and what was asked for (scheduling.md SC-023).
func (s *watchState) cacheKey() (string, error) {
	boot, err := sysfs.BootID(s.Root)
	if err != nil {
		return "", fmt.Errorf("boot ID: %w", err)
	}
	processor, err := sysfs.FirstProcessor(s.Root)
	if err != nil {
		return "", fmt.Errorf("CPU: %w", err)
	}
	parts := []string{boot, processor.Microcode, cli.Version, s.Launcher, fmt.Sprint(s.Wanted)}
	if info, err := os.Stat(s.Prober.QEMU); err == nil {
		parts = append(parts, info.ModTime().String(), fmt.Sprint(info.Size()))
	}
	for _, module := range []string{"kvm", "kvm_intel", "kvm_amd"} {
		dir := "sys/module/" + module + "/parameters"
		entries, err := fs.ReadDir(s.Root, dir)
		if err != nil {
			continue // not loaded
		}
		for _, entry := range entries {
			value, _ := sysfs.Text(s.Root, dir+"/"+entry.Name()) // some cannot be read: then their names count
			parts = append(parts, module+"."+entry.Name()+"="+value)
		}
	}
	parts = append(parts, fmt.Sprint(exists("/dev/kvm")))
	slices.Sort(parts[5:])
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, parts))), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
