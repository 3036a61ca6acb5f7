package api

import (
	"fmt"
	"slices"
	"strings"
)

// Parse reads the podvirt.dev/ annotations of a VM Pod. It reports every mistake that annotations alone show: unknown
// keys, bad values, options that contradict each other, a boot number used twice. Fields of wrong annotations stay
// zero in the VM.
func Parse(annotations map[string]string) (VM, Errors) {
	p := parse(annotations)
	vm := p.vm()
	checkAnnotations(p, &vm)
	return vm, p.errs.sorted()
}

// ParseKeys reads only the annotations that keep says yes to, as a program does that is not concerned with the rest;
// unknown keys are left to others.
func ParseKeys(annotations map[string]string, keep func(key string) bool) (VM, Errors) {
	mine := make(map[string]string, len(annotations))
	for key, value := range annotations {
		if keep(key) {
			mine[key] = value
		}
	}
	return Parse(mine)
}

// IsVMKey says whether an annotation marks its Pod as a VM for programs that see no labels (network.md 2.1): the
// annotation podvirt.dev/vm, or any that belongs on VM Pods only.
func IsVMKey(key string) bool {
	rest, ours := strings.CutPrefix(key, Prefix)
	if !ours {
		return false
	}
	_, _, found := contract().lookup(rest)
	return found
}

// parsed is one annotation after its grammar was checked.
type parsed struct {
	raw     string            // as written
	word    string            // the value, or the main word of options
	options map[string]string // unquoted
	parts   map[string][]string
	set     []CPUFeature
}

// parser collects what annotations say and what is wrong with them.
type parser struct {
	values map[string]*parsed // by key without prefix
	errs   Errors
}

func parse(annotations map[string]string) *parser {
	p := &parser{values: make(map[string]*parsed, len(annotations))}
	for key, value := range annotations {
		if rest, ours := strings.CutPrefix(key, Prefix); ours {
			p.annotation(rest, value)
		}
	}
	return p
}

// annotation reads one key; a wrong one leaves no value behind.
func (p *parser) annotation(key, value string) {
	r, device, found := contract().lookup(key)
	if !found {
		p.fail(key, quoteKey(Prefix+key)+": unknown annotation"+suffix(contract().nearestKey(key)))
		return
	}
	if kind := r.Device(); kind != "" {
		if wrong := deviceNameWrong(kind, device); wrong != "" {
			p.fail(key, quoteKey(Prefix+key)+": "+wrong)
			return
		}
	}
	before := len(p.errs)
	v := &parsed{raw: value}
	switch {
	case r.Later:
		p.value(key, value, NotYet)
	case len(value) > MaxText && r.Value.Pattern != jsonListPattern && r.Value.Pattern != jsonPattern:
		p.value(key, value, fmt.Sprintf("longer than %d bytes", MaxText))
	case !isJSON(r) && strings.ContainsFunc(value, isControl):
		p.value(key, value, "control characters are not allowed")
	case r.Kind == Options:
		p.options(key, r, v)
	case r.Kind == Set:
		p.set(key, r, v)
	default:
		v.word = value
		if wrong := r.Value.Check(value); wrong != "" {
			p.value(key, value, wrong)
		}
	}
	if len(p.errs) == before {
		p.values[key] = v
	}
}

func isJSON(r *row) bool { return r.Value.Pattern == jsonListPattern || r.Value.Pattern == jsonPattern }

// options reads an option string into v.
func (p *parser) options(key string, r *row, v *parsed) {
	items, ok := splitItems(v.raw)
	switch {
	case !ok:
		p.value(key, v.raw, EmptyItem)
		return
	case len(items) == 0 && r.HasMain():
		p.value(key, v.raw, r.Value.Check(""))
		return
	case len(items) == 0 && r.Device() == "":
		p.value(key, v.raw, NoOptions(r.Annotation))
		return
	}
	v.options, v.parts = make(map[string]string, len(items)), map[string][]string{}
	for i, it := range items {
		if i == 0 && it.bare && r.HasMain() && r.options[it.name] == nil {
			p.mainWord(key, r, it.name, v)
			continue
		}
		p.option(key, r, it, v)
	}
}

// NoOptions is what an empty value is told where only options could stand.
func NoOptions(a Annotation) string {
	names := make([]string, len(a.Options))
	for i, o := range a.Options {
		names[i] = o.Name
	}
	return "no options; options: " + strings.Join(names, ", ")
}

func (p *parser) mainWord(key string, r *row, written string, v *parsed) {
	v.word = written
	words := []string{written}
	if r.Value.List {
		words = strings.Split(written, "+")
	}
	for i, w := range words {
		if wrong := r.Value.Check(w); wrong != "" {
			p.value(key, w, wrong)
		}
		if slices.Contains(words[:i], w) {
			p.value(key, w, ListedTwice)
		}
	}
}

// option reads one key=value of an option string.
func (p *parser) option(key string, r *row, it item, v *parsed) {
	o := r.options[it.name]
	if o == nil {
		p.fail(key, fmt.Sprintf("%s: %s: %s", Prefix+key, quoteName(it.name), unknownOption(r, it.name)))
		return
	}
	if _, twice := v.options[it.name]; twice {
		p.fail(key, fmt.Sprintf("%s: %s: %s", Prefix+key, it.name, ListedTwice))
		return
	}
	v.options[it.name] = unquote(it.value)
	switch {
	case !compiled(OptionValuePattern).MatchString(it.value):
		p.optionValue(key, it.name, unquote(it.value), BlankInValue)
		return
	case unquote(it.value) == "":
		p.optionValue(key, it.name, "", EmptyValue)
		return
	}
	parts := []string{v.options[it.name]}
	if o.Value.List {
		parts = splitParts(it.value)
		v.parts[it.name] = parts
	}
	for _, part := range parts {
		if wrong := o.Value.Check(part); wrong != "" {
			p.optionValue(key, it.name, part, wrong)
		}
	}
}

func unknownOption(r *row, name string) string {
	if r.Device() == "nic" && strings.HasPrefix(name, "dhcp-") && isDigits(strings.TrimPrefix(name, "dhcp-")) {
		return "only 224 to 254"
	}
	return "unknown option" + nearestSuffix(name, r.names)
}

// set reads name[=policy],...
func (p *parser) set(key string, r *row, v *parsed) {
	items, ok := splitItems(v.raw)
	if !ok || len(items) == 0 {
		p.value(key, v.raw, EmptyItem)
		return
	}
	seen := map[string]bool{}
	for _, it := range items {
		policy := it.value
		if it.bare {
			policy = r.Policies[0]
		}
		if wrong := r.Value.Check(it.name); wrong != "" {
			p.fail(key, fmt.Sprintf("%s: %s: %s", Prefix+key, quoteName(it.name), wrong))
			continue
		}
		if seen[it.name] {
			p.fail(key, fmt.Sprintf("%s: %s: %s", Prefix+key, it.name, ListedTwice))
			continue
		}
		seen[it.name] = true
		if !slices.Contains(r.Policies, policy) {
			p.optionValue(key, it.name, policy, PolicyMessage+nearestSuffix(policy, r.Policies))
			continue
		}
		v.set = append(v.set, CPUFeature{Name: it.name, Policy: FeaturePolicy(policy)})
	}
	slices.SortFunc(v.set, func(a, b CPUFeature) int { return strings.Compare(a.Name, b.Name) })
}

// deviceNameWrong says what is wrong with the name of a device, or "" (VM-013).
func deviceNameWrong(kind, name string) string {
	long, bad := DeviceNameMessages(kind)
	switch {
	case len(name) > MaxDeviceName(kind):
		return long
	case !compiled(DeviceNamePattern).MatchString(name):
		return bad
	}
	return ""
}

// DeviceNameMessages returns what a name is told that is too long, and one with other characters than names may have.
func DeviceNameMessages(kind string) (long, bad string) {
	why := "since Kubernetes ends the name of an annotation at 63"
	if kind == "nic" {
		why = "the most that a network interface can have"
	}
	return fmt.Sprintf("name longer than %d characters, %s", MaxDeviceName(kind), why),
		"name is not made of a-z, 0-9, - and ., with a letter or digit at both ends"
}

// MaxDeviceName returns how long the name of a device of that kind may be: KIND.NAME has at most 63 characters, the
// name of a network interface 15.
func MaxDeviceName(kind string) int {
	if kind == "nic" {
		return 15
	}
	return 63 - len(kind) - len(".")
}

// fail adds a whole line about a key.
func (p *parser) fail(key, line string) {
	p.errs = append(p.errs, Error{Key: Prefix + key, Text: line})
}

// value adds: podvirt.dev/KEY: "VALUE": what is wrong.
func (p *parser) value(key, value, wrong string) {
	p.fail(key, fmt.Sprintf("%s: %s: %s", Prefix+key, quote(value), wrong))
}

// optionValue adds: podvirt.dev/KEY: OPTION=VALUE: what is wrong.
func (p *parser) optionValue(key, option, value, wrong string) {
	p.fail(key, fmt.Sprintf("%s: %s=%s: %s", Prefix+key, option, shown(value), wrong))
}

func suffix(near string) string {
	if near == "" {
		return ""
	}
	return "; nearest: " + near
}
