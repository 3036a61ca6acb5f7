package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/allotment"
	"podvirt.dev/device-plugin/internal/base"
	"podvirt.dev/device-plugin/internal/config"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/device-plugin/internal/hostfile"
	"podvirt.dev/device-plugin/internal/inventory"
	"podvirt.dev/device-plugin/internal/kubelet"
	"podvirt.dev/device-plugin/internal/latest"
	"podvirt.dev/device-plugin/internal/node"
	"podvirt.dev/device-plugin/internal/seccomp"
	"podvirt.dev/device-plugin/internal/status"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/selfsigned"
)

// hostHook is where the runtime finds the hook on the host, however the directory is mounted here.
const hostHook = "/opt/podvirt/bin/device-hook"

// plugin is the running program: what is known, each piece with its newest value only, and who acts on it.
type plugin struct {
	options
	boot    string
	board   *device.Board
	metrics *status.Metrics
	client  *node.Client
	classes *inventory.Inventory
	news    chan news
	notes   []string // of the last refresh

	config   *latest.Value[config.Config]  // Facts.Known tells whether it is more than the defaults
	settings *latest.Value[facts.Settings] // the part of config that publishing needs
	view     *latest.Value[node.View]
	snapshot *latest.Value[facts.Snapshot]
	taken    facts.Taken          // snapshot is made of it
	devices  *latest.Value[error] // why CDI specifications and hook are not in place; nil: they are
	profile  *latest.Value[error] // why the seccomp profile is not in place; nil: it is
	complete *latest.Value[bool]  // all that is known of the node when a Pod starts has been looked at
}

func serve(ctx context.Context, o options) error {
	p, err := newPlugin(o)
	if err != nil {
		return err
	}
	deviceFiles, profileFiles, err := hostFiles(o.hostPaths)
	if err != nil {
		return err
	}
	if p.classes, err = p.newInventory(ctx, deviceFiles); err != nil {
		return err
	}
	manager, err := kubelet.NewManager(kubelet.Options{
		Dir: o.pluginDir, Instance: o.instance, Board: p.board, Observer: p.metrics, Preparer: p.classes,
	})
	if err != nil {
		return err
	}
	publisher := facts.NewPublisher(facts.Options{
		Writer: p.client, Observer: p.metrics, Boot: p.boot, View: p.view, Snapshot: p.snapshot, Settings: p.settings,
	})
	kubeletReader, err := p.kubeletReader()
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("The device plugin starts", "version", cli.Version, "node", o.nodeName, "boot", p.boot)

	// The files come before the first offer: a unit that the runtime cannot resolve must not be handed out.
	p.devices.Set(deviceFiles.Restore())
	p.profile.Set(profileFiles.Restore())

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return deviceFiles.Run(ctx, p.reportFiles(ctx, p.devices)) })
	group.Go(func() error { return profileFiles.Run(ctx, p.reportFiles(ctx, p.profile)) })
	group.Go(func() error { return facts.Follow(ctx, o.factsDir, p.boot, p.factsTaken) })
	group.Go(func() error { return p.followImage(ctx) })
	group.Go(func() error {
		kubeletReader.Run(ctx, func(given allotment.Given) { p.snapshot.Set(p.taken.Given(given)) })
		return nil
	})
	group.Go(func() error { return p.client.Watch(ctx, p.view.Set) })
	group.Go(func() error { return p.client.WatchConfigMap(ctx, o.configName, p.configure(ctx)) })
	group.Go(func() error { publisher.Run(ctx); return nil })
	group.Go(func() error { p.announce(ctx); return nil })
	group.Go(func() error { return p.discover(ctx) })
	group.Go(func() error { return manager.Run(ctx) })
	group.Go(func() error {
		return selfsigned.Serve(ctx, "podvirt-device-plugin", o.metrics, p.metrics.Handler(p.missing(manager)))
	})
	return group.Wait()
}

func newPlugin(o options) (*plugin, error) {
	boot, err := facts.BootID(o.proc)
	if err != nil {
		return nil, err
	}
	restConfig, err := clusterConfig(o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reaching the cluster: %w", err)
	}
	client, err := node.NewClient(restConfig, o.nodeName)
	if err != nil {
		return nil, err
	}
	defaults, _ := config.Parse(nil, o.nodeName) // no data has no mistakes
	return &plugin{
		options: o, boot: boot, client: client,
		board:    device.NewBoard(),
		metrics:  status.NewMetrics(cli.Version),
		config:   latest.New(defaults),
		settings: latest.New(defaults.Facts),
		view:     latest.New(node.View{}),
		snapshot: latest.New(facts.Snapshot{}),
		devices:  latest.New[error](nil),
		profile:  latest.New[error](nil),
		complete: latest.New(false),
		news:     make(chan news, 64),
	}, nil
}

// kubeletReader returns what follows the kubelet's policies, and who has which CPUs, memory and units.
func (p *plugin) kubeletReader() (*allotment.Reader, error) {
	config, err := clusterConfig(p.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reaching the cluster: %w", err)
	}
	read, err := allotment.ConfigReader(config, p.client.KubeletAddress)
	if err != nil {
		return nil, err
	}
	return &allotment.Reader{Socket: p.podResources, Config: read}, nil
}

func clusterConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// hostFiles returns what is kept on the host: what every device needs, and what only some VMs need.
func hostFiles(h hostPaths) (devices, profile *hostfile.Keeper, err error) {
	files, err := base.CDIFiles(h.cdiDir, hostHook)
	if err != nil {
		return nil, nil, err
	}
	hook, err := os.ReadFile(h.hook)
	if err != nil {
		return nil, nil, fmt.Errorf("device hook: %w", err)
	}
	files = append(files, hostfile.File{Path: filepath.Join(h.hookDir, filepath.Base(hostHook)), Content: hook, Mode: 0o755})
	launcher, err := seccomp.File(h.seccompDir, runtime.GOARCH)
	if err != nil {
		return nil, nil, err
	}
	return hostfile.NewKeeper(files), hostfile.NewKeeper([]hostfile.File{launcher}), nil
}

// reportFiles returns what hears of every look at the files; only a change is passed on.
func (p *plugin) reportFiles(ctx context.Context, to *latest.Value[error]) func(error) {
	return func(err error) {
		if before, _ := to.Get(); (before == nil) != (err == nil) {
			klog.FromContext(ctx).Info("Files of the host", "inPlace", err == nil, "err", err)
			to.Set(err)
		}
		devices, _ := p.devices.Get()
		profile, _ := p.profile.Get()
		p.metrics.HostFiles(errors.Join(devices, profile) == nil)
	}
}

// factsContainer is the container of our Pod that runs the launcher image.
const factsContainer = "facts"

// factsTaken hears of every state of the files.
func (p *plugin) factsTaken(s facts.Snapshot) { p.snapshot.Set(p.taken.Files(s)) }

// followImage notes which image the facts are of, where it is known which Pod this is.
func (p *plugin) followImage(ctx context.Context) error {
	if p.podName.Name == "" {
		return nil
	}
	return p.client.WatchImage(ctx, p.podName, factsContainer, func(digest string) { p.snapshot.Set(p.taken.Image(digest)) })
}

// configure returns what hears of every state of the ConfigMap. One with mistakes is not applied at all; the last valid
// one stays in force (operations.md 2.2).
func (p *plugin) configure(ctx context.Context) func(map[string]string) {
	var good []api.DeviceClass // what was in force last
	return func(data map[string]string) {
		c, mistakes := config.Parse(data, p.nodeName)
		p.metrics.Config(slices.Concat(mistakes, c.ClassMistakes))
		c.Classes = lastGood(c, good, data)
		if err := mistakes.Err(); err != nil {
			klog.FromContext(ctx).Error(err, "Invalid podvirt-config, the last valid one stays in force")
			classes := c.Classes
			if c, _ = p.config.Get(); c.Facts.Known {
				return
			}
			c.Classes = classes // there was none yet: the defaults, and the classes, so that nothing is taken away
		}
		good = c.Classes
		for _, mistake := range c.ClassMistakes {
			p.tell(ctx, news{true, "DeviceClassInvalid", mistake.Text})
		}
		c.Facts.Known = true
		p.config.Set(c)
		p.settings.Set(c.Facts)
	}
}

// missing returns what the readiness probe asks: a rolling update waits for it before the old Pod ends.
func (p *plugin) missing(manager *kubelet.Manager) func() []string {
	return func() []string {
		if complete, _ := p.complete.Get(); !complete {
			return []string{"the Node " + p.nodeName + " was not seen yet"}
		}
		return manager.Unregistered()
	}
}
