// Package control is the launcher's control socket and the client behind launcher ctl (vm.md 2.7). The protocol is HTTP
// over a unix socket: POST /v1/VERB with the arguments as a query, answered by a line of text and a JSON value; a
// console is an Upgrade of such a request to a byte stream. Whoever may open the socket may do everything: it belongs
// to the launcher's user, and what may be asked from outside is decided at pods/exec (vm.md 2.12).
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/virt"
)

// Socket is the path of the control socket in the container (vm.md 2.4).
const Socket = api.ControlSocket

const (
	prefix        = "/v1/"
	consolePath   = prefix + "console"
	upgradeToken  = "podvirt-stream"
	maxArguments  = 1 << 20 // bytes of a request
	maxAnswer     = 64 << 20
	answerContent = "application/json"
)

// ErrUsage says that an argument is missing or wrong.
var ErrUsage = errors.New("usage")

// Answer is what a verb returns: a text for people, a value for programs. Either may be empty.
type Answer struct {
	Text  string          `json:"text,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
	Error string          `json:"error,omitempty"`
	Code  int             `json:"code,omitempty"` // exit status of launcher ctl
}

// Of makes an answer of a text and a value.
func Of(text string, value any) (Answer, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Text: text, Value: raw}, nil
}

// Verb does one thing. Arguments are those of the command line, by name; repeated ones keep their order.
type Verb func(ctx context.Context, arguments url.Values) (Answer, error)

// exitCode maps an error to the exit status of launcher ctl: the one place that does.
func exitCode(err error) int {
	switch {
	case err == nil:
		return api.CtlDone
	case errors.Is(err, ErrUsage):
		return api.CtlUsage
	case errors.Is(err, virt.ErrWrongState):
		return api.CtlWrongState
	case errors.Is(err, virt.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return api.CtlTimedOut
	default:
		return api.CtlRefused
	}
}

// httpStatus is for programs that speak HTTP and do not look into the answer.
func httpStatus(code int) int {
	switch code {
	case api.CtlDone:
		return http.StatusOK
	case api.CtlUsage:
		return http.StatusBadRequest
	case api.CtlWrongState:
		return http.StatusConflict
	case api.CtlTimedOut:
		return http.StatusGatewayTimeout
	default:
		return http.StatusUnprocessableEntity
	}
}

// Refusal is an error that came over the socket.
type Refusal struct {
	Code int
	Text string
}

// Error returns the line of the launcher.
func (e *Refusal) Error() string { return e.Text }

// ErrNoLauncher says that nobody listens on the socket.
var ErrNoLauncher = fmt.Errorf("%w: the launcher does not listen yet, or no more", virt.ErrWrongState)
