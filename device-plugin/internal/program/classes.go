package program

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/cdi"
	"podvirt.dev/device-plugin/internal/config"
	"podvirt.dev/device-plugin/internal/device"
	"podvirt.dev/device-plugin/internal/holders"
	"podvirt.dev/device-plugin/internal/host"
	"podvirt.dev/device-plugin/internal/hostfile"
	"podvirt.dev/device-plugin/internal/inventory"
	"podvirt.dev/device-plugin/internal/node"
)

// newInventory wires what the classes of podvirt-config need.
func (p *plugin) newInventory(ctx context.Context, files *hostfile.Keeper) (*inventory.Inventory, error) {
	journal, err := host.OpenJournal(p.journal)
	if errors.Is(err, host.ErrJournal) {
		klog.FromContext(ctx).Error(err, "What is bound now is left alone")
	} else if err != nil {
		return nil, err
	}
	h, err := host.New(filepath.Dir(p.sys), journal)
	if err != nil {
		return nil, err
	}
	return inventory.New(inventory.Options{
		Host: h, Dev: os.DirFS(p.dev), Machine: p.nodeName,
		Specify: specify(p.cdiDir, files),
		Holders: func(ctx context.Context) (holders.Holders, error) { return holders.Ask(ctx, p.podResources) },
	}), nil
}

// specify returns what puts a CDI specification in place; one of no devices is not allowed and not needed.
func specify(dir string, files *hostfile.Keeper) func(string, map[string]cdi.Edit) error {
	return func(kind string, edits map[string]cdi.Edit) error {
		if len(edits) == 0 {
			return files.Drop(cdi.Path(dir, kind))
		}
		file, err := cdi.File(dir, hostHook, kind, edits)
		if err != nil {
			return err
		}
		return files.Put(file)
	}
}

// lastGood returns the classes of a configuration, and for a key whose value has mistakes now what it was before.
func lastGood(c config.Config, good []api.DeviceClass, data map[string]string) []api.DeviceClass {
	classes := slices.Clone(c.Classes)
	for _, before := range good {
		_, there := data[before.Key]
		if there && !slices.ContainsFunc(classes, func(now api.DeviceClass) bool { return now.Key == before.Key }) {
			classes = append(classes, before)
		}
	}
	slices.SortFunc(classes, func(a, b api.DeviceClass) int { return strings.Compare(a.Key, b.Key) })
	return classes
}

// refresh returns what the classes offer, and whether something waits for a container to end. Before the configuration and
// the Node were seen nothing is known, and nothing is taken away.
func (p *plugin) refresh(ctx context.Context, c config.Config, view node.View) (resources []device.Resource, waiting bool) {
	if !c.Facts.Known || view.UID == "" {
		return nil, false
	}
	result := p.classes.Refresh(ctx, inventory.Settings{
		Classes: c.Classes, Labels: view.Labels, MdevOff: c.MdevOff, UnsafeInterrupts: c.UnsafeInterrupts,
	})
	for _, act := range result.Acts {
		p.tell(ctx, news{false, act.Reason, act.Message})
	}
	for _, note := range result.Notes {
		if !slices.Contains(p.notes, note) {
			klog.FromContext(ctx).Info("Device classes", "note", note)
			if strings.HasPrefix(note, "data.") {
				p.tell(ctx, news{true, "DeviceClassInvalid", note})
			}
		}
	}
	p.notes = result.Notes
	return result.Resources, result.Waiting
}

// news is an Event on the Node.
type news struct {
	warning         bool
	reason, message string
}

// tell has an Event raised; where too many wait, the log alone has it.
func (p *plugin) tell(ctx context.Context, n news) {
	klog.FromContext(ctx).Info(n.message, "reason", n.reason)
	select {
	case p.news <- n:
	default:
	}
}

// announce raises Events until ctx ends. One that cannot be raised is not worth a second attempt.
func (p *plugin) announce(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-p.news:
			view, _ := p.view.Get()
			if err := p.client.Event(ctx, view.UID, n.warning, n.reason, n.message); err != nil {
				klog.FromContext(ctx).Error(err, "Event not raised", "reason", n.reason)
			}
		}
	}
}

// health tells people of units that became unhealthy or healthy again.
func (p *plugin) health(ctx context.Context, before, after device.Resource) {
	for _, unit := range after.Units {
		was, known := before.Unit(unit.ID)
		switch {
		case unit.Reason != "" && (!known || was.Reason != unit.Reason):
			p.tell(ctx, news{true, "DeviceUnhealthy", fmt.Sprintf("%s of %s: %s", unit.ID, after.Name, unit.Reason)})
		case unit.Reason == "" && known && was.Reason != "":
			p.tell(ctx, news{false, "DeviceHealthy", fmt.Sprintf("%s of %s", unit.ID, after.Name)})
		}
	}
}
