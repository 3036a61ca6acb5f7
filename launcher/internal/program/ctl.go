package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
	"podvirt.dev/launcher/internal/control"
)

// ctlVerb is how a verb looks on the command line.
type ctlVerb struct {
	flags     func(*pflag.FlagSet)
	arguments int // how many words may follow; they are sent as "what". -1: all words are sent as they are, flags too
	help      string
}

func ctlVerbs() map[string]ctlVerb {
	none := func(*pflag.FlagSet) {}
	output := func(f *pflag.FlagSet) { f.StringP("output", "o", "", "json: the value for programs") }
	timeout := func(f *pflag.FlagSet) { f.String("timeout", "", "how long to wait, such as 90s") }
	return map[string]ctlVerb{
		"status":   {output, 0, "state of the VM"},
		"stats":    {none, 0, "figures of the VM"},
		"log":      {none, 0, "log of the launcher"},
		"xml":      {none, 0, "domain as it runs"},
		"pause":    {none, 0, "stop the vCPUs"},
		"resume":   {none, 0, "let the vCPUs go on"},
		"shutdown": {timeout, 0, "ask the guest to shut down, and wait"},
		"poweroff": {none, 0, "pull the power cord"},
		"reboot":   {none, 0, "ask the guest to reboot"},
		"reset":    {none, 0, "press the reset button"},
		"restart":  {none, 0, "shut down and start a new QEMU in the same Pod"},
		"start":    {none, 0, "start a VM that is held"},
		"nmi":      {none, 0, "inject an NMI"},
		"keys":     {none, 1, "press keys together: esc, f12, ctrl+alt+delete"},
		"agent":    {none, 1, "ask the guest agent: ping, info, os, fs, users, nics, time"},
		"freeze":   {timeout, 0, "freeze the guest's file systems"},
		"thaw":     {none, 0, "thaw them"},
		"update":   {none, 3, "nic [NAME] link=up or link=down: plug or pull the virtual cable"},
		"probe":    {none, -1, "agent, exec -- CMD, fs MOUNT --min-free 5%, or state WORD"},
		"console": {func(f *pflag.FlagSet) {
			f.Int("port", 0, "serial port")
			f.Bool("read-only", false, "look on")
			f.Bool("take-over", false, "take the place of who writes")
		}, 0, "serial console; Ctrl+] ends"},
	}
}

// runCtl is launcher ctl VERB.
func runCtl(ctx context.Context, args []string, std cli.Streams) int {
	verbs := ctlVerbs()
	if len(args) == 0 {
		fmt.Fprint(std.Err, ctlHelp(verbs))
		return api.CtlUsage
	}
	verb, ok := verbs[args[0]]
	if !ok {
		fmt.Fprintf(std.Err, "launcher ctl: no such verb: %s\n%s", args[0], ctlHelp(verbs))
		return api.CtlUsage
	}
	query, err := arguments(args[0], verb, args[1:])
	if err != nil {
		fmt.Fprintf(std.Err, "launcher ctl %s: %v\n", args[0], err)
		return api.CtlUsage
	}
	client := control.Client{Path: control.Socket}
	if args[0] == "console" {
		err = interact(ctx, client, query, std)
	} else {
		err = ask(ctx, client, args[0], query, std)
	}
	if err != nil {
		fmt.Fprintln(std.Err, strings.TrimSpace(err.Error()))
	}
	return control.ExitCode(err)
}

func ctlHelp(verbs map[string]ctlVerb) string {
	names := make([]string, 0, len(verbs))
	for name := range verbs {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteString("usage: launcher ctl VERB [FLAG]...\n\n")
	for _, name := range names {
		fmt.Fprintf(&b, "  %-9s %s\n", name, verbs[name].help)
	}
	return b.String()
}

// arguments are the flags that were given, by name, and the words as "what".
func arguments(name string, verb ctlVerb, args []string) (url.Values, error) {
	if verb.arguments < 0 {
		return url.Values{"what": args}, nil
	}
	flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	verb.flags(flags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > verb.arguments {
		return nil, fmt.Errorf("too many arguments: %s", strings.Join(flags.Args(), " "))
	}
	query := url.Values{}
	flags.Visit(func(f *pflag.Flag) {
		if f.Value.String() != "false" {
			query.Set(f.Name, f.Value.String())
		}
	})
	for _, word := range flags.Args() {
		query.Add("what", word)
	}
	return query, nil
}

func ask(ctx context.Context, client control.Client, verb string, query url.Values, std cli.Streams) error {
	answer, err := client.Do(ctx, verb, query)
	if err != nil {
		return err
	}
	text := answer.Text
	if text == "" && string(answer.Value) == "{}" {
		return nil
	}
	if (query.Get("output") == "json" || text == "") && len(answer.Value) > 0 {
		text = indent(answer.Value)
	}
	_, err = io.WriteString(std.Out, text)
	return err
}

// escapeKey ends a console session: Ctrl+].
const escapeKey = 0x1d

// interact connects the terminal, or a pipe, with a serial port.
func interact(ctx context.Context, client control.Client, query url.Values, std cli.Streams) error {
	stream, err := client.Console(ctx, query)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	if f, ok := std.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		before, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(f.Fd()), before) }()
		fmt.Fprint(std.Err, "Connected; Ctrl+] ends.\r\n")
	}
	typed := make(chan error, 1)
	go func() { typed <- send(stream, std.In) }() // a read of the terminal cannot be called off; the process ends
	heard := make(chan error, 1)
	go func() {
		_, err := io.Copy(std.Out, stream)
		heard <- err
	}()
	select {
	case err := <-typed:
		if errors.Is(err, errEscape) || err != nil {
			return notEscape(err)
		}
		return <-heard // the end of a pipe: listen on until the VM is off
	case err := <-heard:
		return err
	}
}

var errEscape = errors.New("the escape key was pressed")

func notEscape(err error) error {
	if errors.Is(err, errEscape) {
		return nil
	}
	return err
}

// send copies keys to the guest up to the escape key.
func send(to io.Writer, from io.Reader) error {
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		at := slices.Index(buf[:n], escapeKey)
		if at >= 0 {
			n = at
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case at >= 0:
			return errEscape
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// runProbe is launcher probe, the short form of launcher ctl probe: exit 0 or 1 with one line.
func runProbe(ctx context.Context, args []string, std cli.Streams) int {
	code := runCtl(ctx, append([]string{"probe"}, args...), std)
	if code == api.CtlWrongState || code == api.CtlTimedOut {
		return api.CtlRefused
	}
	return code
}
