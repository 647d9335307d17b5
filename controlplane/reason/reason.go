// Package reason is the one typed error of the control plane that people may read.
//
// Rules return it, package api turns it into a gRPC status with a curfew.api.v1.Reason in the
// details. An error that is not a reason.Error never reaches a caller: api answers "internal
// error" with a reference and logs the rest.
package reason

import (
	"errors"
	"fmt"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Error says what was refused and why, in one line, and what to type next.
type Error struct {
	Code apiv1.Code
	// Text is what and why, one line, for people.
	Text string
	// Hint is what to type next; empty when there is nothing.
	Hint string
}

// Error is the text; the hint travels apart.
func (e *Error) Error() string { return e.Text }

// WithHint returns a copy of the error that says what to type next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// Of finds the reason inside err, through any wrapping.
func Of(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}

// Is says whether err carries a reason of this code.
func Is(err error, code apiv1.Code) bool {
	e, ok := Of(err)
	return ok && e.Code == code
}

// Invalid is bad input.
func Invalid(format string, args ...any) *Error {
	return newf(apiv1.Code_CODE_INVALID, format, args...)
}

// Denied is a call that the caller may not make.
func Denied(format string, args ...any) *Error {
	return newf(apiv1.Code_CODE_DENIED, format, args...)
}

// SignIn is a call without a session.
func SignIn(format string, args ...any) *Error {
	return newf(apiv1.Code_CODE_SIGN_IN, format, args...)
}

// NotFound is a name that stands for nothing.
func NotFound(format string, args ...any) *Error {
	return newf(apiv1.Code_CODE_NOT_FOUND, format, args...)
}

// Conflict is a call that was right a moment ago: the state moved on.
func Conflict(format string, args ...any) *Error {
	return newf(apiv1.Code_CODE_CONFLICT, format, args...)
}

// Limit is a quota or a size.
func Limit(format string, args ...any) *Error {
	return newf(apiv1.Code_CODE_LIMIT, format, args...)
}

func newf(code apiv1.Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}
