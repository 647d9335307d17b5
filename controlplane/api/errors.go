package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// grpcCodes is the one mapping of reasons to gRPC codes.
var grpcCodes = map[apiv1.Code]codes.Code{
	apiv1.Code_CODE_INVALID:   codes.InvalidArgument,
	apiv1.Code_CODE_DENIED:    codes.PermissionDenied,
	apiv1.Code_CODE_SIGN_IN:   codes.Unauthenticated,
	apiv1.Code_CODE_NOT_FOUND: codes.NotFound,
	apiv1.Code_CODE_CONFLICT:  codes.FailedPrecondition,
	apiv1.Code_CODE_LIMIT:     codes.ResourceExhausted,
	apiv1.Code_CODE_INTERNAL:  codes.Internal,
}

// Fail is what crosses the wire of an error that its call met outside of this package.
func (s *Server) Fail(method string, err error) error { return s.status(method, err) }

// status is what crosses the wire of an error: a reason; a status that a handler made; or "internal
// error" with a reference, and the rest in the log alone.
func (s *Server) status(method string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return status.FromContextError(context.Canceled).Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	r, ok := reason.Of(err)
	if !ok {
		if _, made := status.FromError(err); made {
			return err
		}
		ref := make([]byte, 4)
		_, _ = rand.Read(ref)
		s.c.Log.Error("a call failed", "method", method, "ref", hex.EncodeToString(ref), "error", err)
		r = &reason.Error{
			Code: apiv1.Code_CODE_INTERNAL,
			Text: "internal error (ref " + hex.EncodeToString(ref) + ")",
			Hint: "an admin finds it by its ref in the journal of curfew-controlplane",
		}
	}
	text := grant.VisibleText(r.Text)
	st := status.New(grpcCodes[r.Code], text)
	with, err := st.WithDetails(&apiv1.Reason{Code: r.Code, Text: text, Hint: r.Hint})
	if err != nil {
		return st.Err()
	}
	return with.Err()
}
