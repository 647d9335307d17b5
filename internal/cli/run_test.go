package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// person runs commands in this process, as somebody of the cast.
type person struct {
	t    *testing.T
	home string
	name string
	f    *fake
}

func newCast(t *testing.T) (*fake, func(name string) person) {
	t.Helper()
	f, dir := startFake(t), t.TempDir()
	if err := cast(t, f, dir); err != nil {
		t.Fatal(err)
	}
	return f, func(name string) person {
		p := person{t: t, home: filepath.Join(dir, name), name: name, f: f}
		if _, complaint, code := p.run(t.Context(), "login", "--server", f.address, "--ca-pin",
			pinOf(f.ca)); code != exitOK {
			t.Fatalf("%s signs in: exit %d: %s", name, code, complaint)
		}
		return p
	}
}

func (p person) env(args []string) Env {
	vars := map[string]string{"HOME": p.home, "USER": p.name}
	return Env{
		Args: args, Getenv: func(name string) string { return vars[name] }, Now: time.Now,
		Version: "test", Stdin: strings.NewReader(""),
	}
}

func (p person) run(ctx context.Context, args ...string) (out, complaint string, code int) {
	p.t.Helper()
	var stdout, stderr bytes.Buffer
	env := p.env(args)
	env.Stdout, env.Stderr = &stdout, &stderr
	code = run(ctx, env)
	return stdout.String(), stderr.String(), code
}

// Ctrl-C ends the waiting and not the request, and says so.
func TestInterruptedWait(t *testing.T) {
	f, as := newCast(t)
	alice := as("alice")
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		defer interrupt()
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			f.mu.Lock()
			n, changed := len(f.requests), f.changed
			f.mu.Unlock()
			if n == 1 {
				return
			}
			select {
			case <-changed:
			case <-time.After(time.Second):
			}
		}
	}()
	out, complaint, code := alice.run(ctx, "request", "web1", "--role", "ops", "--for", "1h",
		"--reason", "r")
	if code != exitUsage || out != "" || !strings.Contains(complaint, "stays as it is") &&
		!strings.Contains(complaint, "cancelled") {
		t.Errorf("exit %d, out %q, complaint %q", code, out, complaint)
	}
	if got := f.requests[0].GetState(); got != pending {
		t.Errorf("the request is %v, want it pending", got)
	}
}

func TestTimedOutWait(t *testing.T) {
	_, as := newCast(t)
	_, complaint, code := as("alice").run(t.Context(), "request", "web1", "--role", "ops", "--for",
		"1h", "--reason", "r", "--timeout", "1s")
	if code != exitTimeout || !strings.Contains(complaint, "not there after 1s") {
		t.Errorf("exit %d: %s", code, complaint)
	}
}

// On a terminal, approve shows the terms and signs only after a yes.
func TestApproveAsks(t *testing.T) {
	f, as := newCast(t)
	alice, bob := as("alice"), as("bob")
	id, complaint, code := alice.run(t.Context(), "request", "web1", "--role", "root", "--for", "1h",
		"--reason", "r", "--no-wait")
	if code != exitOK {
		t.Fatal(complaint)
	}
	for _, c := range []struct {
		answer string
		code   int
		count  int
	}{{"\n", exitUsage, 0}, {"n\n", exitUsage, 0}, {"y\n", exitOK, 1}} {
		screen, code := bob.onTerminal(c.answer, "approve", strings.TrimSpace(id))
		if code != c.code || len(f.requests[0].GetDecisions()) != c.count {
			t.Errorf("answer %q: exit %d with %d decisions, want %d with %d:\n%s", c.answer, code,
				len(f.requests[0].GetDecisions()), c.code, c.count, screen)
		}
		if !strings.Contains(screen, "\x1b[1;31mROOT-EQUIVALENT") ||
			!strings.Contains(screen, "Sign these terms? [y/N]") {
			t.Errorf("the screen does not tell:\n%s", screen)
		}
	}
}

// onTerminal runs a command on a pty, types answer and returns the screen.
func (p person) onTerminal(answer string, args ...string) (screen string, code int) {
	p.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		p.t.Fatal(err)
	}
	var shown lockedBuffer
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			shown.Write(buf[:n])
			if err != nil {
				return // the terminal is gone
			}
		}
	})
	if _, err := master.WriteString(answer); err != nil {
		p.t.Fatal(err)
	}
	env := p.env(args)
	env.Stdin, env.Stdout, env.Stderr = slave, slave, slave
	code = run(p.t.Context(), env)
	if err := slave.Close(); err != nil {
		p.t.Fatal(err)
	}
	reader.Wait()
	if err := master.Close(); err != nil {
		p.t.Fatal(err)
	}
	return shown.String(), code
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A locked key file asks for its passphrase on a terminal, and never shows it.
func TestPassphrase(t *testing.T) {
	f, dir := startFake(t), t.TempDir()
	if err := cast(t, f, dir); err != nil {
		t.Fatal(err)
	}
	p := person{t: t, home: filepath.Join(dir, "alice"), name: "alice", f: f}
	public, locked := newLockedKey(t, "correct horse")
	f.addUser("alice", public, false)
	if err := os.WriteFile(filepath.Join(p.home, ".ssh", "id_ed25519"), locked, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"login", "--server", f.address, "--ca-pin", pinOf(f.ca)}
	screen, code := p.onTerminal("wrong\n", args...)
	if code != exitFailed {
		t.Errorf("a wrong passphrase: exit %d\n%s", code, screen)
	}
	screen, code = p.onTerminal("correct horse\n", args...)
	if code != exitOK || !strings.Contains(screen, "Passphrase for") ||
		!strings.Contains(screen, "Signed in at acme as alice") {
		t.Errorf("exit %d\n%s", code, screen)
	}
}

// A feed that broke comes back by itself, and the live line says so meanwhile.
func TestWaitSurvivesABrokenStream(t *testing.T) {
	f, as := newCast(t)
	alice, bob := as("alice"), as("bob")
	type result struct {
		out, complaint string
		code           int
	}
	done := make(chan result)
	go func() {
		out, complaint, code := alice.run(t.Context(), "request", "web1", "--role", "ops", "--for",
			"1h", "--reason", "r")
		done <- result{out, complaint, code}
	}()
	id := f.onlyRequest(t)
	f.breakStreams(t)
	if _, complaint, code := bob.run(t.Context(), "approve", id, "--yes"); code != exitOK {
		t.Fatal(complaint)
	}
	select {
	case r := <-done:
		if r.code != exitOK || !strings.Contains(r.out, "web1 applied") ||
			!strings.Contains(r.complaint, "out of reach, trying again") {
			t.Errorf("exit %d, out %q, complaint %q", r.code, r.out, r.complaint)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the wait did not come back")
	}
}
