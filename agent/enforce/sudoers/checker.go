package sudoers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Checker asks the host's own visudo and cvtsudoers. Both are needed to apply a grant and never to
// take one away.
type Checker struct {
	// Visudo and Cvtsudoers are absolute paths.
	Visudo, Cvtsudoers string
	// Sudoers is the file that sudo reads, /etc/sudoers.
	Sudoers string
	// Timeout bounds each run.
	Timeout time.Duration
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

// Syntax has visudo check the text. A visudo that also accepts what is no sudoers is not believed.
func (c Checker) Syntax(ctx context.Context, text []byte) error {
	_, err := c.run(ctx, c.Visudo, []byte(broken), "-c", "-f", "-")
	if err == nil {
		return fmt.Errorf("%w: %s accepts text that is no sudoers", ErrTool, c.Visudo)
	}
	if !isExit(err) {
		return fmt.Errorf("%w: %w", ErrTool, err)
	}
	out, err := c.run(ctx, c.Visudo, text, "-c", "-f", "-")
	switch {
	case err == nil:
		return nil
	case isExit(err):
		return fmt.Errorf("%w: visudo: %s", ErrRule, firstLine(out))
	}
	return fmt.Errorf("%w: %w", ErrTool, err)
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

func (c Checker) run(
	ctx context.Context, program string, stdin []byte, args ...string,
) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s did not answer within %v: %w", program, c.Timeout, ctx.Err())
	}
	if err != nil {
		return append(stderr.Bytes(), stdout.Bytes()...), fmt.Errorf("running %s: %w", program, err)
	}
	if stdout.cut {
		return nil, fmt.Errorf("running %s: more than %d bytes of output", program, maxOutput)
	}
	return stdout.Bytes(), nil
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
