// Package agent asks the QEMU guest agent: the program inside the guest that answers on the virtio channel
// org.qemu.guest_agent.0. Whatever it answers was written by the guest, so it is hostile: sizes are bounded, JSON is
// read strictly, and control characters never leave this package.
//
// Protocol: QEMU's docs/interop/qemu-ga-ref, one JSON object per line, with guest-sync-delimited to find the beginning
// of an answer after a timeout.
package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Errors of a call. They are wrapped: test with errors.Is.
var (
	// ErrNotConnected says that nobody listens at the channel, or that the agent in the guest does not answer.
	ErrNotConnected = errors.New("the guest agent is not connected")
	// ErrTimeout says that the agent took the request and did not answer in time.
	ErrTimeout = errors.New("the guest agent did not answer in time")
	// ErrAnswer says that the answer was no well-formed answer, or too large.
	ErrAnswer = errors.New("the guest agent gave no valid answer")
	// ErrDenied says that the VM's own annotation podvirt.dev/agent forbids the request.
	ErrDenied = errors.New("refused by podvirt.dev/agent")
)

// CommandError is the agent's own refusal of a command.
type CommandError struct {
	Class string // QEMU's error class: CommandNotFound, GenericError, …
	Desc  string // the agent's text, cleaned
}

// Error returns the agent's text.
func (e *CommandError) Error() string { return fmt.Sprintf("the guest agent refused: %s", e.Desc) }

// Unsupported reports whether this agent does not know the command at all, or has it disabled.
func (e *CommandError) Unsupported() bool { return e.Class == "CommandNotFound" }

// Limits of every call.
const (
	// DefaultTimeout is the patience with one command (spec VM-170).
	DefaultTimeout = 5 * time.Second
	// maxAnswer bounds an ordinary answer, in bytes.
	maxAnswer = 1 << 20
	// maxExecAnswer bounds the answer of guest-exec-status: 16 MiB of output each way in base64 (spec VM-172).
	maxExecAnswer = 48 << 20
)

// Transport carries one request to the agent and its answer back. Both are a single JSON value.
// Do obeys the context's deadline, returns at most limit bytes, and is called by one goroutine at a time.
type Transport interface {
	Do(ctx context.Context, request []byte, limit int) ([]byte, error)
	io.Closer
}

// Client asks one guest's agent. It is safe for concurrent use; requests are sent one after the other, as the agent
// itself works. The zero value is not usable: call New.
type Client struct {
	transport Transport
	timeout   time.Duration
	denied    map[string]bool

	mu sync.Mutex // one request at a time
}

// New returns a client over a transport. deny lists what podvirt.dev/agent forbids: exec, file, user, net.
// A timeout of zero is DefaultTimeout.
func New(transport Transport, timeout time.Duration, deny ...string) *Client {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	denied := make(map[string]bool, len(deny))
	for _, group := range deny {
		denied[group] = true
	}
	return &Client{transport: transport, timeout: timeout, denied: denied}
}

// Close ends the connection to the agent.
func (c *Client) Close() error { return c.transport.Close() }

type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

type response struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// call sends one command within the client's timeout and decodes its answer into out (nil: the answer is dropped).
func (c *Client) call(ctx context.Context, command string, arguments, out any) error {
	return c.callLimited(ctx, command, arguments, out, maxAnswer)
}

func (c *Client) callLimited(ctx context.Context, command string, arguments, out any, limit int) error {
	if group := groupOf(command); c.denied[group] {
		return fmt.Errorf("%s: %w: deny=%s", command, ErrDenied, group)
	}
	raw, err := json.Marshal(request{Execute: command, Arguments: arguments})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()

	c.mu.Lock()
	answer, err := c.transport.Do(ctx, raw, limit)
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := decode(answer, out); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// decode reads one whole answer: a JSON object with "return" or "error" and nothing after it.
func decode(answer []byte, out any) error {
	var r response
	decoder := json.NewDecoder(bytes.NewReader(answer))
	if err := decoder.Decode(&r); err != nil {
		return fmt.Errorf("%w: %s", ErrAnswer, Clean(err.Error(), maxText))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more than one JSON value", ErrAnswer)
	}
	switch {
	case r.Error != nil:
		return &CommandError{Class: Clean(r.Error.Class, maxWord), Desc: Clean(r.Error.Desc, maxText)}
	case r.Return == nil:
		return fmt.Errorf("%w: neither return nor error", ErrAnswer)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("%w: %s", ErrAnswer, Clean(err.Error(), maxText))
	}
	return nil
}

// groupOf names the group of podvirt.dev/agent deny= that a command belongs to ("" = none).
func groupOf(command string) string {
	switch {
	case strings.HasPrefix(command, "guest-exec"):
		return "exec"
	case strings.HasPrefix(command, "guest-file-"):
		return "file"
	case strings.HasPrefix(command, "guest-ssh-"), command == "guest-get-users", command == "guest-set-user-password":
		return "user"
	case strings.HasPrefix(command, "guest-network-"):
		return "net"
	}
	return ""
}

// isSilence reports whether a call failed only because no answer came.
func isSilence(err error) bool { return errors.Is(err, ErrTimeout) && !errors.Is(err, ErrNotConnected) }
