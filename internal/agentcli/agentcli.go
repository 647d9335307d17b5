// Package agentcli is the command line of curfew-agent: the link half, and the few commands that an
// admin of a host types. The root half is a program of its own (internal/rootcli).
//
// Data goes to stdout, talk to stderr; an error says what, why and what to type next. The package
// holds no rules: it reads flags, builds the configuration of agent or agent/link and runs it.
package agentcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/logsink"
	"github.com/curfew-access/curfew/internal/rootcli"
	"github.com/curfew-access/curfew/internal/version"
)

// Exit codes, the same as of curfew.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitClone  = 3 // curfew-link.service does not try again
)

// program is where a package installs this program.
const program = "/usr/bin/curfew-agent"

// Where the halves keep what they have; the root half's places are agent's own.
const (
	linkDir     = "/var/lib/curfew-link"
	adminSocket = "/run/curfew/admin.sock"
)

// errUsage marks errors of the command line itself.
var errUsage = errors.New("usage")

// Main runs a command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "curfew-agent: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "curfew-agent: error: %v\n", err)
	if errors.Is(err, link.ErrClone) {
		return exitClone
	}
	return exitFailed
}

// Root is the whole command tree, for man pages.
func Root() *cobra.Command { return newRoot(os.Stdout, os.Stderr) }

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "curfew-agent",
		Short: "Just-in-time access on this host",
		Long: "curfew-agent makes a machine a Curfew host. Its root half (enforce) verifies grants, opens\n" +
			"access and takes it back; its link half (link) carries messages and has no privilege.\n" +
			"systemd runs both: systemctl status curfew-enforce curfew-link.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see %s --help", errUsage, err, c.CommandPath())
	})
	root.AddCommand(newRootHalf("enforce", "Run the root half (systemd does)", false),
		newLink(stderr), newJoin(stdout, stderr), newStatus(stdout), newDoctor(stdout),
		newEnforceOn(stdout, stderr), newEnforceOff(stdout, stderr),
		newFollowRollout(stdout, stderr),
		newBreakGlass(os.Stdin, stdout, stderr), newTrustCA(stdout),
		newRootHalf("purge", "End what an ended request left running (PID 1's timer does)", true),
		newVersion(stdout))
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s takes no argument %q", errUsage, c.CommandPath(), args[0])
	}
	return nil
}

// logFlags are the two flags of everything that logs.
type logFlags struct {
	json  bool
	level string
}

func (f *logFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.json, "log-json", false, "log as JSON")
	c.Flags().StringVar(&f.level, "log-level", "info", "trace, debug, info, warn or error")
}

// logger makes the logger of a daemon; whoever has it closes the sink.
func (f *logFlags) logger(name string, w io.Writer) (hclog.Logger, *logsink.Sink, error) {
	level := hclog.LevelFromString(f.level)
	if level == hclog.NoLevel {
		return nil, nil, fmt.Errorf("%w: unknown log level %q", errUsage, f.level)
	}
	log, sink := journal.New(hclog.LoggerOptions{
		Name: name, Level: level, JSONFormat: f.json,
		// journald knows the time.
		DisableTime: !f.json && os.Getenv("JOURNAL_STREAM") != "",
	}, filepath.Base(program), w)
	return log, sink, nil
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root; try: sudo " + program)
	}
	return nil
}

// newRootHalf makes a command that becomes the root half's own program: systemd runs that one, and who
// types `curfew-agent enforce` means it.
func newRootHalf(name, short string, hidden bool) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Hidden: hidden, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			err := syscall.Exec(rootcli.Program, append([]string{rootcli.Program, name}, args...),
				os.Environ())
			return fmt.Errorf("becoming %s: %w", rootcli.Program, err)
		},
	}
}

func newVersion(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, version.Version)
			return err
		},
	}
}
