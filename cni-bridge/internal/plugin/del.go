package plugin

import (
	"context"
	"errors"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"

	"podvirt.dev/cni-bridge/internal/bind"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/cni-bridge/internal/nicplan"
	"podvirt.dev/internal/nl"
)

// del takes back what ADD made. A configuration that is wrong by now, a namespace, prevResult, annotations or journal
// that are gone are no errors.
func (p Plugin) del(ctx context.Context, conf netconf.Config, args *skel.CmdArgs, _ error) error {
	if conf.Mode.IsLAN() {
		return p.delLAN(ctx, conf, args)
	}
	store := journal.New(conf.StateDir)
	_, err := store.Load(args.ContainerID, args.IfName)
	noVM := conf.Mode != netconf.ModePod || conf.Annotations != nil && !nicplan.IsVM(conf.Annotations)
	if errors.Is(err, journal.ErrNone) && noVM {
		return Sweep(ctx, conf)
	}
	err = locked(store, conf, args.ContainerID, args.IfName, func() error {
		found, err := undoEntry(ctx, store, conf, args.ContainerID, args.IfName)
		if err != nil || found {
			return err
		}
		// No journal, or one that this version cannot read and leaves alone: what is recognised as ours goes.
		return clean(args.Netns)
	})
	return errors.Join(err, Sweep(ctx, conf))
}

// undoEntry undoes an attachment by its journal, and says whether there is one that can be read. The lock must be held.
func undoEntry(ctx context.Context, store journal.Store, conf netconf.Config, container, ifname string) (found bool, err error) {
	entry, err := store.Load(container, ifname)
	if err != nil {
		return false, nil //nolint:nilerr // absent or of another version: not an entry that can be undone
	}
	return true, undo(ctx, store, conf, entry)
}

// undo takes back what the entry says, and then the entry.
func undo(ctx context.Context, store journal.Store, conf netconf.Config, entry journal.Entry) error {
	if entry.LAN != nil {
		return undoLAN(ctx, store, conf, entry)
	}
	if !vanished(entry) {
		err := inside(entry.Netns, func(h *nl.Handle) error { return bind.Undo(h, entry) })
		if err != nil && !errors.Is(err, errNoNamespace) {
			return err
		}
		if err := unguard(conf, entry); err != nil {
			return err
		}
	}
	return store.Remove(entry.ContainerID, entry.IfName)
}

// unguard gives ports whose networks are still there the MAC that they had.
func unguard(conf netconf.Config, entry journal.Entry) error {
	networks := journal.Networks(conf.StateDir)
	return guard(conf, entry, func(w *journal.Wire) string { return w.MACBefore }, func(w *journal.Wire) bool {
		_, err := networks.Load(entry.ContainerID, w.Interface)
		return err == nil
	})
}

func clean(netns string) error {
	if netns == "" {
		return nil
	}
	err := inside(netns, bind.Clean)
	if errors.Is(err, errNoNamespace) {
		return nil
	}
	return err
}

func (p Plugin) check(ctx context.Context, conf netconf.Config, args *skel.CmdArgs, err error) error {
	switch {
	case err != nil:
		return err
	case conf.Mode.IsLAN():
		return p.checkLAN(ctx, conf, args)
	case conf.Mode == netconf.ModeTuning:
		return nil
	case conf.Mode != netconf.ModePod:
		return unsupported(fault.Config, conf.Mode)
	case conf.Previous == nil:
		return fault.New(fault.Config, "mode pod must be chained")
	case !nicplan.IsVM(conf.Annotations):
		return nil
	}
	entry, err := journal.New(conf.StateDir).Load(args.ContainerID, args.IfName)
	if errors.Is(err, journal.ErrNone) || err == nil && !entry.Done {
		return fault.New(fault.Container, "no finished ADD of container %s, interface %s is known", args.ContainerID, args.IfName)
	}
	if err != nil {
		return err
	}
	differences, err := resultDifferences(conf, entry)
	if err != nil {
		return err
	}
	err = inside(args.Netns, func(h *nl.Handle) error {
		lines, err := bind.Differences(h, entry)
		differences = append(differences, lines...)
		return err
	})
	return changed(differences, err)
}

// changed is the error of CHECK.
func changed(differences []string, err error) error {
	switch {
	case err != nil:
		return err
	case len(differences) == 0:
		return nil
	case len(differences) == 1:
		return fault.New(fault.Tap, "changed since ADD: %s", differences[0])
	}
	failure := fault.New(fault.Tap, "changed since ADD in %d places", len(differences))
	failure.Details = strings.Join(differences, "\n")
	return failure
}

// resultDifferences says which taps the result of ADD, as the runtime kept it, lacks.
func resultDifferences(conf netconf.Config, entry journal.Entry) ([]string, error) {
	result, err := previous(conf)
	if err != nil {
		return nil, err
	}
	listed := make(map[string]bool)
	for _, itf := range result.Interfaces {
		listed[itf.Name] = true
	}
	var differences []string
	for _, nic := range entry.NICs {
		if !listed[nic.Tap] {
			differences = append(differences, "prevResult lacks "+nic.Tap)
		}
	}
	return differences, nil
}
