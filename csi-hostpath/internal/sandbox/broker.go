package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Answers of the parent to a request for a connection; the text of a refusal follows.
const (
	answerConnected byte = iota
	answerForbidden
	answerFailed
)

// maxMessage bounds requests and answers in bytes.
const maxMessage = 1024

// Forbidden says why a connection may not be made. It does not help to try again.
type Forbidden string

// Error returns the reason.
func (f Forbidden) Error() string { return string(f) }

// Permanent tells package fetch that another attempt would end the same.
func (Forbidden) Permanent() bool { return true }

// Broker asks the parent for connections. It is the confined side.
type Broker struct {
	mu sync.Mutex
	fd int
}

// NewBroker uses a socket, usually [BrokerFD].
func NewBroker(fd int) *Broker { return &Broker{fd: fd} }

// Dial is for [net/http.Transport]: the address is a host name or an IP address, and a port. A refusal is [Forbidden].
func (b *Broker) Dial(_ context.Context, _, address string) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(address) > maxMessage {
		return nil, Forbidden("the name of the host is too long")
	}
	if err := unix.Sendmsg(b.fd, []byte(address), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return nil, fmt.Errorf("asking for a connection: %w", err)
	}
	data, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, controlLength, _, _, err := unix.Recvmsg(b.fd, data, control, unix.MSG_CMSG_CLOEXEC)
	if err == nil && n == 0 {
		err = errors.New("the parent is gone")
	}
	if err != nil {
		return nil, fmt.Errorf("asking for a connection: %w", err)
	}
	switch text := string(data[1:n]); data[0] {
	case answerConnected:
		return connection(control[:controlLength])
	case answerForbidden:
		return nil, Forbidden(text)
	default:
		return nil, errors.New(text)
	}
}

func connection(control []byte) (net.Conn, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("an answer without a connection: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("an answer without a connection: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "connection")
	defer file.Close()
	return net.FileConn(file)
}

// Serve answers the requests of a confined process until it closes its side or the socket is shut down. dial makes
// connections; its error is [Forbidden] where the address is not allowed.
func Serve(ctx context.Context, socket int, dial func(ctx context.Context, address string) (net.Conn, error)) error {
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(socket, unix.SHUT_RDWR) })
	defer stop()
	data := make([]byte, maxMessage+1)
	for {
		n, _, _, _, err := unix.Recvmsg(socket, data, nil, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n == 0:
			return err
		}
		if err := answer(ctx, socket, string(data[:n]), dial); err != nil {
			return err
		}
	}
}

func answer(ctx context.Context, socket int, address string, dial func(ctx context.Context, address string) (net.Conn, error)) error {
	conn, err := dial(ctx, address)
	if err != nil {
		kind := answerFailed
		if _, ok := errors.AsType[Forbidden](err); ok {
			kind = answerForbidden
		}
		text := err.Error()
		return unix.Sendmsg(socket, append([]byte{kind}, text[:min(len(text), maxMessage-1)]...), nil, nil, unix.MSG_NOSIGNAL)
	}
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("a connection of type %T cannot be passed on", conn)
	}
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Sendmsg(socket, []byte{answerConnected}, unix.UnixRights(int(file.Fd())), nil, unix.MSG_NOSIGNAL)
}
