// Package fault carries the error codes of network.md 2.9 from where something went wrong to the one place that
// prints it for the runtime.
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// Code is an error code of the CNI result.
type Code uint

// Codes of the CNI specification, and our own from 100.
const (
	Version     Code = 1
	Unsupported Code = 2 // a field, with key and value
	Container   Code = 3
	Environment Code = 4
	IO          Code = 5
	Decode      Code = 6
	Config      Code = 7
	Namespace   Code = 8
	TryAgain    Code = 11
	Unavailable Code = 50
	Annotation  Code = 100
	Binding     Code = 101
	Kernel      Code = 102
	MACConflict Code = 103
	Bridge      Code = 104
	Uplink      Code = 105 // or master
	VLAN        Code = 106
	Overlap     Code = 107
	Tap         Code = 108
	NAT         Code = 109
	Undo        Code = 110
	Limit       Code = 112
)

// Error is a failure with its code. Message is one line for people, Details hold the rest.
type Error struct {
	Code    Code
	Message string
	Details string
	cause   error
}

// New returns an error without a cause.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap gives err a code, unless it has one already; doing says what was being done. nil stays nil.
func Wrap(code Code, doing string, err error) error {
	if err == nil {
		return nil
	}
	if has, ok := errors.AsType[*Error](err); ok {
		code = has.Code
	}
	return &Error{Code: code, Message: oneLine(doing + ": " + err.Error()), cause: err}
}

// Recode returns err with another code: that of the question it answers.
func Recode(code Code, err error) error {
	f := Of(err)
	f.Code = code
	return f
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Of returns err as an Error; one without a code is an I/O failure.
func Of(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Message: oneLine(err.Error()), Details: e.Details, cause: err}
	}
	return &Error{Code: IO, Message: oneLine(err.Error()), cause: err}
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
