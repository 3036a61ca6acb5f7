package lifecycle

import (
	"time"

	"podvirt.dev/api"
)

// Policy says what follows what the guest does. It is read anew for every decision, since users edit the annotations
// of a running VM.
type Policy struct {
	Shutdown        []api.ShutdownMeans
	ShutdownTimeout time.Duration
	ShutdownThen    string
	OnPoweroff      api.OnPoweroff
	OnReboot        api.OnReboot
	OnCrash         api.OnCrash
}

// PolicyOf takes the policy out of a VM and fills in what is not given (vm.md 2.2, section Lifecycle).
func PolicyOf(l api.Lifecycle) Policy {
	p := Policy{
		Shutdown: l.Shutdown, ShutdownTimeout: l.ShutdownTimeout, ShutdownThen: l.ShutdownThen,
		OnPoweroff: l.OnPoweroff, OnReboot: l.OnReboot, OnCrash: l.OnCrash,
	}
	if len(p.Shutdown) == 0 {
		p.Shutdown = []api.ShutdownMeans{api.ShutdownAgent, api.ShutdownACPI}
	}
	if p.ShutdownTimeout <= 0 {
		p.ShutdownTimeout = api.UnknownShutdownTimeout * time.Second
	}
	if p.ShutdownThen == "" {
		p.ShutdownThen = api.ThenOff
	}
	if p.OnPoweroff == "" {
		p.OnPoweroff = api.PoweroffExit
	}
	if p.OnReboot == "" {
		p.OnReboot = api.RebootReset
	}
	if p.OnCrash == "" {
		p.OnCrash = api.CrashExit
	}
	return p
}
