package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"podvirt.dev/test/cluster/internal/layout"
)

// ip runs a batch of ip(8) commands in the network namespace of a process; 0 is the caller's own.
func ip(ctx context.Context, pid int, lines ...string) error {
	argv := []string{"ip", "-batch", "-"}
	if pid != 0 {
		argv = append([]string{"nsenter", "--target", strconv.Itoa(pid), "--net"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, stderr.String())
	}
	return nil
}

// plumbControl makes the cluster's switch, in the control machine, and the host's link to it. The host gets routes to Pods
// and, by way of the first node, to Services.
func plumbControl(ctx context.Context, l layout.Layout, pid int) error {
	network := l.Network()
	if err := dropHostLink(ctx, l); err != nil {
		return err
	}
	machines := l.Machines()
	err := ip(ctx, 0, fmt.Sprintf("link add %s type veth peer name uplink netns %d", network.HostLink, pid))
	if err != nil {
		return err
	}
	control := machines[0]
	inside := []string{
		"link set lo up", "link add br0 type bridge", "link set uplink master br0 up",
		"addr add " + control.Address4 + "/24 dev br0", "addr add " + control.Address6 + "/64 dev br0 nodad", "link set br0 up",
		"route add default via " + network.HostAddress4, "route add ::/0 via " + network.HostAddress6,
	}
	host := []string{
		"addr add " + network.HostAddress4 + "/24 dev " + network.HostLink,
		"addr add " + network.HostAddress6 + "/64 dev " + network.HostLink + " nodad",
		"link set " + network.HostLink + " up",
	}
	routes := podRoutes(machines, "")
	routes = append(routes, "route add "+network.ServiceNet4+" via "+machines[1].Address4, "route add "+network.ServiceNet6+" via "+machines[1].Address6)
	if err := ip(ctx, pid, append(inside, routes...)...); err != nil {
		return err
	}
	return ip(ctx, 0, append(host, routes...)...)
}

// plumbNode connects a node to the switch.
func plumbNode(ctx context.Context, l layout.Layout, node layout.Machine, pid, controlPID int) error {
	err := ip(ctx, 0, fmt.Sprintf("link add %s netns %d type veth peer name eth0 netns %d", node.Name, controlPID, pid))
	if err != nil {
		return err
	}
	if err := ip(ctx, controlPID, "link set "+node.Name+" master br0 up"); err != nil {
		return err
	}
	network := l.Network()
	inside := []string{
		"link set lo up", "addr add " + node.Address4 + "/24 dev eth0", "addr add " + node.Address6 + "/64 dev eth0 nodad", "link set eth0 up",
		"route add default via " + network.HostAddress4, "route add ::/0 via " + network.HostAddress6,
	}
	return ip(ctx, pid, append(inside, podRoutes(l.Machines(), node.Name)...)...)
}

// podRoutes leads to the Pods of every node but one.
func podRoutes(machines []layout.Machine, but string) []string {
	var routes []string
	for _, m := range machines {
		if m.PodNet4 != "" && m.Name != but {
			routes = append(routes, "route add "+m.PodNet4+" via "+m.Address4, "route add "+m.PodNet6+" via "+m.Address6)
		}
	}
	return routes
}

// dropHostLink removes the host's end; it goes by itself with the control machine, some milliseconds later.
func dropHostLink(ctx context.Context, l layout.Layout) error {
	link := l.Network().HostLink
	if _, err := net.InterfaceByName(link); err != nil {
		return nil //nolint:nilerr // it is gone
	}
	err := ip(ctx, 0, "link del "+link)
	if _, still := net.InterfaceByName(link); still != nil {
		return nil //nolint:nilerr // it went meanwhile
	}
	return errors.Join(err)
}
