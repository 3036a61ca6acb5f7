package facts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/sysfs"
)

// Exit statuses of launcher node-facts (scheduling.md 2.7).
const (
	exitOK            = 0
	exitNoAccelerator = 1
	exitUsage         = 2
)

// Program is launcher node-facts with everything that tests put in another place.
type Program struct {
	Root    string   // "/"
	Self    []string // program and first arguments that run this command in a child, for --watch
	QEMU    string   // path of the emulator
	Scratch string   // directory for a small file
	Open    func(ctx context.Context) (Hypervisor, error)
	// Prepare readies the process before QEMU or libvirt is touched, given the directories it will write to; nil: nothing
	// to do. See [Unprivileged].
	Prepare func(dirs ...string) error
}

type options struct {
	virtType, only, output, out, digest string
	timeout                             time.Duration
	watch                               bool
}

// Run is launcher node-facts.
func (p Program) Run(ctx context.Context, args []string, std cli.Streams) int {
	o, err := parse(args, std.Err)
	if errors.Is(err, pflag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(std.Err, "launcher node-facts: %v\n", err)
		return exitUsage
	}
	if p.Prepare != nil {
		if err := p.Prepare(o.directories(p.Scratch)...); err != nil {
			fmt.Fprintf(std.Err, "launcher node-facts: %v\n", err)
			return exitNoAccelerator
		}
	}
	collector, err := p.collector(o)
	if err == nil && o.watch {
		err = Watcher{
			Collector: collector, Take: p.child(o), Dir: o.out, Timeout: o.timeout, CPU: o.only != "numa", NUMA: o.only != "cpu",
		}.Run(ctx)
		if err == nil {
			return exitOK
		}
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "node facts")
		return exitNoAccelerator
	}
	return once(ctx, collector, o, std)
}

// directories are those that are written to.
func (o options) directories(scratch string) []string {
	if o.out == "" {
		return []string{scratch}
	}
	return []string{scratch, o.out}
}

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	flags := pflag.NewFlagSet("launcher node-facts", pflag.ContinueOnError)
	flags.SetOutput(usage)
	flags.StringVar(&o.virtType, "virt-type", "", "try only this accelerator: kvm or tcg (default: kvm, then tcg)")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Second, "give up the probe guests after this time")
	flags.StringVar(&o.only, "only", "", "take only these facts: cpu or numa")
	flags.StringVarP(&o.output, "output", "o", "json", "json (one line per object) or text")
	flags.BoolVar(&o.watch, "watch", false, "keep the files in the directory of --out up to date")
	flags.StringVar(&o.out, "out", "", "directory for cpu.json and numa.json")
	flags.StringVar(&o.digest, "launcher-digest", "", "digest of the launcher image, to be noted in the facts")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.virtType != "" && o.virtType != "kvm" && o.virtType != "tcg":
		return options{}, fmt.Errorf("--virt-type %q: not one of kvm, tcg", o.virtType)
	case o.only != "" && o.only != "cpu" && o.only != "numa":
		return options{}, fmt.Errorf("--only %q: not one of cpu, numa", o.only)
	case o.output != "json" && o.output != "text":
		return options{}, fmt.Errorf("--output %q: not one of json, text", o.output)
	case o.watch != (o.out != ""):
		return options{}, errors.New("--watch and --out DIR go together")
	case o.timeout <= 0:
		return options{}, fmt.Errorf("--timeout %v: not positive", o.timeout)
	}
	return o, nil
}

func (p Program) collector(o options) (Collector, error) {
	root, err := sysfs.Host(p.Root)
	if err != nil {
		return Collector{}, err
	}
	wanted := []api.Accelerator{api.AcceleratorKVM, api.AcceleratorTCG}
	if o.virtType != "" {
		wanted = []api.Accelerator{api.Accelerator(o.virtType)}
	}
	return Collector{
		Root: root, Prober: Prober{QEMU: p.QEMU, Dir: p.Scratch, Root: root}, Wanted: wanted, Open: p.Open, Launcher: o.digest, Now: time.Now,
	}, nil
}

// child takes the facts of the CPU in a process of its own, which has taken QEMU's and libvirt's memory with it when the
// facts are there.
func (p Program) child(o options) func(ctx context.Context) (api.CPUFacts, error) {
	return func(ctx context.Context) (api.CPUFacts, error) {
		args := append(slices.Clone(p.Self[1:]), "--only", "cpu", "--timeout", o.timeout.String(), "--launcher-digest", o.digest)
		if o.virtType != "" {
			args = append(args, "--virt-type", o.virtType)
		}
		cmd := exec.CommandContext(ctx, p.Self[0], args...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = childPatience
		var out, complaint bytes.Buffer
		cmd.Stdout, cmd.Stderr = &limited{&out, maxFacts}, &limited{&complaint, maxComplaint}
		err := cmd.Run()
		facts, decodeErr := api.DecodeCPUFacts(out.String())
		if decodeErr == nil {
			return facts, nil // with exit 1 it says that there is no accelerator
		}
		if err == nil {
			err = decodeErr
		}
		return api.CPUFacts{}, fmt.Errorf("taking CPU facts: %w: %s", err, lastLine(complaint.String(), "no complaint"))
	}
}

// Bounds of the child: the patience after SIGTERM, and how much of its output is kept, in bytes.
const (
	childPatience = 5 * time.Second
	maxFacts      = 200 << 10
	maxComplaint  = 64 << 10
)

// encoder is both kinds of facts.
type encoder interface{ Encode() (string, error) }

// once takes the facts and prints them.
func once(ctx context.Context, c Collector, o options, std cli.Streams) int {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var objects []encoder
	code := exitOK
	if o.only != "numa" {
		facts, err := c.CPU(ctx)
		if err != nil {
			fmt.Fprintf(std.Err, "launcher node-facts: %v\n", err)
			return exitNoAccelerator
		}
		if facts.Accelerator == api.AcceleratorNone {
			code = exitNoAccelerator
		}
		objects = append(objects, facts)
	}
	if o.only != "cpu" {
		facts, err := c.NUMA()
		if err != nil {
			fmt.Fprintf(std.Err, "launcher node-facts: %v\n", err)
			return exitNoAccelerator
		}
		objects = append(objects, facts)
	}
	for _, object := range objects {
		text, err := object.Encode()
		if err == nil && o.output == "text" {
			text, err = table(text)
		}
		if err != nil {
			fmt.Fprintf(std.Err, "launcher node-facts: %v\n", err)
			return exitNoAccelerator
		}
		fmt.Fprintln(std.Out, strings.TrimSpace(text))
	}
	return code
}

// table writes the members of a JSON object for people, one per line in their order.
func table(object string) (string, error) {
	decoder := json.NewDecoder(strings.NewReader(object))
	if _, err := decoder.Token(); err != nil {
		return "", err
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return "", err
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return "", err
		}
		fmt.Fprintf(w, "%v\t%s\n", key, plain(value))
	}
	err := w.Flush()
	return b.String(), err
}

// plain writes strings without quotes and lists of strings with blanks between; other values stay JSON.
func plain(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text
	}
	var list []string
	if json.Unmarshal(value, &list) == nil {
		return strings.Join(list, " ")
	}
	return string(value)
}
