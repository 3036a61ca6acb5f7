// Package program is the command line of the device plugin and what it wires together.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"podvirt.dev/internal/cli"
)

// Exit codes of the program.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// options are the flags (devices.md 2.6).
type options struct {
	nodeName   string
	instance   string
	pod        string
	config     string
	kubeconfig string
	metrics    string
	verbosity  int
	hostPaths

	configName types.NamespacedName
	podName    types.NamespacedName // empty: not known
}

// hostPaths are where the host's files are seen by the process.
type hostPaths struct {
	dev, proc, run              string
	cdiDir, pluginDir, factsDir string
	seccompDir, hookDir, hook   string
	sys, journal, podResources  string
}

// Run is the program. Without arguments it serves; "list" prints what it would offer.
func Run(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) > 0 && args[0] == "list" {
		return runList(args[1:], std)
	}
	o, err := parseServe(args, std.Err)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(std.Err, "device-plugin:", err)
		return exitUsage
	}
	ctx = cli.WithLogger(ctx, std.Err, o.verbosity)
	if err := serve(ctx, o); err != nil {
		klog.FromContext(ctx).Error(err, "The device plugin ends")
		return exitError
	}
	return exitOK
}

func parseServe(args []string, usage io.Writer) (options, error) {
	var o options
	flags := pflag.NewFlagSet("device-plugin", pflag.ContinueOnError)
	flags.SetOutput(usage)
	flags.SortFlags = false
	flags.StringVar(&o.nodeName, "node-name", "", "name of the Node this process runs on (required)")
	flags.StringVar(&o.instance, "instance", "", "UID of the Pod, part of the names of the sockets (required)")
	flags.StringVar(&o.pod, "pod", "", "the Pod, NAMESPACE/NAME; its container facts says which launcher image takes the facts")
	flags.StringVar(&o.config, "config", "podvirt-system/podvirt-config", "ConfigMap, NAMESPACE/NAME")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "file to reach the cluster by; empty: the Pod's own account")
	flags.StringVar(&o.metrics, "metrics", ":9443", "address of /metrics, /healthz and /readyz (HTTPS)")
	o.register(flags)
	flags.StringVar(&o.cdiDir, "cdi-dir", "/host/var/run/cdi", "directory of CDI specifications")
	flags.StringVar(&o.pluginDir, "plugin-dir", "/host/var/lib/kubelet/plugins_registry", "plugin registry of the kubelet")
	flags.StringVar(&o.seccompDir, "seccomp-dir", "/host/var/lib/kubelet/seccomp", "seccomp directory of the kubelet")
	flags.StringVar(&o.hookDir, "hook-dir", "/host/opt/podvirt/bin", "where the device hook is installed")
	flags.StringVar(&o.hook, "hook", "/usr/bin/device-hook", "the device hook to install")
	flags.StringVar(&o.sys, "sysfs", "/host/sys", "the host's /sys; the host's /proc is beside it")
	flags.StringVar(&o.journal, "journal", "/host/var/lib/podvirt/devices.json", "what was changed on the node")
	flags.StringVar(&o.podResources, "pod-resources", "/host/var/lib/kubelet/pod-resources/kubelet.sock", "socket by which the kubelet says who has what")
	flags.IntVarP(&o.verbosity, "v", "v", 0, "detail of the log")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; want a flag or the command list", flags.Arg(0))
	}
	return o, o.validate()
}

// register adds the flags that serving and listing have in common.
func (h *hostPaths) register(flags *pflag.FlagSet) {
	flags.StringVar(&h.dev, "dev", "/host/dev", "the host's /dev")
	flags.StringVar(&h.proc, "proc", "/proc", "a mounted procfs")
	flags.StringVar(&h.run, "run", "/host/run/podvirt", "the host's /run/podvirt")
	flags.StringVar(&h.factsDir, "facts-dir", "/facts", "where `launcher node-facts` writes")
}

func (o *options) validate() error {
	if o.nodeName == "" {
		return errors.New("flag --node-name is required")
	}
	if o.instance == "" {
		return errors.New("flag --instance is required")
	}
	if filepath.Base(o.sys) != "sys" {
		return fmt.Errorf("flag --sysfs: %q: want a directory sys", o.sys)
	}
	var err error
	if o.configName, err = objectName("--config", o.config); err != nil {
		return err
	}
	if o.pod != "" {
		o.podName, err = objectName("--pod", o.pod)
	}
	return err
}

func objectName(flag, value string) (types.NamespacedName, error) {
	namespace, name, ok := strings.Cut(value, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return types.NamespacedName{}, fmt.Errorf("flag %s: %q: want NAMESPACE/NAME", flag, value)
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, nil
}
