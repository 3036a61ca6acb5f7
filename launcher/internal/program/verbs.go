package program

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/vmstatus"
	"podvirt.dev/launcher/internal/agent"
	"podvirt.dev/launcher/internal/control"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/keys"
	"podvirt.dev/launcher/internal/lifecycle"
	"podvirt.dev/launcher/internal/probe"
	"podvirt.dev/launcher/internal/virt"
)

// verbs are those of vm.md 2.7 that need no stream.
func (i *instance) verbs() map[string]control.Verb {
	m := i.machine
	return map[string]control.Verb{
		"status": i.status,
		"stats":  i.stats,
		"xml":    i.xml,
		"log": func(context.Context, url.Values) (control.Answer, error) {
			text, err := readLog()
			return control.Answer{Text: text}, err
		},
		"pause":    plain(m.Pause),
		"resume":   plain(m.Resume),
		"poweroff": plain(m.Poweroff),
		"reboot":   plain(m.Reboot),
		"reset":    plain(m.Reset),
		"restart":  plain(m.Restart),
		"start":    plain(m.Start),
		"nmi":      plain(m.NMI),
		"keys":     i.keys,
		"shutdown": i.shutdown,
		"agent":    i.agent,
		"freeze":   i.freeze,
		"thaw":     i.thaw,
		"probe":    i.probe,
		"update":   i.update,
	}
}

func plain(do func(context.Context) error) control.Verb {
	return func(ctx context.Context, _ url.Values) (control.Answer, error) { return control.Answer{}, do(ctx) }
}

func (i *instance) status(context.Context, url.Values) (control.Answer, error) {
	v := i.view()
	text := fmt.Sprintf("%s/%s: %s", v.Namespace, v.Name, v.State)
	if v.Reason != "" {
		text += " (" + v.Reason + ")"
	}
	if v.Started != nil && v.State != api.StateHeld {
		text += ", up " + time.Since(*v.Started).Round(time.Second).String()
	}
	return control.Of(text+"\n", v)
}

// view is the document of launcher ctl status -o json and of /status.
func (i *instance) view() vmstatus.Status {
	s := i.machine.Status()
	i.mu.Lock()
	defer i.mu.Unlock()
	v := vmstatus.Status{
		Name: i.vm.ID, Namespace: i.vm.Namespace, UUID: i.vm.UUID, State: s.State, Reason: s.Reason,
		Accelerator: string(i.vm.CPU.Accelerator), VCPUs: i.vm.VCPUs, MemoryMiB: int64(i.vm.Memory.Guest),
		OverheadMiB: int64(i.vm.Overhead), Launcher: cli.Version,
		Boots: s.Boots, GuestReboots: s.GuestReboots, RebootLoop: s.RebootLoop, WatchdogFired: s.WatchdogFired,
		AgentConnected: s.AgentConnected, QEMU: i.mark.PID, Warnings: i.vm.Warnings, StartSeconds: map[string]float64{},
	}
	if cpu := i.starter.cpu; cpu.Model != "" {
		v.CPU = &cpu
	}
	if !s.Started.IsZero() {
		v.Started = &s.Started
	}
	for step, took := range i.starter.steps {
		v.StartSeconds[step] = took.Seconds()
	}
	for device, n := range s.IOErrors {
		if v.IOErrors == nil {
			v.IOErrors = map[string]int{}
		}
		v.IOErrors[domain.DiskOfAlias(device, i.disks)] = n
	}
	for _, n := range i.network.list() {
		nic := vmstatus.NIC{Name: n.Name, Pod: n.Interface, MAC: n.MAC.String(), Binding: n.Binding}
		nic.Guest, nic.IPs, nic.Source = i.outside.addresses(n)
		if c, ok := i.network.cable(n.Name); ok {
			nic.Queues, nic.Link = c.Queues, linkDown
			if c.Up {
				nic.Link = linkUp
			}
		}
		v.NICs = append(v.NICs, nic)
	}
	if i.log != nil {
		v.ConsoleDropped = i.log.Dropped()
	}
	last := i.outside.guest.Last()
	v.AgentVersion, v.GuestOS = last.Version, last.OS.PrettyName
	v.Conditions = i.outside.conditions(v)
	v.Run, v.News = i.outside.news.List()
	return v
}

// statsView is what launcher ctl stats prints.
type statsView struct {
	virt.Stats
	Container *containerView // nil: its cgroup cannot be read
}

// containerView is the memory of the container, in bytes.
type containerView struct{ Limit, Usage, Headroom int64 }

func (i *instance) stats(context.Context, url.Values) (control.Answer, error) {
	d, err := i.machine.Domain()
	if err != nil {
		return control.Answer{}, err
	}
	stats, err := d.Stats()
	if err != nil {
		return control.Answer{}, err
	}
	view := statsView{Stats: stats}
	if c := cgroupMemory(); c.Limit > 0 {
		view.Container = &containerView{Limit: c.Limit, Usage: c.Usage, Headroom: c.Limit - c.Usage}
	}
	return control.Of("", view)
}

func (i *instance) xml(context.Context, url.Values) (control.Answer, error) {
	d, err := i.machine.Domain()
	if err != nil {
		return control.Answer{}, err
	}
	text, err := d.XML()
	return control.Answer{Text: text}, err
}

// keys presses keys of the guest's keyboard together.
func (i *instance) keys(_ context.Context, a url.Values) (control.Answer, error) {
	codes, err := keys.Parse(a.Get("what"))
	if err != nil {
		return control.Answer{}, fmt.Errorf("%w: %w", control.ErrUsage, err)
	}
	d, err := i.machine.Domain()
	if err != nil {
		return control.Answer{}, err
	}
	return control.Answer{}, d.PressKeys(codes)
}

func (i *instance) shutdown(ctx context.Context, a url.Values) (control.Answer, error) {
	timeout, err := duration(a, "timeout", 0)
	if err != nil {
		return control.Answer{}, err
	}
	return control.Answer{}, i.machine.Shutdown(ctx, timeout)
}

func duration(a url.Values, name string, otherwise time.Duration) (time.Duration, error) {
	text := a.Get(name)
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%w: %s=%s: not a duration; example: 90s", control.ErrUsage, name, text)
	}
	return d, nil
}

// transport carries requests to the guest agent through libvirt, which holds the channel.
type transport struct{ machine *lifecycle.Machine }

// Do sends one request.
func (t transport) Do(ctx context.Context, request []byte, limit int) ([]byte, error) {
	d, err := t.machine.Domain()
	if err != nil {
		return nil, err
	}
	answer, err := d.AgentCommand(ctx, string(request))
	if err != nil {
		return nil, err
	}
	if len(answer) > limit {
		return nil, fmt.Errorf("the guest agent answered with %d bytes; at most %d are read", len(answer), limit)
	}
	return []byte(answer), nil
}

// Close does nothing: the channel belongs to libvirt.
func (transport) Close() error { return nil }

// client asks the guest agent, unless the VM says that nobody does.
func (i *instance) client() (*agent.Client, error) {
	if i.vm.Agent != nil && !*i.vm.Agent {
		return nil, fmt.Errorf("%w: podvirt.dev/agent is off", virt.ErrWrongState)
	}
	return agent.New(transport{i.machine}, agent.DefaultTimeout), nil
}

// agent answers agent ping, os, fs, users, nics and time.
func (i *instance) agent(ctx context.Context, a url.Values) (control.Answer, error) {
	c, err := i.client()
	if err != nil {
		return control.Answer{}, err
	}
	what := a.Get("what")
	queries := map[string]func() (any, error){
		"ping":  func() (any, error) { return struct{}{}, c.Ping(ctx) },
		"os":    func() (any, error) { return c.OS(ctx) },
		"fs":    func() (any, error) { return c.FileSystems(ctx) },
		"users": func() (any, error) { return c.Users(ctx) },
		"nics":  func() (any, error) { return c.Interfaces(ctx) },
		"time":  func() (any, error) { return c.Timezone(ctx) },
	}
	query, ok := queries[what]
	if !ok {
		return control.Answer{}, fmt.Errorf("%w: agent %s: not one of fs, nics, os, ping, time, users", control.ErrUsage, what)
	}
	value, err := query()
	if err != nil {
		return control.Answer{}, err
	}
	return control.Of("", value)
}

func (i *instance) freeze(ctx context.Context, a url.Values) (control.Answer, error) {
	timeout, err := duration(a, "timeout", 10*time.Second)
	if err != nil {
		return control.Answer{}, err
	}
	c, err := i.client()
	if err != nil {
		return control.Answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	n, err := c.Freeze(ctx)
	return control.Answer{Text: fmt.Sprintf("%d file systems frozen\n", n)}, err
}

func (i *instance) thaw(ctx context.Context, _ url.Values) (control.Answer, error) {
	c, err := i.client()
	if err != nil {
		return control.Answer{}, err
	}
	n, err := c.Thaw(ctx)
	return control.Answer{Text: fmt.Sprintf("%d file systems thawed\n", n)}, err
}

// probe answers launcher probe; its words come as they were typed.
func (i *instance) probe(ctx context.Context, a url.Values) (control.Answer, error) {
	request, err := probe.Parse(a["what"])
	if err == nil {
		err = i.outside.Probe(ctx, request)
	}
	if errors.Is(err, probe.ErrUsage) {
		return control.Answer{}, fmt.Errorf("%w: %w", control.ErrUsage, err)
	}
	return control.Answer{}, err
}

// indent is how values are printed for people.
func indent(raw json.RawMessage) string {
	var value any
	if json.Unmarshal(raw, &value) != nil {
		return string(raw)
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return string(raw)
	}
	return string(text) + "\n"
}
