package volume

import "errors"

// Errors that callers tell apart; the driver maps them to gRPC codes in one place.
var (
	ErrNotFound     = errors.New("no such volume")
	ErrIncompatible = errors.New("a volume of this name exists with other properties")
	ErrNoSpace      = errors.New("not enough room in the pool")
	ErrInvalid      = errors.New("invalid request")
	ErrTooLarge     = errors.New("size out of range")
	ErrDamaged      = errors.New("the volume is damaged")
	ErrNotReady     = errors.New("the pool is not ready")
	ErrShared       = errors.New("the pool is on the file system of the OS or of kubelet")
	ErrLocked       = errors.New("the pool is in use by another driver")
	ErrForeign      = errors.New("the pool belongs to another node")
)
