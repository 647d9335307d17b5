package sudoers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Checker asks the host's own sudo, visudo and cvtsudoers. They are needed to apply a grant and never
// to take one away.
type Checker struct {
	// Sudo, Visudo and Cvtsudoers are absolute paths.
	Sudo, Visudo, Cvtsudoers string
	// Sudoers is the file that sudo reads, /etc/sudoers.
	Sudoers string
	// Timeout bounds each run.
	Timeout time.Duration
	// Known remembers sudo and visudo from one grant to the next; nil tries them each time.
	Known *Known
}

// maxOutput bounds what is read of a program's answer.
const maxOutput = 8 << 20

// broken is text that every honest visudo refuses.
const broken = "Curfew asks: is this (not sudoers\n"

// ErrTool means that visudo or cvtsudoers is missing, hangs or cannot be believed.
var ErrTool = errors.New("sudo's own check is not to be had")

// Present tells whether sudo is on this host at all; without it nobody has standing rules.
func (c Checker) Present() bool {
	_, err := os.Lstat(c.Sudoers)
	return err == nil
}

var genuine = regexp.MustCompile(`^Sudo version [0-9]+\.`)

// Genuine tells whether sudo is the program whose language the rules are in. sudo-rs reads the same
// files but knows neither NOTAFTER nor several of the settings, and skips what it does not know: a
// grant would be said to be applied and open nothing.
func (c Checker) Genuine(ctx context.Context) error {
	return c.Known.once(c.Sudo, func() error { return c.genuine(ctx) })
}

func (c Checker) genuine(ctx context.Context) error {
	// Without CAP_SETUID, as in the root half's unit, it says so and then fails to read its own rules.
	out, complaint, err := c.output(ctx, c.Sudo, nil, "-V")
	if err != nil && (!isExit(err) || len(out) == 0) {
		return fmt.Errorf("%w: %w", ErrTool, err)
	}
	if len(out) == 0 {
		out = complaint // sudo-rs tells its version there
	}
	if !genuine.Match(out) {
		return fmt.Errorf("%s calls itself %q: the rules of grants are for the sudo of sudo.ws, which "+
			"ends them by itself (NOTAFTER)", c.Sudo, firstLine(out))
	}
	return nil
}

// Syntax has visudo check the text. A visudo that also accepts what is no sudoers is not believed.
func (c Checker) Syntax(ctx context.Context, text []byte) error {
	var trap sync.WaitGroup
	var lies error
	trap.Go(func() { lies = c.Known.once(c.Visudo, func() error { return c.honest(ctx) }) })
	out, err := c.run(ctx, c.Visudo, text, "-c", "-f", "-")
	trap.Wait()
	switch {
	case lies != nil:
		return lies
	case err == nil:
		return nil
	case isExit(err):
		return fmt.Errorf("%w: visudo: %s", ErrRule, firstLine(out))
	}
	return fmt.Errorf("%w: %w", ErrTool, err)
}

// honest has visudo refuse what is no sudoers.
func (c Checker) honest(ctx context.Context) error {
	_, err := c.run(ctx, c.Visudo, []byte(broken), "-c", "-f", "-")
	switch {
	case err == nil:
		return fmt.Errorf("%w: %s accepts text that is no sudoers", ErrTool, c.Visudo)
	case !isExit(err):
		return fmt.Errorf("%w: %w", ErrTool, err)
	}
	return nil
}

// Policy reads the host's whole sudoers, with what it includes and aliases expanded.
func (c Checker) Policy(ctx context.Context) (Policy, error) {
	out, err := c.run(ctx, c.Cvtsudoers, nil, "-e", "-f", "json", c.Sudoers)
	if err != nil {
		return Policy{}, fmt.Errorf("%w: %w: %s", ErrTool, err, firstLine(out))
	}
	p, err := ParsePolicy(out)
	if err != nil {
		return Policy{}, fmt.Errorf("%w: %w", ErrTool, err)
	}
	return p, nil
}

// run returns what a program printed, its complaints first when it failed.
func (c Checker) run(
	ctx context.Context, program string, stdin []byte, args ...string,
) ([]byte, error) {
	out, complaint, err := c.output(ctx, program, stdin, args...)
	if err != nil {
		return append(complaint, out...), err
	}
	return out, nil
}

func (c Checker) output(
	ctx context.Context, program string, stdin []byte, args ...string,
) (out, complaint []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, nil, fmt.Errorf("%s did not answer within %v: %w", program, c.Timeout, ctx.Err())
	case err != nil:
		err = fmt.Errorf("running %s: %w", program, err)
	case stdout.cut:
		return nil, nil, fmt.Errorf("running %s: more than %d bytes of output", program, maxOutput)
	}
	return stdout.Bytes(), stderr.Bytes(), err
}

// limited keeps the first maxOutput bytes.
type limited struct {
	bytes.Buffer
	cut bool
}

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.Len(); len(p) > room {
		l.cut = true
		_, _ = l.Buffer.Write(p[:room]) // never fails
		return len(p), nil
	}
	return l.Buffer.Write(p)
}

func isExit(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Exited()
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line[:min(len(line), 300)]
}
