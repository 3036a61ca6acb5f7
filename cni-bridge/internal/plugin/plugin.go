// Package plugin has the verbs of the CNI specification for mode pod: it decides, and orders the steps of package bind
// between two writes of the journal, so that ADD is all or nothing and DEL always succeeds (NW-105).
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"podvirt.dev/cni-bridge/internal/counters"
	"podvirt.dev/cni-bridge/internal/fault"
	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/cni-bridge/internal/nat"
	"podvirt.dev/cni-bridge/internal/netconf"
	"podvirt.dev/internal/nl"
)

// Plugin is the plugin behind its command line.
type Plugin struct {
	// Out takes results; nothing but JSON may be written there.
	Out io.Writer
	// AfterStep is called behind each step of an ADD with its name; an error ends the ADD. nil: nothing is called.
	AfterStep func(step string) error
}

// Versions are those of the specification that the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
}

// Funcs are the verbs in the form that package skel dispatches to. The end of ctx ends IPAM plugins that they run.
func (p Plugin) Funcs(ctx context.Context) skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: edge(ctx, "ADD", p.add), Del: edge(ctx, "DEL", p.del), Check: edge(ctx, "CHECK", p.check), GC: edge(ctx, "GC", p.gc),
		Status: edge(ctx, "STATUS", p.status),
	}
}

// call is one verb: the configuration is read, and err what is wrong with it.
type call func(ctx context.Context, conf netconf.Config, args *skel.CmdArgs, err error) error

// edge is the one place where errors become results, where a call is stamped, and where a panic ends.
func edge(ctx context.Context, name string, verb call) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) (err error) {
		began := time.Now()
		conf, confErr := netconf.Parse(args.StdinData)
		log := newLog(name, conf, args)
		defer func() {
			if cause := recover(); cause != nil {
				err = fault.New(fault.IO, "panic: %v", cause)
				log.attrs = append(log.attrs, "stack", string(debug.Stack()))
			}
			log.write(err, time.Since(began))
			done := counters.Operation{Verb: name, Mode: string(conf.Mode)}
			if err != nil {
				f := fault.Of(err)
				done.Code = uint(f.Code)
				err = types.NewError(done.Code, f.Message, f.Details)
			}
			_ = counters.Add(conf.StateDir, done, time.Since(began)) // a node whose state directory is full still has to work
		}()
		var stampErr error
		if conf.Mode == netconf.ModePod {
			stampErr = journal.New(conf.StateDir).Stamp(began)
		}
		if err = verb(ctx, conf, args, confErr); err != nil {
			return errors.Join(err, stampErr)
		}
		return nil
	}
}

// logFile is the log file of the configuration. It is best effort: the runtime has every error as well.
type logFile struct {
	conf  netconf.Config
	attrs []any
}

// write appends a failure, and with level info or debug every call.
func (l logFile) write(failure error, took time.Duration) {
	if failure == nil && l.conf.LogLevel != "info" && l.conf.LogLevel != "debug" {
		return
	}
	l.with(func(logger *slog.Logger) {
		logger = logger.With("took", took.String())
		if failure != nil {
			logger.Error("Call failed", "err", failure)
		} else {
			logger.Info("Call done")
		}
	})
}

// warn appends what works and is hardly meant so.
func (l logFile) warn(texts ...string) {
	if len(texts) == 0 || l.conf.LogLevel == "error" {
		return
	}
	l.with(func(logger *slog.Logger) {
		for _, text := range texts {
			logger.Warn(text)
		}
	})
}

func (l logFile) with(write func(*slog.Logger)) {
	if l.conf.LogFile == "" {
		return
	}
	f, err := os.OpenFile(l.conf.LogFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	write(slog.New(slog.NewJSONHandler(f, nil)).With(l.attrs...))
	_ = f.Close()
}

func newLog(verb string, conf netconf.Config, args *skel.CmdArgs) logFile {
	return logFile{conf: conf, attrs: []any{"verb", verb, "container", args.ContainerID, "args", args.Args}}
}

// unsupported says that this version lacks a mode.
func unsupported(code fault.Code, mode netconf.Mode) error {
	return fault.New(code, "mode %q: not supported by this version; supported: %s", mode, netconf.Modes())
}

func (p Plugin) status(_ context.Context, conf netconf.Config, _ *skel.CmdArgs, err error) error {
	if err != nil {
		return err
	}
	if conf.Mode.IsLAN() {
		return p.statusLAN(conf)
	}
	if conf.Mode != netconf.ModePod {
		return unsupported(fault.Unavailable, conf.Mode)
	}
	if err := errors.Join(nl.TunWorks(), nat.Works()); err != nil {
		return fault.Wrap(fault.Unavailable, "VMs cannot get a network on this node", err)
	}
	return nil
}

func (p Plugin) gc(ctx context.Context, conf netconf.Config, _ *skel.CmdArgs, err error) error {
	if err != nil || conf.Mode != netconf.ModePod && !conf.Mode.IsLAN() {
		return err
	}
	store := journal.New(conf.StateDir)
	if conf.Mode.IsLAN() {
		store = journal.Networks(conf.StateDir)
	}
	return errors.Join(sweep(ctx, store, conf, func(e journal.Entry) bool {
		valid := slices.Contains(conf.Valid, netconf.Attachment{ContainerID: e.ContainerID, IfName: e.IfName})
		return e.Network == conf.Name && !valid || vanished(e)
	}), store.Tidy(time.Now()))
}

// Sweep undoes the attachments whose namespace is gone, of every network: containerd never calls GC.
func Sweep(ctx context.Context, conf netconf.Config) error {
	return errors.Join(sweep(ctx, journal.New(conf.StateDir), conf, vanished), sweep(ctx, journal.Networks(conf.StateDir), conf, vanished))
}

// sweep undoes the attachments that stale says yes to. An entry that cannot be read is kept and not reported here: one
// bad file must not fail every DEL of the node.
func sweep(ctx context.Context, store journal.Store, conf netconf.Config, stale func(journal.Entry) bool) error {
	entries, _ := store.All()
	var errs []error
	removed := 0
	for _, e := range entries {
		if !stale(e) {
			continue
		}
		errs = append(errs, locked(store, conf, e.ContainerID, e.IfName, func() error {
			now, err := store.Load(e.ContainerID, e.IfName) // another process may have been faster
			if err != nil || !stale(now) {
				return nil //nolint:nilerr // gone, or taken by an attachment of the same name
			}
			removed++
			return undo(ctx, store, conf, now)
		}))
	}
	if removed > 0 {
		errs = append(errs, counters.AddLeaks(conf.StateDir, removed))
	}
	return errors.Join(errs...)
}

func locked(store journal.Store, conf netconf.Config, container, ifname string, act func() error) (err error) {
	unlock, err := store.Lock(container, ifname, conf.LockTimeout)
	if errors.Is(err, journal.ErrBusy) {
		return fault.Wrap(fault.TryAgain, "container "+container, err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return act()
}

// podOf reads the Kubernetes part of CNI_ARGS: K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web.
func podOf(args string) (namespace, name, uid string) {
	for item := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(item, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		case "K8S_POD_UID":
			uid = value
		}
	}
	return namespace, name, uid
}

// print writes a result that is JSON already.
func (p Plugin) print(result []byte) error {
	if _, err := p.Out.Write(result); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}
