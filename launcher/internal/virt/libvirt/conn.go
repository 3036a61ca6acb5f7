// Package libvirt implements package virt with libvirt's QEMU driver, embedded in the calling process
// (https://libvirt.org/drvqemu.html#embedded-driver). It is the only importer of the binding.
//
// Build it with -tags libvirt_dlopen: libvirt.so is then opened by the first Open, so that the short-lived processes of
// the same binary (launcher ctl, launcher probe) never map it.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/klog/v2"
	"libvirt.org/go/libvirt"

	"podvirt.dev/launcher/internal/virt"
)

var (
	_ virt.Conn   = (*Conn)(nil)
	_ virt.Domain = (*Domain)(nil)
)

// qemuConf turns off everything of the driver that needs privilege or a second daemon: QEMU runs as the launcher's user
// in the launcher's cgroup and namespaces, and writes its log itself instead of through virtlogd.
const qemuConf = `stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
dynamic_ownership = 0
clear_emulator_capabilities = 0
max_core = 0
`

// Conn is an embedded QEMU driver.
type Conn struct {
	c         *libvirt.Connect
	events    *queue
	callbacks []int
	stop      context.CancelFunc
	wake      func() // ends the sleep of the event loop
	loop      sync.WaitGroup
}

// Open opens the driver whose files lie below root, an absolute path, and which runs in this process until Close. A second process that opens the same
// root after the first has died gets its running domains back. An event loop must run in the process: Open starts it.
func Open(ctx context.Context, root string) (*Conn, error) {
	if err := prepare(root); err != nil {
		return nil, fmt.Errorf("libvirt root: %w", err)
	}
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return nil, fmt.Errorf("libvirt event loop: %w", wrap(err))
	}
	loopCtx, stop := context.WithCancel(ctx)
	c := &Conn{events: newQueue(), stop: stop, wake: func() {}}
	c.runLoop(loopCtx)
	lv, err := libvirt.NewConnect("qemu:///embed?root=" + root)
	if err != nil {
		stop()
		c.wake()
		c.events.close()
		return nil, fmt.Errorf("open libvirt's QEMU driver: %w", wrap(err))
	}
	c.c = lv
	if err := c.register(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("libvirt events: %w", wrap(err))
	}
	return c, nil
}

// runLoop runs libvirt's event loop. The loop sleeps in poll(2) until something happens; Close wakes it by its timer.
func (c *Conn) runLoop(ctx context.Context) {
	timer, err := libvirt.EventAddTimeout(idleMillis, func(int) {})
	logger := klog.FromContext(ctx)
	c.loop.Go(func() {
		for ctx.Err() == nil {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				logger.Error(err, "libvirt event loop")
				return
			}
		}
		_ = libvirt.EventRemoveTimeout(timer)
	})
	if err != nil {
		logger.Error(err, "libvirt event timer")
		return
	}
	c.wake = func() { libvirt.EventUpdateTimeout(timer, 0) }
}

// idleMillis is how often the event loop looks up from its sleep for nothing.
const idleMillis = 60_000

// prepare writes qemu.conf and points everything that libvirt derives from the user's home directory, which is not
// writable in a VM Pod, at the root. libvirt reads these variables of the process itself.
func prepare(root string) error {
	etc, home := filepath.Join(root, "etc"), filepath.Join(root, "home")
	for _, dir := range []string{etc, home} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for name, value := range map[string]string{
		"HOME":                home,
		"XDG_CACHE_HOME":      filepath.Join(home, "cache"),
		"XDG_CONFIG_HOME":     filepath.Join(home, "config"),
		"XDG_RUNTIME_DIR":     filepath.Join(home, "run"),
		"LIBVIRT_LOG_OUTPUTS": "3:file:" + filepath.Join(root, "libvirt.log"),
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(etc, "qemu.conf"), []byte(qemuConf), 0o600)
}

// Define records the domain.
func (c *Conn) Define(xml string) (virt.Domain, error) {
	d, err := c.c.DomainDefineXMLFlags(xml, libvirt.DOMAIN_DEFINE_VALIDATE)
	if err != nil {
		return nil, wrap(err)
	}
	return &Domain{d: d, conn: c.c}, nil
}

// Lookup finds the domain by name. libvirt connects to the QEMU of an earlier process in a thread of its own. Until that
// is over the domain has the state of its last record, and when it fails there is no event; a query of the domain has its
// turn only afterwards.
func (c *Conn) Lookup(ctx context.Context, name string) (virt.Domain, error) {
	d, err := c.c.LookupDomainByName(name)
	if err != nil {
		return nil, wrap(err)
	}
	for waiting(d) {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("QEMU of domain %s does not answer: %w", name, err)
		}
	}
	return &Domain{d: d, conn: c.c}, nil
}

// waiting has the domain queried, which takes half a minute where something else has its turn for longer.
func waiting(d *libvirt.Domain) bool {
	_, err := d.MemoryStats(1, 0)
	var lv libvirt.Error
	return errors.As(err, &lv) && lv.Code == libvirt.ERR_OPERATION_TIMEOUT // every other error is one of the domain as it is now
}

// Events delivers the news of every domain in order.
func (c *Conn) Events() <-chan virt.Event { return c.events.out }

// Capabilities of the host as the driver sees it.
func (c *Conn) Capabilities() (string, error) {
	xml, err := c.c.GetCapabilities()
	return xml, wrap(err)
}

// DomainCapabilities of this machine's QEMU.
func (c *Conn) DomainCapabilities(arch, machine, accelerator string) (string, error) {
	xml, err := c.c.GetDomainCapabilities("", arch, machine, accelerator, 0)
	return xml, wrap(err)
}

// Version of libvirt and QEMU.
func (c *Conn) Version() (library, hypervisor uint32, err error) {
	library, err = c.c.GetLibVersion()
	if err != nil {
		return 0, 0, wrap(err)
	}
	hypervisor, err = c.c.GetVersion()
	return library, hypervisor, wrap(err)
}

// Close leaves the driver. QEMU processes go on.
func (c *Conn) Close() error {
	for _, id := range c.callbacks {
		_ = c.c.DomainEventDeregister(id)
	}
	_, err := c.c.Close()
	c.stop()
	c.wake()
	c.loop.Wait()
	c.events.close()
	return wrap(err)
}

// register subscribes to all events that virt.Event knows.
func (c *Conn) register() error {
	emit := c.events.put
	subscribe := []func() (int, error){
		func() (int, error) {
			return c.c.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
				if event, ok := lifecycleEvent(e.Event, e.Detail); ok {
					emit(event)
				}
			})
		},
		func() (int, error) {
			return c.c.DomainEventRebootRegister(nil, func(*libvirt.Connect, *libvirt.Domain) {
				emit(virt.Event{Kind: virt.EventReset})
			})
		},
		func() (int, error) {
			return c.c.DomainEventWatchdogRegister(nil, func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventWatchdog) {
				emit(virt.Event{Kind: virt.EventWatchdog, Detail: watchdogAction(e.Action)})
			})
		},
		func() (int, error) {
			return c.c.DomainEventIOErrorReasonRegister(nil,
				func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventIOErrorReason) {
					emit(virt.Event{Kind: virt.EventIOError, Device: e.DevAlias, Detail: e.Reason})
				})
		},
		func() (int, error) {
			return c.c.DomainEventAgentLifecycleRegister(nil,
				func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventAgentLifecycle) {
					kind := virt.EventAgentGone
					if e.State == libvirt.CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED {
						kind = virt.EventAgentConnected
					}
					emit(virt.Event{Kind: kind})
				})
		},
	}
	for _, f := range subscribe {
		id, err := f()
		if err != nil {
			return err
		}
		c.callbacks = append(c.callbacks, id)
	}
	return nil
}

func lifecycleEvent(event libvirt.DomainEventType, detail int) (virt.Event, bool) {
	e := virt.Event{Time: time.Now()}
	switch event {
	case libvirt.DOMAIN_EVENT_STARTED:
		e.Kind = virt.EventStarted
	case libvirt.DOMAIN_EVENT_SUSPENDED:
		e.Kind, e.Detail = virt.EventSuspended, suspendReason(libvirt.DomainEventSuspendedDetailType(detail))
	case libvirt.DOMAIN_EVENT_RESUMED:
		e.Kind = virt.EventResumed
	case libvirt.DOMAIN_EVENT_CRASHED:
		e.Kind = virt.EventPanicked
	case libvirt.DOMAIN_EVENT_SHUTDOWN:
		e.Kind = virt.EventShutdownByGuest
		if libvirt.DomainEventShutdownDetailType(detail) == libvirt.DOMAIN_EVENT_SHUTDOWN_HOST {
			e.Kind = virt.EventShutdownByHost
		}
	case libvirt.DOMAIN_EVENT_STOPPED:
		e.Kind, e.Reason = virt.EventStopped, stopReason(libvirt.DomainEventStoppedDetailType(detail))
	default:
		return virt.Event{}, false
	}
	return e, true
}

func suspendReason(d libvirt.DomainEventSuspendedDetailType) string {
	switch d {
	case libvirt.DOMAIN_EVENT_SUSPENDED_IOERROR:
		return "io-error"
	case libvirt.DOMAIN_EVENT_SUSPENDED_WATCHDOG:
		return "watchdog"
	default:
		return "user"
	}
}

func stopReason(d libvirt.DomainEventStoppedDetailType) virt.StopReason {
	switch d {
	case libvirt.DOMAIN_EVENT_STOPPED_SHUTDOWN:
		return virt.StopShutdown
	case libvirt.DOMAIN_EVENT_STOPPED_DESTROYED:
		return virt.StopDestroyed
	case libvirt.DOMAIN_EVENT_STOPPED_CRASHED:
		return virt.StopCrashed
	case libvirt.DOMAIN_EVENT_STOPPED_FAILED:
		return virt.StopFailed
	default:
		return virt.StopOther
	}
}

func watchdogAction(a libvirt.DomainEventWatchdogAction) string {
	switch a {
	case libvirt.DOMAIN_EVENT_WATCHDOG_PAUSE:
		return "pause"
	case libvirt.DOMAIN_EVENT_WATCHDOG_RESET:
		return "reset"
	case libvirt.DOMAIN_EVENT_WATCHDOG_POWEROFF:
		return "poweroff"
	case libvirt.DOMAIN_EVENT_WATCHDOG_SHUTDOWN:
		return "shutdown"
	case libvirt.DOMAIN_EVENT_WATCHDOG_INJECTNMI:
		return "inject-nmi"
	default:
		return "none"
	}
}
