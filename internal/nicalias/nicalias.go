// Package nicalias is the channel from the CNI plugin to the launcher (network.md 2.8): a text in the ifalias of each
// guest tap. It lives exactly as long as the tap and needs no file or socket that both would have to share. Addresses
// of the gateway, routes and MTU are not repeated in it, both sides read those by netlink.
package nicalias

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// MaxLength is the most an ifalias holds (IFALIASZ - 1 in linux/if.h).
const MaxLength = 255

// version begins every alias; the number rises when a reader of the former one would go wrong.
const (
	family  = "podvirt/"
	version = 1
)

// serviceWord follows the version in the alias of a service tap.
const serviceWord = "service"

var (
	// ErrNotOurs says that the alias is not podvirt's: the interface belongs to somebody else.
	ErrNotOurs = errors.New("not an alias of podvirt")
	// ErrNewer says that a newer CNI plugin wrote the alias.
	ErrNewer = errors.New("alias of a newer version")
	// ErrService says that the interface is a service tap.
	ErrService = errors.New("alias of a service tap")
)

// NIC is what the launcher has to know about one guest NIC and cannot read from the kernel.
type NIC struct {
	Name        string           // of the annotation podvirt.dev/nic.NAME
	Interface   string           // of the Pod: eth0, net1
	Binding     string           // masquerade, wire, bridge
	MAC         net.HardwareAddr // of the guest
	Guest4      netip.Prefix     // the guest's address with the length of its prefix; zero: no IPv4
	Guest6      netip.Prefix     // zero: no IPv6
	PodGateway4 netip.Addr       // with bridge: the Pod's default gateway, which stands on no interface any more; invalid: none
	PodGateway6 netip.Addr       // invalid: none
	PodOnLink   bool             // with bridge: the guest's IPv4 neighbours are reached without a gateway
	MultiQueue  bool             // whether the tap must be opened with IFF_MULTI_QUEUE
	PortBase    uint16           // first of the launcher's four ports
}

// BridgeName is the name of the bridge of the NIC with this index, where its binding is bridge.
func BridgeName(index int) string { return "vmbr" + strconv.Itoa(index) }

// TapName is the name of the guest tap of the NIC with this index.
func TapName(index int) string { return "tap" + strconv.Itoa(index) }

// ServiceName is the name of the service tap of the NIC with this index.
func ServiceName(index int) string { return "svc" + strconv.Itoa(index) }

// Service is the alias of a service tap.
func Service() string { return fmt.Sprintf("%s%d %s", family, version, serviceWord) }

// Encode returns the alias of a guest tap. It fails where a word holds a blank or the text would not fit.
func (n NIC) Encode() (string, error) {
	queues := "1"
	if n.MultiQueue {
		queues = "mq"
	}
	words := []string{
		family + strconv.Itoa(version), "nic=" + n.Name, "if=" + n.Interface, "b=" + n.Binding, "mac=" + n.MAC.String(),
	}
	if n.Guest4.IsValid() {
		words = append(words, "g4="+n.Guest4.String())
	}
	if n.Guest6.IsValid() {
		words = append(words, "g6="+n.Guest6.String())
	}
	if n.PodGateway4.IsValid() {
		words = append(words, "w4="+n.PodGateway4.String())
	}
	if n.PodGateway6.IsValid() {
		words = append(words, "w6="+n.PodGateway6.String())
	}
	if n.PodOnLink {
		words = append(words, "l=1")
	}
	words = append(words, "q="+queues, "p="+strconv.Itoa(int(n.PortBase)))
	text := strings.Join(words, " ")
	switch {
	case len(strings.Fields(text)) != len(words):
		return "", fmt.Errorf("alias %q: a name is empty or holds a blank", text)
	case len(text) > MaxLength:
		return "", fmt.Errorf("alias %q has %d bytes; at most %d", text, len(text), MaxLength)
	}
	return text, nil
}

// Decode reads the alias of a guest tap. Words of its own version that it does not know are passed over, so that a
// plugin may add some. The error wraps [ErrNotOurs], [ErrNewer] or [ErrService] where one of these is the case.
func Decode(alias string) (NIC, error) {
	words := strings.Fields(alias)
	if len(words) == 0 || !strings.HasPrefix(words[0], family) {
		return NIC{}, ErrNotOurs
	}
	number, err := strconv.Atoi(strings.TrimPrefix(words[0], family))
	switch {
	case err != nil:
		return NIC{}, fmt.Errorf("%w: %q", ErrNotOurs, words[0])
	case number != version:
		return NIC{}, fmt.Errorf("%w: %s%d; this program knows %s%d", ErrNewer, family, number, family, version)
	case len(words) > 1 && words[1] == serviceWord:
		return NIC{}, ErrService
	}
	var nic NIC
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		if err := nic.set(key, value); err != nil {
			return NIC{}, fmt.Errorf("alias: %s: %w", word, err)
		}
	}
	if nic.Name == "" || nic.Interface == "" || nic.Binding == "" || nic.MAC == nil || nic.PortBase == 0 {
		return NIC{}, fmt.Errorf("alias %q lacks nic, if, b, mac or p", alias)
	}
	return nic, nil
}

func (n *NIC) set(key, value string) error {
	var err error
	switch key {
	case "nic":
		n.Name = value
	case "if":
		n.Interface = value
	case "b":
		n.Binding = value
	case "mac":
		n.MAC, err = net.ParseMAC(value)
	case "g4":
		n.Guest4, err = netip.ParsePrefix(value)
	case "g6":
		n.Guest6, err = netip.ParsePrefix(value)
	case "w4":
		n.PodGateway4, err = netip.ParseAddr(value)
	case "w6":
		n.PodGateway6, err = netip.ParseAddr(value)
	case "l":
		n.PodOnLink = value == "1"
	case "q":
		n.MultiQueue = value == "mq"
	case "p":
		var port uint64
		port, err = strconv.ParseUint(value, 10, 16)
		n.PortBase = uint16(port)
	}
	return err
}
