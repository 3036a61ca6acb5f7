package agent

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"time"
)

// Info is what the agent says of itself.
type Info struct {
	Version  string
	Commands map[string]bool // name -> enabled
}

// OS is the operating system as the guest names it (guest-get-osinfo; fields of os-release).
type OS struct {
	ID, Name, PrettyName, Version, VersionID string
	KernelRelease, KernelVersion, Machine    string
}

// User is one log-in session group of the guest.
type User struct {
	Name, Domain string
	Login        time.Time
}

// FileSystem is one mounted file system with its figures in bytes; both are 0 where the agent does not say.
type FileSystem struct {
	Name, Mountpoint, Type string
	Used, Total            uint64
	Disks                  []string // device nodes in the guest
}

// Interface is one network interface of the guest. Addresses that are no addresses are left out.
type Interface struct {
	Name, MAC string
	Addresses []netip.Prefix
}

// Timezone of the guest.
type Timezone struct {
	Name   string
	Offset time.Duration // east of UTC
}

// ShutdownMode is what guest-shutdown is asked for.
type ShutdownMode string

// Modes of Shutdown.
const (
	Powerdown ShutdownMode = "powerdown"
	Reboot    ShutdownMode = "reboot"
	Halt      ShutdownMode = "halt"
)

// Ping asks whether the agent is alive.
func (c *Client) Ping(ctx context.Context) error { return c.call(ctx, "guest-ping", nil, nil) }

// Info asks for the agent's version and commands.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var answer struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := c.call(ctx, "guest-info", nil, &answer); err != nil {
		return Info{}, err
	}
	info := Info{Version: Clean(answer.Version, maxWord), Commands: make(map[string]bool)}
	for _, command := range bounded(answer.Commands) {
		info.Commands[Clean(command.Name, maxWord)] = command.Enabled
	}
	return info, nil
}

// OS asks for the operating system.
func (c *Client) OS(ctx context.Context) (OS, error) {
	var answer struct {
		ID            string `json:"id"`
		Name          string `json:"name"`
		PrettyName    string `json:"pretty-name"`
		Version       string `json:"version"`
		VersionID     string `json:"version-id"`
		KernelRelease string `json:"kernel-release"`
		KernelVersion string `json:"kernel-version"`
		Machine       string `json:"machine"`
	}
	if err := c.call(ctx, "guest-get-osinfo", nil, &answer); err != nil {
		return OS{}, err
	}
	return OS{
		ID: Clean(answer.ID, maxWord), Name: Clean(answer.Name, maxWord), PrettyName: Clean(answer.PrettyName, maxWord),
		Version: Clean(answer.Version, maxWord), VersionID: Clean(answer.VersionID, maxWord),
		KernelRelease: Clean(answer.KernelRelease, maxWord), KernelVersion: Clean(answer.KernelVersion, maxWord),
		Machine: Clean(answer.Machine, maxWord),
	}, nil
}

// Hostname asks for the guest's host name.
func (c *Client) Hostname(ctx context.Context) (string, error) {
	var answer struct {
		Name string `json:"host-name"`
	}
	err := c.call(ctx, "guest-get-host-name", nil, &answer)
	return Clean(answer.Name, maxWord), err
}

// Timezone asks for the guest's time zone.
func (c *Client) Timezone(ctx context.Context) (Timezone, error) {
	var answer struct {
		Zone   string `json:"zone"`
		Offset int64  `json:"offset"`
	}
	err := c.call(ctx, "guest-get-timezone", nil, &answer)
	if answer.Offset < -24*3600 || answer.Offset > 24*3600 {
		answer.Offset = 0
	}
	return Timezone{Name: Clean(answer.Zone, maxWord), Offset: time.Duration(answer.Offset) * time.Second}, err
}

// Users asks who is logged in.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	var answer []struct {
		User   string  `json:"user"`
		Domain string  `json:"domain"`
		Login  float64 `json:"login-time"`
	}
	if err := c.call(ctx, "guest-get-users", nil, &answer); err != nil {
		return nil, err
	}
	users := make([]User, 0, len(answer))
	for _, u := range bounded(answer) {
		user := User{Name: Clean(u.User, maxWord), Domain: Clean(u.Domain, maxWord)}
		if u.Login > 0 && u.Login < 1<<40 {
			user.Login = time.UnixMicro(int64(u.Login * 1e6)).UTC()
		}
		users = append(users, user)
	}
	return users, nil
}

// FileSystems asks for the mounted file systems.
func (c *Client) FileSystems(ctx context.Context) ([]FileSystem, error) {
	var answer []struct {
		Name       string `json:"name"`
		Mountpoint string `json:"mountpoint"`
		Type       string `json:"type"`
		Used       uint64 `json:"used-bytes"`
		Total      uint64 `json:"total-bytes"`
		Disk       []struct {
			Dev string `json:"dev"`
		} `json:"disk"`
	}
	if err := c.call(ctx, "guest-get-fsinfo", nil, &answer); err != nil {
		return nil, err
	}
	systems := make([]FileSystem, 0, len(answer))
	for _, f := range bounded(answer) {
		system := FileSystem{
			Name: Clean(f.Name, maxWord), Mountpoint: Clean(f.Mountpoint, maxText), Type: Clean(f.Type, maxWord),
			Used: f.Used, Total: f.Total,
		}
		for _, disk := range bounded(f.Disk) {
			if dev := Clean(disk.Dev, maxWord); dev != "" {
				system.Disks = append(system.Disks, dev)
			}
		}
		systems = append(systems, system)
	}
	return systems, nil
}

// Interfaces asks for the network interfaces and their addresses.
func (c *Client) Interfaces(ctx context.Context) ([]Interface, error) {
	var answer []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := c.call(ctx, "guest-network-get-interfaces", nil, &answer); err != nil {
		return nil, err
	}
	interfaces := make([]Interface, 0, len(answer))
	for _, i := range bounded(answer) {
		nic := Interface{Name: Clean(i.Name, maxWord), MAC: Clean(i.MAC, maxWord)}
		for _, a := range bounded(i.Addresses) {
			address, err := netip.ParseAddr(a.Address)
			if err != nil || a.Prefix < 0 || a.Prefix > address.BitLen() {
				continue
			}
			nic.Addresses = append(nic.Addresses, netip.PrefixFrom(address.WithZone(""), a.Prefix))
		}
		interfaces = append(interfaces, nic)
	}
	return interfaces, nil
}

// Shutdown asks the guest to power down, reboot or halt. The agent answers nothing when it obeys (the answer would
// race with the shutdown), so a timeout is success: what counts is the event that QEMU sends.
func (c *Client) Shutdown(ctx context.Context, mode ShutdownMode) error {
	err := c.call(ctx, "guest-shutdown", map[string]string{"mode": string(mode)}, nil)
	if isSilence(err) {
		return nil
	}
	return err
}

// SetTime sets the guest's clock.
func (c *Client) SetTime(ctx context.Context, now time.Time) error {
	return c.call(ctx, "guest-set-time", map[string]int64{"time": now.UnixNano()}, nil)
}

// Freeze stops writes to every file system of the guest and returns how many it froze. The caller must thaw.
func (c *Client) Freeze(ctx context.Context) (int, error) {
	var count int
	err := c.call(ctx, "guest-fsfreeze-freeze", nil, &count)
	return count, err
}

// Thaw ends a freeze and returns how many file systems were thawed; 0 when none was frozen.
func (c *Client) Thaw(ctx context.Context) (int, error) {
	var count int
	err := c.call(ctx, "guest-fsfreeze-thaw", nil, &count)
	return count, err
}

// Frozen reports whether the file systems are frozen.
func (c *Client) Frozen(ctx context.Context) (bool, error) {
	var state string
	err := c.call(ctx, "guest-fsfreeze-status", nil, &state)
	return state == "frozen", err
}

// ExecResult is how a command in the guest ended.
type ExecResult struct {
	ExitCode       int
	Signal         int // 0: it exited by itself
	Stdout, Stderr []byte
	Truncated      bool // the agent cut the output
}

// execPoll is the first pause between two looks at a running command; it doubles up to a second.
const execPoll = 10 * time.Millisecond

// Exec runs a command in the guest and waits for its end within ctx. Only the wait obeys ctx: a command that outlives
// it goes on in the guest, since the agent has no way to end it.
func (c *Client) Exec(ctx context.Context, command []string, stdin []byte) (ExecResult, error) {
	if len(command) == 0 {
		return ExecResult{}, fmt.Errorf("guest-exec: no command")
	}
	arguments := map[string]any{"path": command[0], "arg": command[1:], "capture-output": true}
	if len(stdin) > 0 {
		arguments["input-data"] = base64.StdEncoding.EncodeToString(stdin)
	}
	var started struct {
		PID int64 `json:"pid"`
	}
	if err := c.call(ctx, "guest-exec", arguments, &started); err != nil {
		return ExecResult{}, err
	}
	for pause := execPoll; ; pause = min(2*pause, time.Second) {
		select {
		case <-ctx.Done():
			return ExecResult{}, fmt.Errorf("guest-exec: %w: %w", ErrTimeout, ctx.Err())
		case <-time.After(pause):
		}
		result, exited, err := c.execStatus(ctx, started.PID)
		if err != nil || exited {
			return result, err
		}
	}
}

func (c *Client) execStatus(ctx context.Context, pid int64) (ExecResult, bool, error) {
	var answer struct {
		Exited       bool   `json:"exited"`
		ExitCode     int    `json:"exitcode"`
		Signal       int    `json:"signal"`
		Out          []byte `json:"out-data"` // base64, which encoding/json decodes
		Err          []byte `json:"err-data"`
		OutTruncated bool   `json:"out-truncated"`
		ErrTruncated bool   `json:"err-truncated"`
	}
	err := c.callLimited(ctx, "guest-exec-status", map[string]int64{"pid": pid}, &answer, maxExecAnswer)
	return ExecResult{
		ExitCode: answer.ExitCode, Signal: answer.Signal, Stdout: answer.Out, Stderr: answer.Err,
		Truncated: answer.OutTruncated || answer.ErrTruncated,
	}, answer.Exited, err
}
