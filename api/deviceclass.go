package api

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ClassKind is what a device class is of: the first part of its key in podvirt-config.
type ClassKind string

// Kinds of device classes (devices.md 2.2).
const (
	ClassDevice ClassKind = "device"
	ClassVGPU   ClassKind = "vgpu"
	ClassUSB    ClassKind = "usb"
)

// Words of device classes.
const (
	BindNone         = "none"
	BindVFIO         = "vfio-pci"
	WhenStart        = "start"
	WhenAllocate     = "allocate"
	GroupStrict      = "strict"
	GroupCompanions  = "companions"
	PlacePack        = "pack"
	PlaceSpread      = "spread"
	ManageCreate     = "create"
	ManageFound      = "found"
	NoResetAllow     = "allow"
	NoResetRefuse    = "refuse"
	defaultVGPUOrder = 500
)

// DeviceClass is one class of host devices that VMs may ask for, by a key of podvirt-config (devices.md 2.2).
type DeviceClass struct {
	Key      string // device.t4
	Kind     ClassKind
	Resource string

	Match     []DeviceMatch // any of them; for USB all together are one unit
	Addresses []string      // PCI addresses, * stands for any characters
	PFs       []PFRange
	Drivers   []string
	Link      string
	Bind      string
	When      string
	Group     string
	VFs       int // None: leave as it is
	RDMA      bool
	Path      string // glob of character devices
	NoReset   string

	Type   string // of a vGPU: id or name, "_" stands for a blank
	Order  int
	Manage string
	Params string

	PerDevice bool
	Place     string
	Nodes     []NodeMatch
	External  bool
}

// LeaveVFs says that the number of virtual functions stays as it is.
const LeaveVFs = -1

// DeviceMatch selects devices. A zero part selects any.
type DeviceMatch struct {
	Vendor, Device       uint16
	SubVendor, SubDevice uint16
	Sub                  bool   // SubVendor and SubDevice count
	Class                uint16 // base class and subclass; Vendor and Device do not count then
	ByClass              bool
	Serial               string // USB
}

// PFRange is a physical function, by address or by the name of its interface, and which of its virtual ones.
type PFRange struct {
	Name     string
	From, To int // inclusive; LeaveVFs as To: all
}

// NodeMatch is one term of a label selector.
type NodeMatch struct {
	Key, Value string
	Exists     bool // any value
}

// Matches says whether a Node with these labels is meant: every term holds. No term means every node.
func (c DeviceClass) Matches(labels map[string]string) bool {
	for _, term := range c.Nodes {
		if value, has := labels[term.Key]; !has || !term.Exists && value != term.Value {
			return false
		}
	}
	return true
}

// EnvSuffix returns how a resource is written at the end of a variable: upper case, every other character than letters
// and digits as "_" (devices.md 2.5).
func EnvSuffix(resource string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, strings.ToUpper(resource))
}

// MaxResourceName bounds the name part of a resource (k8s.io/apimachinery/pkg/util/validation, qualified names).
const MaxResourceName = 63

// ParseDeviceClasses reads every key device.NAME, vgpu.NAME and usb.NAME of podvirt-config, sorted by key. A class with
// mistakes is left out and the others stand; all mistakes are returned (DP-091).
func ParseDeviceClasses(data map[string]string) ([]DeviceClass, Errors) {
	var classes []DeviceClass
	var errs Errors
	for _, key := range slices.Sorted(maps.Keys(data)) {
		kind, name, ok := strings.Cut(key, ".")
		options, known := classOptions()[ClassKind(kind)]
		if !ok || !known {
			continue
		}
		p := classParser{key: key, options: options}
		class := p.parse(ClassKind(kind), name, data[key])
		if len(p.errs) == 0 {
			classes = append(classes, class)
		}
		errs = append(errs, p.errs...)
	}
	classes, conflicts := withoutEnvConflicts(classes)
	return classes, append(errs, conflicts...).sorted()
}

// withoutEnvConflicts drops classes whose resource would share the variable of another resource.
func withoutEnvConflicts(classes []DeviceClass) ([]DeviceClass, Errors) {
	var kept []DeviceClass
	var errs Errors
	names := map[string]string{}
	for _, c := range classes {
		suffix := EnvSuffix(c.Resource)
		if other, taken := names[suffix]; taken && other != c.Resource {
			errs = append(errs, Error{Key: c.Key, Text: fmt.Sprintf("data.%s: resource %s and %s share the variable %s%s", c.Key, other, c.Resource,
				EnvPCI, suffix)})
			continue
		}
		names[suffix] = c.Resource
		kept = append(kept, c)
	}
	return kept, errs
}

// classParser reads one class.
type classParser struct {
	key     string
	options map[string]func(*DeviceClass, string) string
	errs    Errors
}

func (p *classParser) fail(format string, args ...any) {
	p.errs = append(p.errs, Error{Key: p.key, Text: "data." + p.key + ": " + fmt.Sprintf(format, args...)})
}

func (p *classParser) parse(kind ClassKind, name, text string) DeviceClass {
	c := DeviceClass{
		Key: p.key, Kind: kind, VFs: LeaveVFs, Bind: BindVFIO, Group: GroupStrict, NoReset: NoResetRefuse,
		Order: defaultVGPUOrder, Manage: ManageCreate,
	}
	if !compiled(`[a-z0-9-]{1,40}`).MatchString(name) {
		p.fail("name %s: want 1 to 40 of a to z, 0 to 9 and -", quote(name))
	}
	items, ok := splitItems(text)
	if !ok {
		p.fail("%s", EmptyItem)
		return c
	}
	seen := map[string]bool{}
	for _, it := range items {
		set, known := p.options[it.name]
		switch {
		case !known:
			p.fail("unknown option %s%s", quote(it.name), nearestSuffix(it.name, slices.Sorted(maps.Keys(p.options))))
		case seen[it.name]:
			p.fail("%s: %s", it.name, ListedTwice)
		default:
			if wrong := set(&c, unquote(it.value)); wrong != "" {
				p.fail("%s=%s: %s", it.name, unquote(it.value), wrong)
			}
		}
		seen[it.name] = true
	}
	p.complete(&c, seen)
	return c
}

// complete applies the rules between options, and defaults that depend on others.
func (p *classParser) complete(c *DeviceClass, seen map[string]bool) {
	if !seen["resource"] {
		p.fail("resource is missing: want resource=domain/name")
	}
	for _, rule := range []struct {
		broken bool
		text   string
	}{
		{c.Kind == ClassVGPU && !seen["type"], "type is missing: want type=ID or type=NAME"},
		{c.Kind == ClassUSB && !seen["match"], "match is missing: want match=vendor:product"},
		{c.Kind == ClassDevice && !c.selectsPCI(seen) && c.Path == "", "one of match, address, pf and path must be given"},
		{c.Kind == ClassDevice && c.selectsPCI(seen) && c.Path != "", "path=" + c.Path + ": goes with neither match nor address nor pf"},
		{c.VFs != LeaveVFs && !seen["pf"], fmt.Sprintf("vfs=%d: needs pf=", c.VFs)},
	} {
		if rule.broken {
			p.fail("%s", rule.text)
		}
	}
	if c.When == "" {
		c.When = WhenStart
		if seen["driver"] {
			c.When = WhenAllocate
		}
	}
	c.Place = c.placement()
}

func (c *DeviceClass) selectsPCI(seen map[string]bool) bool {
	return seen["match"] || seen["address"] || seen["pf"]
}

// placement is what is said, else what is usual for the kind.
func (c *DeviceClass) placement() string {
	switch {
	case c.Place != "":
		return c.Place
	case c.Kind == ClassVGPU:
		return PlacePack
	case len(c.PFs) > 0:
		return PlaceSpread
	}
	return ""
}

// classOptions are the options of each kind; each sets its field and returns what is wrong with the value, or "".
func classOptions() map[ClassKind]map[string]func(*DeviceClass, string) string {
	type options = map[string]func(*DeviceClass, string) string
	words := func(field func(*DeviceClass) *string, allowed ...string) func(*DeviceClass, string) string {
		return func(c *DeviceClass, v string) string {
			*field(c) = v
			if slices.Contains(allowed, v) {
				return ""
			}
			return "not one of " + strings.Join(allowed, ", ") + nearestSuffix(v, allowed)
		}
	}
	truth := func(field func(*DeviceClass) *bool, yes, no string) func(*DeviceClass, string) string {
		return func(c *DeviceClass, v string) string {
			*field(c) = v == yes
			if v == yes || v == no {
				return ""
			}
			return "not one of " + yes + ", " + no
		}
	}
	number := func(field func(*DeviceClass) *int, most int) func(*DeviceClass, string) string {
		return func(c *DeviceClass, v string) string {
			n, err := strconv.Atoi(v)
			if *field(c) = n; err != nil || n < 0 || n > most {
				return fmt.Sprintf("not a whole number from 0 to %d", most)
			}
			return ""
		}
	}
	common := options{
		"resource":   classResource,
		"per-device": truth(func(c *DeviceClass) *bool { return &c.PerDevice }, "true", "false"),
		"place":      words(func(c *DeviceClass) *string { return &c.Place }, PlacePack, PlaceSpread),
		"nodes":      classNodes,
		"external":   truth(func(c *DeviceClass) *bool { return &c.External }, "true", "false"),
	}
	device := options{
		"match":    classPCIMatch,
		"address":  classAddress,
		"pf":       classPF,
		"driver":   func(c *DeviceClass, v string) string { c.Drivers = strings.Split(v, "+"); return classWords(c.Drivers) },
		"link":     words(func(c *DeviceClass) *string { return &c.Link }, "ether", "infiniband"),
		"bind":     func(c *DeviceClass, v string) string { c.Bind = v; return classWords([]string{v}) },
		"when":     words(func(c *DeviceClass) *string { return &c.When }, WhenStart, WhenAllocate),
		"group":    words(func(c *DeviceClass) *string { return &c.Group }, GroupStrict, GroupCompanions),
		"vfs":      number(func(c *DeviceClass) *int { return &c.VFs }, 256),
		"rdma":     truth(func(c *DeviceClass) *bool { return &c.RDMA }, "on", "off"),
		"path":     classPath,
		"no-reset": words(func(c *DeviceClass) *string { return &c.NoReset }, NoResetRefuse, NoResetAllow),
	}
	vgpu := options{
		"type":   classText(64, func(c *DeviceClass) *string { return &c.Type }),
		"order":  number(func(c *DeviceClass) *int { return &c.Order }, 999),
		"manage": words(func(c *DeviceClass) *string { return &c.Manage }, ManageCreate, ManageFound),
		"params": classText(200, func(c *DeviceClass) *string { return &c.Params }),
	}
	usb := options{"match": classUSBMatch}
	for _, of := range []options{device, vgpu, usb} {
		maps.Copy(of, common)
	}
	return map[ClassKind]options{ClassDevice: device, ClassVGPU: vgpu, ClassUSB: usb}
}
