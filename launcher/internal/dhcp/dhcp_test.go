package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"podvirt.dev/api"
	"podvirt.dev/internal/nicalias"
	"podvirt.dev/internal/nl"
	"podvirt.dev/launcher/internal/nics"
)

var (
	guestMAC   = net.HardwareAddr{0x02, 0xaa, 0, 0, 0, 1}
	gatewayMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
)

func masquerade() Config {
	return Config{
		GuestMAC: guestMAC, ServerMAC: gatewayMAC, MTU: 1450, DHCP: true, RA: true,
		V4: V4{Address: netip.MustParsePrefix("10.0.2.2/24"), Server: netip.MustParseAddr("10.0.2.1"),
			Router: netip.MustParseAddr("10.0.2.1")},
		V6:       V6{Address: netip.MustParsePrefix("fd10:0:2::2/120"), Server: netip.MustParseAddr("fe80::ff:fe00:0"), Router: true},
		Hostname: "db1",
		DNS:      []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")},
		Search:   []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"},
	}
}

func mutate(change func(*Config)) Config {
	c := masquerade()
	change(&c)
	return c
}

// ask4 sends a DHCPv4 message as the guest and returns the answer and its frame; nil where there is none.
func ask4(t *testing.T, c Config, modifiers ...dhcpv4.Modifier) (*dhcpv4.DHCPv4, packet) {
	t.Helper()
	message, err := dhcpv4.New(slices.Concat([]dhcpv4.Modifier{dhcpv4.WithHwAddr(guestMAC)}, modifiers)...)
	if err != nil {
		t.Fatal(err)
	}
	frame := packet{
		sourceMAC: guestMAC, destinationMAC: bytes.Repeat([]byte{0xff}, 6), source: netip.IPv4Unspecified(),
		destination: netip.MustParseAddr("255.255.255.255"), protocol: protocolUDP, hopLimit: 64,
		sourcePort: portClient4, port: portServer4, payload: message.ToBytes(),
	}.frame()
	answer, _ := c.Answer(frame)
	if answer == nil {
		return nil, packet{}
	}
	p, ok := parseFrame(answer)
	if !ok {
		t.Fatalf("answer is no frame: %x", answer)
	}
	reply, err := dhcpv4.FromBytes(p.payload)
	if err != nil {
		t.Fatal(err)
	}
	return reply, p
}

func as(kind dhcpv4.MessageType) dhcpv4.Modifier { return dhcpv4.WithMessageType(kind) }

func wants(codes ...dhcpv4.OptionCode) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptParameterRequestList(codes...))
}

// golden writes the options of an answer, one per line, sorted by number.
func golden(reply *dhcpv4.DHCPv4) string {
	var lines []string
	for code, value := range reply.Options {
		lines = append(lines, fmt.Sprintf("%03d %x", code, value))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestOptions4(t *testing.T) {
	everything := mutate(func(c *Config) {
		c.NTP = []netip.Addr{netip.MustParseAddr("10.0.0.5")}
		c.TFTP, c.Bootfile = "10.0.0.9", "pxelinux.0"
		c.Private = map[uint8][]byte{224: []byte("site"), 254: {1, 2}}
		c.V4.Routes = []Route{{Destination: netip.MustParsePrefix("169.254.1.1/32")}}
	})
	base := strings.Join([]string{
		"001 ffffff00", "003 0a000201", "006 0a60000a", "012 646231", "015 73686f702e7376632e636c75737465722e6c6f63616c",
		"026 05aa", "028 0a0002ff", "051 05250a80", "053 02", "054 0a000201", "058 02928540", "059 04806930"}, "\n")
	search := "119 0473686f700373766307636c7573746572056c6f63616c00" +
		"0373766307636c7573746572056c6f63616c00" + "07636c7573746572056c6f63616c00"
	routes := "20a9fe010100000000" + "000a000201"
	rows := []struct {
		name    string
		config  Config
		request []dhcpv4.Modifier
		want    string
	}{
		{"udhcpc: asks for nothing special", masquerade(),
			[]dhcpv4.Modifier{wants(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer)}, base},
		{"systemd-networkd: asks for the search list", masquerade(),
			[]dhcpv4.Modifier{wants(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionDNSDomainSearchList)},
			base + "\n" + search},
		{"Windows: asks for 249, NTP, a private option", everything,
			[]dhcpv4.Modifier{wants(dhcpv4.GenericOptionCode(249), dhcpv4.OptionNTPServers, dhcpv4.GenericOptionCode(254))},
			sortLines(base, "042 0a000005", "249 "+routes, "254 0102")},
		{"PXE ROM", everything, []dhcpv4.Modifier{wants(dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName)},
			sortLines(base, "066 31302e302e302e39", "067 7078656c696e75782e30")},
		{"no list: everything", everything, []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1400))},
			sortLines(base, search, "042 0a000005", "066 31302e302e302e39", "067 7078656c696e75782e30", "121 "+routes, "224 73697465",
				"249 "+routes, "254 0102")},
		{"second NIC without default route", mutate(func(c *Config) { c.V4.Router = netip.Addr{} }),
			[]dhcpv4.Modifier{wants(dhcpv4.OptionSubnetMask)}, strings.Replace(base, "003 0a000201\n", "", 1)},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			reply, _ := ask4(t, row.config, append(row.request, as(dhcpv4.MessageTypeDiscover))...)
			if reply == nil {
				t.Fatal("no answer")
			}
			if diff := cmp.Diff(row.want, golden(reply)); diff != "" {
				t.Errorf("options (-want,+got)\n%s", diff)
			}
		})
	}
	reply, _ := ask4(t, everything, as(dhcpv4.MessageTypeDiscover))
	if !reply.ServerIPAddr.Equal(net.IPv4(10, 0, 0, 9)) || reply.BootFileName != "pxelinux.0" {
		t.Errorf("siaddr %v, file %q; want those of the TFTP options", reply.ServerIPAddr, reply.BootFileName)
	}
}

func sortLines(text string, more ...string) string {
	lines := append(strings.Split(text, "\n"), more...)
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestStates4(t *testing.T) {
	ours := dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 2, 1)))
	foreign := dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 2, 99)))
	right := dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 2, 2)))
	wrong := dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 1, 7)))
	request := as(dhcpv4.MessageTypeRequest)
	rows := []struct {
		name      string
		modifiers []dhcpv4.Modifier
		want      dhcpv4.MessageType // none: no answer
		broadcast bool
	}{
		{"discover", []dhcpv4.Modifier{as(dhcpv4.MessageTypeDiscover)}, dhcpv4.MessageTypeOffer, false},
		{"discover, broadcast wanted", []dhcpv4.Modifier{as(dhcpv4.MessageTypeDiscover), dhcpv4.WithBroadcast(true)},
			dhcpv4.MessageTypeOffer, true},
		{"rapid commit", []dhcpv4.Modifier{as(dhcpv4.MessageTypeDiscover),
			dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionRapidCommit, nil))}, dhcpv4.MessageTypeAck, false},
		{"selecting us", []dhcpv4.Modifier{request, ours, right}, dhcpv4.MessageTypeAck, false},
		{"selecting another server", []dhcpv4.Modifier{request, foreign, right}, dhcpv4.MessageTypeNone, false},
		{"selecting another address", []dhcpv4.Modifier{request, ours, wrong}, dhcpv4.MessageTypeNak, true},
		{"init-reboot", []dhcpv4.Modifier{request, right}, dhcpv4.MessageTypeAck, false},
		{"init-reboot from another network", []dhcpv4.Modifier{request, wrong}, dhcpv4.MessageTypeNak, true},
		{"renewing", []dhcpv4.Modifier{request, dhcpv4.WithClientIP(net.IPv4(10, 0, 2, 2))}, dhcpv4.MessageTypeAck, false},
		{"rebinding a foreign address", []dhcpv4.Modifier{request, dhcpv4.WithClientIP(net.IPv4(10, 9, 9, 9))},
			dhcpv4.MessageTypeNak, true},
		{"inform", []dhcpv4.Modifier{as(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(net.IPv4(10, 0, 2, 2))},
			dhcpv4.MessageTypeAck, false},
		{"decline", []dhcpv4.Modifier{as(dhcpv4.MessageTypeDecline), right, ours}, dhcpv4.MessageTypeNone, false},
		{"release", []dhcpv4.Modifier{as(dhcpv4.MessageTypeRelease), ours}, dhcpv4.MessageTypeNone, false},
		{"foreign MAC", []dhcpv4.Modifier{as(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(gatewayMAC)}, dhcpv4.MessageTypeNone, false},
		{"relayed", []dhcpv4.Modifier{as(dhcpv4.MessageTypeDiscover), dhcpv4.WithRelay(net.IPv4(10, 0, 0, 1))},
			dhcpv4.MessageTypeNone, false},
		{"a server's message", []dhcpv4.Modifier{as(dhcpv4.MessageTypeOffer)}, dhcpv4.MessageTypeNone, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			reply, p := ask4(t, masquerade(), row.modifiers...)
			switch {
			case reply == nil && row.want == dhcpv4.MessageTypeNone:
				return
			case reply == nil || reply.MessageType() != row.want:
				t.Fatalf("answer %v, want %v", reply, row.want)
			}
			if isBroadcast := p.destination == netip.MustParseAddr("255.255.255.255"); isBroadcast != row.broadcast {
				t.Errorf("sent to %v at %v; want broadcast: %v", p.destination, p.destinationMAC, row.broadcast)
			}
			inform := row.name == "inform"
			if lease := reply.IPAddressLeaseTime(0); (lease == Lease) == (inform || row.want == dhcpv4.MessageTypeNak) {
				t.Errorf("lease %v", lease)
			}
		})
	}
}

// A list of search domains that no message can hold is left out; what makes the address work stays.
func TestTooLong4(t *testing.T) {
	c := mutate(func(c *Config) {
		c.Search = nil
		for i := range 40 {
			c.Search = append(c.Search, fmt.Sprintf("%s%d.example", strings.Repeat("x", 30), i))
		}
		c.V4.Routes = nil
	})
	reply, p := ask4(t, c, as(dhcpv4.MessageTypeDiscover))
	if reply.Options.Has(dhcpv4.OptionDNSDomainSearchList) || !reply.Options.Has(dhcpv4.OptionRouter) {
		t.Errorf("options:\n%s\nwant a router and no search list", golden(reply))
	}
	if len(p.payload) > minMessage4 {
		t.Errorf("message of %d bytes", len(p.payload))
	}
	c.MTU = 9000
	reply, _ = ask4(t, c, as(dhcpv4.MessageTypeDiscover), dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(4000)))
	if got := reply.DomainSearch(); got == nil || len(got.Labels) != 40 {
		t.Errorf("search list %v; want 40 domains in an option split by RFC 3396", got)
	}
}

func ask6(t *testing.T, c Config, message *dhcpv6.Message) *dhcpv6.Message {
	t.Helper()
	frame := packet{
		sourceMAC: guestMAC, destinationMAC: net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}, source: netip.MustParseAddr("fe80::2"),
		destination: netip.MustParseAddr("ff02::1:2"), protocol: protocolUDP, hopLimit: 1,
		sourcePort: portClient6, port: portServer6, payload: message.ToBytes(),
	}.frame()
	answer, _ := c.Answer(frame)
	if answer == nil {
		return nil
	}
	p, ok := parseFrame(answer)
	if !ok || p.destination != netip.MustParseAddr("fe80::2") || !bytes.Equal(p.destinationMAC, guestMAC) {
		t.Fatalf("answer sent to %v, %v", p.destination, p.destinationMAC)
	}
	reply, err := dhcpv6.MessageFromBytes(p.payload)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestStates6(t *testing.T) {
	client := dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC})
	server := dhcpv6.WithServerID(masquerade().duid())
	other := dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC})
	address := func(text string) dhcpv6.Modifier {
		return dhcpv6.WithOption(&dhcpv6.OptIANA{IaId: [4]byte{1}, Options: dhcpv6.IdentityOptions{
			Options: dhcpv6.Options{&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(text)}}}})
	}
	rows := []struct {
		name      string
		kind      dhcpv6.MessageType
		modifiers []dhcpv6.Modifier
		want      dhcpv6.MessageType // none: no answer
		given     bool
	}{
		{"solicit", dhcpv6.MessageTypeSolicit, []dhcpv6.Modifier{client, address("::")}, dhcpv6.MessageTypeAdvertise, true},
		{"solicit with rapid commit", dhcpv6.MessageTypeSolicit, []dhcpv6.Modifier{client, address("::"), dhcpv6.WithRapidCommit},
			dhcpv6.MessageTypeReply, true},
		{"solicit without identity", dhcpv6.MessageTypeSolicit, []dhcpv6.Modifier{address("::")}, dhcpv6.MessageTypeNone, false},
		{"request", dhcpv6.MessageTypeRequest, []dhcpv6.Modifier{client, server, address("fd10:0:2::2")}, dhcpv6.MessageTypeReply, true},
		{"request to another server", dhcpv6.MessageTypeRequest, []dhcpv6.Modifier{client, other, address("fd10:0:2::2")},
			dhcpv6.MessageTypeNone, false},
		{"renew", dhcpv6.MessageTypeRenew, []dhcpv6.Modifier{client, server, address("fd10:0:2::2")}, dhcpv6.MessageTypeReply, true},
		{"rebind", dhcpv6.MessageTypeRebind, []dhcpv6.Modifier{client, address("fd10:0:2::2")}, dhcpv6.MessageTypeReply, true},
		{"confirm", dhcpv6.MessageTypeConfirm, []dhcpv6.Modifier{client, address("fd10:0:2::2")}, dhcpv6.MessageTypeReply, false},
		{"confirm of nothing", dhcpv6.MessageTypeConfirm, []dhcpv6.Modifier{client}, dhcpv6.MessageTypeNone, false},
		{"information", dhcpv6.MessageTypeInformationRequest, nil, dhcpv6.MessageTypeReply, false},
		{"release", dhcpv6.MessageTypeRelease, []dhcpv6.Modifier{client, server, address("fd10:0:2::2")}, dhcpv6.MessageTypeReply, false},
		{"decline", dhcpv6.MessageTypeDecline, []dhcpv6.Modifier{client, server, address("fd10:0:2::2")}, dhcpv6.MessageTypeReply, false},
		{"a server's message", dhcpv6.MessageTypeAdvertise, []dhcpv6.Modifier{client, server}, dhcpv6.MessageTypeNone, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			message, err := dhcpv6.NewMessage(row.modifiers...)
			if err != nil {
				t.Fatal(err)
			}
			message.MessageType = row.kind
			reply := ask6(t, masquerade(), message)
			switch {
			case reply == nil && row.want == dhcpv6.MessageTypeNone:
				return
			case reply == nil || reply.MessageType != row.want || reply.TransactionID != message.TransactionID:
				t.Fatalf("answer %v, want %v", reply, row.want)
			}
			var given bool
			if association := reply.Options.OneIANA(); association != nil {
				got := association.Options.Addresses()
				given = len(got) > 0 && got[0].IPv6Addr.Equal(net.ParseIP("fd10:0:2::2")) && got[0].ValidLifetime == Lease
			}
			if given != row.given {
				t.Errorf("address given: %v, want %v:\n%s", given, row.given, reply.Summary())
			}
		})
	}
}

func TestDetails6(t *testing.T) {
	client := dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC})
	stale := &dhcpv6.OptIANA{IaId: [4]byte{1}, Options: dhcpv6.IdentityOptions{
		Options: dhcpv6.Options{&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("fd99::9")}}}}
	message, err := dhcpv6.NewMessage(client, dhcpv6.WithOption(stale), dhcpv6.WithIAID([4]byte{2}),
		dhcpv6.WithIAPD([4]byte{3}))
	if err != nil {
		t.Fatal(err)
	}
	message.AddOption(&dhcpv6.OptIANA{IaId: [4]byte{2}})
	message.MessageType = dhcpv6.MessageTypeRebind
	c := mutate(func(c *Config) { c.NTP = []netip.Addr{netip.MustParseAddr("fd00::123")} })
	reply := ask6(t, c, message)
	associations := reply.Options.IANA()
	if len(associations) < 2 {
		t.Fatalf("answer:\n%s", reply.Summary())
	}
	addresses := associations[0].Options.Addresses()
	if len(addresses) != 2 || addresses[1].ValidLifetime != 0 || !addresses[1].IPv6Addr.Equal(net.ParseIP("fd99::9")) {
		t.Errorf("a stale address is not taken away: %v", addresses)
	}
	if associations[1].Options.Status() == nil || reply.Options.IAPD()[0].Options.Status() == nil {
		t.Errorf("second association and prefix must be refused:\n%s", reply.Summary())
	}
	if dns := reply.Options.DNS(); len(dns) != 1 || !dns[0].Equal(net.ParseIP("fd00:96::a")) {
		t.Errorf("DNS = %v", dns)
	}
	if search := reply.Options.DomainSearchList(); search == nil || len(search.Labels) != 3 {
		t.Errorf("search = %v", search)
	}
	if reply.GetOneOption(dhcpv6.OptionNTPServer) == nil {
		t.Error("no NTP server")
	}
}

func TestRouterAdvertisement(t *testing.T) {
	solicit := packet{
		sourceMAC: guestMAC, destinationMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}, source: netip.MustParseAddr("fe80::2"),
		destination: netip.MustParseAddr("ff02::2"), protocol: protocolICMPv6, hopLimit: 255,
		payload: []byte{icmpRouterSolicitation, 0, 0, 0, 0, 0, 0, 0},
	}
	answer, _ := masquerade().Answer(solicit.frame())
	p, ok := parseFrame(answer)
	if !ok {
		t.Fatal("no answer")
	}
	p.payload[2], p.payload[3] = 0, 0                      // the checksum; the namespace test has the kernel verify it
	want := "86000000" + "40c02328" + "0000000000000000" + // M and O, router for 9000 s
		"0101020000000000" + "05010000000005aa" + // source address, MTU 1450
		"03047880ffffffffffffffff00000000" + "fd100000000200000000000000000000" + // on link, not autonomous
		"1903000000000708" + "fd00009600000000000000000000000a" + // RDNSS
		"1f09000000000708" + "0473686f700373766307636c7573746572056c6f63616c00" +
		"0373766307636c7573746572056c6f63616c00" + "07636c7573746572056c6f63616c00"
	got := fmt.Sprintf("%x", p.payload)
	if !strings.HasPrefix(got, want) || strings.Trim(got[len(want):], "0") != "" {
		t.Errorf("advertisement\n%s\nwant\n%s", got, want)
	}
	if p.hopLimit != 255 || p.destination != solicit.source {
		t.Errorf("hop limit %d, to %v", p.hopLimit, p.destination)
	}

	rows := []struct {
		name   string
		config Config
		change func(*packet)
		to     string // "": no answer
	}{
		{"no address yet: to all nodes", masquerade(), func(p *packet) { p.source = netip.IPv6Unspecified() }, "ff02::1"},
		{"came from elsewhere", masquerade(), func(p *packet) { p.hopLimit = 254 }, ""},
		{"wrong code", masquerade(), func(p *packet) { p.payload = []byte{133, 1, 0, 0, 0, 0, 0, 0} }, ""},
		{"an advertisement", masquerade(), func(p *packet) { p.payload = []byte{134, 0, 0, 0, 0, 0, 0, 0} }, ""},
		{"foreign MAC", masquerade(), func(p *packet) { p.sourceMAC = gatewayMAC }, ""},
		{"switched off", mutate(func(c *Config) { c.RA = false }), func(*packet) {}, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			asked := solicit
			row.change(&asked)
			answer, _ := row.config.Answer(asked.frame())
			p, ok := parseFrame(answer)
			if ok != (row.to != "") || ok && p.destination.String() != row.to {
				t.Errorf("answer %v to %v; want to %q", ok, p.destination, row.to)
			}
		})
	}
	plain := mutate(func(c *Config) { c.V6.Router = false; c.DHCP = false }).advertisement()
	if plain[5] != 0 || plain[6] != 0 || plain[7] != 0 {
		t.Errorf("without DHCP and default route: flags %x, lifetime %x", plain[5], plain[6:8])
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]Config{
		"no MAC":               mutate(func(c *Config) { c.GuestMAC = nil }),
		"IPv6 in IPv4's place": mutate(func(c *Config) { c.V4.Server = netip.MustParseAddr("::1") }),
		"server not local":     mutate(func(c *Config) { c.V6.Server = netip.MustParseAddr("fd10::1") }),
		"MTU":                  mutate(func(c *Config) { c.MTU = 67 }),
		"private option":       mutate(func(c *Config) { c.Private = map[uint8][]byte{200: nil} }),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(c, nil); !errors.Is(err, ErrConfig) {
				t.Errorf("err = %v, want %v", err, ErrConfig)
			}
		})
	}
	if err := masquerade().Validate(); err != nil {
		t.Error(err)
	}
}

func TestPlan(t *testing.T) {
	nic := nics.NIC{
		NIC: nicalias.NIC{Name: "default", MAC: guestMAC, Guest4: netip.MustParsePrefix("10.0.2.2/24"),
			Guest6: netip.MustParsePrefix("fd10:0:2::2/120")},
		MTU: 1450, GatewayMAC: gatewayMAC, Gateway4: netip.MustParseAddr("10.0.2.1"), LinkLocal: netip.MustParseAddr("fe80::ff:fe00:0"),
	}
	guest := Guest{Hostname: "db1", DefaultRoute: "default", Resolv: ParseResolv("nameserver 10.96.0.10\nnameserver fd00:96::a\n" +
		"nameserver 127.0.0.53\n#nameserver 1.1.1.1\nsearch shop.svc.cluster.local. svc.cluster.local cluster.local\noptions ndots:5\n")}
	compare := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if diff := cmp.Diff(masquerade(), Plan(nic, api.NIC{}, guest), compare); diff != "" {
		t.Errorf("without options (-want,+got)\n%s", diff)
	}
	inPod := nic
	inPod.Binding, inPod.Routes = string(api.BindingMasquerade), []nl.Route{
		{Destination: netip.MustParsePrefix("10.244.1.1/32")},
		{Destination: netip.MustParsePrefix("10.244.1.0/24"), Gateway: netip.MustParseAddr("10.244.1.1")},
	}
	if diff := cmp.Diff(masquerade(), Plan(inPod, api.NIC{}, guest), compare); diff != "" {
		t.Errorf("a masqueraded guest is told of the Pod's gateways (-want,+got)\n%s", diff)
	}
	options := api.NIC{DHCPDNS: []string{"none"}, DHCPSearch: []string{"none"}, DHCPNTP: []string{"10.0.0.5"}, DHCPTFTP: "t",
		DHCPBootfile: "b", DHCPPrivate: map[int]string{224: "text", 225: "0x0102"}, MTU: 1400, RA: "off"}
	want := mutate(func(c *Config) {
		c.DNS, c.Search, c.RA, c.MTU = nil, nil, false, 1400
		c.NTP, c.TFTP, c.Bootfile = []netip.Addr{netip.MustParseAddr("10.0.0.5")}, "t", "b"
		c.Private = map[uint8][]byte{224: []byte("text"), 225: {1, 2}}
		c.V4.Router, c.V6.Router = netip.Addr{}, false
	})
	guest.DefaultRoute = "net1"
	if diff := cmp.Diff(want, Plan(nic, options, guest), compare, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("with options (-want,+got)\n%s", diff)
	}
	off := Plan(nic, api.NIC{DHCP: "off", DHCPDNS: []string{"10.0.0.53"}, DHCPSearch: []string{"example"}}, guest)
	if off.DHCP || len(off.DNS) != 1 || len(off.Search) != 1 {
		t.Errorf("dhcp=off, own DNS: %+v", off)
	}
}

func TestBucket(t *testing.T) {
	now := time.Unix(0, 0)
	b := bucket{tokens: burst}
	taken := 0
	for range 1000 {
		if b.take(now) {
			taken++
		}
	}
	if taken != burst {
		t.Errorf("%d at once, want %d", taken, burst)
	}
	taken = 0
	for range 1000 {
		now = now.Add(10 * time.Millisecond)
		if b.take(now) {
			taken++
		}
	}
	if taken < 10*perSecond-1 || taken > 10*perSecond+1 {
		t.Errorf("%d in ten seconds, want %d", taken, 10*perSecond)
	}
}

// FuzzAnswer feeds frames as a hostile guest would send them.
func FuzzAnswer(f *testing.F) {
	seed := func(p packet) { p.sourceMAC, p.destinationMAC = guestMAC, gatewayMAC; f.Add(p.frame()) }
	discover, err := dhcpv4.NewDiscovery(guestMAC)
	if err != nil {
		f.Fatal(err)
	}
	solicit, err := dhcpv6.NewSolicit(guestMAC)
	if err != nil {
		f.Fatal(err)
	}
	local, any4 := netip.MustParseAddr("fe80::2"), netip.IPv4Unspecified()
	seed(packet{source: any4, destination: any4, protocol: protocolUDP, port: portServer4, payload: discover.ToBytes()})
	seed(packet{source: local, destination: local, protocol: protocolUDP, port: portServer6, payload: solicit.ToBytes()})
	seed(packet{source: local, destination: local, protocol: protocolICMPv6, hopLimit: 255, payload: []byte{133, 0, 0, 0, 0, 0, 0, 0}})
	c := masquerade()
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) >= 12 {
			copy(frame[6:12], guestMAC)
		}
		answer, _ := c.Answer(frame)
		if answer == nil {
			return
		}
		if p, ok := parseFrame(answer); !ok || len(answer) > 2048 || !bytes.Equal(p.sourceMAC, gatewayMAC) {
			t.Errorf("answer of %d bytes, valid: %v", len(answer), ok)
		}
	})
}
