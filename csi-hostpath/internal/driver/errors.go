package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podvirt.dev/csi-hostpath/internal/pool"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// Errors of the services; those of the packages below are in package volume and pool.
var (
	errInvalid   = errors.New("invalid request")
	errInUse     = errors.New("VolumeInUse")
	errBusy      = errors.New("not while the volume is in use")
	errNotStaged = errors.New("the volume is not staged there")
	errElsewhere = errors.New("not on this node")
	errClaim     = errors.New("the claim asks for what cannot be")
	errImport    = errors.New("the import is refused")
	errPending   = errors.New("another call for this volume is running")
	errToken     = errors.New("no such starting token")
)

// codeOf is the one place where errors become codes. The first match counts.
func codeOf(err error) codes.Code {
	for _, entry := range []struct {
		err  error
		code codes.Code
	}{
		{errPending, codes.Aborted},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		// Not InvalidArgument: the provisioner would let minutes pass before it looks at a claim that was corrected.
		{errImport, codes.FailedPrecondition},
		{errClaim, codes.FailedPrecondition},
		{errInvalid, codes.InvalidArgument},
		{volume.ErrInvalid, codes.InvalidArgument},
		{volume.ErrRejected, codes.InvalidArgument},
		{errToken, codes.Aborted},
		{volume.ErrTooLarge, codes.OutOfRange},
		{volume.ErrIncompatible, codes.AlreadyExists},
		// ResourceExhausted makes the provisioner give the claim back to the scheduler, which tries another node.
		{errElsewhere, codes.ResourceExhausted},
		{volume.ErrNoSpace, codes.ResourceExhausted},
		{pool.ErrNoPool, codes.ResourceExhausted},
		{volume.ErrNotFound, codes.NotFound},
		{errInUse, codes.FailedPrecondition},
		{errBusy, codes.FailedPrecondition},
		{errNotStaged, codes.FailedPrecondition},
		{volume.ErrDamaged, codes.FailedPrecondition},
		{volume.ErrShared, codes.Unavailable},
		{volume.ErrLocked, codes.Unavailable},
		{volume.ErrForeign, codes.Unavailable},
		{volume.ErrNotReady, codes.Unavailable},
	} {
		if errors.Is(err, entry.err) {
			return entry.code
		}
	}
	return codes.Internal
}

// mapErrors gives every error its code, unless it has one.
func mapErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	resp, err := handle(ctx, req)
	if err == nil {
		return resp, nil
	}
	if _, ok := status.FromError(err); ok {
		return resp, err
	}
	return resp, status.Error(codeOf(err), err.Error())
}
