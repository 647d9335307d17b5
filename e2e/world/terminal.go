package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
)

// transcriptLimit bounds what a Terminal remembers; the oldest goes first.
const transcriptLimit = 1 << 20

// A Terminal is a program of a laptop's on a real terminal, 24 lines of 100 columns, and the hands
// of the person at it.
type Terminal struct {
	cmd   *exec.Cmd
	pty   *os.File
	ended chan struct{} // closed when the program's end is known
	err   error         // cmd.Wait's, valid after ended

	mu    sync.Mutex    // guards what follows
	text  []byte        // the transcript
	plain plain         // how it is made of what is written
	read  int           // up to where Expect has consumed it
	quiet bool          // no more will come
	more  chan struct{} // closed and replaced when text or quiet changes
}

// StartPTY starts a program like Cmd does, but on a terminal, which is its controlling one.
func (l *Laptop) StartPTY(ctx context.Context, argv ...string) (*Terminal, error) {
	cmd := l.Cmd(ctx, argv...)
	if cmd.Err != nil {
		return nil, cmd.Err
	}
	cmd.Env = append(cmd.Env, "TERM=xterm-256color") // the last one counts
	keyboard, tty, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("opening a terminal: %w", err)
	}
	defer tty.Close()
	// As login does: some programs open their terminal by its name.
	err = errors.Join(tty.Chown(l.uid, 5), pty.Setsize(keyboard, &pty.Winsize{Rows: 24, Cols: 100}))
	if err == nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr.Setctty = true
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s on a terminal: %w", argv[0], err),
			keyboard.Close())
	}
	t := &Terminal{
		cmd: cmd, pty: keyboard, ended: make(chan struct{}), more: make(chan struct{}),
	}
	go t.listen()
	go func() {
		t.err = cmd.Wait()
		close(t.ended)
	}()
	return t, nil
}

// listen collects what the program writes until the last one that has the terminal open is gone.
func (t *Terminal) listen() {
	chunk := make([]byte, 32<<10)
	for {
		n, err := t.pty.Read(chunk)
		t.mu.Lock()
		t.text = t.plain.write(t.text, chunk[:n])
		if over := len(t.text) - transcriptLimit; over > 0 {
			t.text = append(t.text[:0], t.text[over:]...)
			t.read = max(0, t.read-over)
		}
		t.quiet = err != nil
		close(t.more)
		t.more = make(chan struct{})
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Expect waits until a match of the regular expression appears in what the program wrote since the
// last match, and returns that text up to the match's end. Control sequences (colours, titles,
// moves of the cursor) are left out of the text, and lines end with "\n" alone. The error of a
// match that does not come shows the end of the transcript.
func (t *Terminal) Expect(ctx context.Context, expr string) (string, error) {
	re, err := regexp.Compile(expr)
	if err != nil {
		return "", err
	}
	for {
		t.mu.Lock()
		unread, quiet, more := t.text[t.read:], t.quiet, t.more
		if at := re.FindIndex(unread); at != nil {
			t.read += at[1]
			text := string(unread[:at[1]])
			t.mu.Unlock()
			return text, nil
		}
		t.mu.Unlock()
		if quiet {
			return "", fmt.Errorf("waiting for %q: %w; the terminal shows:\n%s", expr,
				io.ErrUnexpectedEOF, tail(t.Transcript(), 2<<10))
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for %q: %w; the terminal shows:\n%s", expr,
				context.Cause(ctx), tail(t.Transcript(), 2<<10))
		}
	}
}

// Send types text. A line ends with "\r" on a keyboard; "\n" is turned into it.
func (t *Terminal) Send(text string) error {
	if _, err := io.WriteString(t.pty, strings.ReplaceAll(text, "\n", "\r")); err != nil {
		return fmt.Errorf("typing: %w", err)
	}
	return nil
}

// Transcript is the text of all that the program wrote, or the last MiB of it.
func (t *Terminal) Transcript() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// Wait waits for the program's end and returns its exit status, -1 if a signal ended it.
func (t *Terminal) Wait(ctx context.Context) (exit int, err error) {
	select {
	case <-t.ended:
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for the program's end: %w", context.Cause(ctx))
	}
	var status *exec.ExitError
	if t.err != nil && !errors.As(t.err, &status) {
		return 0, t.err
	}
	return t.cmd.ProcessState.ExitCode(), nil
}

// Close hangs up: the program gets SIGHUP, as when the window of a terminal is closed, and is
// killed if that does not end it soon.
func (t *Terminal) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := t.pty.Close()
	if _, late := t.Wait(ctx); late != nil {
		t.cmd.Cancel()
		<-t.ended
	}
	return err
}
