package cli

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Exit codes are part of the command's contract.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2 // bad input, or cancelled by the person
	exitDenied      = 3
	exitSignIn      = 4
	exitTimeout     = 5
	exitUnreachable = 6
)

const exitHelp = `Exit codes:
  0  done
  1  failed
  2  bad input, or cancelled
  3  denied
  4  sign in first (curfew login)
  5  timed out
  6  the control plane cannot be reached`

// failure is how a command ends badly: what and why for the person, what to type next, and the
// exit code for the script.
type failure struct {
	code  int
	text  string
	hints []string
	cause error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

func fail(code int, format string, args ...any) *failure {
	err := fmt.Errorf(format, args...)
	return &failure{code: code, text: err.Error(), cause: errors.Unwrap(err)}
}

func usage(format string, args ...any) *failure { return fail(exitUsage, format, args...) }

func (f *failure) hint(format string, args ...any) *failure {
	f.hints = append(f.hints, fmt.Sprintf(format, args...))
	return f
}

// codeOf maps the control plane's reason to an exit code; it is the only place that does.
func codeOf(code apiv1.Code) int {
	switch code {
	case apiv1.Code_CODE_INVALID:
		return exitUsage
	case apiv1.Code_CODE_DENIED:
		return exitDenied
	case apiv1.Code_CODE_SIGN_IN:
		return exitSignIn
	default:
		return exitFailed
	}
}

// explain turns the error of a call into a failure.
func (c *client) explain(err error) error {
	var known *failure
	if err == nil || errors.As(err, &known) {
		return err
	}
	if reason := reasonOf(err); reason != nil {
		f := &failure{code: codeOf(reason.GetCode()), text: reason.GetText(), cause: err}
		switch {
		case reason.GetHint() != "":
			f.hints = append(f.hints, reason.GetHint())
		case f.code == exitSignIn:
			return f.hint("sign in again: %s", c.cfg.loginCommand())
		}
		return f
	}
	dial, pin := c.transport.errors()
	switch code := status.Code(err); {
	case errors.Is(err, context.Canceled) || code == codes.Canceled:
		return &failure{code: exitUsage, text: "cancelled", cause: err}
	case pin != nil:
		return fail(exitFailed, "%s is not the control plane that is pinned here: %w",
			c.cfg.Server, pin).hint("if the control plane was set up anew, ask an admin for the new "+
			"pin (curfew admin trust show) and run: %s", c.cfg.loginCommandWithPin())
	case code == codes.Unavailable || code == codes.DeadlineExceeded ||
		errors.Is(err, context.DeadlineExceeded):
		why := status.Convert(err).Message()
		if dial != nil {
			why = dial.Error()
		}
		return fail(exitUnreachable, "the control plane at %s cannot be reached: %s",
			c.cfg.Server, why).hint("check the address and the network (VPN?), and there: " +
			"systemctl status curfew-controlplane")
	case code == codes.Unauthenticated:
		return fail(exitSignIn, "no session: %s", status.Convert(err).Message()).
			hint("sign in again: %s", c.cfg.loginCommand())
	case code == codes.PermissionDenied:
		return fail(exitDenied, "denied: %s", status.Convert(err).Message())
	case code == codes.InvalidArgument:
		return usage("refused: %s", status.Convert(err).Message())
	case code == codes.Unimplemented:
		return fail(exitFailed, "the control plane at %s is too old for this command", c.cfg.Server)
	default:
		return fail(exitFailed, "the control plane answered: %s", status.Convert(err).Message())
	}
}

func reasonOf(err error) *apiv1.Reason {
	st, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, detail := range st.Details() {
		if reason, ok := detail.(*apiv1.Reason); ok {
			return reason
		}
	}
	return nil
}
