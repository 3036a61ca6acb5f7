package filter

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"podvirt.dev/cni-bridge/internal/world"
	"podvirt.dev/internal/nl"
)

// TestWithoutBPF runs what kernels without cls_bpf get, between two real taps.
func TestWithoutBPF(t *testing.T) {
	w := world.New(t, world.Options{})
	var guest, service *os.File
	world.Do(t, w.Pod, func(h *nl.Handle) {
		index := make(map[string]int)
		for _, name := range []string{"tap0", "svc0"} {
			must(t, nl.AddTap(name, nl.Tap{}))
			link, err := h.Link(name)
			must(t, err)
			index[name] = link.Index
			must(t, errors.Join(h.Set(link.Index, nl.Changes{Up: true}), h.AddClsact(link.Index)))
		}
		must(t, attachU32(h, Links{Tap: index["tap0"], Service: index["svc0"]}, Take{DHCP: true, RA: true}))
		var err1, err2 error
		guest, err1 = nl.OpenTap("tap0", 0)
		service, err2 = nl.OpenTap("svc0", 0)
		must(t, errors.Join(err1, err2))
	})
	defer guest.Close()
	defer service.Close()

	frame := func(etherType uint16, size int, set func(ip []byte)) []byte {
		f := make([]byte, 14+size)
		copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1})
		binary.BigEndian.PutUint16(f[12:], etherType)
		set(f[14:])
		return f
	}
	udp4 := func(port uint16) []byte {
		return frame(0x0800, 48, func(ip []byte) { ip[0], ip[9] = 0x45, 17; binary.BigEndian.PutUint16(ip[22:], port) })
	}
	udp6 := func(port uint16) []byte {
		return frame(0x86dd, 60, func(ip []byte) { ip[0], ip[6] = 0x60, 17; binary.BigEndian.PutUint16(ip[42:], port) })
	}
	icmp6 := func(kind byte) []byte {
		return frame(0x86dd, 56, func(ip []byte) { ip[0], ip[6], ip[40] = 0x60, 58, kind })
	}
	for deadline := time.Now().Add(10 * world.Timeout); time.Now().Before(deadline); { // what is sent before both are up is lost
		_, err := guest.Write(udp4(67))
		must(t, err)
		if comes(t, service, udp4(67), false) {
			break
		}
	}
	for name, row := range map[string]struct {
		frame []byte
		taken bool
	}{
		"DHCP": {udp4(67), true}, "other": {udp4(53), false}, "DHCPv6": {udp6(547), true}, "other v6": {udp6(53), false},
		"router solicitation": {icmp6(133), true}, "neighbour solicitation": {icmp6(135), false},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := guest.Write(row.frame); err != nil {
				t.Fatal(err)
			}
			if got := comes(t, service, row.frame, row.taken); got != row.taken {
				t.Errorf("frame on the service tap: %v; want %v", got, row.taken)
			}
		})
	}
	reply := udp4(68)
	if _, err := service.Write(reply); err != nil {
		t.Fatal(err)
	}
	if !comes(t, guest, reply, true) {
		t.Error("the launcher's frame did not reach the guest")
	}
}

func comes(t *testing.T, from *os.File, want []byte, expected bool) bool {
	t.Helper()
	patience := world.Timeout
	if !expected {
		patience = world.Silence
	}
	must(t, from.SetReadDeadline(time.Now().Add(patience)))
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		must(t, err)
		if string(buffer[:n]) == string(want) {
			return true
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
