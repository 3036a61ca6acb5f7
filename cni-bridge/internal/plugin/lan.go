package plugin

import (
	"context"
	"errors"
	"os"
	"strconv"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/lan"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/internal/nl"
)

// place opens both sides of an attachment of a network mode. The Pod's side is nil where its namespace is gone, which is
// no error.
func place(conf netconf.Config, netns, ifname string) (p lan.Place, closeAll func(), err error) {
	var opened []func()
	closeAll = func() {
		for _, c := range opened {
			c()
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	p = lan.Place{IfName: ifname, Lock: func(name string) (func() error, error) { return lockNetworks(conf, name) }}
	if p.Node, err = nl.Open(); err != nil {
		return p, closeAll, err
	}
	opened = append(opened, p.Node.Close)
	err = inside(netns, func(h *nl.Handle) error {
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		opened = append(opened, func() { _ = f.Close() })
		p.Netns = int(f.Fd())
		p.Pod, err = nl.Open()
		if err == nil {
			opened = append(opened, p.Pod.Close)
		}
		return err
	})
	if errors.Is(err, errNoNamespace) {
		return p, closeAll, nil
	}
	return p, closeAll, err
}

// lockNetworks takes a lock that attachments of the node's networks share.
func lockNetworks(conf netconf.Config, name string) (func() error, error) {
	unlock, err := journal.Networks(conf.StateDir).LockName(name, conf.LockTimeout)
	if errors.Is(err, journal.ErrBusy) {
		return nil, fault.Wrap(fault.TryAgain, name, err)
	}
	return unlock, err
}

// claim saves an attachment of a network that holds a MAC, unless another one of the same bridge and VLAN holds it
// (NW-076): two of them would take each other's frames.
func claim(conf netconf.Config, entry journal.Entry) (err error) {
	unlock, err := lockNetworks(conf, "macs")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	store := journal.Networks(conf.StateDir)
	others, _ := store.All() // those of other versions hold what they hold
	mine := entry.LAN
	for _, other := range others {
		same := other.ContainerID == entry.ContainerID && other.IfName == entry.IfName
		if same || mine.Bridge == "" || other.LAN == nil || other.LAN.Bridge != mine.Bridge || other.LAN.VLAN != mine.VLAN ||
			other.LAN.Holds != mine.Holds || vanished(other) {
			continue
		}
		network := mine.Bridge
		if mine.VLAN != 0 {
			network += "/" + strconv.Itoa(mine.VLAN)
		}
		return fault.New(fault.MACConflict, "%s on %s is used by %s/%s (Pod UID %s)", mine.Holds, network, other.Namespace, other.Pod, other.PodUID)
	}
	return store.Save(entry)
}

// addLAN is ADD of a network mode.
func (p Plugin) addLAN(ctx context.Context, conf netconf.Config, args *skel.CmdArgs) error {
	store := journal.Networks(conf.StateDir)
	return locked(store, conf, args.ContainerID, args.IfName, func() error {
		old, err := store.Load(args.ContainerID, args.IfName)
		switch {
		case err == nil:
			if err := undo(ctx, store, conf, old); err != nil {
				return err
			}
		case !errors.Is(err, journal.ErrNone):
			return err
		}
		where, done, err := place(conf, args.Netns, args.IfName)
		if err != nil {
			return err
		}
		defer done()
		if where.Pod == nil {
			return fault.New(fault.Container, "%s: no such network namespace", args.Netns)
		}
		return p.attach(ctx, joining{store, conf, args, where})
	})
}

// joining is one ADD of a network mode.
type joining struct {
	store journal.Store
	conf  netconf.Config
	args  *skel.CmdArgs
	where lan.Place
}

// attach makes one attachment: all of it, or nothing.
func (p Plugin) attach(ctx context.Context, a joining) (err error) {
	store, conf, args, where := a.store, a.conf, a.args, a.where
	if _, err := where.Pod.Link(args.IfName); err == nil {
		return fault.New(fault.Tap, "the Pod has an interface %s already", args.IfName)
	}
	address := ipam{conf: conf, args: args}
	if err := address.there(); err != nil {
		return err
	}
	port := lan.PortName(args.ContainerID, args.IfName)
	steps, made, err := lan.Plan(where, conf, port, func() (lan.Addresses, error) { return address.add(ctx) })
	if err != nil {
		return err
	}
	made.Path, made.Args = args.Path, args.Args
	entry := journal.Entry{
		Network: conf.Name, ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns, LAN: made,
	}
	entry.Namespace, entry.Pod, entry.PodUID = podOf(args.Args)
	if entry.NetnsInode, _, err = identify(args.Netns); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if undoErr := undoLAN(ctx, store, conf, entry); undoErr != nil {
			err = fault.Wrap(fault.Undo, err.Error(), undoErr)
		}
	}()
	all := []lan.Step{{Name: "journal", Do: func() error { return store.Save(entry) }}}
	all = append(all, steps...)
	all = append(all, lan.Step{Name: "claim", Do: func() error {
		link, err := where.Pod.Link(args.IfName)
		if err == nil {
			made.Holds = link.MAC.String()
			err = claim(conf, entry)
		}
		return err
	}})
	all = append(all, lan.Step{Name: "journal done", Do: func() error {
		entry.Done = true
		return store.Save(entry)
	}})
	if err := lan.Run(where, made.Bridge, all, p.AfterStep); err != nil {
		return err
	}
	newLog("ADD", conf, args).warn(lan.Warnings(where.Node, conf.LAN)...)
	return p.lanResult(a, address.result, made)
}

// lanResult prints the interfaces, and what the IPAM plugin said with the Pod's one.
func (p Plugin) lanResult(a joining, got *current.Result, made *journal.LAN) error {
	args, where := a.args, a.where
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if got != nil {
		result.IPs, result.Routes, result.DNS = got.IPs, got.Routes, got.DNS
	}
	for _, name := range []string{made.Bridge, made.Port} {
		if name == "" {
			continue
		}
		link, err := where.Node.Link(name)
		if err != nil {
			return fault.Wrap(fault.Tap, name, err)
		}
		result.Interfaces = append(result.Interfaces, &current.Interface{Name: name, Mac: link.MAC.String()})
	}
	link, err := where.Pod.Link(args.IfName)
	if err != nil {
		return fault.Wrap(fault.Tap, args.IfName, err)
	}
	for _, ip := range result.IPs {
		ip.Interface = new(len(result.Interfaces))
	}
	result.Interfaces = append(result.Interfaces, &current.Interface{Name: args.IfName, Mac: link.MAC.String(), Mtu: link.MTU, Sandbox: args.Netns})
	return p.convert(a.conf, result)
}

// delLAN is DEL of a network mode.
func (p Plugin) delLAN(ctx context.Context, conf netconf.Config, args *skel.CmdArgs) error {
	store := journal.Networks(conf.StateDir)
	err := locked(store, conf, args.ContainerID, args.IfName, func() error {
		found, err := undoEntry(ctx, store, conf, args.ContainerID, args.IfName)
		if err != nil || found {
			return err
		}
		where, done, err := place(conf, args.Netns, args.IfName)
		if err != nil {
			return err
		}
		defer done()
		address := ipam{conf: conf, args: args}
		return errors.Join(lan.Clean(where, conf.LAN, lan.PortName(args.ContainerID, args.IfName)), address.del(ctx))
	})
	return errors.Join(err, Sweep(ctx, conf))
}

// undoLAN takes back what the entry says, and then the entry.
func undoLAN(ctx context.Context, store journal.Store, conf netconf.Config, entry journal.Entry) error {
	netns := entry.Netns
	if vanished(entry) {
		netns = ""
	}
	where, done, err := place(conf, netns, entry.IfName)
	if err != nil {
		return err
	}
	defer done()
	address := ipam{conf: netconf.Config{LAN: netconf.LAN{IPAM: entry.LAN.IPAM}, Raw: entry.LAN.Config}, args: &skel.CmdArgs{
		ContainerID: entry.ContainerID, IfName: entry.IfName, Netns: netns, Path: entry.LAN.Path, Args: entry.LAN.Args,
	}}
	if err := errors.Join(address.del(ctx), lan.Undo(where, entry)); err != nil {
		return err
	}
	return store.Remove(entry.ContainerID, entry.IfName)
}

func (p Plugin) checkLAN(ctx context.Context, conf netconf.Config, args *skel.CmdArgs) error {
	store := journal.Networks(conf.StateDir)
	entry, err := store.Load(args.ContainerID, args.IfName)
	if errors.Is(err, journal.ErrNone) || err == nil && !entry.Done {
		return fault.New(fault.Container, "no finished ADD of container %s, interface %s is known", args.ContainerID, args.IfName)
	}
	if err != nil {
		return err
	}
	where, done, err := place(conf, args.Netns, args.IfName)
	if err != nil {
		return err
	}
	defer done()
	if where.Pod == nil {
		return fault.New(fault.Container, "%s: no such network namespace", args.Netns)
	}
	differences, err := lan.Differences(where, entry)
	if err == nil {
		err = ipam{conf: conf, args: args}.check(ctx)
	}
	return changed(differences, err)
}

// statusLAN says whether an attachment would work now.
func (p Plugin) statusLAN(conf netconf.Config) error {
	h, err := nl.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := lan.Ready(h, conf); err != nil {
		return fault.Recode(fault.Unavailable, err)
	}
	return nil
}

// tune sets MAC, MTU and what is received of the interface in prevResult, which is printed unchanged but for its MAC.
func (p Plugin) tune(conf netconf.Config, args *skel.CmdArgs) error {
	if conf.Previous == nil {
		return fault.New(fault.Config, "mode tuning must be chained")
	}
	result, err := previous(conf)
	if err != nil {
		return err
	}
	l := conf.LAN
	err = inside(args.Netns, func(h *nl.Handle) error {
		link, err := h.Link(args.IfName)
		if err != nil {
			return err
		}
		return errors.Join(h.Set(link.Index, nl.Changes{MAC: l.MAC, MTU: l.MTU}),
			h.SetReceive(link.Index, nl.Receive{Promiscuous: l.Promiscuous, AllMulticast: l.AllMulticast}))
	})
	if err != nil {
		return fault.Wrap(fault.Tap, args.IfName, err)
	}
	for _, itf := range result.Interfaces {
		if itf.Name == args.IfName && itf.Sandbox != "" && l.MAC != nil {
			itf.Mac = l.MAC.String()
		}
	}
	return p.convert(conf, result)
}
