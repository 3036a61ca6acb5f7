package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"
)

// floodFrames is how many frames a hostile guest sends, of each kind.
const floodFrames = 20_000

// TestHostileGuest floods the server with noise and with requests of which a few bytes are wrong: it stays up, in the memory that
// it had, and serves the next client (NW-111).
func TestHostileGuest(t *testing.T) {
	n := newNetwork(t)
	pid := n.serveAs(t, "")
	n.waitForLinkLocal(t)
	program, told := script(t)
	n.run(t, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-s", program) // what it allocates once is allocated
	before := resident(t, pid)
	n.enter(t, n.guest)
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(socket) }()
	link, err := handle(t).Link("eth0")
	must(t, err)
	to := &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}
	random := rand.New(rand.NewPCG(1, 2))
	kinds := requests(t)
	for range floodFrames {
		for _, kind := range kinds {
			frame := bytes.Clone(kind)
			for range random.IntN(6) {
				frame[14+random.IntN(len(frame)-14)] = byte(random.Uint32())
			}
			if random.IntN(4) == 0 {
				frame = frame[:14+random.IntN(len(frame)-14)]
			}
			// ENOBUFS: the queue is full, which is a flood as well
			if err := unix.Sendto(socket, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
				t.Fatal(err)
			}
		}
	}
	must(t, os.Remove(told))
	n.run(t, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "20", "-s", program)
	wantTold(t, told, "event=bound", "ip='10.0.2.2'")
	if after := resident(t, pid); after > before+16<<10 {
		t.Errorf("the server has %d KiB; before the flood %d", after, before)
	}
}

// requests are frames of which the server answers some: DHCP in each state, DHCPv6, router solicitations, and noise to its ports.
func requests(t *testing.T) [][]byte {
	t.Helper()
	broadcast := bytes.Repeat([]byte{0xff}, 6)
	var frames [][]byte
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform} {
		message, err := dhcpv4.New(dhcpv4.WithHwAddr(guestMAC), dhcpv4.WithMessageType(kind))
		must(t, err)
		frames = append(frames, packet{
			sourceMAC: guestMAC, destinationMAC: broadcast, source: netip.IPv4Unspecified(), destination: netip.MustParseAddr("255.255.255.255"),
			protocol: protocolUDP, hopLimit: 64, sourcePort: portClient4, port: portServer4, payload: message.ToBytes(),
		}.frame())
	}
	solicit, err := dhcpv6.NewSolicit(guestMAC)
	must(t, err)
	own, all := netip.MustParseAddr("fe80::aa"), netip.MustParseAddr("ff02::1:2")
	for _, p := range []packet{
		{protocol: protocolUDP, sourcePort: 546, port: portServer6, payload: solicit.ToBytes(), hopLimit: 1},
		{protocol: protocolUDP, sourcePort: 546, port: portServer6, payload: make([]byte, 1300), hopLimit: 1},
		{protocol: protocolICMPv6, payload: []byte{icmpRouterSolicitation, 0, 0, 0, 0, 0, 0, 0}, hopLimit: hopLimitND},
	} {
		p.sourceMAC, p.destinationMAC, p.source, p.destination = guestMAC, []byte{0x33, 0x33, 0, 1, 0, 2}, own, all
		frames = append(frames, p.frame())
	}
	return frames
}

// resident is the memory of a process in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
			n, err := strconv.Atoi(fields[1])
			must(t, err)
			return n
		}
	}
	t.Fatalf("no VmRSS in\n%s", status)
	return 0
}
