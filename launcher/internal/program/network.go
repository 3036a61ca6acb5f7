package program

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/loopback"
	"podvirt.dev/internal/nl"
	"podvirt.dev/launcher/internal/dhcp"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/nics"
)

// network is the VM's NICs and the servers that answer the guest on their service taps. The servers run from the first
// connect to the end of the launcher.
type network struct {
	mu      sync.Mutex
	found   []nics.NIC
	cables  map[string]domain.Cable // by NIC, of the guest that runs
	links   map[string]string       // by NIC, what its annotation said last: up or down
	serving map[string]bool         // by service tap
	proxied bool                    // the Pod's loopback is carried to the guest
	told    bool                    // that the kernel carries no packets
}

func newNetwork() *network { return &network{serving: map[string]bool{}, links: map[string]string{}} }

// list returns the NICs that were found.
func (n *network) list() []nics.NIC {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.found
}

// connect finds the NICs of the Pod and answers DHCP on them.
func (n *network) connect(ctx context.Context, vm api.Machine) ([]domain.NIC, error) {
	handle, err := nl.Open()
	if err != nil {
		return nil, fmt.Errorf("network of the Pod: %w", err)
	}
	defer handle.Close()
	found, err := nics.Find(handle, nics.Wanted{
		UID: os.Getuid(), Annotated: vm.Name != "", None: options(vm, "default").Binding == api.BindingNone,
		Host: nics.HostNamespace(os.DirFS("/")),
	})
	if err != nil {
		return nil, err
	}
	if err := checkTun(found, tunDevice); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.found = found
	n.mu.Unlock()
	n.connected(vm)
	if err := n.answer(ctx, vm, found); err != nil {
		return nil, err
	}
	n.carryLoopback(ctx, found)
	list := guestNICs(vm, found)
	n.tellSlow(ctx, list)
	return list, nil
}

// tellSlow says, once, that the kernel does not carry the packets of NICs that would like it (DP-003).
func (n *network) tellSlow(ctx context.Context, list []domain.NIC) {
	slow := slices.ContainsFunc(list, func(nic domain.NIC) bool {
		return !nic.Vhost && nic.Options.Vhost != "off" && (nic.Options.Model == "" || nic.Options.Model == "virtio")
	})
	if slow && !n.told {
		n.told = true
		klog.FromContext(ctx).Info("the container has no /dev/vhost-net: QEMU carries the packets, which is slower")
	}
}

// carryLoopback serves, once, what the Pod's own loopback asks of a masqueraded guest: kubectl port-forward, sidecars
// (NW-019).
func (n *network) carryLoopback(ctx context.Context, found []nics.NIC) {
	for _, nic := range found {
		if nic.Binding != string(api.BindingMasquerade) || n.proxied {
			continue
		}
		n.proxied = true
		proxy := loopback.Proxy{PortBase: nic.PortBase}
		for _, guest := range []netip.Prefix{nic.Guest4, nic.Guest6} {
			if guest.IsValid() {
				proxy.Guest = append(proxy.Guest, guest.Addr())
			}
		}
		logger := klog.FromContext(ctx).WithValues("nic", nic.Name)
		forever := klog.NewContext(context.WithoutCancel(ctx), logger)
		go func() {
			if err := proxy.Run(forever); err != nil {
				logger.Error(err, "loopback")
			}
		}()
	}
}

// options are those of podvirt.dev/nic.NAME; zero where there are none.
func options(vm api.Machine, name string) api.NIC {
	for _, o := range vm.NICs {
		if o.Name == name {
			return o
		}
	}
	return api.NIC{Name: name}
}

func guestNICs(vm api.Machine, found []nics.NIC) []domain.NIC {
	_, err := os.Stat("/dev/vhost-net")
	list := make([]domain.NIC, 0, len(found))
	for _, nic := range found {
		o := options(vm, nic.Name)
		mtu := o.MTU
		if mtu == 0 {
			mtu = nic.MTU
		}
		list = append(list, domain.NIC{
			Options: o, Tap: nic.Tap, MAC: nic.MAC.String(), MTU: mtu, MultiQueue: nic.MultiQueue, Vhost: err == nil,
		})
	}
	return list
}

// guestOf is what all NICs of the VM share. DNS is the Pod's own (network.md 2.1).
func guestOf(vm api.Machine, found []nics.NIC) (dhcp.Guest, error) {
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return dhcp.Guest{}, err
	}
	return dhcp.Guest{Hostname: vm.Hostname, Resolv: dhcp.ParseResolv(string(resolv)), DefaultRoute: routed(vm, found)}, nil
}

// answer starts a server for each service tap that has none yet.
func (n *network) answer(ctx context.Context, vm api.Machine, found []nics.NIC) error {
	guest, err := guestOf(vm, found)
	if err != nil {
		return err
	}
	if err := checkNameServers(vm, found, guest); err != nil {
		return err
	}
	for _, nic := range found {
		n.mu.Lock()
		known := n.serving[nic.Service]
		n.serving[nic.Service] = true
		n.mu.Unlock()
		if nic.Service == "" || known {
			continue
		}
		link, err := nl.OpenTap(nic.Service, 0)
		if err != nil {
			return &nics.Error{Reason: api.ReasonNodeLacks, Text: err.Error()}
		}
		server, err := dhcp.New(dhcp.Plan(nic, options(vm, nic.Name), guest), link)
		if err != nil {
			return errors.Join(err, link.Close())
		}
		logger := klog.FromContext(ctx).WithValues("nic", nic.Name)
		forever := klog.NewContext(context.WithoutCancel(ctx), logger)
		go func() {
			if err := server.Run(forever); err != nil {
				logger.Error(err, "DHCP")
			}
		}()
	}
	return nil
}

// routed is the NIC with the guest's default route: the one that says so, else default, else the first.
func routed(vm api.Machine, found []nics.NIC) string {
	route := ""
	for _, nic := range found {
		o := options(vm, nic.Name)
		switch {
		case o.DefaultRoute == "true":
			return nic.Name
		case o.DefaultRoute == "false":
		case nic.Name == "default" || route == "":
			route = nic.Name
		}
	}
	return route
}
