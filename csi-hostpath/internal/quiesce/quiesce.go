// Package quiesce asks the launcher of a VM to freeze the guest's file systems and to let them go on (storage.md ST-030,
// vm.md 2.7). The launcher listens on a socket in a volume of its Pod, which belongs to the tenant: nothing that lies
// there is trusted, no link is followed, and whoever answers must be the launcher's user.
package quiesce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
)

// ErrNoAgent says that no guest could be frozen: no VM, no launcher that listens, or no guest agent.
var ErrNoAgent = errors.New("no guest agent")

// Guests finds launchers below the kubelet's directory.
type Guests struct {
	Pods string // directory of the Pods, /var/lib/kubelet/pods
}

const (
	// emptyDirs is where the kubelet keeps the emptyDir volumes of a Pod.
	emptyDirs = "volumes/kubernetes.io~empty-dir"
	// maxAnswer bounds what a launcher may say, in bytes.
	maxAnswer = 64 << 10
	// thawTimeout bounds how long a launcher may take to thaw.
	thawTimeout = 15 * time.Second
)

// Freeze freezes the guest of a Pod. The error wraps [ErrNoAgent] where there is nothing to freeze. thaw must be called;
// it may be called when Freeze failed, too, and does nothing then.
func (g Guests) Freeze(ctx context.Context, podUID string, timeout time.Duration) (thaw func(context.Context) error, err error) {
	nothing := func(context.Context) error { return nil }
	client, err := g.client(podUID)
	if err != nil {
		return nothing, err
	}
	thaw = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, thawTimeout)
		defer cancel()
		return call(ctx, client, "thaw", nil)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := call(ctx, client, "freeze", url.Values{"timeout": {timeout.String()}}); err != nil {
		// What the guest did is not known after a time-out: it must not stay frozen.
		return nothing, errors.Join(err, thaw(context.WithoutCancel(ctx)))
	}
	return thaw, nil
}

// client speaks to the launcher of a Pod.
func (g Guests) client(podUID string) (*http.Client, error) {
	if podUID == "" || podUID != filepath.Base(podUID) {
		return nil, fmt.Errorf("%w: the Pod is not known", ErrNoAgent)
	}
	volumes := filepath.Join(g.Pods, podUID, emptyDirs)
	entries, err := os.ReadDir(volumes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	for _, entry := range entries {
		socket, err := openSocket(filepath.Join(volumes, entry.Name()))
		if err != nil {
			continue // not the volume that is mounted at /run/podvirt
		}
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return connect(ctx, socket) }
		return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}, nil
	}
	return nil, fmt.Errorf("%w: no launcher listens", ErrNoAgent)
}

// openSocket finds the launcher's socket in a volume without following any link.
func openSocket(volume string) (*os.File, error) {
	dir, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(dir) }() // of a path only
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(dir, filepath.Base(api.ControlSocket), &how)
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.Join(fmt.Errorf("%s: not a socket", volume), err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "launcher"), nil
}

// connect opens the socket that was found, wherever its name points to by now.
func connect(ctx context.Context, socket *os.File) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", socket.Fd()))
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// checkPeer refuses whoever is not the launcher's user.
func checkPeer(conn net.Conn) error {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { peer, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, inner); err != nil {
		return err
	}
	if peer.Uid != api.LauncherUID {
		return fmt.Errorf("user %d answers, not the launcher", peer.Uid)
	}
	return nil
}

// call asks for one verb.
func call(ctx context.Context, client *http.Client, verb string, arguments url.Values) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://launcher/v1/"+verb, strings.NewReader(arguments.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := client.Do(request)
	if err != nil {
		if isTimeout(err) {
			return fmt.Errorf("%s: %w", verb, err)
		}
		return fmt.Errorf("%w: %s: %w", ErrNoAgent, verb, err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	var answer struct {
		Error string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&answer); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNoAgent, verb, err)
	}
	if response.StatusCode == http.StatusGatewayTimeout {
		return fmt.Errorf("%s: %w: %.200q", verb, context.DeadlineExceeded, answer.Error)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s: %.200q", ErrNoAgent, verb, answer.Error)
	}
	return nil
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
