package plugin

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

// large is what no frame on a link of 1500 bytes has: it was left whole for somebody else to cut.
const large = 32 << 10

// TestLargeFramesStayWhole: what the guest or the other side leaves to be cut passes our filters and our NAT in one piece, in
// both directions (NW-037).
func TestLargeFramesStayWhole(t *testing.T) {
	onHostAlone(t)
	for _, binding := range []string{"masquerade", "wire"} {
		for _, family := range []struct{ name, outside, pod string }{
			{"IPv4", world.Outside4, world.Pod4}, {"IPv6", world.Outside6, world.Pod6},
		} {
			t.Run(binding+" "+family.name, func(t *testing.T) {
				a := newAttachment(t, world.Options{Only: family.name[3:]}, vmPod("binding="+binding))
				must(t, a.add(t))
				a.Offloads = true
				a.Boot(t)
				outside := largestOn(t, a.Outside, "out0")
				world.Listen(t, a.Guest, ":80")
				world.Listen(t, a.Outside, join(family.outside, 80))
				// Again and again: a window opens step by step, and who looks on may be too slow.
				whole := func(what string, send func()) {
					a.FromGuest.Store(0)
					a.ToGuest.Store(0)
					outside.Store(0)
					for deadline := time.Now().Add(time.Minute); ; {
						send()
						from, to, out := a.FromGuest.Load(), a.ToGuest.Load(), outside.Load()
						if from > large && to > large && out > large {
							return
						}
						if time.Now().After(deadline) {
							t.Fatalf("%s: largest frames: %d from the guest, %d to it, %d on the other side of the Pod; want more than %d",
								what, from, to, out, large)
						}
					}
				}
				whole("TCP", func() {
					echoMany(t, a.Outside, join(family.pod, 80))
					echoMany(t, a.Guest, join(family.outside, 80))
				})
				whole("UDP", func() {
					burst(t, a.Guest, a.Outside, join(family.outside, 53), join(family.outside, 53))
					burst(t, a.Outside, a.Guest, ":53", join(family.pod, 53))
				})
			})
		}
	}
}

// burst sends datagrams in one piece, of which the kernel makes many (udp(7), UDP_SEGMENT).
func burst(t *testing.T, from, server ns.NetNS, listen, to string) {
	t.Helper()
	const segment, count = 1200, 30
	var listener net.PacketConn
	must(t, server.Do(func(ns.NetNS) (err error) {
		listener, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", listen)
		return err
	}))
	defer listener.Close()
	conn, err := world.Dial(from, "udp", to, func(d *net.Dialer) {
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, segment)
			}), err)
		}
	})
	must(t, err)
	defer conn.Close()
	_, err = conn.Write(make([]byte, segment*count))
	must(t, err)
	buffer := make([]byte, 1<<16)
	for n := range count {
		must(t, listener.SetReadDeadline(time.Now().Add(arrival)))
		if size, _, err := listener.ReadFrom(buffer); err != nil || size != segment {
			t.Fatalf("datagram %d to %s has %d bytes, %v; want %d", n, to, size, err, segment)
		}
	}
}

// largestOn watches what an interface receives.
func largestOn(t *testing.T, netns ns.NetNS, name string) *atomic.Int64 {
	t.Helper()
	var seen *packets
	must(t, netns.Do(func(ns.NetNS) (err error) {
		seen, err = sniff(name)
		return err
	}))
	var largest atomic.Int64
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1<<17)
		patience := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
		if unix.SetsockoptTimeval(seen.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience) != nil {
			return
		}
		for {
			n, _, err := unix.Recvfrom(seen.fd, buffer, unix.MSG_TRUNC)
			if err == nil {
				largest.Store(max(largest.Load(), int64(n)))
			}
			select {
			case <-stopped:
				return
			default:
			}
		}
	}()
	t.Cleanup(func() {
		close(stopped)
		<-done
		seen.Close()
	})
	return &largest
}

// TestWrongChecksums: a frame whose checksum is wrong is not made right on its way, and one that has none yet gets it where
// it must have one (NW-037).
func TestWrongChecksums(t *testing.T) {
	onHostAlone(t)
	for _, binding := range []string{"masquerade", "wire"} {
		t.Run(binding, func(t *testing.T) {
			a := newAttachment(t, world.Options{Only: "4"}, vmPod("binding="+binding))
			must(t, a.add(t))
			source, gateway, own := "10.0.2.2", net.HardwareAddr{2, 0, 0, 0, 0, 0}, guestMAC
			if binding == "wire" {
				source, gateway, own = world.Pod4, macOf(t, a.Outside, "out0"), macOf(t, a.Pod, "eth0")
			}
			var tap *os.File
			world.Do(t, a.Pod, func(*nlHandle) {
				var err error
				tap, err = nl.OpenTap("tap0", unix.IFF_MULTI_QUEUE|unix.IFF_VNET_HDR)
				must(t, err)
			})
			defer tap.Close()
			var server net.PacketConn
			must(t, a.Outside.Do(func(ns.NetNS) (err error) {
				server, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", join(world.Outside4, 4711))
				return err
			}))
			defer server.Close()
			datagram := func(word string) []byte {
				ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(source), DstIP: net.ParseIP(world.Outside4)}
				udp := &layers.UDP{SrcPort: 4712, DstPort: 4711}
				must(t, udp.SetNetworkLayerForChecksum(ip))
				return serialize(t, &layers.Ethernet{SrcMAC: own, DstMAC: gateway, EthernetType: layers.EthernetTypeIPv4}, ip, udp,
					gopacket.Payload(word))
			}
			send := func(header, frame []byte) {
				_, err := tap.Write(append(append([]byte{}, header...), frame...))
				must(t, err)
			}
			heard := func(patience time.Duration) string {
				must(t, server.SetReadDeadline(time.Now().Add(patience)))
				buffer := make([]byte, 64)
				n, _, err := server.ReadFrom(buffer)
				if err != nil {
					return ""
				}
				return string(buffer[:n])
			}
			complete := make([]byte, 10)                                            // struct virtio_net_hdr: nothing is left to do
			for deadline := time.Now().Add(arrival); time.Now().Before(deadline); { // the first frames are lost
				send(complete, datagram("warm"))
				if heard(quiet/5) == "warm" {
					break
				}
			}
			wrong := datagram("wrong!")
			wrong[14+20+8] ^= 0xff // its first letter
			partial, todo := datagram("partly"), make([]byte, 10)
			todo[0] = 1                                                          // VIRTIO_NET_HDR_F_NEEDS_CSUM
			binary.NativeEndian.PutUint16(todo[6:], 14+20)                       // from the UDP header on
			binary.NativeEndian.PutUint16(todo[8:], 6)                           // its checksum
			binary.BigEndian.PutUint16(partial[14+20+6:], pseudoHeader(partial)) // what hardware begins with
			send(complete, wrong)
			send(todo, partial)
			send(complete, datagram("last"))
			var got []string
			for len(got) == 0 || got[len(got)-1] != "last" {
				word := heard(arrival)
				if word == "" {
					break
				}
				if word != "warm" {
					got = append(got, word)
				}
			}
			if len(got) != 2 || got[0] != "partly" || got[1] != "last" {
				t.Errorf("the server got %q; want partly and last alone", got)
			}
		})
	}
}

// pseudoHeader is the sum that stands in a UDP header's checksum before hardware completes it (RFC 768).
func pseudoHeader(frame []byte) uint16 {
	length := frame[14+20+4 : 14+20+6]
	data := append(append([]byte{}, frame[14+12:14+20]...), 0, unix.IPPROTO_UDP, length[0], length[1])
	return ^checksum(data)
}
