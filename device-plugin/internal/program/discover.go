package program

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/base"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/facts"
)

const (
	// rescanInterval is how often the node is looked at without a notice; a sysctl gives none.
	rescanInterval = 30 * time.Second
	// waitInterval is how often the kubelet is asked whether a container has ended that holds up a change.
	waitInterval = 3 * time.Second
	// configTimeout is how long the first offer waits for podvirt-config.
	configTimeout = 5 * time.Second
	// settleTime gathers the events of one change, such as a module that makes several files.
	settleTime = 50 * time.Millisecond
)

// discover keeps the board true until ctx ends.
func (p *plugin) discover(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching devices: %w", err)
	}
	defer watcher.Close()
	hostChanged := make(chan struct{}, 1)
	go p.watchHost(ctx, watcher, hostChanged)
	go followUevents(ctx, hostChanged)
	rescan := time.NewTicker(rescanInterval)
	defer rescan.Stop()
	host := baseHost(p.hostPaths)
	p.awaitConfig(ctx)
	for ctx.Err() == nil {
		config, configChanged := p.config.Get()
		view, viewChanged := p.view.Get()
		snapshot, snapshotChanged := p.snapshot.Get()
		devices, devicesChanged := p.devices.Get()
		profile, profileChanged := p.profile.Get()

		known := snapshot.Or(facts.FromAnnotations(view.Annotations, p.boot))
		resources := base.Scan(host, config.Devices, kvm(known.CPU, profile))
		classes, waiting := p.refresh(ctx, config, view)
		p.publish(ctx, withoutFiles(append(resources, classes...), devices))
		p.metrics.Facts(known.CPU, config.Facts.Emulation)
		if done, _ := p.complete.Get(); !done && view.UID != "" {
			p.complete.Set(true)
		}
		select {
		case <-ctx.Done():
		case <-configChanged:
		case <-viewChanged:
		case <-snapshotChanged:
		case <-devicesChanged:
		case <-profileChanged:
		case <-rescan.C:
		case <-hostChanged:
		case <-again(waiting):
		}
	}
	return nil
}

// again returns what is ready after a while where something waits for a container to end: nothing tells of that.
func again(waiting bool) <-chan time.Time {
	if !waiting {
		return nil
	}
	return time.After(waitInterval)
}

// awaitConfig gives the API server a moment, so that a restart does not offer the default capacity in between. Without
// it the devices are offered all the same.
func (p *plugin) awaitConfig(ctx context.Context) {
	timer := time.NewTimer(configTimeout)
	defer timer.Stop()
	for {
		c, changed := p.config.Get()
		if c.Facts.Known {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
			klog.FromContext(ctx).Info("podvirt-config was not seen yet, the defaults are in force", "waited", configTimeout.String())
			return
		}
	}
}

// watchHost tells that files came or went in the directories that discovery reads, until ctx ends.
func (p *plugin) watchHost(ctx context.Context, watcher *fsnotify.Watcher, changed chan<- struct{}) {
	for {
		p.watchDirectories(watcher)
		if !awaitEntry(ctx, watcher) {
			return
		}
		settle(ctx, watcher)
		select {
		case changed <- struct{}{}:
		default: // not looked at yet
		}
	}
}

// awaitEntry returns true when a file came or went or changed its times, false when ctx ended. Writes are passed over:
// older kernels report every write to /dev/null.
func awaitEntry(ctx context.Context, watcher *fsnotify.Watcher) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case err := <-watcher.Errors:
			klog.FromContext(ctx).Info("Watching devices", "err", err)
			return true
		case event := <-watcher.Events:
			if event.Op != fsnotify.Write {
				return true
			}
		}
	}
}

func (p *plugin) publish(ctx context.Context, resources []device.Resource) {
	before := map[string]device.Resource{}
	for _, r := range p.board.All() {
		before[r.Name] = r
	}
	changes := p.board.Publish(resources)
	if changes.Empty() {
		return
	}
	p.metrics.Offered(resources)
	p.snapshot.Set(p.taken.Devices(resources))
	for _, name := range slices.Concat(changes.Added, changes.Changed) {
		r, _, _ := p.board.Resource(name)
		healthy, unhealthy := r.Counts()
		klog.FromContext(ctx).Info("Offer", "resource", r.Name, "healthy", healthy, "unhealthy", unhealthy, "note", r.Note)
		p.health(ctx, before[name], r)
	}
}

// watchDirectories watches the directories that exist; those that appear later are seen in the ones above them, which
// is why it is called again after every event.
func (p *plugin) watchDirectories(watcher *fsnotify.Watcher) {
	for _, dir := range []string{p.dev, filepath.Join(p.dev, "net"), p.run, filepath.Dir(filepath.Join(p.run, base.Stamp))} {
		_ = watcher.Add(dir) // one that is missing or forbidden is looked at every rescanInterval
	}
}

// settle drops the events that follow within a moment.
func settle(ctx context.Context, watcher *fsnotify.Watcher) {
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-watcher.Events:
		}
	}
}

func baseHost(h hostPaths) base.Host {
	return base.Host{
		Dev: os.DirFS(h.dev), Proc: os.DirFS(h.proc), Run: os.DirFS(h.run),
		Open: func(name string) error {
			f, err := os.OpenFile(filepath.Join(h.dev, name), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
	}
}

// kvm says whether VMs run under KVM here, from the facts and from whether the profile that some of them need is there.
func kvm(cpu *api.CPUFacts, profile error) base.KVM {
	switch {
	case cpu == nil:
		return base.KVM{}
	case cpu.Accelerator != api.AcceleratorKVM:
		why := fmt.Sprintf("node facts say accelerator %s", cpu.Accelerator)
		if len(cpu.Problems) > 0 {
			why += ": " + cpu.Problems[0]
		}
		return base.KVM{Known: true, Why: why}
	case profile != nil:
		return base.KVM{Known: true, Why: fmt.Sprintf("seccomp profile %s is not installed: %v", api.LocalhostProfile, profile)}
	}
	return base.KVM{Known: true, Usable: true}
}

// withoutFiles takes all units away while the runtime could not resolve them.
func withoutFiles(resources []device.Resource, missing error) []device.Resource {
	if missing == nil {
		return resources
	}
	for i := range resources {
		resources[i].Units, resources[i].Note = nil, fmt.Sprintf("files of the host are not installed: %v", missing)
	}
	return resources
}
