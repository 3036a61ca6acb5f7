package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/lan"
	"podvirt.dev/cni-bridge/internal/netconf"
)

// ipamPatience is how long an IPAM plugin may take, one that asks a DHCP server for instance.
const ipamPatience = 30 * time.Second

// ipam calls the plugin that the configuration names, by the same protocol as a runtime calls us.
type ipam struct {
	conf   netconf.Config
	args   *skel.CmdArgs
	result *current.Result
}

func (i ipam) call(ctx context.Context, verb string) (types.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, ipamPatience)
	defer cancel()
	plugin, err := invoke.FindInPath(i.conf.LAN.IPAM, filepath.SplitList(i.args.Path))
	if err != nil {
		return nil, fault.Wrap(fault.Config, "ipam", err)
	}
	args := &invoke.Args{
		Command: verb, ContainerID: i.args.ContainerID, NetNS: i.args.Netns, PluginArgsStr: i.args.Args, IfName: i.args.IfName, Path: i.args.Path,
	}
	if verb == "ADD" {
		result, err := invoke.ExecPluginWithResult(ctx, plugin, i.conf.Raw, args, nil)
		return result, asIPAM(err)
	}
	return nil, asIPAM(invoke.ExecPluginWithoutResult(ctx, plugin, i.conf.Raw, args, nil))
}

// asIPAM keeps the code of the plugin's own error.
func asIPAM(err error) error {
	if err == nil {
		return nil
	}
	if said, ok := errors.AsType[*types.Error](err); ok {
		f := fault.New(fault.Code(said.Code), "ipam: %s", said.Msg)
		f.Details = said.Details
		return f
	}
	return fmt.Errorf("ipam: %w", err)
}

func (i *ipam) add(ctx context.Context) (lan.Addresses, error) {
	var got lan.Addresses
	raw, err := i.call(ctx, "ADD")
	if err != nil {
		return got, err
	}
	if i.result, err = current.NewResultFromResult(raw); err != nil {
		return got, fault.Wrap(fault.Decode, "ipam", err)
	}
	gateways := map[bool]netip.Addr{}
	for _, ip := range i.result.IPs {
		prefix, ok := prefixOf(ip.Address)
		if !ok {
			return got, fault.New(fault.Decode, "ipam: address %s", ip.Address.String())
		}
		got.Prefixes = append(got.Prefixes, prefix)
		if gateway, ok := netip.AddrFromSlice(ip.Gateway); ok {
			gateways[prefix.Addr().Is4()] = gateway.Unmap()
		}
	}
	for _, route := range i.result.Routes {
		destination, ok := prefixOf(route.Dst)
		if !ok {
			return got, fault.New(fault.Decode, "ipam: route to %s", route.Dst.String())
		}
		gateway, ok := netip.AddrFromSlice(route.GW)
		if gateway = gateway.Unmap(); !ok {
			gateway = gateways[destination.Addr().Is4()]
		}
		got.Routes = append(got.Routes, lan.Route{Destination: destination, Gateway: gateway})
	}
	return got, nil
}

// there says whether the plugin can be called at all.
func (i ipam) there() error {
	if i.conf.LAN.IPAM == "" {
		return nil
	}
	_, err := invoke.FindInPath(i.conf.LAN.IPAM, filepath.SplitList(i.args.Path))
	return fault.Wrap(fault.Config, "ipam", err)
}

// del gives addresses back. A plugin that was uninstalled meanwhile must not keep Pods from going away.
func (i ipam) del(ctx context.Context) error {
	if gone := i.there(); gone != nil || i.conf.LAN.IPAM == "" {
		return nil //nolint:nilerr // see above
	}
	_, err := i.call(ctx, "DEL")
	return err
}

func (i ipam) check(ctx context.Context) error {
	if i.conf.LAN.IPAM == "" {
		return nil
	}
	_, err := i.call(ctx, "CHECK")
	return err
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	address, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 128 && address.Unmap().Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(address.Unmap(), bits), ok && size > 0
}
