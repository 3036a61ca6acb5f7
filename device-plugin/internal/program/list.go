package program

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/base"
	"podvirt.dev/device-plugin/internal/config"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/internal/cli"
)

// listed is one line of `device-plugin list`.
type listed struct {
	Resource  string `json:"resource"`
	Healthy   int    `json:"healthy"`
	Unhealthy int    `json:"unhealthy"`
	Note      string `json:"note,omitempty"`
}

// runList prints what would be offered under the default configuration, and why not the rest. It asks neither kubelet
// nor API.
func runList(args []string, std cli.Streams) int {
	var h hostPaths
	var format string
	flags := pflag.NewFlagSet("device-plugin list", pflag.ContinueOnError)
	flags.SetOutput(std.Err)
	flags.StringVarP(&format, "output", "o", "text", "text or json")
	h.register(flags)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case err == nil && format != "text" && format != "json":
		err = fmt.Errorf("flag --output: %q: not one of text, json", format)
	}
	if err != nil {
		fmt.Fprintln(std.Err, "device-plugin list:", err)
		return exitUsage
	}
	lines, err := list(h)
	if err == nil {
		err = printList(std.Out, format, lines)
	}
	if err != nil {
		fmt.Fprintln(std.Err, "device-plugin list:", err)
		return exitError
	}
	return exitOK
}

func list(h hostPaths) ([]listed, error) {
	boot, err := facts.BootID(h.proc)
	if err != nil {
		return nil, err
	}
	defaults, _ := config.Parse(nil, "") // no data has no mistakes
	snapshot := facts.Read(h.factsDir, boot)
	state := kvm(snapshot.CPU, nil)
	var lines []listed
	if !state.Known {
		note := "no node facts in " + h.factsDir
		if snapshot.Problem != nil {
			note = snapshot.Problem.Error()
		}
		lines = append(lines, listed{Resource: api.ResourceKVM, Note: note})
	}
	for _, r := range base.Scan(baseHost(h), defaults.Devices, state) {
		healthy, unhealthy := r.Counts()
		lines = append(lines, listed{Resource: r.Name, Healthy: healthy, Unhealthy: unhealthy, Note: r.Note})
	}
	return lines, nil
}

func printList(w io.Writer, format string, lines []listed) error {
	if format == "json" {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(lines)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RESOURCE\tHEALTHY\tUNHEALTHY\tNOTE")
	for _, l := range lines {
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", l.Resource, l.Healthy, l.Unhealthy, l.Note)
	}
	return table.Flush()
}
