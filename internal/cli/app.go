package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Env is everything of the process that the command uses.
type Env struct {
	// Args are the arguments without the program's name.
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	Now    func() time.Time
	// Version is what `curfew version` prints.
	Version string
}

// OSEnv is the real process.
func OSEnv(version string) Env {
	return Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Now: time.Now, Version: version,
	}
}

// app is one run of the command.
type app struct {
	env Env
	*printer
}

// Root is the whole command tree, for man pages and completions.
func Root() *cobra.Command {
	env := OSEnv("")
	return (&app{env: env, printer: newPrinter(env)}).root()
}

// Main runs one command line and returns the exit code. SIGINT and SIGTERM cancel it.
func Main(env Env) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, env)
}

func run(ctx context.Context, env Env) int {
	a := &app{env: env, printer: newPrinter(env)}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var exit exitStatus
	if errors.As(err, &exit) {
		return int(exit)
	}
	var f *failure
	if !errors.As(err, &f) {
		// What did not come out of a command of ours came out of cobra's parsing.
		f = usage("%w", err).hint("see: curfew help")
	}
	a.Error("%s", strings.ReplaceAll(f.text, "\n", "; "))
	for _, h := range f.hints {
		a.Hint("%s", h)
	}
	return f.code
}

// exitStatus ends the command with a code and without a word: ssh has said it all.
type exitStatus int

func (exitStatus) Error() string { return "exit status" }

// handler is a command's work; verb makes a cobra command run it.
type handler func(ctx context.Context, args []string) error

func verb(h handler) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := h(cmd.Context(), args)
		var f *failure
		var exit exitStatus
		if err == nil || errors.As(err, &f) || errors.As(err, &exit) {
			return err
		}
		return fail(exitFailed, "%w", err)
	}
}

// online is a command's work that needs a session.
type online func(ctx context.Context, c *client, args []string) error

func (a *app) verb(h online) func(*cobra.Command, []string) error {
	return verb(func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return errors.Join(h(ctx, c, args), c.close())
	})
}

// connect opens the configured session.
func (a *app) connect() (*client, error) {
	dir, err := configDir(a.env.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := loadConfig(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitSignIn, "not signed in: there is no configuration in %s", dir).
			hint("sign in: %s", cfg.loginCommandWithPin())
	}
	if err != nil {
		return nil, err
	}
	key, err := loadSessionKey(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitSignIn, "not signed in to %s", cfg.Server).
			hint("sign in: %s", cfg.loginCommand())
	}
	if err != nil {
		return nil, err
	}
	t, err := newTransport(cfg.pins(), key, a.env.Now)
	if err != nil {
		return nil, err
	}
	return dial(cfg, t)
}

// terminalInput is the keyboard, or nil: without a terminal nothing is asked.
func (a *app) terminalInput() *os.File {
	f, ok := a.env.Stdin.(*os.File)
	if !ok || !isTerminal(f) {
		return nil
	}
	return f
}
