package api

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// classResource takes an extended resource that is neither Kubernetes' nor ours.
func classResource(c *DeviceClass, v string) string {
	c.Resource = v
	domain, name, _ := strings.Cut(v, "/")
	switch {
	case !compiled(resourcePattern).MatchString(v):
		return "want domain/name"
	case domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io"), domain == strings.TrimSuffix(Prefix, "/"):
		return "the domain " + domain + " is not yours"
	case len(name) > MaxResourceName:
		return fmt.Sprintf("name longer than %d characters", MaxResourceName)
	}
	return ""
}

func classText(most int, field func(*DeviceClass) *string) func(*DeviceClass, string) string {
	return func(c *DeviceClass, v string) string {
		*field(c) = v
		if v == "" || len(v) > most {
			return fmt.Sprintf("want 1 to %d characters", most)
		}
		return ""
	}
}

// classWords takes names of drivers.
func classWords(words []string) string {
	for _, w := range words {
		if !compiled(`[A-Za-z0-9_-]{1,64}`).MatchString(w) {
			return "not a name of a driver"
		}
	}
	return ""
}

func classNodes(c *DeviceClass, v string) string {
	for term := range strings.SplitSeq(v, "+") {
		key, value, exact := strings.Cut(term, ":")
		if key == "" || strings.Contains(term, "=") {
			return "write " + strings.ReplaceAll(term, "=", ":")
		}
		c.Nodes = append(c.Nodes, NodeMatch{Key: key, Value: value, Exists: !exact})
	}
	return ""
}

// hex16 reads four hexadecimal digits at most.
func hex16(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 16, 16)
	return uint16(n), err == nil && len(text) <= 4
}

func classPCIMatch(c *DeviceClass, v string) string {
	const want = "want vendor:device, e.g. 10de:1eb8"
	for item := range strings.SplitSeq(v, "+") {
		parts := strings.Split(item, ":")
		var m DeviceMatch
		if parts[0] == "class" && len(parts) == 2 && len(parts[1]) == 4 {
			n, ok := hex16(parts[1])
			if !ok {
				return want + " or class:0302"
			}
			c.Match = append(c.Match, DeviceMatch{Class: n, ByClass: true})
			continue
		}
		if len(parts) != 2 && len(parts) != 4 {
			return want
		}
		fields := []*uint16{&m.Vendor, &m.Device, &m.SubVendor, &m.SubDevice}
		for i, part := range parts {
			n, ok := hex16(part)
			if !ok {
				return want
			}
			*fields[i] = n
		}
		m.Sub = len(parts) == 4
		c.Match = append(c.Match, m)
	}
	return ""
}

func classUSBMatch(c *DeviceClass, v string) string {
	for item := range strings.SplitSeq(v, "+") {
		vendor, rest, _ := strings.Cut(item, ":")
		product, serial, _ := strings.Cut(rest, ":")
		m := DeviceMatch{Serial: serial}
		var ok1, ok2 bool
		m.Vendor, ok1 = hex16(vendor)
		m.Device, ok2 = hex16(product)
		if !ok1 || !ok2 {
			return "want vendor:product"
		}
		c.Match = append(c.Match, m)
	}
	return ""
}

// pciGlob is a PCI address in which * stands for any characters.
const pciGlob = `[0-9a-fA-F*]{1,8}:[0-9a-fA-F*]{1,2}:[0-9a-fA-F*]{1,2}\.[0-7*]`

func classAddress(c *DeviceClass, v string) string {
	for item := range strings.SplitSeq(v, "+") {
		if !compiled(pciGlob).MatchString(item) {
			return "want 0000:3b:00.0"
		}
		c.Addresses = append(c.Addresses, strings.ToLower(item))
	}
	return ""
}

func classPF(c *DeviceClass, v string) string {
	for item := range strings.SplitSeq(v, "+") {
		name, numbers, ranged := strings.Cut(item, "#")
		pf := PFRange{Name: name, To: LeaveVFs}
		if !compiled(`[A-Za-z0-9_.:-]{1,64}`).MatchString(name) {
			return "want the name of an interface or a PCI address"
		}
		if ranged {
			from, to, both := strings.Cut(numbers, "-")
			if !both {
				to = from
			}
			var err1, err2 error
			pf.From, err1 = strconv.Atoi(from)
			pf.To, err2 = strconv.Atoi(to)
			switch {
			case err1 != nil || err2 != nil || pf.From < 0:
				return "want NAME#FIRST-LAST"
			case pf.From > pf.To:
				return "start above end"
			}
		}
		c.PFs = append(c.PFs, pf)
	}
	return ""
}

// classPath takes a glob of character devices. What would give a VM the node is not offered to anybody.
func classPath(c *DeviceClass, v string) string {
	c.Path = v
	if !strings.HasPrefix(v, "/dev/") || path.Clean(v) != v {
		return "want a path below /dev"
	}
	if _, err := path.Match(v, ""); err != nil {
		return "not a pattern"
	}
	for _, never := range NeverOffered() {
		if matched, _ := path.Match(v, never); matched || strings.HasPrefix(v, never+"/") {
			return "not offered"
		}
	}
	return ""
}

// NeverOffered are files below /dev that no class may name: memory, messages and terminals of the node.
func NeverOffered() []string {
	return []string{"/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/ptmx", "/dev/pts", "/dev/tty", "/dev/console", "/dev/vfio", "/dev/mapper"}
}
