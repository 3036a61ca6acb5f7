package api

import (
	"slices"
	"strings"
	"sync"
)

// Kind says how a value is built.
type Kind int

// The kinds of values (vm.md 2.1).
const (
	Plain   Kind = iota // one value
	Options             // [word][,key=value]...
	Set                 // name[=policy],...
)

// Change says when an edit of a running Pod's annotation takes effect (column Chg of vm.md 2.2).
type Change string

// The values of [Change].
const (
	Live    Change = "L" // at once
	Restart Change = "R" // at the next restart in place
	NewPod  Change = "P" // only in a new Pod
)

// Scope says where a key stands.
type Scope string

// The scopes of annotations.
const (
	ScopeVMPod Scope = "VM Pod"
)

// Program is one reader or writer of an annotation.
type Program string

// The programs of podvirt, as the reference page names them. [User] is whoever writes manifests, the CLI included.
const (
	User         Program = "user"
	Admission    Program = "admission"
	CLI          Program = "kubectl vm"
	Launcher     Program = "launcher"
	Scheduler    Program = "scheduler"
	CNIBridge    Program = "cni-bridge"
	CSIHostpath  Program = "csi-hostpath"
	DevicePlugin Program = "device-plugin"
	Controller   Program = "controller"
)

// Annotation is one row of the contract: all that parser, policies, reference page and completion know of a key.
type Annotation struct {
	Key    string // without the prefix; "disk.NAME" for a kind of device
	Group  string // heading on the reference page
	Scope  Scope
	Change Change
	Kind   Kind
	// Value is the grammar of the whole value; with Options of the main word (no grammar: there is none); with Set of
	// the names.
	Value   Value
	Options []Option
	// Later: this version honours nothing of it and does not look at the value.
	Later bool
	// Policies of a Set; the first is meant where none is written.
	Policies []string
	// Writer is who may write it; [User] unless it is a note of one program to another.
	Writer Program
	// Readers besides launcher, admission and CLI, which read every row; in [Annotations], all of them.
	Readers []Program
	Default string // for people
	Meaning string // for people
}

// Option is one key=value of an annotation with options.
type Option struct {
	Name    string
	Value   Value
	Default string
	Meaning string
}

// Device returns the kind of device of a row such as "disk.NAME", or "".
func (a Annotation) Device() string {
	kind, found := strings.CutSuffix(a.Key, ".NAME")
	if !found {
		return ""
	}
	return kind
}

// HasMain says whether a value with options begins with a main word.
func (a Annotation) HasMain() bool {
	return a.Kind == Options && (len(a.Value.Words) > 0 || a.Value.Form != FormWord)
}

// Annotations returns a copy of the contract's rows, in the order of the reference page.
func Annotations() []Annotation { return slices.Clone(contract().rows) }

// table is the contract with its indexes.
type table struct {
	rows    []Annotation
	byKey   map[string]*row // without prefix; devices by their kind
	names   []string        // whole-VM annotations without prefix, for the nearest one
	devices []string        // kinds of devices
}

// row is an [Annotation] with its options by name.
type row struct {
	Annotation

	options map[string]*Option
	names   []string // of options
}

//nolint:gochecknoglobals // built once, never written again
var contract = sync.OnceValue(buildTable)

func buildTable() *table {
	t := &table{byKey: map[string]*row{}}
	for _, group := range [][]Annotation{
		identityRows(), cpuRows(), memoryRows(), machineRows(), deviceRows(), lifecycleRows(), guestRows(),
		escapeRows(), otherChapterRows(), writtenRows(), perDeviceRows(),
	} {
		t.rows = append(t.rows, group...)
	}
	for i := range t.rows {
		a := &t.rows[i]
		if a.Scope == "" {
			a.Scope = ScopeVMPod
		}
		if a.Writer == "" {
			a.Writer = User
		}
		a.Readers = append([]Program{Launcher, Admission, CLI}, a.Readers...)
		r := &row{Annotation: *a, options: map[string]*Option{}}
		for j := range r.Options {
			r.options[r.Options[j].Name] = &r.Options[j]
			r.names = append(r.names, r.Options[j].Name)
		}
		if kind := a.Device(); kind != "" {
			t.byKey[kind] = r
			t.devices = append(t.devices, kind)
			continue
		}
		t.byKey[a.Key] = r
		t.names = append(t.names, a.Key)
	}
	return t
}

// lookup finds the row of a key without prefix; device is the name after the kind.
func (t *table) lookup(key string) (r *row, device string, found bool) {
	if kind, name, ok := strings.Cut(key, "."); ok && slices.Contains(t.devices, kind) {
		return t.byKey[kind], name, true
	}
	r, found = t.byKey[key]
	if !found || r.Device() != "" {
		return nil, "", false
	}
	return r, "", true
}

// nearestKey returns the full key a user probably meant, or "".
func (t *table) nearestKey(key string) string {
	if kind, name, ok := strings.Cut(key, "."); ok {
		if near := Nearest(kind, t.devices); near != "" {
			return Prefix + near + "." + shown(name)
		}
	}
	if near := Nearest(key, t.names); near != "" {
		return Prefix + near
	}
	return ""
}
