// Package program is cni-bridge behind its command line: with CNI_COMMAND set the plugin, else the node's installer.
package program

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"k8s.io/klog/v2"

	"podvirt.dev/cni-bridge/internal/plugin"
	"podvirt.dev/internal/cli"
)

// Exit codes of the subcommands.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Run is the program.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	if os.Getenv("CNI_COMMAND") != "" {
		return asPlugin(ctx, std)
	}
	return asCommand(ctx, args, std)
}

// asPlugin answers one call of a runtime. Errors go to stdout as JSON, as the specification wants it.
func asPlugin(ctx context.Context, std cli.Streams) int {
	failure := skel.PluginMainFuncsWithError(plugin.Plugin{Out: std.Out}.Funcs(ctx), plugin.Versions(), "")
	if failure == nil {
		return exitDone
	}
	data, err := json.MarshalIndent(failure, "", "    ")
	if err == nil {
		_, err = fmt.Fprintln(std.Out, string(data))
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Writing the error failed", "error", failure.Msg)
	}
	return exitFailed
}
