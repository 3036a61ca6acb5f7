// Package probe decides what launcher probe and HTTP /probe/* answer: whether the guest agent answers, a command in the
// guest succeeds, a file system has room, or the VM is in a state (spec vm.md VM-176). A probe must not get a VM killed
// that is meant to stand still (VM-178): that rule is here and nowhere else.
package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/agent"
)

// ErrUsage is wrapped where a probe was not asked as it should be.
var ErrUsage = errors.New("usage")

// ErrFailed is wrapped where the answer of a probe is no.
var ErrFailed = errors.New("probe failed")

// Kind is the first word of a probe.
type Kind string

// The kinds of probes.
const (
	Agent Kind = "agent" // the guest agent answers
	Exec  Kind = "exec"  // a command in the guest exits 0
	FS    Kind = "fs"    // a file system of the guest has room
	State Kind = "state" // the VM is in a state
)

// Request is one probe.
type Request struct {
	Kind    Kind
	State   api.State // of kind state
	Command []string  // of kind exec
	Mount   string    // of kind fs
	MinFree Room      // of kind fs
	// InitialDelay is how long after the start of the guest the probes of kinds agent, exec and fs succeed whatever the
	// guest says.
	InitialDelay time.Duration
}

// Room is what must be free on a file system: a share of it, or bytes.
type Room struct {
	Percent float64
	Bytes   uint64
}

// defaultRoom is asked for where --min-free is not given.
func defaultRoom() Room { return Room{Percent: 5} }

// Parse reads the arguments of launcher probe: agent, exec -- CMD, fs MOUNT --min-free 5%, state WORD; each of the first
// three also --initial-delay.
func Parse(args []string) (Request, error) {
	flags := pflag.NewFlagSet("probe", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	delay := flags.Duration("initial-delay", 0, "succeed for so long after the start of the guest")
	free := flags.String("min-free", "", "share (5%) or quantity (1Gi) that must be free")
	if err := flags.Parse(args); err != nil {
		return Request{}, fmt.Errorf("%w: probe: %w", ErrUsage, err)
	}
	words := flags.Args()
	if len(words) == 0 {
		return Request{}, fmt.Errorf("%w: probe: agent, exec -- CMD, fs MOUNT, or state WORD", ErrUsage)
	}
	return build(Kind(words[0]), words[1:], *free, *delay)
}

// ParseURL reads a probe from the path below /probe/ and the query of an HTTP request: agent, fs?mount=/&min-free=5%25,
// state?is=running. Commands are not run over HTTP: whoever reaches the port would run them in the guest.
func ParseURL(kind string, query url.Values) (Request, error) {
	var words []string
	switch Kind(kind) {
	case Agent:
	case FS:
		words = query["mount"]
	case State:
		words = query["is"]
	case Exec:
		return Request{}, fmt.Errorf("%w: exec is not offered over HTTP; use an exec probe with launcher probe exec", ErrUsage)
	}
	var delay time.Duration
	if text := query.Get("initial-delay"); text != "" {
		var err error
		if delay, err = time.ParseDuration(text); err != nil {
			return Request{}, fmt.Errorf("%w: initial-delay=%s: not a duration; example: 90s", ErrUsage, text)
		}
	}
	return build(Kind(kind), words, query.Get("min-free"), delay)
}

func build(kind Kind, words []string, free string, delay time.Duration) (Request, error) {
	r := Request{Kind: kind, InitialDelay: delay}
	switch {
	case kind == Agent && len(words) == 0:
	case kind == Exec && len(words) > 0:
		r.Command = words
	case kind == FS && len(words) == 1:
		r.Mount, r.MinFree = words[0], defaultRoom()
		if free != "" {
			room, err := parseRoom(free)
			if err != nil {
				return Request{}, err
			}
			r.MinFree = room
		}
	case kind == State && len(words) == 1:
		r.State = api.State(words[0])
		if !slices.Contains(states(), r.State) {
			return Request{}, fmt.Errorf("%w: probe state %s: not one of %s", ErrUsage, words[0], join(states()))
		}
	default:
		return Request{}, fmt.Errorf("%w: probe %s: agent, exec -- CMD, fs MOUNT [--min-free 5%%], or state WORD", ErrUsage,
			strings.Join(append([]string{string(kind)}, words...), " "))
	}
	return r, nil
}

func states() []api.State {
	return []api.State{
		api.StateStarting, api.StateRunning, api.StatePaused, api.StateStopping, api.StateHeld, api.StateIncoming, api.StateMigrated,
		api.StateHibernated,
	}
}

func join(words []api.State) string {
	texts := make([]string, 0, len(words))
	for _, w := range words {
		texts = append(texts, string(w))
	}
	return strings.Join(texts, ", ")
}

func parseRoom(text string) (Room, error) {
	if share, isShare := strings.CutSuffix(text, "%"); isShare {
		percent, err := strconv.ParseFloat(share, 64)
		if err != nil || !(percent >= 0 && percent <= 100) {
			return Room{}, fmt.Errorf("%w: min-free=%s: not a share; example: 5%%", ErrUsage, text)
		}
		return Room{Percent: percent}, nil
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil || quantity.Sign() < 0 {
		return Room{}, fmt.Errorf("%w: min-free=%s: neither a share nor a quantity; example: 1Gi", ErrUsage, text)
	}
	return Room{Bytes: uint64(quantity.Value())}, nil
}

// VM is what a probe asks the launcher.
type VM struct {
	State   api.State
	Reason  string    // why it is paused
	Started time.Time // of the guest; zero: not yet
}

// Guest is what a probe asks the guest; *agent.Client is one.
type Guest interface {
	Ping(ctx context.Context) error
	Exec(ctx context.Context, command []string, stdin []byte) (agent.ExecResult, error)
	FileSystems(ctx context.Context) ([]agent.FileSystem, error)
}

var _ Guest = (*agent.Client)(nil)

// Prober answers probes of one VM. It is safe for concurrent use.
type Prober struct {
	vm    func() VM
	guest func() (Guest, error)
	now   func() time.Time

	mu     sync.Mutex // held while the agent is asked, so that many probes ask once
	pinged time.Time  // of the last answer
}

// pingAge is how long an answer of the agent counts for further probes: many probes a second cost no more than one.
const pingAge = 500 * time.Millisecond

// New returns a prober. vm and guest are asked at each probe; now is time.Now.
func New(vm func() VM, guest func() (Guest, error), now func() time.Time) *Prober {
	return &Prober{vm: vm, guest: guest, now: now}
}

// Do answers one probe: nil is yes. An error that wraps [ErrFailed] is no, and its text one line for people.
func (p *Prober) Do(ctx context.Context, r Request) error {
	vm := p.vm()
	if r.Kind == State {
		if vm.State != r.State {
			return fmt.Errorf("%w: the VM is %s", ErrFailed, describe(vm))
		}
		return nil
	}
	switch stands(vm) {
	case meantTo:
		return nil
	case notMeantTo:
		return fmt.Errorf("%w: the VM is %s", ErrFailed, describe(vm))
	case runs:
	}
	if !vm.Started.IsZero() && p.now().Sub(vm.Started) < r.InitialDelay {
		return nil
	}
	if err := p.ask(ctx, r); err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return nil
}

// standing says whether a VM that does not run is meant not to.
type standing int

const (
	runs standing = iota
	meantTo
	notMeantTo
)

// stands is the rule of VM-178.
func stands(vm VM) standing {
	switch vm.State {
	case api.StateRunning, api.StateStarting:
		return runs
	case api.StateStopping, api.StateIncoming, api.StateMigrated, api.StateHibernated:
		return meantTo
	case api.StatePaused:
		switch vm.Reason {
		case "io-error", "no-space", "panic", "watchdog":
			return notMeantTo
		}
		return meantTo // user, boot, migrating, dump
	}
	return notMeantTo
}

func describe(vm VM) string {
	if vm.Reason != "" {
		return string(vm.State) + " (" + vm.Reason + ")"
	}
	return string(vm.State)
}

func (p *Prober) ask(ctx context.Context, r Request) error {
	guest, err := p.guest()
	if err != nil {
		return err
	}
	switch r.Kind {
	case Exec:
		return execute(ctx, guest, r.Command)
	case FS:
		return room(ctx, guest, r.Mount, r.MinFree)
	}
	return p.ping(ctx, guest)
}

func (p *Prober) ping(ctx context.Context, guest Guest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now().Sub(p.pinged) < pingAge {
		return nil
	}
	if err := guest.Ping(ctx); err != nil {
		return err
	}
	p.pinged = p.now()
	return nil
}

// maxWords bounds what is repeated of a command's complaint, in bytes.
const maxWords = 200

func execute(ctx context.Context, guest Guest, command []string) error {
	result, err := guest.Exec(ctx, command, nil)
	switch {
	case err != nil:
		return err
	case result.Signal != 0:
		return fmt.Errorf("%s died of signal %d", agent.Clean(command[0], maxWords), result.Signal)
	case result.ExitCode != 0:
		complaint := bytes.TrimSpace(result.Stderr)
		if len(complaint) == 0 {
			complaint = bytes.TrimSpace(result.Stdout)
		}
		line, _, _ := bytes.Cut(complaint, []byte("\n"))
		return fmt.Errorf("%s exited with %d: %s", agent.Clean(command[0], maxWords), result.ExitCode, agent.Clean(string(line), maxWords))
	}
	return nil
}

func room(ctx context.Context, guest Guest, mount string, wanted Room) error {
	systems, err := guest.FileSystems(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(systems, func(f agent.FileSystem) bool { return f.Mountpoint == mount })
	if i < 0 {
		return fmt.Errorf("nothing is mounted at %s in the guest", agent.Clean(mount, maxWords))
	}
	system := systems[i]
	if system.Total == 0 || system.Used > system.Total {
		return fmt.Errorf("the guest agent does not say how full %s is", agent.Clean(mount, maxWords))
	}
	free := system.Total - system.Used
	percent := 100 * float64(free) / float64(system.Total)
	if free < wanted.Bytes || percent < wanted.Percent {
		return fmt.Errorf("%s has %.1f%% free (%d of %d bytes)", agent.Clean(mount, maxWords), percent, free, system.Total)
	}
	return nil
}
